"""The KV cache of a wave: ragged and exact, each sequence's on the main device or in host memory beside it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from executor.memory import Allocate, main_memory, pinned_memory, torch_dtype
from executor.wave import MicroBatch, Wave
from hrm.device.backend import Backend
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor
from hrm.records import record
from hrm.schedule.task import IN_FLIGHT

__all__ = ["CacheView", "KVCache", "LoadedKV", "WaveCache", "firsts_on_host"]


class CacheView(NamedTuple):
    """One layer's cache of some sequences, as `executor.native` takes it: flat buffers, and where each one lies."""

    keys: torch.Tensor
    values: torch.Tensor
    offsets: torch.Tensor
    capacities: torch.Tensor

    def layout(self, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Offsets, capacities and the given lengths of the sequences, in host memory."""
        return self.offsets, self.capacities, lengths


class KVCache:
    """The cache in one memory, a flat buffer of keys and one of values per layer.

    Sequence i owns [num_kv_heads, capacities[i], head_dim] of each, from offsets[i] on; one whose cache lies elsewhere
    has a capacity of 0.
    """

    def __init__(self, model: ModelSpec, capacities: Sequence[int], dtype: torch.dtype, allocate: Allocate) -> None:
        self.num_kv_heads = model.num_kv_heads
        self.head_dim = model.head_dim
        self._starts = list(accumulate((capacity * model.kv_size for capacity in capacities), initial=0))
        self._offsets = torch.tensor(self._starts[:-1], dtype=torch.int64)
        self._capacities = torch.tensor(list(capacities), dtype=torch.int64)
        size = (self._starts[-1],)
        # Zeroed so that the pages are mapped before any timed work.
        self._keys = [allocate(size, dtype).zero_() for _ in range(model.num_layers)]
        self._values = [allocate(size, dtype).zero_() for _ in range(model.num_layers)]

    def view(self, layer: int, first: int, last: int) -> CacheView:
        """Return a layer's cache of sequences `first` to `last` (one past)."""
        return CacheView(
            self._keys[layer], self._values[layer], self._offsets[first:last], self._capacities[first:last]
        )

    def block(self, layer: int, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all keys and all values of sequences `first` to `last` (one past), flat: they lie side by side."""
        owned = slice(self._starts[first], self._starts[last])
        return self._keys[layer][owned], self._values[layer][owned]

    def elements(self, first: int, last: int) -> int:
        """Return how many keys (as many values) sequences `first` to `last` (one past) have room for."""
        return self._starts[last] - self._starts[first]

    def rows(self, layer: int, sequence: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first `tokens` keys and values of a sequence: views [num_kv_heads, tokens, head_dim]."""
        keys, values = self.block(layer, sequence, sequence + 1)
        shape = (self.num_kv_heads, -1, self.head_dim)
        return keys.view(shape)[:, :tokens], values.view(shape)[:, :tokens]


class LoadedKV:
    """A device buffer into which the part of a micro-batch's cache that lies on the host is fetched, a layer at a time.

    It is laid out as on the host; of each sequence's room only what is valid is fetched.
    """

    def __init__(self, max_elements: int, dtype: torch.dtype, allocate: Allocate) -> None:
        self._keys, self._values = (allocate((max_elements,), dtype).zero_() for _ in range(2))

    def place(self, host: KVCache, first: int, sequence: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where `host.rows` of a sequence go, in the buffer of those that start with sequence `first`."""
        before, room = host.elements(first, sequence), host.elements(sequence, sequence + 1)
        shape = (host.num_kv_heads, -1, host.head_dim)
        keys, values = (flat[before : before + room].view(shape)[:, :tokens] for flat in (self._keys, self._values))
        return keys, values

    def view(self, on_host: CacheView) -> CacheView:
        """Return what was fetched, of sequences that lie side by side on the host."""
        return CacheView(self._keys, self._values, on_host.offsets - on_host.offsets[0], on_host.capacities)


@record
class WaveCache:
    """The cache of a wave: `main` on the main device, `host` in host memory beside it, `loaded` what comes up of that.

    Of micro-batch j the sequences from `first_on_host[j]` on have theirs in `host`, those before in `main`.
    """

    main: KVCache
    host: KVCache
    first_on_host: tuple[int, ...]
    loaded: tuple[LoadedKV, ...]

    @classmethod
    def of(cls, policy: Policy, model: ModelSpec, wave: Wave, gen_len: int, backend: Backend) -> WaveCache:
        """Allocate room for each sequence's prompt and all it generates but the last token, and map its memory."""
        capacities = [length + gen_len - 1 for length in wave.prompt_lens]
        share = policy.kv_on_gpu if policy.main_device is Processor.GPU else 1.0
        cuts = firsts_on_host(wave.micro_batches, capacities, share)
        kept = [0] * len(capacities)
        for batch, cut in zip(wave.micro_batches, cuts, strict=True):
            kept[batch.first : cut] = capacities[batch.first : cut]
        dtype, on_main = torch_dtype(policy.kv_dtype), main_memory(policy, backend)
        left = [capacity - here for capacity, here in zip(capacities, kept, strict=True)]
        host = KVCache(model, left, dtype, pinned_memory(backend))
        largest = max(host.elements(cut, batch.last) for batch, cut in zip(wave.micro_batches, cuts, strict=True))
        buffers = IN_FLIGHT if largest and policy.attention_device is Processor.GPU else 0
        return cls(
            main=KVCache(model, kept, dtype, on_main),
            host=host,
            first_on_host=tuple(cuts),
            loaded=tuple(LoadedKV(largest, dtype, on_main) for _ in range(buffers)),
        )


def firsts_on_host(batches: Sequence[MicroBatch], capacities: Sequence[int], share_on_main: float) -> list[int]:
    """Return for each micro-batch its first sequence whose cache lies on the host, where a share stays on the device.

    Whole sequences stay, as many as the share of all micro-batches so far allows: never more than the share, and less
    than one sequence below it.
    """
    firsts, allowed, kept = [], 0.0, 0
    for batch in batches:
        allowed += share_on_main * sum(capacities[batch.first : batch.last])
        cut = batch.first
        while cut < batch.last and kept + capacities[cut] <= allowed:
            kept += capacities[cut]
            cut += 1
        firsts.append(cut)
    return firsts
