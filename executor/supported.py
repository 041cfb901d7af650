"""What the engine runs of all that is predicted: refuse the rest in one line, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from hrm.dtypes import DType
from hrm.errors import ModelError, PolicyError
from hrm.model import ModelSpec
from hrm.policy import Policy
from hrm.variants import QKNorm

__all__ = ["check_model", "check_runnable"]

_FAMILIES = ("deepseek_v2", "deepseek_v3", "gpt_oss", "kimi_k2", "llama", "mixtral", "olmoe", "qwen3_moe")
_DTYPES = (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16)


def check_runnable(model: ModelSpec, policy: Policy) -> None:
    """Refuse a model or a policy that is predicted but not run yet.

    Raises
    ------
    HrmError
        With the first thing that the engine does not do.
    """
    check_model(model)
    for problem in _policy_problems(policy):
        raise PolicyError(f"the plan is predicted, not run yet: {problem}")


def check_model(model: ModelSpec) -> None:
    """Refuse a model that is predicted but not run yet.

    Raises
    ------
    HrmError
        With the first thing that the engine does not do.
    """
    for problem in _model_problems(model):
        raise ModelError(
            f"{model.name}: is predicted, not run yet: {problem} (checkpoints of {', '.join(_FAMILIES)} are run)"
        )


def _model_problems(model: ModelSpec) -> Iterator[str]:
    readable = (None, *_DTYPES, DType.MXFP4 if model.family == "gpt_oss" else None)
    stored = [dtype for dtype in (model.dtype, model.expert_dtype) if dtype not in readable]
    problems = {
        f"model_type {model.family}": model.family not in _FAMILIES,
        "biases or further norms": model.bias_parameters != _known_biases(model),
        "clipped queries, keys and values": model.qkv_clip is not None,
        "rotary embedding that is scaled (but by YaRN), partial or not in all layers": not model.plain_rope,
        f"weights stored as {', '.join(map(str, stored))}": bool(stored),
    }
    return (problem for problem, found in problems.items() if found)


def _known_biases(model: ModelSpec) -> int:
    """Count the biases and norms of the whole model that the decoder knows."""
    if model.latent is not None:
        return model.num_layers * ((model.latent.q_lora_rank or 0) + model.latent.kv_lora_rank)
    query, kv, dim = model.query_size, model.kv_size, model.head_dim
    norms = {QKNorm.NONE: 0, QKNorm.HEAD: 2 * dim, QKNorm.ALL_HEADS: query + kv}[model.qk_norm]
    biases = model.qkv_bias * (query + 2 * kv) + model.output_bias * model.hidden_size
    sinks, routers = model.attention_sinks * model.num_query_heads, model.router.bias * model.num_experts
    return model.num_layers * (norms + biases + sinks) + model.num_moe_layers * routers


def _policy_problems(policy: Policy) -> Iterator[str]:
    if policy.expert_dtype not in (None, policy.weight_dtype):
        yield f"expert_dtype {policy.expert_dtype} beside weight_dtype {policy.weight_dtype} (give --weight-dtype)"
    for name, dtype in (("weight_dtype", policy.weight_dtype), ("kv_dtype", policy.kv_dtype)):
        if dtype not in _DTYPES:
            yield f"{name} {dtype} (one of {', '.join(_DTYPES)} is run: plan again)"
