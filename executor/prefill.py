"""What each kind of task does in prefill: whole prompts, all on the main device, keys and values to the cache."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from executor.attention import TOKENS_AT_A_TIME, prefill_attention
from executor.buffers import PrefillFlight
from executor.decoder import pre_attention
from executor.latent import LatentWeights
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
            for first, last in batch.runs(TOKENS_AT_A_TIME):
                for own, part in zip(flight.cached(batch, first, last), parts, strict=True):
                    own.copy_(_by_prompt(part[batch.rows(first, last)], last - first).transpose(1, 2))

    def offload(self, step: Step) -> None:
        """Bring what belongs there down to the host, one copy of each part, and put it into the cache."""
        state, batch, cache = self.state, self.state.batch(step), self.state.cache
        first = cache.first_on_host[step.task.part] - batch.first
        heads, dim = state.model.cache_heads
        sources = self._flight(step).all_cached(batch, first, batch.num_sequences)
        if not sources[0].numel():
            return
        with state.landing.frame():
            sizes = [tokens * heads * dim for tokens in batch.prompt_lens[first:]]
            landed = [torch.split(part, sizes) for part in state.land(sources)]
            for index, own in enumerate(zip(*landed, strict=True), start=first):
                parts = [part.view(heads, -1, dim) for part in own]
                if batch.prompt_lens[index]:
                    cache.host.store_prompt(step.task.layer, batch.first + index, parts)

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
        for index in range(batch.first, min(batch.last, first_on_host)):
            if batch.prompt_lens[at := index - batch.first]:
                own = [part[0] for part in flight.cached(batch, at, at + 1)]
                state.cache.main.store_prompt(layer, index, own)

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


def _by_prompt(rows: torch.Tensor, prompts: int) -> torch.Tensor:
    """View rows of prompts of one length as [prompts, tokens, ...]."""
    return rows.view(prompts, -1, *rows.shape[1:])
