"""What each kind of task does in prefill: whole prompts, all on the FFN's device, keys and values to the cache."""

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
        model, rows = state.model, slice(batch.token_first, batch.token_last)
        hidden = state.buffers.hidden[rows]
        if step.task.layer == 0:
            state.embed(state.prompt_tokens[rows], hidden)
        rotary = state.rotary.at(state.positions[rows])
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
        """Copy keys and values to the cache: a head's rows of a sequence lie together on both sides."""
        state, batch, flight = self.state, self.state.batch(step), self._flight(step)
        for index, tokens in enumerate(batch.prompt_lens):
            targets = state.cache.prompt_rows(step.task.layer, batch.first + index, tokens)
            for target, source in zip(targets, flight.keys_values(batch, index), strict=True):
                for head in range(state.model.num_kv_heads):
                    state.backend.copy(target[head], source[head])

    def attention(self, step: Step) -> None:
        """Attend within each prompt; where the cache lies on this device, write it too."""
        state, batch, flight = self.state, self.state.batch(step), self._flight(step)
        query, attended = flight.query(batch), flight.attended(batch)
        cache_is_here = state.policy.ffn_device is state.policy.attention_device
        for index, tokens in enumerate(batch.prompt_lens):
            keys, values = flight.keys_values(batch, index)
            rows = batch.rows(index)
            prefill_attention(query[rows], keys.to(query.dtype), values.to(query.dtype), attended[rows])
            if cache_is_here:
                cached_keys, cached_values = state.cache.prompt_rows(step.task.layer, batch.first + index, tokens)
                cached_keys.copy_(keys)
                cached_values.copy_(values)

    def post_attention(self, step: Step) -> None:
        """Run the layer's second half; after the last layer only each prompt's last token goes through the head."""
        state, batch = self.state, self.state.batch(step)
        hidden = state.buffers.hidden[batch.token_first : batch.token_last]
        state.post_attention(step, self._flight(step).attended(batch), hidden)
        if state.is_last_layer(step):
            ends = torch.tensor(batch.token_starts[1:], device=hidden.device) - (batch.token_first + 1)
            state.choose(step, hidden.index_select(0, ends))
