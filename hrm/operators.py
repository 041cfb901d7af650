"""What each operator of a layer asks: FLOP, bytes, and the kernel calls that do it. Shapes in, counts out.

Notation: t tokens, s prompt tokens, c context tokens, h1 hidden size, h2 an expert's intermediate size, n_q and n_kv
heads of d. One multiply-add is 2 FLOP. Activations are counted in the weight dtype, read once and written
once; softmax, norms, SiLU and RoPE are memory work and their FLOP are not counted.
"""

from __future__ import annotations

from hrm.ceilings import Kernel
from hrm.dtypes import DType
from hrm.model import ModelSpec
from hrm.records import record
from hrm.routing import distinct_experts

__all__ = [
    "Operator",
    "attention_decode",
    "attention_prefill",
    "elementwise",
    "experts",
    "lm_head",
    "o_proj",
    "qkv_proj",
    "router",
]


@record
class Operator:
    """One operator on one micro-batch: counts for the roofs, and `calls` of a kernel at (`size`, `rows`) for ceilings.

    `size` and `rows` mean what `hrm.ceilings.Kernel` says for the kernel. `dtype` is the format computed in.
    """

    name: str
    kernel: Kernel
    dtype: DType
    flop: float
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0
    activation_bytes: float = 0.0
    calls: float = 1.0
    size: float
    rows: float

    @property
    def bytes(self) -> float:
        """All bytes accessed at the level where the operator runs."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def fetched_bytes(self) -> float:
        """Bytes that lie at the slower level when the operator fetches its data: weights and KV, not activations."""
        return self.weight_bytes + self.kv_bytes

    @property
    def operational_intensity(self) -> float:
        """I_x^i: FLOP per byte accessed at the level where the operator runs (Def. 3.1)."""
        return self.flop / self.bytes if self.bytes else 0.0

    @property
    def fetched_intensity(self) -> float:
        """I_x^j: FLOP per byte fetched from the slower level."""
        return self.flop / self.fetched_bytes if self.fetched_bytes else float("inf")


def _projection(name: str, tokens: float, inputs: int, outputs: int, dtype: DType) -> Operator:
    """Count t x inputs @ inputs x outputs: 2·t·in·out FLOP; weights in·out, activations t·(in + out)."""
    width = dtype.bytes_per_element
    return Operator(
        name=name,
        kernel=Kernel.PROJECTION,
        dtype=dtype,
        flop=2.0 * tokens * inputs * outputs,
        weight_bytes=inputs * outputs * width,
        activation_bytes=tokens * (inputs + outputs) * width,
        size=inputs * outputs,
        rows=tokens,
    )


def qkv_proj(model: ModelSpec, tokens: float, dtype: DType) -> Operator:
    """Count the joint Q, K, V projection: h1 x (n_q + 2·n_kv)·d."""
    return _projection("qkv_proj", tokens, model.hidden_size, model.query_size + 2 * model.kv_size, dtype)


def o_proj(model: ModelSpec, tokens: float, dtype: DType) -> Operator:
    """Count the output projection: n_q·d x h1."""
    return _projection("o_proj", tokens, model.query_size, model.hidden_size, dtype)


def router(model: ModelSpec, tokens: float, dtype: DType) -> Operator:
    """Count the router: h1 x n_e (nothing in a dense model)."""
    outputs = model.num_experts if model.num_experts > 1 else 0
    return _projection("router", tokens, model.hidden_size, outputs, dtype)


def lm_head(model: ModelSpec, sequences: float, dtype: DType) -> Operator:
    """Count the head, once per pass: h1 x vocabulary for each sequence (in prefill the last position only)."""
    return _projection("lm_head", sequences, model.hidden_size, model.vocab_size, dtype)


def attention_decode(model: ModelSpec, sequences: float, context_len: float, dtype: DType) -> Operator:
    """Count attention of one query token per sequence: QK^T and PV, 4·t·c·n_q·d FLOP.

    Bytes: K and V of the context read once (2·t·c·n_kv·d), the new K and V appended, Q read and the output written.
    """
    width = dtype.bytes_per_element
    return Operator(
        name="attention",
        kernel=Kernel.ATTENTION_DECODE,
        dtype=dtype,
        flop=4.0 * sequences * context_len * model.query_size,
        kv_bytes=2.0 * sequences * (context_len + 1) * model.kv_size * width,
        activation_bytes=2.0 * sequences * model.query_size * width,
        size=2.0 * context_len * model.kv_size,
        rows=sequences,
    )


def attention_prefill(
    model: ModelSpec, sequences: float, mean_square_len: float, mean_len: float, dtype: DType
) -> Operator:
    """Count causal attention over whole prompts: half of 4·s²·n_q·d FLOP per sequence, diagonal included.

    Causal s·(s+1)/2 of the s² pairs count. Tiled: Q, K, V are read and O written once, scores never leave the core.
    Takes the mean of s² beside the mean of s, for prompts of unequal length.
    """
    width = dtype.bytes_per_element
    pairs = sequences * (mean_square_len + mean_len) / 2.0
    return Operator(
        name="attention",
        kernel=Kernel.ATTENTION_PREFILL,
        dtype=dtype,
        flop=4.0 * pairs * model.query_size,
        kv_bytes=2.0 * sequences * mean_len * model.kv_size * width,
        activation_bytes=2.0 * sequences * mean_len * model.query_size * width,
        size=2.0 * mean_square_len / mean_len * model.kv_size,
        rows=sequences,
    )


def experts(model: ModelSpec, tokens: float, dtype: DType) -> Operator:
    """Count the SwiGLU experts: 6·t·k·h1·h2 FLOP; the weights of the distinct experts hit, 3·h1·h2 each.

    Activations: per routed token h1 in and out; the h2-wide intermediate of one expert stays in cache.
    """
    width = dtype.bytes_per_element
    hit = distinct_experts(model, tokens)
    routed = tokens * model.experts_per_token
    return Operator(
        name="experts",
        kernel=Kernel.EXPERT_FFN,
        dtype=dtype,
        flop=2.0 * routed * model.expert_parameters,
        weight_bytes=hit * model.expert_parameters * width,
        activation_bytes=routed * 2 * model.hidden_size * width,
        calls=hit,
        size=model.hidden_size * model.intermediate_size,
        rows=routed / hit,
    )


def elementwise(model: ModelSpec, tokens: float, dtype: DType) -> Operator:
    """Count a layer's element-wise work: two norms, RoPE, two residual additions, the router's softmax and top-k.

    Bytes: eight passes over the hidden states (each norm reads and writes, each addition reads two and writes one)
    and one over Q and K.
    """
    width = dtype.bytes_per_element
    return Operator(
        name="elementwise",
        kernel=Kernel.ELEMENTWISE,
        dtype=dtype,
        flop=0.0,
        activation_bytes=tokens * (10 * model.hidden_size + 2 * (model.query_size + model.kv_size)) * width,
        size=model.hidden_size,
        rows=tokens,
    )
