"""What each kind of task does in prefill: whole prompts, all on the main device, keys and values to the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from executor.attention import TOKENS_AT_A_TIME, prefill_attention
from executor.buffers import PrefillFlight
from executor.decoder import pre_attention
from executor.latent import LatentWeights
from executor.native import Move
from executor.rows import move_rows
from executor.state import Step, WaveState
from hrm.schedule.task import IN_FLIGHT

__all__ = ["PrefillTasks"]


class PrefillTasks:
    """The handlers of prefill; an empty micro-batch makes each do nothing."""

    def __init__(self, state: WaveState) -> None:
        self.state = state

    def _flight(self, step: Step) -> PrefillFlight:
        return self.state.buffers.prefill[self.state.position(step) % IN_FLIGHT]

    def pre_attention(self, step: Step) -> None:
        """Make queries in token order; keys and values are laid out as the cache holds them."""
        state, batch, flight = self.state, self.state.batch(step), self._flight(step)
        model, rows, hidden = state.model, slice(batch.token_first, batch.token_last), state.hidden(step)
        if step.task.layer == 0:
            state.embed(state.round.prompt_tokens[rows], hidden)
        rotary = state.rotary.at(state.round.positions[rows])
        with state.workspace.frame():
            shape = (batch.num_tokens, *model.cache_heads)
            parts = [state.workspace.take(shape, hidden.dtype) for _ in range(model.cache_parts)]
            out = (flight.query(batch), *parts)
            pre_attention(hidden, state.weights.layers[step.task.layer], model, rotary, state.workspace, out)
            heads, dim = model.cache_heads
            moves = list(_head_by_head(batch.prompt_lens, heads, dim))
            for own, part in zip(flight.all_cached(batch, 0, batch.num_sequences), parts, strict=True):
                move_rows(part, own, moves, heads, dim)

    def offload(self, step: Step) -> None:
        """Bring what belongs there down to the host, one copy of each part, and put it into the cache."""
        state, batch, cache = self.state, self.state.batch(step), self.state.cache
        first = cache.first_on_host[step.task.part] - batch.first
        sources = self._flight(step).all_cached(batch, first, batch.num_sequences)
        if not sources[0].numel():
            return
        with state.landing.frame():
            landed = state.land(sources)
            cache.host.store_prompts(step.task.layer, batch.first + first, batch.prompt_lens[first:], landed)

    def attention(self, step: Step) -> None:
        """Attend within each prompt; write the cache of those that keep theirs on this device."""
        state, batch, flight = self.state, self.state.batch(step), self._flight(step)
        query, attended = flight.query(batch), flight.attended(batch)
        layer, first_on_host = step.task.layer, state.cache.first_on_host[step.task.part]
        for first, last in self._together(step):
            rows, lens = batch.rows(first, last), batch.prompt_lens[first:last]
            with state.workspace.frame():
                keys, values = state.keys_values(layer, flight.all_cached(batch, first, last), lens)
                prefill_attention(query[rows], keys, values, attended[rows], lens, state.attention(layer))
        here = min(batch.last, first_on_host) - batch.first
        cached = flight.all_cached(batch, 0, here)
        state.cache.main.store_prompts(layer, batch.first, batch.prompt_lens[:here], cached)

    def _together(self, step: Step) -> Iterable[tuple[int, int]]:
        """Return the sequences that attend in one call: all, but latents are expanded some of one length at a time."""
        batch = self.state.batch(step)
        if isinstance(self.state.weights.layers[step.task.layer].attention, LatentWeights):
            return batch.runs(TOKENS_AT_A_TIME)
        return [(0, batch.num_sequences)]

    def post_attention(self, step: Step) -> None:
        """Run the layer's second half; after the last layer only each prompt's last token goes through the head."""
        self.state.post_attention(step, self._flight(step).attended(self.state.batch(step)))
        self.state.choose_after(step)


def _head_by_head(lens: Sequence[int], heads: int, dim: int) -> Iterator[Move]:
    """Say where rows [tokens, heads, dim] of prompts go, so that each prompt's are [heads, tokens, dim]."""
    start = 0
    for tokens in lens:
        if tokens:
            yield Move(start, heads * dim, dim, start, dim, tokens * dim, tokens)
        start += tokens * heads * dim
