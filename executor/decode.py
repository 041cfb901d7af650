"""What each kind of task does in decode: one token per sequence, attention where the policy put the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from executor.attention import append_kv, decode_attention
from executor.buffers import DecodeFlight
from executor.decoder import pre_attention
from executor.kv_cache import CacheView, LoadedKV
from executor.latent import LatentWeights, fold, unfold
from executor.repeated import Repeated
from executor.state import Step, WaveState
from hrm.policy import Processor
from hrm.schedule.task import IN_FLIGHT

__all__ = ["DecodeTasks"]

Layout = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Offsets, capacities and lengths of sequences in a cache, as the kernels take them."""


class DecodeTasks:
    """The handlers of decode. Where attention runs beside the rest, host and device buffers are the same."""

    def __init__(self, state: WaveState) -> None:
        self.state = state
        self._repeated = Repeated()
        self._rotary: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._layouts: dict[tuple[int, int | None], tuple[Layout, Layout]] = {}
        self._laid_out: dict[tuple[int, int | None], int] = {}

    def _flight(self, step: Step) -> DecodeFlight:
        return self.state.buffers.decode[self.state.position(step) % IN_FLIGHT]

    def _host_flight(self, step: Step) -> DecodeFlight:
        return self.state.buffers.host[self.state.position(step) % IN_FLIGHT]

    def pre_attention(self, step: Step) -> None:
        """Make queries, keys and values of the token that the pass before made."""
        state, batch = self.state, self.state.batch(step)
        hidden = state.hidden(step)
        if step.task.layer == 0:
            state.embed(state.buffers.generated[step.pass_index - 1, batch.first : batch.last], hidden)
            # The token's position is the number of tokens before it.
            positions = state.round.on_main.at(step.pass_index, batch.first, batch.last)
            self._rotate_at(step.task.part, state.rotary.at(positions))
        self._as_before(step, partial(self._project, step, hidden))

    def _rotate_at(self, part: int, rotary: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Put cosines and sines where those of a micro-batch lie in every pass."""
        for kept, new in zip(self._rotary.setdefault(part, rotary), rotary, strict=True):
            if kept is not new:
                kept.copy_(new)

    def _as_before(self, step: Step, work: Callable[[], None]) -> None:
        """Do a task's work; with everything on the CPU each pass finds its operands where the pass before did."""
        if self.state.policy.main_device is Processor.CPU:
            kind, layer, part = step.task.key
            alike = kind, self.state.model.layer_kind(layer), self.state.batch(step).num_sequences
            self._repeated.run((kind, layer, part), alike, work)
        else:
            work()

    def _project(self, step: Step, hidden: torch.Tensor) -> None:
        state, rotary = self.state, self._rotary[step.task.part]
        model, layer = state.model, state.weights.layers[step.task.layer]
        query, *cached = self._flight(step).parts(self.state.batch(step).num_sequences)
        with state.workspace.frame():
            whole = query
            if isinstance(layer.attention, LatentWeights):
                whole = state.workspace.take((len(query), model.num_query_heads, model.head_dim), query.dtype)
            pre_attention(hidden, layer, model, rotary, state.workspace, (whole, *cached))
            if isinstance(layer.attention, LatentWeights):
                fold(whole, layer.attention, model, state.workspace, query)

    def offload(self, step: Step) -> None:
        """Bring down, for attention there, queries, keys and values in one copy; else what the cache there lacks."""
        state, batch = self.state, self.state.batch(step)
        if state.attends_apart:
            rows = batch.num_sequences
            state.backend.copy(self._host_flight(step).joint(rows), self._flight(step).joint(rows))
            return
        first = state.cache.first_on_host[step.task.part]
        _, *new = (part[first - batch.first :] for part in self._flight(step).parts(batch.num_sequences))
        view = state.cache.host.view(step.task.layer, first, batch.last)
        with state.landing.frame():
            landed = state.land(new)
            places = view.next_places(self._cached(step, first, batch.last))
            append_kv(landed[0], landed[-1], view.keys, view.values, places)

    def load(self, step: Step) -> None:
        """Fetch the part of the cache that lies on the host: of each sequence what earlier passes have cached."""
        state, last = self.state, self.state.batch(step).last
        first, host = state.cache.first_on_host[step.task.part], state.cache.host
        for sequence, tokens in enumerate(self._cached(step, first, last).tolist(), start=first):
            sources = host.rows(step.task.layer, sequence, tokens)
            targets = self._loaded(step).place(host, step.task.layer, (first, sequence), tokens)
            for target, source in zip(targets, sources, strict=True):
                state.backend.copy(target, source)

    def attention(self, step: Step) -> None:
        """Append to the cache and attend over it: where it lies, or where it was fetched to."""
        self._lay_out(step)
        self._as_before(step, partial(self._attend, step))

    def _lay_out(self, step: Step) -> None:
        """Say where the pass's tokens go and what is valid then, once for layers that are alike, in the same memory."""
        window = self.state.model.layer_kind(step.task.layer).window
        if self._laid_out.get((step.task.part, window)) == step.pass_index:
            return
        self._laid_out[step.task.part, window] = step.pass_index
        for first, view in self._views(step):
            cached = self._cached(step, first, first + len(view.offsets))
            new = view.next_places(cached), view.valid(cached + 1)
            for (*_, kept), (*_, tokens) in zip(self._layouts.setdefault((first, window), new), new, strict=True):
                kept.copy_(tokens)

    def _views(self, step: Step) -> Iterator[tuple[int, CacheView]]:
        """Yield what attention finds of the cache in each memory, and the number of its first sequence."""
        state, batch, layer = self.state, self.state.batch(step), step.task.layer
        first = state.cache.first_on_host[step.task.part]
        if batch.first < first:
            yield batch.first, state.cache.main.view(layer, batch.first, first)
        if first < batch.last:
            on_host = state.cache.host.view(layer, first, batch.last)
            yield first, on_host if state.attends_apart else self._loaded(step).view(on_host)

    def _attend(self, step: Step) -> None:
        state, batch, flight = self.state, self.state.batch(step), self._host_flight(step)
        window = state.model.layer_kind(step.task.layer).window
        for first, view in self._views(step):
            rows = slice(first - batch.first, first - batch.first + len(view.offsets))
            query, *new = (part[rows] for part in flight.parts(batch.num_sequences))
            places, valid = self._layouts[first, window]
            append_kv(new[0], new[-1], view.keys, view.values, places)
            out = flight.attended(batch.num_sequences)[rows].view(*query.shape[:2], -1)
            num_heads, _ = state.model.cache_heads
            sinks = state.sinks(step.task.layer, query.device)
            decode_attention(query, view.keys, view.values, valid, num_heads, out, sinks)

    def _cached(self, step: Step, first: int, last: int) -> torch.Tensor:
        """Return how many tokens of some sequences earlier passes have cached."""
        return self.state.round.on_host.at(step.pass_index, first, last)

    def _loaded(self, step: Step) -> LoadedKV:
        return self.state.cache.loaded[self.state.position(step) % IN_FLIGHT]

    def upload(self, step: Step) -> None:
        """Bring the attention output up."""
        rows = self.state.batch(step).num_sequences
        self.state.backend.copy(self._flight(step).attended(rows), self._host_flight(step).attended(rows))

    def post_attention(self, step: Step) -> None:
        """Run the layer's second half, and after the last layer the head."""
        self._as_before(step, partial(self._finish, step))
        self.state.choose_after(step)

    def _finish(self, step: Step) -> None:
        state, attended = self.state, self._flight(step).attended(self.state.batch(step).num_sequences)
        weights = state.weights.layers[step.task.layer].attention
        with state.workspace.frame():
            if isinstance(weights, LatentWeights):
                attended = unfold(attended, weights, state.model, state.workspace)
            state.post_attention(step, attended)
