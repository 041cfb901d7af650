"""What the tasks of a wave work on, and which run of which task a handler is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from executor.attention import AttentionForm
from executor.buffers import SplitFlight, WaveBuffers
from executor.decoder import ModelWeights, next_logits, post_attention, route_attended
from executor.disk import DiskStore
from executor.grouped import GroupedWeights
from executor.kv_cache import WaveCache
from executor.latent import LatentWeights, expand
from executor.rotary import RotaryTable
from executor.sampling import pick
from executor.seats import Round
from executor.wave import MicroBatch
from executor.weights import ExpertStore
from executor.workspace import Workspace
from hrm.device.backend import Backend
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor
from hrm.records import record
from hrm.schedule.task import IN_FLIGHT, Phase, Task

__all__ = ["Step", "WaveState"]


class Step(NamedTuple):
    """A task in a pass; pass 0 is prefill and makes the first token."""

    task: Task
    pass_index: int


@record
class WaveState:
    """All that the tasks of a wave share, and the round of passes that they are in.

    `workspace` is the main device's, `cpu_workspace` that of experts which the CPU computes for a GPU, and in `landing`
    keys and values arrive in host memory before they are put where they belong.
    """

    policy: Policy
    model: ModelSpec
    backend: Backend
    weights: ModelWeights
    experts: ExpertStore
    disk: DiskStore | None
    rotary: RotaryTable
    workspace: Workspace
    cpu_workspace: Workspace
    landing: Workspace
    round: Round
    cache: WaveCache
    buffers: WaveBuffers

    @property
    def attends_apart(self) -> bool:
        """Whether decode attends on the CPU while the rest runs on the GPU."""
        return self.policy.attention_device is not self.policy.main_device

    def batch(self, step: Step) -> MicroBatch:
        """Return the micro-batch that a step works on."""
        return self.round.micro_batches[step.task.part]

    def position(self, step: Step) -> int:
        """Return the number of the step's (layer, micro-batch) in the order of a pass."""
        return step.task.layer * self.policy.num_micro_batches + step.task.part

    def use(self, step: Step) -> int:
        """Return the number of the use of the layer's experts over the run; those laid ahead are for the next pass."""
        layers = self.model.moe_layers
        return (step.pass_index + step.task.for_next_pass) * len(layers) + layers.index(step.task.layer)

    def rows(self, step: Step) -> slice:
        """Return the rows of a step's micro-batch: of all prompt tokens in prefill, then one per sequence."""
        batch = self.batch(step)
        return slice(batch.first, batch.last) if step.pass_index else slice(batch.token_first, batch.token_last)

    def hidden(self, step: Step) -> torch.Tensor:
        """Return the hidden states that a step works on."""
        return self.buffers.hidden[self.rows(step)]

    def all_hidden(self, step: Step) -> torch.Tensor:
        """Return those of all micro-batches in the step's pass."""
        last = self.round.micro_batches[-1]
        return self.buffers.hidden[: last.last if step.pass_index else last.token_last]

    def embed(self, tokens: torch.Tensor, hidden: torch.Tensor) -> None:
        """Write the tokens' embeddings into `hidden`."""
        torch.index_select(self.weights.embedding, 0, tokens, out=hidden)

    def attention(self, layer: int) -> AttentionForm:
        """Return how a layer attends within prompts."""
        model, weights = self.model, self.weights.layers[layer].attention
        sinks = weights.sinks if isinstance(weights, GroupedWeights) else None
        return AttentionForm(scale=model.attention_scale, window=model.layer_kind(layer).window, sinks=sinks)

    def sinks(self, layer: int, device: torch.device) -> torch.Tensor | None:
        """Return the sinks of a layer, if it has them, where decode attends."""
        weights = self.weights.layers[layer].attention
        if not isinstance(weights, GroupedWeights):
            return None
        return weights.host_sinks if device.type == "cpu" else weights.sinks

    def keys_values(
        self, layer: int, parts: Sequence[torch.Tensor], lens: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of prompts, as `prefill_attention` takes them, from what the cache takes of them.

        Prompts with latents are of one length.
        """
        weights = self.weights.layers[layer].attention
        if not isinstance(weights, LatentWeights):
            return parts[0], parts[1]
        latents = parts[0].to(self.buffers.hidden.dtype).view(len(lens), 1, lens[0], -1)
        keys, values = expand(latents, weights, self.model, self.workspace)
        return keys.flatten(), values.flatten()

    def main_experts(self, layer: int, use: int) -> list[torch.Tensor]:
        """Return the experts of a layer that the main device computes, at this use of them."""
        if self.policy.main_device is Processor.CPU:
            return self.experts.on_cpu(layer)
        return self.experts.on_gpu(layer, use)

    def split_flight(self, step: Step) -> SplitFlight:
        """Return the buffers of the step's micro-batch around experts that CPU and GPU split."""
        phase = Phase.DECODE if step.pass_index else Phase.PREFILL
        return self.buffers.split[phase][self.position(step) % IN_FLIGHT]

    def post_attention(self, step: Step, attended: torch.Tensor) -> None:
        """Run what follows attention in the step's layer, up to experts that are split or on disk, if any are."""
        hidden, layer = self.hidden(step), self.weights.layers[step.task.layer]
        is_moe = step.task.layer not in self.model.dense_layers
        if self.buffers.split and is_moe:
            routed = self.split_flight(step).routed.parts(len(hidden))
            route_attended(attended, hidden, layer, self.model, self.workspace, routed)
            return
        if self.policy.computes_from_disk and is_moe:
            self._wait_for_disk(step, attended)
            return
        experts = self.main_experts(step.task.layer, self.use(step)) if is_moe else []
        post_attention(attended, hidden, layer, experts, self.model, self.workspace)

    def choose_after(self, step: Step) -> None:
        """Choose the next token after the last layer, unless its experts, split or on disk, are still to come."""
        is_last, is_moe = step.task.layer == self.model.num_layers - 1, step.task.layer not in self.model.dense_layers
        if is_last and not (is_moe and (self.buffers.split or self.policy.computes_from_disk)):
            self.choose(step)

    def _wait_for_disk(self, step: Step, attended: torch.Tensor) -> None:
        """Do as `post_attention` up to experts on disk, for which the rest of the layer waits."""
        flight, rows = self.buffers.disk, self.rows(step)
        routed = [part[rows] for part in flight.routed.parts(len(self.all_hidden(step)))]
        hidden, layer = self.hidden(step), self.weights.layers[step.task.layer]
        route_attended(attended, hidden, layer, self.model, self.workspace, (routed[0], routed[1], routed[2]))
        flight.sums[rows].zero_()

    def land(self, sources: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copy tensors down, on the d2h lane, and return them when they have arrived; for the frame of `landing`."""
        landed = [self.landing.take(source.shape, source.dtype) for source in sources]
        for target, source in zip(landed, sources, strict=True):
            self.backend.copy(target, source)
        self.backend.await_copies()
        return landed

    def choose(self, step: Step) -> None:
        """Record the next token of each sequence of the micro-batch that is computed, given its last hidden state."""
        batch, hidden = self.batch(step), self.hidden(step)
        seats = list(range(batch.first, batch.last))
        if step.pass_index == 0:
            ends = [last - 1 for tokens, last in zip(batch.prompt_lens, batch.token_starts[1:], strict=True) if tokens]
            hidden = hidden.index_select(0, torch.tensor(ends, device=hidden.device) - batch.token_first)
            seats = [seat for seat, tokens in zip(seats, batch.prompt_lens, strict=True) if tokens]
        settings = [self.round.settings[seat] for seat in seats]
        numbers = [self.round.made[seat] + step.pass_index for seat in seats]
        with self.workspace.frame():
            tokens = pick(next_logits(hidden, self.weights, self.model, self.workspace), settings, numbers)
        made = self.buffers.generated[step.pass_index]
        made.index_copy_(0, torch.tensor(seats, device=made.device), tokens)
