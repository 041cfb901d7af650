"""Experts on disk: the ring of buffers they are read into, and what each kind of task does with them."""

from __future__ import annotations

from concurrent.futures import wait
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from executor.direct import Reading, aligned_buffers, finish
from executor.expert_file import open_expert_file
from executor.experts import ExpertForm, assignments, feed_forward
from executor.memory import torch_dtype
from hrm.model import ModelSpec
from hrm.policy import Policy
from hrm.schedule.disk_ring import DiskRing
from hrm.workspace import ROWS_AT_A_TIME

if TYPE_CHECKING:
    from executor.state import Step, WaveState

__all__ = ["DiskStore", "DiskTasks"]


class DiskStore:
    """The last experts of each layer, on disk, and the ring of buffers between.

    While an expert is waited for, the next one is asked for too where its buffer is free: else the disk would rest
    from an expert's last request to the first of the next.

    Raises
    ------
    FileError
        As `open_expert_file`.
    """

    def __init__(self, policy: Policy, model: ModelSpec, checkpoint_dir: Path) -> None:
        self._file = open_expert_file(policy, model, checkpoint_dir)
        self._ring = DiskRing(policy, model)
        self._dtype = torch_dtype(policy.weight_dtype)
        self._parameters = model.expert_parameters
        self.kept = model.num_experts - policy.disk_experts
        """Experts of each layer that are in memory, the first ones."""
        self._begun: dict[int, Reading] = {}
        self._used = -1
        self._buffers = aligned_buffers(self._file.expert_bytes, policy.num_disk_buffers(model))

    def load(self, layer: int, expert: int, target: torch.Tensor) -> None:
        """Copy an expert that stays in memory to its place, flat, by way of the ring."""
        self._file.read(layer, expert, self._buffers[0])
        target.copy_(self._weights(0))

    def read(self, layer: int, part: int, pass_index: int) -> None:
        """Read an expert into the buffer of this use; uses come in order, from 0 on in each round."""
        use = self._ring.use(pass_index, layer, part)
        if use == 0:
            self._forget()
        reading = self._begun.pop(use, None) or self._begin(use)
        if use + 1 - self._ring.buffers <= self._used:
            self._begun[use + 1] = self._begin(use + 1)
        finish(reading)

    def used(self, layer: int, part: int, pass_index: int) -> None:
        """Note that an expert's buffer is free again."""
        self._used = self._ring.use(pass_index, layer, part)

    def _forget(self) -> None:
        """Let go of what an earlier round asked for and did not want any more."""
        for reading in self._begun.values():
            wait(reading)
        self._begun, self._used = {}, -1

    def _begin(self, use: int) -> Reading:
        layer, part, _ = self._ring.at(use)
        return self._file.begin(layer, self.kept + part, self._buffers[use % self._ring.buffers])

    def expert(self, layer: int, part: int, pass_index: int) -> torch.Tensor:
        """Return an expert that was read, flat."""
        return self._weights(self._ring.buffer(pass_index, layer, part))

    def _weights(self, number: int) -> torch.Tensor:
        return self._buffers[number].view(self._dtype)[: self._parameters]


class DiskTasks:
    """The handlers of experts on disk, in either phase."""

    def __init__(self, state: WaveState) -> None:
        self.state = state
        self._assigned: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def read(self, step: Step) -> None:
        """Read an expert into its buffer."""
        assert self.state.disk is not None
        self.state.disk.read(step.task.layer, step.task.part, step.pass_index)

    def kept(self, step: Step) -> None:
        """Add the outputs of the experts in memory to the sums."""
        for expert, weights in enumerate(self.state.experts.on_cpu(step.task.layer)):
            self._add(step, expert, weights)

    def compute(self, step: Step) -> None:
        """Add an expert's output to the sums; with the layer's last one, add these to the hidden states."""
        state, disk, (_, layer, part) = self.state, self.state.disk, step.task.key
        assert disk is not None
        self._add(step, disk.kept + part, disk.expert(layer, part, step.pass_index))
        disk.used(layer, part, step.pass_index)
        if part == state.policy.disk_experts - 1:
            hidden = state.all_hidden(step)
            hidden.add_(state.buffers.disk.sums[: len(hidden)])

    def _add(self, step: Step, expert: int, weights: torch.Tensor) -> None:
        """Add an expert's output; who goes to which one is worked out at the first expert of a layer."""
        flight, tokens = self.state.buffers.disk, len(self.state.all_hidden(step))
        shares, chosen, normed = flight.routed.parts(tokens)
        if expert == 0:
            found = assignments(shares, chosen, self.state.model.num_experts)
            self._assigned = {number: (rows, parts) for number, rows, parts in found}
        if (mine := self._assigned.get(expert)) is not None:
            self._add_rows(normed, mine, weights, flight.sums[:tokens])

    def _add_rows(
        self,
        normed: torch.Tensor,
        mine: tuple[torch.Tensor, torch.Tensor],
        expert: torch.Tensor,
        sums: torch.Tensor,
    ) -> None:
        """Add an expert's output for its tokens of `normed` [all tokens, hidden], times their shares, to `sums`."""
        workspace, form = self.state.workspace, ExpertForm.of(self.state.model)
        for rows, part in zip(*(torch.split(one, ROWS_AT_A_TIME) for one in mine), strict=True):
            with workspace.frame():
                gathered = workspace.take((len(rows), normed.shape[1]), normed.dtype)
                torch.index_select(normed, 0, rows, out=gathered)
                sums.index_add_(0, rows, feed_forward(gathered, expert, workspace, form).mul_(part))
