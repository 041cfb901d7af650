"""What each kind of task does where CPU and GPU split the experts of a layer, in either phase."""

from __future__ import annotations

from executor.experts import ExpertForm, weighted_sum
from executor.state import Step, WaveState

__all__ = ["SplitTasks"]


class SplitTasks:
    """The handlers of split experts: the GPU's are the first ones of a layer, the CPU's the last."""

    def __init__(self, state: WaveState) -> None:
        self.state = state

    def offload(self, step: Step) -> None:
        """Bring down hidden states and routing, in one copy."""
        flight, tokens = self.state.split_flight(step), len(self.state.hidden(step))
        self.state.backend.copy(flight.on_host.joint(tokens), flight.routed.joint(tokens))

    def on_cpu(self, step: Step) -> None:
        """Leave the sum of the CPU's experts in host memory."""
        state, flight, tokens = self.state, self.state.split_flight(step), len(self.state.hidden(step))
        experts = state.experts.on_cpu(step.task.layer)
        shares, chosen, normed = flight.on_host.parts(tokens)
        with state.cpu_workspace.frame():
            first = state.model.num_experts - len(experts)
            form = ExpertForm.of(state.model)
            total = weighted_sum(normed, shares, chosen, experts, first, state.cpu_workspace, form)
            flight.sums[:tokens].copy_(total)

    def on_gpu(self, step: Step) -> None:
        """Add the GPU's experts to the hidden states."""
        state, hidden = self.state, self.state.hidden(step)
        shares, chosen, normed = state.split_flight(step).routed.parts(len(hidden))
        experts = state.main_experts(step.task.layer, state.use(step))
        form = ExpertForm.of(state.model)
        with state.workspace.frame():
            hidden.add_(weighted_sum(normed, shares, chosen, experts, 0, state.workspace, form))

    def upload(self, step: Step) -> None:
        """Bring up the CPU's sum and add it."""
        hidden = self.state.hidden(step)
        landed = self.state.buffers.landed_sum[: len(hidden)]
        self.state.backend.copy(landed, self.state.split_flight(step).sums[: len(hidden)])
        hidden.add_(landed)
