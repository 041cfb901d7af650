"""What the tasks of a wave work on, and which run of which task a handler is asked for."""

from __future__ import annotations

from typing import NamedTuple

import torch

from executor.buffers import WaveBuffers
from executor.decoder import ModelWeights, RotaryTable, next_tokens, post_attention
from executor.kv_cache import KVCache
from executor.wave import MicroBatch, Wave
from executor.weights import ExpertStore
from executor.workspace import Workspace
from hrm.device.backend import Backend
from hrm.model import ModelSpec
from hrm.policy import Policy
from hrm.records import record
from hrm.schedule.task import Task

__all__ = ["Step", "WaveState"]


class Step(NamedTuple):
    """A task in a pass; pass 0 is prefill and makes the first token."""

    task: Task
    pass_index: int


@record
class WaveState:
    """All that the tasks of a wave share; `prompt_tokens`, `positions` and `lengths` lie on the FFN's device."""

    policy: Policy
    model: ModelSpec
    backend: Backend
    weights: ModelWeights
    experts: ExpertStore
    rotary: RotaryTable
    workspace: Workspace
    wave: Wave
    cache: KVCache
    buffers: WaveBuffers
    prompt_tokens: torch.Tensor
    positions: torch.Tensor
    lengths: torch.Tensor
    host_lengths: torch.Tensor

    def batch(self, step: Step) -> MicroBatch:
        """Return the micro-batch that a step works on."""
        return self.wave.micro_batches[step.task.part]

    def position(self, step: Step) -> int:
        """Return the number of the step's (layer, micro-batch) in the order of a pass."""
        return step.task.layer * self.policy.num_micro_batches + step.task.part

    def use(self, step: Step) -> int:
        """Return the number of the layer's use over the run; weights laid ahead are for the next pass."""
        return (step.pass_index + step.task.for_next_pass) * self.model.num_layers + step.task.layer

    def is_last_layer(self, step: Step) -> bool:
        """Whether the step belongs to the layer that the head follows."""
        return step.task.layer == self.model.num_layers - 1

    def embed(self, tokens: torch.Tensor, hidden: torch.Tensor) -> None:
        """Write the tokens' embeddings into `hidden`."""
        torch.index_select(self.weights.embedding, 0, tokens, out=hidden)

    def post_attention(self, step: Step, attended: torch.Tensor, hidden: torch.Tensor) -> None:
        """Run what follows attention in the step's layer, on `hidden` in place."""
        experts = self.experts.at_work(step.task.layer, self.use(step))
        layer = self.weights.layers[step.task.layer]
        post_attention(attended, hidden, layer, experts, self.model, self.workspace)

    def choose(self, step: Step, hidden: torch.Tensor) -> None:
        """Record the next token of each sequence of the micro-batch, given its last hidden state."""
        batch = self.batch(step)
        tokens = next_tokens(hidden, self.weights, self.model, self.workspace)
        self.buffers.generated[step.pass_index, batch.first : batch.last].copy_(tokens)
