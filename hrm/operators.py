"""What each operator of a layer asks: FLOP, bytes, and the kernel calls that do it. Shapes in, counts out.

Notation: t tokens, s prompt tokens, c context tokens, h1 hidden size, h2 an expert's intermediate size, n_q and n_kv
heads of d. One multiply-add is 2 FLOP; `flop` counts matrix products only. Element-wise work is listed apart: 1 FLOP
for each addition, multiplication, division and exponential. Weights and KV cost what they are stored in, scales
included; activations are read once and written once in the format that goes with them (`DType.activation_dtype`).

Tokens, sequences and lengths are numbers or arrays with an entry per policy; counts come back alike.
"""

from __future__ import annotations

import numpy as np

from hrm.arrays import Reals
from hrm.ceilings import Kernel
from hrm.dtypes import DType
from hrm.model import ModelSpec
from hrm.records import record
from hrm.routing import UNIFORM, Routing

__all__ = [
    "Operator",
    "attention_decode",
    "attention_prefill",
    "dense_ffn",
    "elementwise",
    "experts",
    "lm_head",
    "o_proj",
    "qkv_proj",
    "router",
    "share_before",
    "shared_experts",
]

_NORM_FLOP, _RESIDUAL_FLOP, _ROPE_FLOP, _SILU_FLOP, _SOFTMAX_FLOP = 4, 1, 3, 4, 4
"""Element-wise FLOP per element. Norm: square, sum, scale, weight. RoPE: two products, their sum. SiLU: exponential,
addition, division, product with the up projection. Softmax: subtraction, exponential, sum, division."""


@record
class Operator:
    """One operator on one micro-batch: counts for the roofs, and `calls` of a kernel at (`size`, `rows`) for ceilings.

    `size` and `rows` mean what `hrm.ceilings.Kernel` says for the kernel. `dtype` is the format computed in.
    `elementwise_flop` (norms, RoPE, SiLU, softmax) is not part of `flop`: it is few FLOP, on bytes that are counted.
    """

    name: str
    kernel: Kernel
    dtype: DType
    flop: Reals
    elementwise_flop: Reals = 0.0
    weight_bytes: Reals = 0.0
    kv_bytes: Reals = 0.0
    activation_bytes: Reals = 0.0
    calls: Reals = 1.0
    size: Reals
    rows: Reals

    @property
    def bytes(self) -> Reals:
        """All bytes accessed at the level where the operator runs."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def fetched_bytes(self) -> Reals:
        """Bytes that lie at the slower level when the operator fetches its data: weights and KV, not activations."""
        return self.weight_bytes + self.kv_bytes

    @property
    def operational_intensity(self) -> Reals:
        """I_x^i: FLOP per byte accessed at the level where the operator runs (Def. 3.1); 0 where it accesses none."""
        return _ratio(self.flop, self.bytes, empty=0.0)

    @property
    def fetched_intensity(self) -> Reals:
        """I_x^j: FLOP per byte fetched from the slower level; infinite where it fetches none."""
        return _ratio(self.flop, self.fetched_bytes, empty=float("inf"))


def _ratio(flop: Reals, count: Reals, *, empty: float) -> Reals:
    if not isinstance(count, np.ndarray):
        return flop / count if count else empty
    found = np.full(np.broadcast_shapes(np.shape(flop), count.shape), empty)
    np.divide(flop, count, out=found, where=count != 0.0)
    return found


def _projection(name: str, tokens: Reals, matrices: tuple[tuple[int, int], ...], dtype: DType) -> Operator:
    """Count t x inputs @ inputs x outputs for each matrix: 2·t·in·out FLOP; weights in·out, activations t·(in + out).

    Kernel: one call on as many weight elements as the matrices have together.
    """
    elements = float(sum(inputs * outputs for inputs, outputs in matrices))
    activations = sum(inputs + outputs for inputs, outputs in matrices) if elements else 0
    return Operator(
        name=name,
        kernel=Kernel.PROJECTION,
        dtype=dtype,
        flop=2.0 * elements * tokens,
        weight_bytes=elements * dtype.bytes_per_element,
        activation_bytes=activations * dtype.activation_dtype.bytes_per_element * tokens,
        calls=1.0 if elements else 0.0,
        size=elements,
        rows=tokens,
    )


def qkv_proj(model: ModelSpec, tokens: Reals, dtype: DType) -> Operator:
    """Count the projections before attention: the joint Q, K, V matrix h1 x (n_q + 2·n_kv)·d, or the latent ones.

    Latent attention in decode folds the up-projection into queries and outputs, head by head, instead of expanding the
    latents: per token the same weights, and the same FLOP. Activations are those of the matrices as published.
    """
    return _projection("qkv_proj", tokens, model.attention_projections, dtype)


def o_proj(model: ModelSpec, tokens: Reals, dtype: DType) -> Operator:
    """Count the output projection: n_q value heads x h1."""
    return _projection("o_proj", tokens, (model.output_projection,), dtype)


def router(model: ModelSpec, tokens: Reals, dtype: DType) -> Operator:
    """Count the router: h1 x n_e (nothing in a dense model)."""
    outputs = model.num_experts if model.num_experts > 1 else 0
    return _projection("router", tokens, ((model.hidden_size, outputs),), dtype)


def lm_head(model: ModelSpec, sequences: Reals, dtype: DType) -> Operator:
    """Count the head, once per pass: h1 x vocabulary for each sequence (in prefill the last position only)."""
    return _projection("lm_head", sequences, ((model.hidden_size, model.vocab_size),), dtype)


def attention_decode(
    model: ModelSpec, sequences: Reals, context_len: Reals, dtype: DType, window: int | None = None
) -> Operator:
    """Count attention of one query token per sequence over the cache, which is kept in `dtype`.

    c is the context, or the window if that is less. QK^T and PV: 4·t·c·n_q·d FLOP; latent attention takes queries and
    gives outputs as wide as the latents, per head. Bytes: the cache of c tokens read once and one token appended, Q
    read and the output written.
    """
    context = context_len if window is None else np.minimum(context_len, window)
    attended = sequences * context
    heads, width = model.query_size + model.attended_size, float(model.cache_width)
    return Operator(
        name="attention",
        kernel=Kernel.ATTENTION_DECODE,
        dtype=dtype,
        flop=2.0 * heads * attended,
        elementwise_flop=float(_SOFTMAX_FLOP * model.num_query_heads) * attended,
        kv_bytes=width * dtype.bytes_per_element * (attended + sequences),
        activation_bytes=heads * dtype.activation_dtype.bytes_per_element * sequences,
        size=width * context,
        rows=sequences,
    )


def attention_prefill(model: ModelSpec, sequences: Reals, mean_len: Reals, mean_pairs: Reals, dtype: DType) -> Operator:
    """Count causal attention over whole prompts, in the activations' format beside weights of `dtype`.

    `mean_pairs` is the mean over prompts of the (query, key) pairs computed: s·(s+1)/2, fewer with a window. 4·n_q·d
    FLOP a pair. Tiled: Q, K, V are read and O written once, scores never leave the core. Latents are expanded to keys
    and values, which are activations then; the latents themselves count as KV. Kernel: as many equal prompts as there
    are sequences, of the length that has `mean_pairs` pairs without a window.
    """
    width, tokens, pairs = dtype.activation_dtype.bytes_per_element, sequences * mean_len, sequences * mean_pairs
    query, value = model.query_size, model.attended_size
    expanded = 0
    if model.latent is not None:
        query = model.num_query_heads * (model.latent.nope_head_dim + model.latent.rope_head_dim)
        value = model.num_query_heads * model.latent.value_head_dim
        expanded = query + value
    return Operator(
        name="attention",
        kernel=Kernel.ATTENTION_PREFILL,
        dtype=dtype.activation_dtype,
        flop=2.0 * (query + value) * pairs,
        elementwise_flop=float(_SOFTMAX_FLOP * model.num_query_heads) * pairs,
        kv_bytes=model.cache_width * width * tokens,
        activation_bytes=(query + value + expanded) * width * tokens,
        size=model.cache_width * (np.sqrt(8.0 * mean_pairs + 1.0) - 1.0) / 2.0,
        rows=sequences,
    )


def experts(model: ModelSpec, tokens: Reals, dtype: DType, routing: Routing = UNIFORM, share: Reals = 1.0) -> Operator:
    """Count the routed SwiGLU experts that lie in one place, `share` of n_e: 6·h1·h2 FLOP per routed token.

    Each place gets its share of the t·k routed tokens and of the distinct experts hit, whose weights are read whole.
    Activations: per routed token h1 in and out; the h2-wide intermediate of one expert stays in cache.
    """
    distinct = routing.distinct_experts(model, tokens)
    routed = float(model.experts_per_token) * tokens
    here, hit = share * routed, share * distinct
    size = float(model.hidden_size * model.intermediate_size)
    return Operator(
        name="experts",
        kernel=Kernel.EXPERT_FFN,
        dtype=dtype,
        flop=6.0 * size * here,
        elementwise_flop=float(_SILU_FLOP * model.intermediate_size) * here,
        weight_bytes=model.expert_parameters * dtype.bytes_per_element * hit,
        activation_bytes=2.0 * model.hidden_size * dtype.activation_dtype.bytes_per_element * here,
        calls=hit,
        size=size,
        # Without tokens nothing is hit, and the quotient must still be a number.
        rows=routed / np.maximum(distinct, 1e-300),
    )


def _ffn(name: str, model: ModelSpec, tokens: Reals, width: int, dtype: DType) -> Operator:
    """Count one SwiGLU FFN that every token passes: 6·t·h1·width FLOP, 3·h1·width weights; nothing at width 0."""
    size = float(model.hidden_size * width)
    hidden = 2.0 * model.hidden_size if width else 0.0
    return Operator(
        name=name,
        kernel=Kernel.EXPERT_FFN,
        dtype=dtype,
        flop=6.0 * size * tokens,
        elementwise_flop=float(_SILU_FLOP * width) * tokens,
        weight_bytes=3.0 * size * dtype.bytes_per_element,
        activation_bytes=hidden * dtype.activation_dtype.bytes_per_element * tokens,
        calls=1.0 if width else 0.0,
        size=size,
        rows=tokens,
    )


def shared_experts(model: ModelSpec, tokens: Reals, dtype: DType) -> Operator:
    """Count the experts that every token visits, as the one FFN that they are together."""
    return _ffn("shared_experts", model, tokens, model.shared_intermediate_size, dtype)


def dense_ffn(model: ModelSpec, tokens: Reals, dtype: DType) -> Operator:
    """Count the FFN of a layer without routed experts."""
    return _ffn("dense_ffn", model, tokens, model.dense_intermediate_size, dtype)


def share_before(model: ModelSpec) -> float:
    """Return the share of `elementwise` that comes before attention, by bytes: the first norm, what RoPE turns."""
    first = 2.0 * model.hidden_size + 2.0 * sum(_turned_and_inner(model))
    return first / (first + 8.0 * model.hidden_size)


def _turned_and_inner(model: ModelSpec) -> tuple[int, int]:
    """Return how many elements of a token RoPE turns, and how many have inner norms of latent attention."""
    heads, latent = model.num_query_heads, model.latent
    if latent is None:
        return (heads + model.num_kv_heads) * model.head_dim, 0
    return (heads + 1) * latent.rope_head_dim, latent.kv_lora_rank + (latent.q_lora_rank or 0)


def elementwise(model: ModelSpec, tokens: Reals, dtype: DType) -> Operator:
    """Count a layer's element-wise work beside attention and FFN: norms, RoPE, residual additions, router's softmax.

    Bytes: ten passes over the hidden states (two norms and two additions; a norm reads one and writes one, an addition
    reads two and writes one), two over what RoPE turns and over the compressed queries and latents that have norms of
    their own. The router's scores are too few to count.
    """
    hidden, normed = model.hidden_size, 2 * model.hidden_size
    turned, inner = _turned_and_inner(model)
    scores = model.num_experts if model.num_experts > 1 else 0
    flop = _NORM_FLOP * (normed + inner) + 2 * _RESIDUAL_FLOP * hidden + _ROPE_FLOP * turned + _SOFTMAX_FLOP * scores
    return Operator(
        name="elementwise",
        kernel=Kernel.ELEMENTWISE,
        dtype=dtype.activation_dtype,
        flop=0.0,
        elementwise_flop=float(flop) * tokens,
        activation_bytes=(10.0 * hidden + 2.0 * (turned + inner)) * dtype.activation_dtype.bytes_per_element * tokens,
        size=float(hidden),
        rows=tokens,
    )
