"""The operators of a model's layers, each as a function of the sequences worked on: what a view of the roofs places."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from hrm import operators
from hrm.dtypes import DType
from hrm.model import ModelSpec
from hrm.operators import Operator
from hrm.records import record
from hrm.schedule.task import Phase
from hrm.units import PositiveInt

__all__ = ["Counter", "Shape", "attention_counters", "weight_counters"]

Counter: TypeAlias = Callable[[float], Operator]
"""An operator as a function of the sequences worked on."""


@record
class Shape:
    """What a view is drawn for: the phase, N and mu in sequences, the tokens attended to, and the formats.

    `context_len` is what decode attends to, or the length of every prompt in prefill. `expert_dtype` is the format of
    the routed experts where it differs from `weight_dtype`.
    """

    phase: Phase
    batch_size: PositiveInt
    micro_batch_size: PositiveInt
    context_len: PositiveInt
    weight_dtype: DType
    kv_dtype: DType
    expert_dtype: DType | None = None

    @property
    def tokens_per_sequence(self) -> int:
        """Tokens that one pass works on in each sequence."""
        return self.context_len if self.phase is Phase.PREFILL else 1

    def fetches(self, operator: Operator) -> bool:
        """Say whether any of an operator's data is fetched: prefill itself makes the K and V that it attends to."""
        return bool(operator.weight_bytes) or self.phase is Phase.DECODE


def attention_counters(model: ModelSpec, shape: Shape) -> dict[str, Counter]:
    """Return attention by name: over the whole context, and over each sliding window narrower than it.

    In prefill K and V have the format of the activations: they are made there, not read from the cache.
    """
    limits = {kind.window for kind in model.layer_kinds}
    windows = {None if limit is None or limit >= shape.context_len else limit for limit in limits}
    whole_first = sorted(windows, key=lambda window: window or 0)
    return {f"attention_window_{at}" if at else "attention": _attention(model, shape, at) for at in whole_first}


def _attention(model: ModelSpec, shape: Shape, window: int | None) -> Counter:
    context = shape.context_len

    def count(sequences: float) -> Operator:
        if shape.phase is Phase.DECODE:
            return operators.attention_decode(model, sequences, context, shape.kv_dtype, window=window)
        return operators.attention_prefill(
            model, sequences, context, _causal_pairs(context, window), shape.weight_dtype
        )

    return count


def _causal_pairs(prompt_len: int, window: int | None) -> float:
    """Count the (query, key) pairs of one prompt: each token sees itself and what came before, within the window."""
    width = min(window or prompt_len, prompt_len)
    return width * (width + 1) / 2 + (prompt_len - width) * width


def weight_counters(model: ModelSpec, shape: Shape) -> dict[str, Counter]:
    """Return the operators that have weights, by name: those of every kind of layer the model has, and the head."""
    tokens, dtype = shape.tokens_per_sequence, shape.weight_dtype
    expert_dtype = shape.expert_dtype or dtype
    counters: dict[str, Counter] = {
        "qkv_proj": lambda sequences: operators.qkv_proj(model, sequences * tokens, dtype),
        "o_proj": lambda sequences: operators.o_proj(model, sequences * tokens, dtype),
    }
    if model.num_experts > 1:
        counters["router"] = lambda sequences: operators.router(model, sequences * tokens, dtype)
    if model.num_moe_layers:
        counters["experts"] = lambda sequences: operators.experts(model, sequences * tokens, expert_dtype)
    if model.shared_intermediate_size:
        counters["shared_experts"] = lambda sequences: operators.shared_experts(model, sequences * tokens, dtype)
    if model.dense_layers:
        counters["dense_ffn"] = lambda sequences: operators.dense_ffn(model, sequences * tokens, dtype)
    counters["lm_head"] = lambda sequences: operators.lm_head(model, sequences, dtype)
    return counters
