"""What the project knows about a model: dimensions, and the parameter counts that follow from them."""

from __future__ import annotations

from hrm.dtypes import DType
from hrm.records import record
from hrm.units import Positive, PositiveInt

__all__ = ["ModelSpec"]


@record
class ModelSpec:
    """A decoder of `num_layers` equal layers: grouped-query attention, then `num_experts` SwiGLU experts.

    A dense model is the degenerate case `num_experts = experts_per_token = 1`.
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
    tie_word_embeddings: bool = False
    dtype: DType = DType.BFLOAT16

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert: gate, up and down projection."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def query_size(self) -> int:
        """Width of the concatenated query heads."""
        return self.num_query_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the concatenated key heads (the value heads are as wide)."""
        return self.num_kv_heads * self.head_dim

    @property
    def attention_parameters(self) -> int:
        """Parameters of one layer outside the experts: Q, K, V, O projections, router, two norms."""
        projections = self.hidden_size * (2 * self.query_size + 2 * self.kv_size)
        router = self.hidden_size * self.num_experts if self.num_experts > 1 else 0
        return projections + router + 2 * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        """Parameters outside the layers: token embedding, lm_head unless tied, final norm."""
        copies = 1 if self.tie_word_embeddings else 2
        return copies * self.vocab_size * self.hidden_size + self.hidden_size

    @property
    def total_parameters(self) -> int:
        """All parameters."""
        per_layer = self.attention_parameters + self.num_experts * self.expert_parameters
        return self.num_layers * per_layer + self.embedding_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes through: all but the experts it is not routed to."""
        unused = (self.num_experts - self.experts_per_token) * self.expert_parameters
        return self.total_parameters - self.num_layers * unused
