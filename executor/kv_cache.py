"""The KV cache of a wave: ragged and exact, each sequence's on the main device or in host memory beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from executor.memory import Allocate, main_memory, pinned_memory, torch_dtype
from executor.native import Move
from executor.rows import move_rows
from executor.wave import MicroBatch, Wave
from hrm.device.backend import Backend
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor
from hrm.records import record
from hrm.schedule.task import IN_FLIGHT

__all__ = ["CacheView", "KVCache", "LoadedKV", "WaveCache", "firsts_on_host"]


class CacheView(NamedTuple):
    """One layer's cache of some sequences, as `executor.native` takes it: flat buffers, and where each one lies.

    Latents are their own values: `keys` and `values` are one buffer.
    """

    keys: torch.Tensor
    values: torch.Tensor
    offsets: torch.Tensor
    capacities: torch.Tensor

    def next_places(self, cached: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Offsets, capacities, and the place of each sequence's next token where `cached` came before; on the host."""
        return self.offsets, self.capacities, cached % self.capacities

    def valid(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Offsets, capacities, and how many of each sequence's `tokens` are in the cache; on the host."""
        return self.offsets, self.capacities, torch.minimum(tokens, self.capacities)


class _Rooms:
    """Where sequences with these capacities lie in a layer's flat buffers."""

    def __init__(self, capacities: Sequence[int], width: int) -> None:
        self.starts = list(accumulate((capacity * width for capacity in capacities), initial=0))
        self.offsets = torch.tensor(self.starts[:-1], dtype=torch.int64)
        self.capacities = torch.tensor(list(capacities), dtype=torch.int64)


class KVCache:
    """The cache in one memory: of each layer, flat buffers of keys and of values, or one of latents.

    Sequence i owns [heads, capacity, head_dim] of each, from an offset on; if its cache lies elsewhere its capacity is
    0. In a layer with a window a sequence has room for the window at most, and its tokens go round in it: token p
    lies at place p modulo the capacity.
    """

    def __init__(self, model: ModelSpec, capacities: Sequence[int], dtype: torch.dtype, allocate: Allocate) -> None:
        self.num_heads, self.head_dim = model.cache_heads
        width = self.num_heads * self.head_dim
        windows = [model.layer_kind(layer).window for layer in range(model.num_layers)]
        rooms = {
            window: _Rooms([min(capacity, window or capacity) for capacity in capacities], width)
            for window in dict.fromkeys(windows)
        }
        self._rooms = [rooms[window] for window in windows]
        # Zeroed so that the pages are mapped before any timed work.
        self._parts = [
            tuple(allocate((room.starts[-1],), dtype).zero_() for _ in range(model.cache_parts)) for room in self._rooms
        ]

    def view(self, layer: int, first: int, last: int) -> CacheView:
        """Return a layer's cache of sequences `first` to `last` (one past)."""
        parts, room = self._parts[layer], self._rooms[layer]
        return CacheView(parts[0], parts[-1], room.offsets[first:last], room.capacities[first:last])

    def block(self, layer: int, first: int, last: int) -> tuple[torch.Tensor, ...]:
        """Return all that a layer holds of sequences `first` to `last` (one past), flat: they lie side by side."""
        starts = self._rooms[layer].starts
        return tuple(part[starts[first] : starts[last]] for part in self._parts[layer])

    def elements(self, layer: int, first: int, last: int) -> int:
        """Return for how many elements of each part sequences `first` to `last` (one past) have room in a layer."""
        starts = self._rooms[layer].starts
        return starts[last] - starts[first]

    def most_elements(self, first: int, last: int) -> int:
        """Return the same of the layer with most room."""
        return max(room.starts[last] - room.starts[first] for room in self._rooms)

    def rows(self, layer: int, sequence: int, tokens: int) -> list[torch.Tensor]:
        """Return the first `tokens` places of a sequence, or all it has, of each part: [heads, tokens, head_dim]."""
        shape = (self.num_heads, -1, self.head_dim)
        return [part.view(shape)[:, :tokens] for part in self.block(layer, sequence, sequence + 1)]

    def store_prompts(self, layer: int, first: int, lens: Sequence[int], parts: Sequence[torch.Tensor]) -> None:
        """Write the prompts of sequences from `first` on; of a window only what it sees.

        They lie side by side in each of `parts`, [heads, tokens, head_dim] of a sequence. One without tokens keeps
        what it has.
        """
        moves = list(self._moves(layer, first, lens))
        for own, part in zip(self._parts[layer], parts, strict=True):
            move_rows(part, own, moves, self.num_heads, self.head_dim)

    def _moves(self, layer: int, first: int, lens: Sequence[int]) -> Iterator[Move]:
        room, dim, start = self._rooms[layer], self.head_dim, 0
        capacities = room.capacities[first : first + len(lens)].tolist()
        for home, capacity, tokens in zip(room.starts[first:], capacities, lens, strict=False):
            seen = max(tokens - capacity, 0)
            turn = (seen + capacity - 1) // capacity * capacity if capacity else 0
            for begin, end in ((seen, min(turn, tokens)), (turn, tokens)):
                if begin < end:
                    source = (start + begin * dim, dim, tokens * dim)
                    yield Move(*source, home + begin % capacity * dim, dim, capacity * dim, end - begin)
            start += self.num_heads * tokens * dim


class LoadedKV:
    """A device buffer into which the part of a micro-batch's cache that lies on the host is fetched, a layer at a time.

    It is laid out as on the host; of each sequence's room only what is valid is fetched.
    """

    def __init__(self, parts: int, max_elements: int, dtype: torch.dtype, allocate: Allocate) -> None:
        self._parts = [allocate((max_elements,), dtype).zero_() for _ in range(parts)]

    def place(self, host: KVCache, layer: int, sequences: tuple[int, int], tokens: int) -> list[torch.Tensor]:
        """Return where `host.rows` of the second of `sequences` go; the first is the first in the buffer."""
        first, sequence = sequences
        before, room = host.elements(layer, first, sequence), host.elements(layer, sequence, sequence + 1)
        shape = (host.num_heads, -1, host.head_dim)
        return [part[before : before + room].view(shape)[:, :tokens] for part in self._parts]

    def view(self, on_host: CacheView) -> CacheView:
        """Return what was fetched, of sequences that lie side by side on the host."""
        return CacheView(self._parts[0], self._parts[-1], on_host.offsets - on_host.offsets[0], on_host.capacities)


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
        cuts = firsts_on_host(wave.micro_batches, [_held(model, capacity) for capacity in capacities], share)
        kept = [0] * len(capacities)
        for batch, cut in zip(wave.micro_batches, cuts, strict=True):
            kept[batch.first : cut] = capacities[batch.first : cut]
        dtype, on_main = torch_dtype(policy.kv_dtype), main_memory(policy, backend)
        left = [capacity - here for capacity, here in zip(capacities, kept, strict=True)]
        host = KVCache(model, left, dtype, pinned_memory(backend))
        largest = max(host.most_elements(cut, batch.last) for batch, cut in zip(wave.micro_batches, cuts, strict=True))
        buffers = IN_FLIGHT if largest and policy.attention_device is Processor.GPU else 0
        return cls(
            main=KVCache(model, kept, dtype, on_main),
            host=host,
            first_on_host=tuple(cuts),
            loaded=tuple(LoadedKV(model.cache_parts, largest, dtype, on_main) for _ in range(buffers)),
        )


def _held(model: ModelSpec, capacity: int) -> int:
    """Count the tokens that all layers together hold of a sequence."""
    return sum(count * min(capacity, kind.window or capacity) for kind, count in model.layer_kinds.items())


def firsts_on_host(batches: Sequence[MicroBatch], sizes: Sequence[int], share_on_main: float) -> list[int]:
    """Return for each micro-batch its first sequence whose cache lies on the host, where a share stays on the device.

    `sizes` says how large each sequence's cache is.
    Whole sequences stay, as many as the share of all micro-batches so far allows: never more than the share, and less
    than one sequence below it.
    """
    firsts, allowed, kept = [], 0.0, 0
    for batch in batches:
        allowed += share_on_main * sum(sizes[batch.first : batch.last])
        cut = batch.first
        while cut < batch.last and kept + sizes[cut] <= allowed:
            kept += sizes[cut]
            cut += 1
        firsts.append(cut)
    return firsts
