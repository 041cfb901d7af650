"""What the project knows about a model: dimensions, and the parameter counts that follow from them.

Family knowledge (key names, which layer is of which kind) lives in `hrm.model_config`; here are only numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from hrm.dtypes import DType
from hrm.records import record
from hrm.units import NonNegativeInt, Positive, PositiveInt
from hrm.variants import QKNorm, Router, Yarn

__all__ = ["LatentAttention", "LayerKind", "ModelSpec"]


class LayerKind(NamedTuple):
    """What distinguishes the layers of one model: layers of a kind cost the same.

    `moe` says whether the layer has the routed experts (else a dense FFN); `window` is the most tokens its attention
    looks back over, None for all.
    """

    moe: bool
    window: int | None


@record
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): one compressed K and V per token, for all heads.

    A token's cache is `kv_lora_rank` + `rope_head_dim` elements. Queries come through a `q_lora_rank` bottleneck, or
    straight from the hidden state where it is None. Each head has a query of `nope_head_dim` + `rope_head_dim`
    elements and a value of `value_head_dim`.
    """

    q_lora_rank: PositiveInt | None = None
    kv_lora_rank: PositiveInt
    nope_head_dim: PositiveInt
    rope_head_dim: PositiveInt
    value_head_dim: PositiveInt


@record
class ModelSpec:
    """A decoder: attention, then `num_experts` SwiGLU experts or, in `dense_layers`, one dense FFN.

    A dense model is the degenerate case `num_experts = experts_per_token = 1`: its FFN is the one expert.
    `shared_intermediate_size` is the joint width of the experts that every token visits (0: none).
    `sliding_window` holds in `windowed_layers`. `expert_dtype` is the format in which the published checkpoint keeps
    the routed experts where that is narrower than `dtype`.
    """

    name: str
    family: str
    num_layers: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_query_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    num_experts: PositiveInt
    experts_per_token: PositiveInt
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt
    rms_norm_eps: Positive = 1e-5
    rope_theta: Positive = 1e4
    plain_rope: bool = True
    """Whether positions enter by rotating all of each head in every layer: unscaled, or as `yarn` says.

    Latent attention has a part of each head for it.
    """
    yarn: Yarn | None = None
    tie_word_embeddings: bool = False
    dtype: DType = DType.BFLOAT16
    expert_dtype: DType | None = None
    latent: LatentAttention | None = None
    sliding_window: PositiveInt | None = None
    windowed_layers: tuple[NonNegativeInt, ...] = ()
    dense_layers: tuple[NonNegativeInt, ...] = ()
    dense_intermediate_size: NonNegativeInt = 0
    shared_intermediate_size: NonNegativeInt = 0
    bias_parameters: NonNegativeInt = 0
    """Biases, sinks and the extra norms of the whole model together: counted in the totals, not in any operator."""
    expert_bias: bool = False
    """Whether each of an expert's three matrices has a bias."""
    router: Router = Router()
    qk_norm: QKNorm = QKNorm.NONE
    qkv_clip: Positive | None = None
    """Largest magnitude of queries, keys and values, where they are clipped."""
    qkv_bias: bool = False
    output_bias: bool = False
    attention_sinks: bool = False
    """Whether each query head has a logit beside those of the keys, for attending to nothing."""
    swiglu_limit: Positive | None = None
    """Where gate and up projection are clamped: an expert is then (up + 1) * gate * sigmoid(`swiglu_alpha` * gate)."""
    swiglu_alpha: Positive = 1.702

    @property
    def expert_parameters(self) -> int:
        """Parameters of one routed expert: gate, up and down projection, their biases where it has them."""
        biases = 2 * self.intermediate_size + self.hidden_size if self.expert_bias else 0
        return 3 * self.hidden_size * self.intermediate_size + biases

    @property
    def query_size(self) -> int:
        """Width of the concatenated query heads, as attention over the cache takes them.

        Latent attention folds the key projection into the query, which then is as wide as the cache for each head.
        """
        if self.latent is not None:
            return self.num_query_heads * self.cache_width
        return self.num_query_heads * self.head_dim

    @property
    def attended_size(self) -> int:
        """Width of what attention over the cache gives back: a value per query head, or a latent one."""
        if self.latent is not None:
            return self.num_query_heads * self.latent.kv_lora_rank
        return self.query_size

    @property
    def kv_size(self) -> int:
        """Width of the concatenated key heads (the value heads are as wide); not for latent attention."""
        return self.num_kv_heads * self.head_dim

    @property
    def cache_width(self) -> int:
        """Elements that one token adds to the KV cache of one layer: K and V, or the latent they share."""
        if self.latent is not None:
            return self.latent.kv_lora_rank + self.latent.rope_head_dim
        return 2 * self.kv_size

    @property
    def cache_heads(self) -> tuple[int, int]:
        """How many heads the cache has, and how wide each is; latents are one head, whose values are part of it."""
        return (self.num_kv_heads, self.head_dim) if self.latent is None else (1, self.cache_width)

    @property
    def cache_parts(self) -> int:
        """How many tensors a layer's cache is: keys and values, or latents."""
        return 2 if self.latent is None else 1

    @property
    def attention_scale(self) -> float:
        """What attention multiplies its logits by."""
        return (1.0 if self.yarn is None else self.yarn.logit_scale) / math.sqrt(self.head_dim)

    @property
    def rotary_dim(self) -> int:
        """How many elements of each head are rotated."""
        return self.head_dim if self.latent is None else self.latent.rope_head_dim

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Layers with the routed experts, in order."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.dense_layers)

    @property
    def attention_projections(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the projections before attention, as the checkpoint has them.

        One joint Q, K, V matrix; for latent attention the query's (one or two), and those down to and up from the
        latent.
        """
        if self.latent is None:
            return ((self.hidden_size, self.num_query_heads * self.head_dim + 2 * self.kv_size),)
        latent, heads = self.latent, self.num_query_heads
        query = heads * (latent.nope_head_dim + latent.rope_head_dim)
        rank = latent.q_lora_rank
        queries = ((self.hidden_size, query),) if rank is None else ((self.hidden_size, rank), (rank, query))
        up = (latent.kv_lora_rank, heads * (latent.nope_head_dim + latent.value_head_dim))
        return (*queries, (self.hidden_size, self.cache_width), up)

    @property
    def output_projection(self) -> tuple[int, int]:
        """Inputs and outputs of the projection after attention."""
        width = self.head_dim if self.latent is None else self.latent.value_head_dim
        return self.num_query_heads * width, self.hidden_size

    @property
    def attention_parameters(self) -> int:
        """Parameters of one layer's attention: its projections and two norms."""
        projections = (*self.attention_projections, self.output_projection)
        return sum(inputs * outputs for inputs, outputs in projections) + 2 * self.hidden_size

    @property
    def router_parameters(self) -> int:
        """Parameters of one router (none in a dense model)."""
        return self.hidden_size * self.num_experts if self.num_experts > 1 else 0

    @property
    def num_moe_layers(self) -> int:
        """Layers with the routed experts."""
        return self.num_layers - len(self.dense_layers)

    @property
    def dense_parameters(self) -> int:
        """All parameters of the layers outside the routed experts."""
        moe = self.router_parameters + 3 * self.hidden_size * self.shared_intermediate_size
        dense = 3 * self.hidden_size * self.dense_intermediate_size
        layers = self.num_layers * self.attention_parameters
        return layers + self.num_moe_layers * moe + len(self.dense_layers) * dense + self.bias_parameters

    @property
    def embedding_parameters(self) -> int:
        """Parameters outside the layers: token embedding, lm_head unless tied, final norm."""
        copies = 1 if self.tie_word_embeddings else 2
        return copies * self.vocab_size * self.hidden_size + self.hidden_size

    @property
    def total_parameters(self) -> int:
        """All parameters."""
        routed = self.num_moe_layers * self.num_experts * self.expert_parameters
        return self.dense_parameters + routed + self.embedding_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes through: all but the experts it is not routed to."""
        unused = (self.num_experts - self.experts_per_token) * self.expert_parameters
        return self.total_parameters - self.num_moe_layers * unused

    def layer_kind(self, layer: int) -> LayerKind:
        """Say of which kind layer `layer` (from 0) is."""
        window = self.sliding_window if layer in self.windowed_layers else None
        return LayerKind(moe=layer not in self.dense_layers, window=window)

    @property
    def layer_kinds(self) -> dict[LayerKind, int]:
        """The kinds of layer and how many there are of each, in order of first appearance."""
        return dict(_counted(self.num_layers, self.sliding_window, self.windowed_layers, self.dense_layers))


@lru_cache(maxsize=64)
def _counted(
    num_layers: int, sliding_window: int | None, windowed: tuple[int, ...], dense: tuple[int, ...]
) -> tuple[tuple[LayerKind, int], ...]:
    windows = (sliding_window if layer in windowed else None for layer in range(num_layers))
    kinds = (LayerKind(layer not in dense, window) for layer, window in enumerate(windows))
    return tuple(Counter(kinds).items())
