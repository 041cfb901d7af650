"""What each kind of task does in prefill: whole prompts, all on the main device, keys and values to the cache."""

from __future__ import annotations

import torch

from executor.attention import prefill_attention
from executor.buffers import PrefillFlight
from executor.decoder import pre_attention
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
            shape = (batch.num_tokens, model.num_kv_heads, model.head_dim)
            keys, values = (state.workspace.take(shape, hidden.dtype) for _ in range(2))
            out = (flight.query(batch), keys, values)
            pre_attention(hidden, state.weights.layers[step.task.layer], model, rotary, state.workspace, out)
            for index in range(batch.num_sequences):
                own_keys, own_values = flight.keys_values(batch, index)
                own_keys.copy_(keys[batch.rows(index)].transpose(0, 1))
                own_values.copy_(values[batch.rows(index)].transpose(0, 1))

    def offload(self, step: Step) -> None:
        """Bring keys and values that belong there down to the host, one copy each, and put them into the cache."""
        state, batch, cache = self.state, self.state.batch(step), self.state.cache
        first = cache.first_on_host[step.task.part] - batch.first
        sources = self._flight(step).all_keys_values(batch, first, batch.num_sequences)
        if not sources[0].numel():
            return
        with state.landing.frame():
            keys, values = state.land(sources)
            sizes = [tokens * state.model.kv_size for tokens in batch.prompt_lens[first:]]
            parts = zip(torch.split(keys, sizes), torch.split(values, sizes), strict=True)
            for index, own in enumerate(parts, start=first):
                rows = cache.host.rows(step.task.layer, batch.first + index, batch.prompt_lens[index])
                for target, source in zip(rows, own, strict=True):
                    target.copy_(source.view(target.shape))

    def attention(self, step: Step) -> None:
        """Attend within each prompt; write the cache of those that keep theirs on this device."""
        state, batch, flight = self.state, self.state.batch(step), self._flight(step)
        query, attended = flight.query(batch), flight.attended(batch)
        for index, tokens in enumerate(batch.prompt_lens):
            if not tokens:
                continue
            keys, values = flight.keys_values(batch, index)
            rows = batch.rows(index)
            prefill_attention(query[rows], keys.to(query.dtype), values.to(query.dtype), attended[rows])
            if batch.first + index < state.cache.first_on_host[step.task.part]:
                cached = state.cache.main.rows(step.task.layer, batch.first + index, tokens)
                cached[0].copy_(keys)
                cached[1].copy_(values)

    def post_attention(self, step: Step) -> None:
        """Run the layer's second half; after the last layer only each prompt's last token goes through the head."""
        self.state.post_attention(step, self._flight(step).attended(self.state.batch(step)))
