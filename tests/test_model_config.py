"""Reading Hugging Face configurations: layers of each kind, formats, what is refused, and where models are found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hrm.dtypes import DType
from hrm.errors import FileError, ModelError
from hrm.model import LayerKind
from hrm.model_config import bundled_models, from_hf_config, load_model, supported_families

COMMON = {
    "num_hidden_layers": 4,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
}
MIXTRAL = COMMON | {
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "torch_dtype": "float16",
}
LLAMA = COMMON | {"model_type": "llama"}
QWEN = COMMON | {
    "model_type": "qwen3_moe",
    "head_dim": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
}
LLAMA4 = COMMON | {
    "model_type": "llama4_text",
    "head_dim": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 40,
    "attention_chunk_size": 16,
}
DEEPSEEK = COMMON | {
    "model_type": "deepseek_v3",
    "n_group": 2,
    "topk_group": 1,
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": None,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}


def read(config=MIXTRAL, **changes):
    return from_hf_config(config | changes, name="tiny", where="config.json")


def without(config, *names):
    return {key: value for key, value in config.items() if key not in names}


def test_a_dense_model_is_one_expert_that_every_token_takes():
    spec = read(LLAMA)

    assert (spec.num_experts, spec.experts_per_token) == (1, 1)
    assert spec.active_parameters == spec.total_parameters


def test_missing_fields_take_the_defaults_that_are_rules():
    spec = read(without(LLAMA, "num_key_value_heads"))

    assert spec.num_kv_heads == spec.num_query_heads
    assert spec.head_dim * spec.num_query_heads == spec.hidden_size
    assert spec.dtype is DType.BFLOAT16
    assert (spec.rope_theta, spec.rms_norm_eps, spec.tie_word_embeddings) == (1e4, 1e-6, False)
    assert read().rope_theta == 1e6
    assert read(head_dim=8).head_dim == 8
    assert read(LLAMA, num_key_value_heads=None) == spec


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (MIXTRAL, "hidden_size"),
        (MIXTRAL, "num_key_value_heads"),
        (MIXTRAL, "num_local_experts"),
        (MIXTRAL, "num_experts_per_tok"),
        (MIXTRAL, "model_type"),
        (LLAMA, "vocab_size"),
        (LLAMA, "max_position_embeddings"),
        (QWEN, "moe_intermediate_size"),
        (LLAMA4, "head_dim"),
        (DEEPSEEK, "q_lora_rank"),
        (DEEPSEEK, "kv_lora_rank"),
        (DEEPSEEK, "first_k_dense_replace"),
        (DEEPSEEK, "n_shared_experts"),
    ],
)
def test_missing_sizes_are_named(config, name):
    with pytest.raises(ModelError, match=f"config.json: {name}: required field is missing"):
        read(without(config, name))


@pytest.mark.parametrize(
    ("changes", "plain"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, True),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0}}, True),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}, False),
        ({"rope_theta": 5e5, "rope_scaling": None}, True),
        ({"rope_theta": 5e5, "partial_rotary_factor": 0.5}, False),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5e5}, "sliding_attention": {"rope_theta": 1e4}}}, False),
    ],
)
def test_rotary_embedding_in_its_spellings(changes, plain):
    spec = read(LLAMA, **changes)

    assert (spec.rope_theta, spec.plain_rope) == (5e5, plain)


def test_a_window_that_no_position_outgrows_is_none():
    assert read(sliding_window=64).sliding_window is None
    assert read(sliding_window=63).layer_kinds == {LayerKind(moe=True, window=63): 4}
    assert read(sliding_window=None).layer_kinds == {LayerKind(moe=True, window=None): 4}


def test_mistral_has_a_window_unless_it_is_null():
    mistral = LLAMA | {"model_type": "mistral", "max_position_embeddings": 32768}

    assert read(mistral).sliding_window == 4096
    assert read(mistral, sliding_window=None).sliding_window is None


@pytest.mark.parametrize(
    ("family", "changes", "windowed"),
    [
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 3}, (3,)),
        ("qwen2", {"use_sliding_window": False, "max_window_layers": 3}, ()),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 0, "head_dim": 4}, (0, 1, 2, 3)),
        ("qwen2", {"use_sliding_window": True, "layer_types": ["sliding_attention"] + 3 * ["full_attention"]}, (0,)),
        ("gemma2", {"head_dim": 4}, (0, 2)),
        ("olmo3", {}, (0, 1, 2)),
    ],
)
def test_windowed_layers_of_dense_families(family, changes, windowed):
    assert read(LLAMA, model_type=family, sliding_window=8, **changes).windowed_layers == windowed


@pytest.mark.parametrize(
    ("changes", "windowed"),
    [
        ({}, (0, 2)),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention"]}, (1,)),
    ],
)
def test_windowed_layers_of_gpt_oss(changes, windowed):
    spec = read(model_type="gpt_oss", head_dim=4, sliding_window=8, **changes)

    assert (spec.windowed_layers, spec.sliding_window) == (windowed, 8)


def test_windowed_layers_of_qwen2_moe_and_qwen3_moe():
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}

    assert read(QWEN, **window).windowed_layers == (0, 1, 2, 3)
    assert read(QWEN, **window, model_type="qwen2_moe").windowed_layers == (0, 2)


@pytest.mark.parametrize(
    ("changes", "dense"),
    [
        ({}, ()),
        ({"interleave_moe_layer_step": 2}, (0, 2)),
        ({"moe_layers": [1]}, (0, 2, 3)),
    ],
)
def test_llama4_has_experts_in_some_layers_and_chunks_where_positions_rotate(changes, dense):
    spec = read(LLAMA4, **changes)

    assert spec.dense_layers == dense
    assert spec.dense_intermediate_size == (40 if dense else 0)
    assert spec.shared_intermediate_size == spec.intermediate_size == 24
    assert (spec.windowed_layers, spec.sliding_window) == ((0, 1, 2), 16)
    assert not spec.plain_rope
    assert read(LLAMA4, no_rope_layers=[0, 1, 0, 1]).windowed_layers == (1, 3)


@pytest.mark.parametrize(
    ("changes", "dense"),
    [
        ({"decoder_sparse_step": 2}, (0, 2)),
        ({"mlp_only_layers": [3]}, (3,)),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1]}, (0, 1, 2)),
    ],
)
def test_qwen_has_experts_in_each_nth_layer_save_those_listed(changes, dense):
    assert read(QWEN, **changes).dense_layers == dense


def test_deepseek_begins_with_dense_layers():
    assert read(DEEPSEEK, first_k_dense_replace=2).dense_layers == (0, 1)
    assert read(DEEPSEEK, first_k_dense_replace=1, moe_layer_freq=2).dense_layers == (0, 1, 3)
    assert read(DEEPSEEK, n_shared_experts=3).shared_intermediate_size == 24
    assert read(DEEPSEEK, n_shared_experts=None).shared_intermediate_size == 0


@pytest.mark.parametrize(
    ("quantization", "dtype", "expert_dtype"),
    [
        (None, DType.FLOAT16, None),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, DType.FLOAT16, DType.MXFP4),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, DType.FLOAT8, DType.FLOAT8),
        ({"quant_method": "fp8", "modules_to_not_convert": ["model.*.self_attn"]}, DType.FLOAT16, DType.FLOAT8),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, DType.INT4, DType.INT4),
        ({"quant_method": "awq", "bits": 4, "zero_point": True}, DType.INT4, DType.INT4),
    ],
)
def test_quantized_checkpoints(quantization, dtype, expert_dtype):
    spec = read(quantization_config=quantization)

    assert (spec.dtype, spec.expert_dtype) == (dtype, expert_dtype)


def test_the_language_model_of_a_multimodal_one_is_read():
    text = without(QWEN, "torch_dtype")
    whole = {"text_config": text, "vision_config": {"depth": 3}, "model_type": "qwen3_vl_moe", "image_token_id": 7}

    assert from_hf_config(whole, name="tiny", where="config.json") == read(QWEN)
    tied = from_hf_config(whole | {"tie_word_embeddings": True, "dtype": "float32"}, name="tiny", where="config.json")
    assert (tied.tie_word_embeddings, tied.dtype) == (True, DType.FLOAT32)
    unnamed = {"model_type": "llama4", "text_config": without(LLAMA4, "model_type")}
    assert from_hf_config(unnamed, name="tiny", where="config.json") == read(LLAMA4)


def test_errors_inside_a_multimodal_model_give_the_path():
    with pytest.raises(ModelError, match=r"^config.json: text_config.hidden_size: required field is missing"):
        read({"text_config": without(QWEN, "hidden_size")})
    with pytest.raises(ModelError, match=r"text_config.num_experts: 4 contradicts num_experts 8"):
        read({"text_config": QWEN, "num_experts": 8})


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        (MIXTRAL, {"hidden_size": "16"}, "hidden_size: expected a positive integer, got '16'"),
        (MIXTRAL, {"num_hidden_layers": 0}, "num_hidden_layers: expected a positive integer"),
        (MIXTRAL, {"num_hidden_layers": True}, "num_hidden_layers: expected a positive integer"),
        (MIXTRAL, {"rms_norm_eps": "small"}, "rms_norm_eps: expected a positive number"),
        (MIXTRAL, {"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false"),
        (MIXTRAL, {"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported"),
        (MIXTRAL, {"rope_scaling": {"type": "spiral"}}, "rope_scaling.type: 'spiral' is not supported"),
        (MIXTRAL, {"rope_parameters": {"rope_type": "spiral"}}, "rope_parameters.rope_type: 'spiral'"),
        (MIXTRAL, {"rope_scaling": 2.0}, "rope_scaling: expected a mapping"),
        (MIXTRAL, {"torch_dtype": "float8"}, "torch_dtype: 'float8' is not supported"),
        (MIXTRAL, {"text_config": 3}, "text_config: expected a mapping"),
        # Contradictions.
        (MIXTRAL, {"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide"),
        (LLAMA, {"hidden_size": 18}, "num_attention_heads: 4 does not divide hidden_size 18"),
        (MIXTRAL, {"num_experts_per_tok": 5}, "num_experts_per_tok: 5 exceeds num_local_experts 4"),
        (MIXTRAL, {"num_experts": 8}, "num_experts: 8 contradicts num_local_experts 4"),
        (MIXTRAL, {"layer_types": ["full_attention"]}, "layer_types: has 1 entries for num_hidden_layers 4"),
        (MIXTRAL, {"layer_types": ["sliding_attention"] * 4}, "layer_types: names sliding_attention, but sliding_win"),
        (DEEPSEEK, {"num_key_value_heads": 2}, "num_key_value_heads: differs from num_attention_heads 4"),
        (DEEPSEEK, {"first_k_dense_replace": 5}, "first_k_dense_replace: names layers beyond num_hidden_layers 4"),
        (DEEPSEEK, {"first_k_dense_replace": 4}, "first_k_dense_replace: 4 leaves no layer with experts"),
        (QWEN, {"mlp_only_layers": [7]}, "mlp_only_layers: names layers beyond"),
        (QWEN, {"mlp_only_layers": 1}, "mlp_only_layers: expected a list of int"),
        (LLAMA4, {"moe_layers": [9]}, "moe_layers: names layers beyond"),
        (LLAMA4, {"no_rope_layers": [1]}, "no_rope_layers: has 1 entries"),
        # What is not modelled.
        (MIXTRAL, {"layer_types": ["linear_attention"] * 4}, "layer_types: 'linear_attention' is not supported"),
        (MIXTRAL, {"mlp_bias": True}, "mlp_bias: True: not understood for model_type 'mixtral'"),
        (MIXTRAL, {"num_shared_experts": 1}, "num_shared_experts: 1: not understood"),
        (LLAMA, {"num_local_experts": 4}, "num_local_experts: 4: not understood for model_type 'llama'"),
        (LLAMA, {"moe_layer_ids": [1]}, "moe_layer_ids: [1]: not understood"),
        (LLAMA, {"mystery_width": 0.5}, "mystery_width: 0.5: not understood"),
        (DEEPSEEK, {"attention_bias": True}, "attention_bias: True: not understood"),
        (
            QWEN,
            {"quantization_config": {"quant_method": "compressed-tensors"}},
            "quantization_config.quant_method: 'com",
        ),
        (QWEN, {"quantization_config": {"quant_method": "gptq", "bits": 8}}, "quantization_config.bits: 8 is not"),
        (QWEN, {"quantization_config": {}}, "quantization_config.quant_method: required field is missing"),
    ],
)
def test_refuses_by_the_name_of_the_field(config, changes, said):
    with pytest.raises(ModelError) as caught:
        read(config, **changes)

    assert str(caught.value).startswith(f"config.json: {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "fields", "said"),
    [
        ("mixtrl", {}, "model_type: 'mixtrl' is not supported (nearest supported: mixtral"),
        ("qwen3_next", {"linear_num_value_heads": 2}, "linear_num_value_heads tells of linear attention"),
        ("qwen3_next", {}, "qwen3_moe"),
        ("jamba", {"mamba_d_state": 16}, "mamba_d_state tells of state-space layers"),
        ("deepseek_v32", {"index_topk": 8}, "index_topk tells of sparse attention with an indexer"),
        ("zzz", {}, "(supported: dbrx, deepseek_v2"),
        (7, {}, "model_type: 7 is not supported"),
    ],
)
def test_an_unknown_family_is_refused_with_the_nearest(family, fields, said):
    with pytest.raises(ModelError) as caught:
        read(model_type=family, **fields)

    assert said in str(caught.value)


def test_fields_that_are_off_or_about_other_things_pass():
    harmless = {
        "num_shared_experts": 0,
        "mystery": None,
        "use_mystery": False,
        "bos_token_id": 1,
        "attention_dropout": 0.1,
        "auto_map": {"AutoConfig": "configuration_other.OtherConfig"},
        "router_aux_loss_coef": 0.02,
    }

    assert read(**harmless) == read()


def test_loads_from_a_folder_and_from_a_file(tmp_path):
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MIXTRAL))

    assert load_model(folder) == load_model(folder / "config.json")
    assert load_model(folder).name == "some-model"


def test_code_beside_a_configuration_is_not_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL | {"auto_map": {"AutoConfig": "configuration.Config"}}))
    (tmp_path / "configuration.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")

    load_model(tmp_path)

    assert not (tmp_path / "ran").exists()


def test_an_unknown_name_lists_the_bundled_ones():
    with pytest.raises(FileError, match=r"no bundled model.*bundled: .*mixtral-8x7b"):
        load_model("mixtral-9x9b")


def test_bundled_models_say_where_they_are_from():
    folder = Path(__file__).resolve().parents[1] / "hrm" / "model_configs"

    for name in bundled_models():
        assert "config.json" in json.loads((folder / f"{name}.json").read_text())["_source"]
        assert load_model(name).family in supported_families()


def test_reading_needs_neither_torch_nor_transformers():
    code = (
        "import sys; from hrm.model_config import load_model; load_model('deepseek-v3');"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[1]

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)

    assert found.stdout.strip() == "[]"
