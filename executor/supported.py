"""What the engine runs of all that is predicted: refuse the rest in one line, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from hrm.dtypes import DType
from hrm.errors import ModelError, PolicyError
from hrm.model import ModelSpec
from hrm.policy import Policy

__all__ = ["check_model", "check_runnable"]

_FAMILIES = ("llama", "mixtral")
_DTYPES = (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16)


def check_runnable(model: ModelSpec, policy: Policy, max_context_len: int | None = None) -> None:
    """Refuse a model or a policy that is predicted but not run yet.

    `max_context_len` is the longest sequence of the job, in tokens; without it, the longest that the model takes.

    Raises
    ------
    HrmError
        With the first thing that the engine does not do.
    """
    check_model(model, max_context_len)
    for problem in _policy_problems(policy):
        raise PolicyError(f"the plan is predicted, not run yet: {problem}")


def check_model(model: ModelSpec, max_context_len: int | None = None) -> None:
    """Refuse a model that is predicted but not run yet.

    Raises
    ------
    HrmError
        With the first thing that the engine does not do.
    """
    for problem in _model_problems(model, max_context_len or model.max_position_embeddings):
        raise ModelError(
            f"{model.name}: is predicted, not run yet: {problem} (plain {' and '.join(_FAMILIES)} checkpoints are run)"
        )


def _model_problems(model: ModelSpec, max_context_len: int) -> Iterator[str]:
    window = model.sliding_window if model.windowed_layers else None
    stored = [dtype for dtype in (model.dtype, model.expert_dtype) if dtype not in (None, *_DTYPES)]
    problems = {
        f"model_type {model.family}": model.family not in _FAMILIES,
        "latent attention": model.latent is not None,
        f"a sliding window of {window} tokens in a context of {max_context_len}": (window or inf) < max_context_len,
        f"{len(model.dense_layers)} layers without experts": bool(model.dense_layers),
        "shared experts": model.shared_intermediate_size > 0,
        "biases or further norms": model.bias_parameters > 0 or model.expert_bias,
        "rotary embedding that is scaled, partial or not in all layers": not model.plain_rope,
        f"weights stored as {', '.join(map(str, stored))}": bool(stored),
    }
    return (problem for problem, found in problems.items() if found)


def _policy_problems(policy: Policy) -> Iterator[str]:
    if policy.expert_dtype not in (None, policy.weight_dtype):
        yield f"expert_dtype {policy.expert_dtype} beside weight_dtype {policy.weight_dtype} (plan again with one)"
    for name, dtype in (("weight_dtype", policy.weight_dtype), ("kv_dtype", policy.kv_dtype)):
        if dtype not in _DTYPES:
            yield f"{name} {dtype} (one of {', '.join(_DTYPES)} is run: plan again)"
