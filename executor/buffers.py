"""What a wave holds beside weights and cache: hidden states, tokens, and the buffers of what is in flight."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from executor.wave import MicroBatch, Wave
from executor.weights import torch_dtype
from executor.workspace import Allocate
from hrm.device.backend import Backend
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor
from hrm.schedule.task import IN_FLIGHT

__all__ = ["DecodeFlight", "PrefillFlight", "WaveBuffers"]


class PrefillFlight:
    """Queries, keys, values and attention output of one micro-batch of prompts, on the FFN's device."""

    def __init__(self, policy: Policy, model: ModelSpec, max_tokens: int, allocate: Allocate) -> None:
        dtype, kv_dtype = torch_dtype(policy.weight_dtype), torch_dtype(policy.kv_dtype)
        self._shape = (model.num_query_heads, model.num_kv_heads, model.head_dim)
        self._query = allocate((max_tokens * model.query_size,), dtype).zero_()
        self._keys = allocate((max_tokens * model.kv_size,), kv_dtype).zero_()
        self._values = allocate((max_tokens * model.kv_size,), kv_dtype).zero_()
        self._attended = allocate((max_tokens * model.query_size,), dtype).zero_()

    def query(self, batch: MicroBatch) -> torch.Tensor:
        """Return queries [tokens, num_query_heads, head_dim]."""
        heads, _, dim = self._shape
        return self._query[: batch.num_tokens * heads * dim].view(batch.num_tokens, heads, dim)

    def attended(self, batch: MicroBatch) -> torch.Tensor:
        """Return attention output [tokens, num_query_heads * head_dim]."""
        heads, _, dim = self._shape
        return self._attended[: batch.num_tokens * heads * dim].view(batch.num_tokens, heads * dim)

    def keys_values(self, batch: MicroBatch, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of sequence `index`: each contiguous [num_kv_heads, tokens, head_dim]."""
        _, heads, dim = self._shape
        rows = batch.rows(index)
        owned = slice(rows.start * heads * dim, rows.stop * heads * dim)
        shape = (heads, rows.stop - rows.start, dim)
        return self._keys[owned].view(shape), self._values[owned].view(shape)


class DecodeFlight:
    """Queries, keys, values and attention output of one token per sequence of a micro-batch, in one memory."""

    def __init__(self, policy: Policy, model: ModelSpec, allocate: Allocate) -> None:
        dtype = torch_dtype(policy.weight_dtype)
        rows = policy.micro_batch_size
        self._heads = (model.num_query_heads, model.num_kv_heads, model.num_kv_heads)
        self._dim = model.head_dim
        self._qkv = allocate((rows * sum(self._heads) * self._dim,), dtype).zero_()
        self._attended = allocate((rows * model.query_size,), dtype).zero_()

    def joint(self, rows: int) -> torch.Tensor:
        """Return queries, keys and values of so many sequences as one flat tensor, as they cross the link."""
        return self._qkv[: rows * sum(self._heads) * self._dim]

    def qkv(self, rows: int) -> tuple[torch.Tensor, ...]:
        """Return queries, keys and values, each contiguous [rows, heads, head_dim]."""
        parts = torch.split(self.joint(rows), [rows * heads * self._dim for heads in self._heads])
        return tuple(part.view(rows, heads, self._dim) for part, heads in zip(parts, self._heads, strict=True))

    def attended(self, rows: int) -> torch.Tensor:
        """Return attention output [rows, num_query_heads * head_dim]."""
        width = self._heads[0] * self._dim
        return self._attended[: rows * width].view(rows, width)


class WaveBuffers:
    """Everything that the tasks of a wave share; allocated, and its pages mapped, before the wave starts."""

    def __init__(self, policy: Policy, model: ModelSpec, wave: Wave, gen_len: int, backend: Backend) -> None:
        on_gpu = policy.ffn_device is Processor.GPU
        allocate: Allocate = backend.empty if on_gpu else backend.host_empty
        device = backend.device if on_gpu else torch.device("cpu")
        max_tokens = max(batch.num_tokens for batch in wave.micro_batches)
        self.hidden = allocate((wave.num_tokens, model.hidden_size), torch_dtype(policy.weight_dtype)).zero_()
        self.generated = torch.zeros((gen_len, len(wave.order)), dtype=torch.int64, device=device)
        self.prefill = [PrefillFlight(policy, model, max_tokens, allocate) for _ in range(IN_FLIGHT)]
        self.decode = [DecodeFlight(policy, model, allocate) for _ in range(IN_FLIGHT)]
        self.host = self.decode
        if on_gpu and policy.attention_device is Processor.CPU:

            def pinned(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
                return backend.host_empty(shape, dtype, pinned=True)

            self.host = [DecodeFlight(policy, model, pinned) for _ in range(IN_FLIGHT)]
