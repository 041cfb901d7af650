"""What each kind of task does in decode: one token per sequence, attention where the policy put the cache."""

from __future__ import annotations

from executor.attention import append_kv, decode_attention
from executor.buffers import DecodeFlight
from executor.decoder import pre_attention
from executor.state import Step, WaveState
from hrm.schedule.task import IN_FLIGHT

__all__ = ["DecodeTasks"]


class DecodeTasks:
    """The handlers of decode. Without a link between attention and FFN, host and device buffers are the same."""

    def __init__(self, state: WaveState) -> None:
        self.state = state

    def _flight(self, step: Step) -> DecodeFlight:
        return self.state.buffers.decode[self.state.position(step) % IN_FLIGHT]

    def _host_flight(self, step: Step) -> DecodeFlight:
        return self.state.buffers.host[self.state.position(step) % IN_FLIGHT]

    def pre_attention(self, step: Step) -> None:
        """Make queries, keys and values of the token that the pass before made."""
        state, batch = self.state, self.state.batch(step)
        hidden = state.buffers.hidden[batch.first : batch.last]
        if step.task.layer == 0:
            state.embed(state.buffers.generated[step.pass_index - 1, batch.first : batch.last], hidden)
        # The token's position is the number of tokens before it: the prompt, and one per pass since.
        rotary = state.rotary.at(state.lengths[batch.first : batch.last] + (step.pass_index - 1))
        out = self._flight(step).qkv(batch.num_sequences)
        pre_attention(hidden, state.weights.layers[step.task.layer], state.model, rotary, state.workspace, out)

    def offload(self, step: Step) -> None:
        """Bring queries, keys and values down in one copy."""
        rows = self.state.batch(step).num_sequences
        self.state.backend.copy(self._host_flight(step).joint(rows), self._flight(step).joint(rows))

    def attention(self, step: Step) -> None:
        """Append to the cache and attend over it."""
        state, batch = self.state, self.state.batch(step)
        flight = self._host_flight(step)
        query, new_keys, new_values = flight.qkv(batch.num_sequences)
        keys, values = state.cache.keys[step.task.layer], state.cache.values[step.task.layer]
        cached = state.host_lengths[batch.first : batch.last] + (step.pass_index - 1)
        append_kv(new_keys, new_values, keys, values, state.cache.layout(batch.first, batch.last, cached))
        layout = state.cache.layout(batch.first, batch.last, cached + 1)
        out = flight.attended(batch.num_sequences).view(query.shape)
        decode_attention(query, keys, values, layout, state.model.num_kv_heads, out)

    def upload(self, step: Step) -> None:
        """Bring the attention output up."""
        rows = self.state.batch(step).num_sequences
        self.state.backend.copy(self._flight(step).attended(rows), self._host_flight(step).attended(rows))

    def post_attention(self, step: Step) -> None:
        """Run the layer's second half, and after the last layer the head."""
        state, batch = self.state, self.state.batch(step)
        hidden = state.buffers.hidden[batch.first : batch.last]
        state.post_attention(step, self._flight(step).attended(batch.num_sequences), hidden)
        if state.is_last_layer(step):
            state.choose(step, hidden)
