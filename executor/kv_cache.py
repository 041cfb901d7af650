"""The KV cache of a wave: ragged and exact, one flat buffer of keys and one of values per layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from executor.workspace import Allocate
from hrm.model import ModelSpec

__all__ = ["KVCache"]


class KVCache:
    """Sequence i owns [num_kv_heads, capacities[i], head_dim] of each layer's flat buffers, from offsets[i] on."""

    def __init__(self, model: ModelSpec, capacities: Sequence[int], dtype: torch.dtype, allocate: Allocate) -> None:
        self.num_kv_heads = model.num_kv_heads
        self.head_dim = model.head_dim
        starts = list(accumulate((capacity * model.kv_size for capacity in capacities), initial=0))
        self._offsets = torch.tensor(starts[:-1], dtype=torch.int64)
        self._capacities = torch.tensor(list(capacities), dtype=torch.int64)
        self._blocks = list(zip(starts, capacities, strict=False))
        # Zeroed so that the pages are mapped before any timed work.
        self.keys = [allocate((starts[-1],), dtype).zero_() for _ in range(model.num_layers)]
        self.values = [allocate((starts[-1],), dtype).zero_() for _ in range(model.num_layers)]

    def layout(self, first: int, last: int, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Offsets, capacities and the given lengths of sequences `first` to `last` (one past), in host memory."""
        return self._offsets[first:last], self._capacities[first:last], lengths

    def prompt_rows(self, layer: int, sequence: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where the first `tokens` keys and values of a sequence go: views [num_kv_heads, tokens, head_dim]."""
        start, capacity = self._blocks[sequence]
        shape = (self.num_kv_heads, capacity, self.head_dim)
        owned = slice(start, start + self.num_kv_heads * capacity * self.head_dim)
        keys = self.keys[layer][owned].view(shape)[:, :tokens]
        values = self.values[layer][owned].view(shape)[:, :tokens]
        return keys, values
