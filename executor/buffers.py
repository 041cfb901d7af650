"""What a wave holds beside weights and cache: hidden states, tokens, and the buffers of what is in flight."""

from __future__ import annotations

import math

import torch

from executor.experts import sums_dtype
from executor.memory import Allocate, main_device, main_memory, pinned_memory, torch_dtype
from executor.wave import MicroBatch, Wave
from hrm.device.backend import Backend
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor
from hrm.schedule.task import IN_FLIGHT, Phase

__all__ = ["DecodeFlight", "DiskFlight", "PrefillFlight", "RoutedFlight", "SplitFlight", "WaveBuffers"]


class PrefillFlight:
    """Queries, keys, values (or latents) and attention output of one micro-batch of prompts, on the main device."""

    def __init__(self, policy: Policy, model: ModelSpec, max_tokens: int, allocate: Allocate) -> None:
        dtype, kv_dtype = torch_dtype(policy.weight_dtype), torch_dtype(policy.kv_dtype)
        self._heads, self._dim = model.num_query_heads, model.head_dim
        self._width = model.output_projection[0]
        self._cached = model.cache_heads
        cached = max_tokens * self._cached[0] * self._cached[1]
        self._query = allocate((max_tokens * self._heads * self._dim,), dtype).zero_()
        self._parts = [allocate((cached,), kv_dtype).zero_() for _ in range(model.cache_parts)]
        self._attended = allocate((max_tokens * self._width,), dtype).zero_()

    def query(self, batch: MicroBatch) -> torch.Tensor:
        """Return queries [tokens, num_query_heads, head_dim]."""
        shape = (batch.num_tokens, self._heads, self._dim)
        return self._query[: math.prod(shape)].view(shape)

    def attended(self, batch: MicroBatch) -> torch.Tensor:
        """Return attention output, as the output projection takes it: [tokens, inputs]."""
        return self._attended[: batch.num_tokens * self._width].view(batch.num_tokens, self._width)

    def all_cached(self, batch: MicroBatch, first: int, last: int) -> list[torch.Tensor]:
        """Return what the cache takes of sequences `first` to `last` (one past), flat: they lie side by side.

        Keys and values, or latents: [heads, tokens, head_dim] of each sequence.
        """
        width = self._cached[0] * self._cached[1]
        begin, end = (batch.token_starts[at] - batch.token_first for at in (first, last))
        return [part[begin * width : end * width] for part in self._parts]


class DecodeFlight:
    """Queries, keys, values (or latents) and attention output of one token per sequence of a micro-batch.

    Queries are as wide as the cache's heads. All but the output lie in one memory.
    """

    def __init__(self, policy: Policy, model: ModelSpec, allocate: Allocate) -> None:
        dtype = torch_dtype(policy.weight_dtype)
        rows = policy.micro_batch_size
        heads, self._dim = model.cache_heads
        self._heads = (model.num_query_heads, *[heads] * model.cache_parts)
        self._width = model.attended_size
        self._joint = allocate((rows * sum(self._heads) * self._dim,), dtype).zero_()
        self._attended = allocate((rows * self._width,), dtype).zero_()
        self._parts: dict[int, tuple[torch.Tensor, ...]] = {}

    def joint(self, rows: int) -> torch.Tensor:
        """Return queries and what is cached of so many sequences as one flat tensor, as they cross the link."""
        return self._joint[: rows * sum(self._heads) * self._dim]

    def parts(self, rows: int) -> tuple[torch.Tensor, ...]:
        """Return queries and what is cached (keys and values, or latents), each contiguous [rows, heads, head_dim]."""
        if rows not in self._parts:
            parts = torch.split(self.joint(rows), [rows * heads * self._dim for heads in self._heads])
            shapes = [(rows, heads, self._dim) for heads in self._heads]
            self._parts[rows] = tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        return self._parts[rows]

    def attended(self, rows: int) -> torch.Tensor:
        """Return attention output [rows, num_query_heads * width of a head's values]."""
        return self._attended[: rows * self._width].view(rows, self._width)


class RoutedFlight:
    """Normed hidden states of a micro-batch, and the experts of each with their shares, in one memory."""

    def __init__(self, policy: Policy, model: ModelSpec, max_tokens: int, allocate: Allocate) -> None:
        chosen = model.experts_per_token
        dtype = torch_dtype(policy.weight_dtype)
        self._columns = ((chosen, torch.float32), (chosen, torch.int32), (model.hidden_size, dtype))
        self._row_bytes = sum(width * kind.itemsize for width, kind in self._columns)
        self._flat = allocate((max_tokens * self._row_bytes,), torch.uint8).zero_()

    def joint(self, tokens: int) -> torch.Tensor:
        """Return all of so many tokens as one flat tensor, as it crosses the link."""
        return self._flat[: tokens * self._row_bytes]

    def parts(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return shares and experts, each [tokens, experts_per_token], and hidden states [tokens, hidden]."""
        sizes = [tokens * width * kind.itemsize for width, kind in self._columns]
        shares, chosen, normed = (
            part.view(kind).view(tokens, width)
            for part, (width, kind) in zip(torch.split(self.joint(tokens), sizes), self._columns, strict=True)
        )
        return shares, chosen, normed


class SplitFlight:
    """A micro-batch with experts at work: what they work on, on the device and on the host, and the CPU's sum."""

    def __init__(self, policy: Policy, model: ModelSpec, max_tokens: int, backend: Backend) -> None:
        pinned = pinned_memory(backend)
        self.routed = RoutedFlight(policy, model, max_tokens, backend.empty)
        self.on_host = RoutedFlight(policy, model, max_tokens, pinned)
        self.sums = pinned((max_tokens, model.hidden_size), torch_dtype(policy.weight_dtype)).zero_()


class DiskFlight:
    """What waits for experts that the CPU reads from disk: normed hidden states, routing and sums of all tokens."""

    def __init__(self, policy: Policy, model: ModelSpec, num_tokens: int, backend: Backend) -> None:
        allocate, dtype = main_memory(policy, backend), torch_dtype(policy.weight_dtype)
        self.routed = RoutedFlight(policy, model, num_tokens, allocate)
        self.sums = allocate((num_tokens, model.hidden_size), sums_dtype(model, dtype)).zero_()


class WaveBuffers:
    """Everything that the tasks of a wave share; allocated, and its pages mapped, before the wave starts.

    `host` is what `decode` is on the CPU's side of the link. Where CPU and GPU split the experts, each phase has
    flights of its own for them; all sums come up into `landed_sum`, for a lane copies one after another.
    """

    def __init__(self, policy: Policy, model: ModelSpec, wave: Wave, gen_len: int, backend: Backend) -> None:
        allocate, pinned = main_memory(policy, backend), pinned_memory(backend)
        dtype, device = torch_dtype(policy.weight_dtype), main_device(policy, backend)
        max_tokens = max(batch.num_tokens for batch in wave.micro_batches)
        on_gpu, apart = policy.main_device is Processor.GPU, policy.attention_device is not policy.main_device
        self.hidden = allocate((wave.num_tokens, model.hidden_size), dtype).zero_()
        self.generated = torch.zeros((gen_len, len(wave.order)), dtype=torch.int64, device=device)
        self.prefill = [PrefillFlight(policy, model, max_tokens, allocate) for _ in range(IN_FLIGHT)]
        self.decode = [DecodeFlight(policy, model, allocate) for _ in range(IN_FLIGHT)]
        self.host = [DecodeFlight(policy, model, pinned) for _ in range(IN_FLIGHT)] if apart else self.decode
        self.split: dict[Phase, list[SplitFlight]] = {}
        if policy.computes_from_disk:
            self.disk = DiskFlight(policy, model, wave.num_tokens, backend)
        if on_gpu and policy.experts_on_cpu(model):
            for phase, tokens in ((Phase.PREFILL, max_tokens), (Phase.DECODE, policy.micro_batch_size)):
                self.split[phase] = [SplitFlight(policy, model, tokens, backend) for _ in range(IN_FLIGHT)]
            self.landed_sum = backend.empty((max_tokens, model.hidden_size), dtype).zero_()
