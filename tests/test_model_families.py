"""Every family against transformers' own modules, built without memory, and against what was published."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hrm.model_config import bundled_models, from_hf_config, load_model, supported_families

HF_CONFIGS = Path(__file__).resolve().parents[2] / "shared" / "data" / "hf_configs"
BUNDLED = Path(__file__).resolve().parents[1] / "hrm" / "model_configs"
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
FEW = {"num_experts_per_tok": 2, "num_local_experts": 6}
QWEN = {"num_experts_per_tok": 2, "num_experts": 6, "moe_intermediate_size": 24}
DEEPSEEK = {"num_experts_per_tok": 2, "n_routed_experts": 6, "moe_intermediate_size": 24, "n_shared_experts": 2}
LATENT = DEEPSEEK | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
}
ERNIE = {"moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 24, "moe_num_shared_experts": 2}
CASES: list[tuple[str, dict[str, Any]]] = [
    (
        "dbrx",
        {
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4},
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 6},
        },
    ),
    ("deepseek_v2", LATENT | {"first_k_dense_replace": 1}),
    ("deepseek_v2", LATENT | {"first_k_dense_replace": 0, "q_lora_rank": None}),
    ("deepseek_v3", LATENT | {"first_k_dense_replace": 2, "n_group": 2, "topk_group": 1}),
    ("dots1", DEEPSEEK | {"first_k_dense_replace": 1, "head_dim": 8}),
    ("dots1", DEEPSEEK | {"first_k_dense_replace": 0, "head_dim": 12, "attention_bias": True}),
    ("ernie4_5", {"head_dim": 12}),
    ("ernie4_5_moe", ERNIE),
    ("ernie4_5_moe", ERNIE | {"moe_layer_start_index": 0, "moe_layer_end_index": 3, "moe_layer_interval": 2}),
    ("flex_olmo", FEW | {"num_experts": 6}),
    ("gemma", {"head_dim": 12}),
    ("gemma2", {"head_dim": 12, "sliding_window": 64}),
    ("gemma3_text", {"head_dim": 12, "sliding_window": 64}),
    ("glm4_moe", DEEPSEEK | {"first_k_dense_replace": 1, "use_qk_norm": True, "attention_bias": True, "head_dim": 12}),
    ("glm4_moe", DEEPSEEK | {"first_k_dense_replace": 2}),
    ("glm4_moe_lite", LATENT),
    ("gpt_oss", FEW | {"head_dim": 12}),
    ("granite", {"attention_bias": True, "mlp_bias": True}),
    ("granitemoe", FEW),
    ("granitemoeshared", FEW | {"shared_intermediate_size": 40}),
    ("hunyuan_v1_dense", {"head_dim": 12, "attention_bias": True}),
    ("hunyuan_v1_moe", {"head_dim": 12, "num_experts": 6, "moe_topk": 2}),
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12, "tie_word_embeddings": True}),
    ("llama4_text", FEW | {"head_dim": 12, "intermediate_size_mlp": 56}),
    ("llama4_text", FEW | {"head_dim": 12, "intermediate_size_mlp": 56, "interleave_moe_layer_step": 2}),
    ("llama4_text", FEW | {"head_dim": 12, "intermediate_size_mlp": 56, "moe_layers": [0, 3]}),
    ("minimax_m2", FEW | {"head_dim": 12}),
    ("ministral3", {"head_dim": 12}),
    ("mistral", {"head_dim": 12}),
    ("mixtral", FEW),
    ("mixtral", FEW | {"head_dim": 12, "tie_word_embeddings": True}),
    ("olmo2", {}),
    ("olmo3", {}),
    ("olmoe", {"num_experts_per_tok": 2, "num_experts": 6}),
    ("phi3", {}),
    ("phimoe", FEW | {"attention_bias": True, "lm_head_bias": True}),
    ("phimoe", FEW),
    ("qwen2", {}),
    ("qwen2_moe", QWEN | {"shared_expert_intermediate_size": 40}),
    ("qwen2_moe", QWEN | {"shared_expert_intermediate_size": 40, "decoder_sparse_step": 2, "qkv_bias": False}),
    ("qwen3", {"head_dim": 12}),
    ("qwen3_moe", QWEN),
    ("qwen3_moe", QWEN | {"head_dim": 12, "mlp_only_layers": [0, 3], "attention_bias": True}),
    ("seed_oss", {"head_dim": 12}),
    ("smollm3", {}),
]


ALIASES = {"glm4v_moe_text": "glm4_moe", "kimi_k2": "deepseek_v3", "qwen3_vl_moe_text": "qwen3_moe"}
"""Families that transformers has under another name, or only inside a larger model."""


def transformers_config(family, sizes):
    """Make a configuration of transformers' class for `family`."""
    from transformers import AutoConfig

    return AutoConfig.for_model(ALIASES.get(family, family), **sizes)


def tiny_sizes(family, changes):
    sizes = SIZES | changes
    if family != "dbrx":
        return sizes
    names = {
        "hidden_size": "d_model",
        "max_position_embeddings": "max_seq_len",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    }
    left_out = ("intermediate_size", "num_key_value_heads")
    return {names.get(key, key): value for key, value in sizes.items() if key not in left_out}


def parameters_of(config):
    """Count the parameters of transformers' model, whose tensors have shapes but no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_parameters_of_a_tiny_model_are_those_of_transformers(family, changes):
    """Also: every field that transformers writes for the family is either read or known to be harmless."""
    config = transformers_config(family, tiny_sizes(family, changes))

    spec = from_hf_config(json.loads(config.to_json_string(use_diff=False)), name="tiny", where="config.json")

    assert spec.total_parameters == parameters_of(config)


def test_every_family_is_held_against_transformers():
    assert {family for family, _ in CASES} | set(ALIASES) == set(supported_families())


def test_families_known_under_another_name_are_read_alike():
    for family, reference in ALIASES.items():
        changes = next(changes for name, changes in CASES if name == reference) | {"attention_bias": False}
        sizes = tiny_sizes(family, changes) | {"tie_word_embeddings": False}
        read, expected = (
            from_hf_config(sizes | {"model_type": name}, name="tiny", where="config.json")
            for name in (family, reference)
        )

        assert replace(read, family=reference) == expected


@pytest.mark.parametrize("name", bundled_models())
def test_parameters_of_a_published_model_are_those_of_transformers(name):
    config = json.loads((BUNDLED / f"{name}.json").read_text())
    config = config.get("text_config", config)
    family = config["model_type"]
    left_out = ("_source", "model_type", "quantization_config", "rope_scaling")
    sizes = {key: value for key, value in config.items() if key not in left_out}

    assert load_model(name).total_parameters == parameters_of(transformers_config(family, sizes))


PUBLISHED = {
    "dbrx": (132e9, 36e9, "databricks.com/blog/introducing-dbrx-new-state-art-open-llm"),
    "deepseek-v2": (236e9, 21e9, "arXiv 2405.04434"),
    "deepseek-v2-lite": (15.7e9, 2.4e9, "arXiv 2405.04434, appendix B"),
    "deepseek-v3": (671e9, 37e9, "arXiv 2412.19437"),
    "gpt-oss-120b": (116.83e9, 5.13e9, "arXiv 2508.10925, table 1"),
    "gpt-oss-20b": (20.91e9, 3.61e9, "arXiv 2508.10925, table 1"),
    "kimi-k2": (1.026e12, 32e9, "the sum of the tensors; arXiv 2507.20534 prints 1.04T and 32.6B"),
    "llama-3.1-8b": (8.03e9, 8.03e9, "arXiv 2407.21783; the model card's count of tensors"),
    "llama-4-scout": (107.77e9, 17e9, "the model card's 109B counts the vision encoder, left out here"),
    "minimax-m2": (228.7e9, None, "the model card's count of tensors"),
    "mixtral-8x22b": (140.6e9, 39e9, "mistral.ai/news/mixtral-8x22b"),
    "mixtral-8x7b": (46.7e9, 12.9e9, "arXiv 2401.04088; mistral.ai/news/mixtral-of-experts"),
    "olmoe-1b-7b": (6.92e9, 1.28e9, "arXiv 2409.02060, table 1"),
    "phi-3.5-moe": (41.9e9, 6.6e9, "arXiv 2404.14219 and the model card"),
    "phi-mini-moe": (7.6e9, 2.4e9, "arXiv 2506.18349"),
    "qwen3-235b-a22b": (235.1e9, 22e9, "arXiv 2505.09388; the model card"),
    "qwen3-30b-a3b": (30.5e9, 3.3e9, "arXiv 2505.09388; the model card"),
}


@pytest.mark.parametrize("name", bundled_models())
def test_totals_are_the_published_ones(name):
    """Totals within 0.5 % or half of the last digit printed; active ones within 2.5 %, for most are printed with two.

    Some publishers leave the token embedding out of the active ones: a token looks up one row of it.
    """
    total, active, _ = PUBLISHED[name]
    spec = load_model(name)
    embedding = spec.vocab_size * spec.hidden_size

    assert spec.total_parameters == pytest.approx(total, rel=0.005, abs=0.05e9)
    if active is not None:
        counts = (spec.active_parameters, spec.active_parameters - embedding)
        assert min(abs(count / active - 1) for count in counts) < 0.025


OTHERS: dict[str, tuple[float, dict[str, Any]]] = {
    "GLM-4.5-Air (arXiv 2508.06471)": (
        106e9,
        {
            "model_type": "glm4_moe",
            "attention_bias": True,
            "first_k_dense_replace": 1,
            "head_dim": 128,
            "hidden_size": 4096,
            "max_position_embeddings": 131072,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "num_attention_heads": 96,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 46,
            "num_key_value_heads": 8,
            "num_nextn_predict_layers": 1,
            "use_qk_norm": False,
            "vocab_size": 151552,
        },
    ),
    "Llama-4-Maverick (its model card)": (
        400e9,
        {
            "model_type": "llama4",
            "vision_config": {"model_type": "llama4_vision_model"},
            "text_config": {
                "model_type": "llama4_text",
                "head_dim": 128,
                "hidden_size": 5120,
                "intermediate_size": 8192,
                "intermediate_size_mlp": 16384,
                "max_position_embeddings": 1048576,
                "moe_layers": list(range(1, 48, 2)),
                "no_rope_layers": [],
                "num_attention_heads": 40,
                "num_experts_per_tok": 1,
                "num_hidden_layers": 48,
                "num_key_value_heads": 8,
                "num_local_experts": 128,
                "vocab_size": 202048,
            },
        },
    ),
    "Qwen1.5-MoE-A2.7B (its model card)": (
        14.3e9,
        {
            "model_type": "qwen2_moe",
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "max_position_embeddings": 8192,
            "moe_intermediate_size": 1408,
            "num_attention_heads": 16,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "num_hidden_layers": 24,
            "num_key_value_heads": 16,
            "shared_expert_intermediate_size": 5632,
            "vocab_size": 151936,
        },
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_totals_of_models_that_are_not_bundled(name):
    total, config = OTHERS[name]

    spec = from_hf_config(config, name=name, where="config.json")

    assert spec.total_parameters == pytest.approx(total, rel=0.01)


HELD = {
    "deepseek-v2-lite": "DeepSeek-V2-Lite",
    "deepseek-v3": "DeepSeek-V3",
    "gpt-oss-120b": "gpt-oss-120b",
    "gpt-oss-20b": "gpt-oss-20b",
    "kimi-k2": "Kimi-K2-Instruct",
    "llama-3.1-8b": "Meta-Llama-3.1-8B",
    "llama-4-scout": "Llama-4-Scout-17B-16E-Instruct",
    "mixtral-8x22b": "Mixtral-8x22B-v0.1",
    "mixtral-8x7b": "Mixtral-8x7B-v0.1",
    "phi-mini-moe": "Phi-mini-MoE-instruct",
    "qwen3-235b-a22b": "Qwen3-235B-A22B",
    "qwen3-30b-a3b": "Qwen3-30B-A3B",
}


@pytest.mark.parametrize("name", HELD)
def test_bundled_models_say_what_the_published_files_say(name):
    if not HF_CONFIGS.is_dir() and "CI" not in os.environ:
        pytest.skip(f"no {HF_CONFIGS}")

    published = load_model(HF_CONFIGS / f"{HELD[name]}.json")

    assert replace(load_model(name), name=published.name) == published
