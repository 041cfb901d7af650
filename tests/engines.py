"""Tiny models as transformers saves them, the tokens it answers, and the engine run on them, for its tests."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from executor.engine import Engine, Generation
from executor.prompts import Prompt
from hrm.device.backend import Backend
from hrm.device.emulated import EmulatedBackend
from hrm.device.host import HostBackend
from hrm.dtypes import DType
from hrm.hardware import EmulatedSpec
from hrm.memory import ledger
from hrm.model import ModelSpec
from hrm.model_config import load_model
from hrm.policy import Policy, Processor, ScheduleName
from hrm.workload import Workload

GEN_LEN = 6
PROMPT_LENS = (3, 11, 1, 7, 5, 2, 9)
"""Seven ragged prompts: with micro-batches of two the last one holds one."""


@dataclass(frozen=True)
class TinyPlan:
    policy: Policy
    model: ModelSpec
    workload: Workload


SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
QWEN = {"moe_intermediate_size": 20, "num_experts": 4, "num_experts_per_tok": 2}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LATENT = {
    "num_key_value_heads": 6,
    "moe_intermediate_size": 20,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "mixtral": ("mixtral", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("qwen3_moe", QWEN | {"head_dim": 8, "norm_topk_prob": True}),
    "qwen3_moe-mixed": (
        "qwen3_moe",
        QWEN
        | {"head_dim": 12, "num_hidden_layers": 4, "mlp_only_layers": [0, 2], "attention_bias": True}
        | {"rope_parameters": YARN},
    ),
    "mixtral-window": (
        "mixtral",
        {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    ),
    "deepseek_v2": ("deepseek_v2", LATENT | {"q_lora_rank": None, "first_k_dense_replace": 1}),
    "deepseek_v2-grouped": (
        "deepseek_v2",
        LATENT
        | {"n_routed_experts": 6, "n_group": 3, "topk_group": 2, "topk_method": "group_limited_greedy"}
        | {
            "routed_scaling_factor": 2.0,
            "q_lora_rank": 20,
            "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.5},
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        LATENT
        | {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "q_lora_rank": 20, "first_k_dense_replace": 2}
        | {"num_hidden_layers": 4, "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "gpt_oss": (
        "gpt_oss",
        {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4, "num_hidden_layers": 4}
        | {"rope_parameters": YARN | {"truncate": False}, "swiglu_limit": 1.5},
    ),
}
"""Tiny models: a family of transformers, and what differs from `SIZES`."""


def tiny_model(kind: str, seed: int) -> Any:
    """Make a random model; biases and norms, which transformers starts alike, are drawn too."""
    family, changes = FAMILIES[kind]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(SIZES | changes))).eval()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dim() == 1 and name.startswith("model.layers") and kind not in ("llama", "mixtral"):
            tensor.data.add_(0.4 * torch.randn_like(tensor))
    return model


def prompts_for(model: Any, seed: int = 0) -> tuple[Prompt, ...]:
    generator = torch.Generator().manual_seed(seed)
    vocab = model.config.vocab_size
    drawn = [torch.randint(vocab, (length,), generator=generator).tolist() for length in PROMPT_LENS]
    return tuple(Prompt(id=str(index), tokens=tuple(tokens)) for index, tokens in enumerate(drawn))


def reference_tokens(model: Any, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """Greedy tokens of each prompt alone, the whole sequence computed again for every token."""
    answers = []
    threads = torch.get_num_threads()
    # Many tiny products: a second thread only waits for the first.
    torch.set_num_threads(1)
    with torch.inference_mode():
        for prompt in prompts:
            tokens = list(prompt.tokens)
            for _ in range(GEN_LEN):
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].float().argmax()))
            answers.append(tuple(tokens[len(prompt.tokens) :]))
    torch.set_num_threads(threads)
    return answers


def policy_of(**changes: Any) -> Policy:
    host = Policy(
        batch_size=7,
        micro_batch_size=2,
        attention_device=Processor.CPU,
        ffn_device=Processor.CPU,
        resident_experts=0,
        kv_on_gpu=0.0,
        schedule=ScheduleName.HOST,
        weight_dtype=DType.FLOAT32,
        kv_dtype=DType.FLOAT32,
    )
    return replace(host, **changes)


def gpu_policy(**changes: Any) -> Policy:
    attention = changes.get("attention_device", Processor.CPU)
    base = {
        "ffn_device": Processor.GPU,
        "schedule": ScheduleName.CGOPIPE,
        "kv_on_gpu": 1.0 if attention is Processor.GPU else 0.0,
    }
    return policy_of(**(base | changes))


def emulated(capacity_bytes: int) -> EmulatedBackend:
    spec = EmulatedSpec(name="tiny", memory_capacity_bytes=capacity_bytes, h2d_bytes_per_s=2e9, d2h_bytes_per_s=2e9)
    return EmulatedBackend(spec)


def plan_for(folder: Path, policy: Policy, gen_len: int = GEN_LEN) -> TinyPlan:
    workload = Workload.from_prompt_lens(PROMPT_LENS, gen_len)
    return TinyPlan(policy=policy, model=load_model(folder), workload=workload)


def run(folder: Path, policy: Policy, prompts: Sequence[Prompt], gen_len: int = GEN_LEN) -> Generation:
    """Run a policy; the device is just as large as its ledger says."""
    plan = plan_for(folder, policy, gen_len)
    on_gpu = policy.main_device is Processor.GPU
    held = ledger(policy, plan.model, plan.workload).gpu.total_bytes
    backend: Backend = emulated(held) if on_gpu else HostBackend(threads=1)
    try:
        return Engine(plan, folder, backend).generate(prompts)
    finally:
        backend.close()


def tokens_of(generation: Generation) -> list[tuple[int, ...]]:
    return [answer.tokens for answer in generation.completions]
