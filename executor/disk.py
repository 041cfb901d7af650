"""Experts on disk: the ring of buffers they are read into, and what each kind of task does with them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from executor import native
from executor.direct import Reading, aligned_buffers, finish
from executor.expert_file import open_expert_file
from executor.experts import PLAIN, ExpertForm, add_compiled, apply_expert, assignments
from executor.linear import suits_compiled
from executor.memory import torch_dtype
from executor.norm import add_to
from hrm.device.huge_pages import aligned_memory
from hrm.model import ModelSpec
from hrm.policy import Policy
from hrm.schedule.disk_ring import DiskRing
from hrm.workspace import ROWS_AT_A_TIME

if TYPE_CHECKING:
    from executor.state import Step, WaveState

__all__ = ["DiskStore", "DiskTasks"]


class DiskStore:
    """The experts of each layer that lie on disk, and the ring of buffers behind it, in memory of `allocate`.

    An expert is asked for as soon as its buffer is free, whichever lane frees it. Experts come in one order, pass after
    pass, so what is asked for early, over layers, passes and rounds, is wanted in the end.

    Raises
    ------
    FileError
        As `open_expert_file`.
    """

    def __init__(
        self,
        policy: Policy,
        model: ModelSpec,
        checkpoint_dir: Path,
        allocate: Callable[[int], torch.Tensor] = aligned_memory,
    ) -> None:
        self._file = open_expert_file(policy, model, checkpoint_dir)
        self._ring = DiskRing(policy, model)
        self._dtype = torch_dtype(policy.weight_dtype)
        self._parameters = model.expert_parameters
        self.on_disk = policy.experts_on_disk(model)
        """Experts on disk by layer."""
        self._num_experts = model.num_experts
        self._buffers = aligned_buffers(self._file.expert_bytes, policy.num_disk_buffers(model), allocate)
        self._lock = threading.Lock()
        self._readings: deque[Reading] = deque()
        self._asked = self._read = self._used = 0
        """How many experts were asked for, have come, and were done with."""

    def kept(self, layer: int) -> list[int]:
        """Return the experts of a layer that are in memory."""
        return [expert for expert in range(self._num_experts) if expert not in self.on_disk[layer]]

    def load(self, layer: int, expert: int, target: torch.Tensor) -> None:
        """Copy an expert that stays in memory to its place, flat, by way of the ring."""
        self._file.read(layer, expert, self._buffers[0])
        target.copy_(self._weights(0))

    def begin_round(self) -> None:
        """Get ready for a first pass: what was asked for already is kept, unless a pass was broken off."""
        if self._read == self._used and self._read % self._ring.in_pass == 0:
            return
        for reading in self._readings:
            wait(reading)
        self._readings.clear()
        self._asked = self._read = self._used = 0

    def read(self, layer: int, part: int) -> None:
        """Wait until the next expert has come, which is this one; its buffer is free."""
        self._ask()
        assert self._ring.at(self._read)[:2] == (layer, part), "experts are read in order"
        finish(self._readings.popleft())
        self._read += 1

    def expert(self) -> torch.Tensor:
        """Return the first expert that has come and is not done with, flat."""
        return self._weights(self._used % self._ring.buffers)

    def used(self) -> None:
        """Note that this expert's buffer is free again, and ask for what goes there."""
        self._used += 1
        self._ask()

    def _ask(self) -> None:
        with self._lock:
            while self._asked < self._used + self._ring.buffers:
                layer, part, _ = self._ring.at(self._asked)
                target = self._buffers[self._asked % self._ring.buffers]
                self._readings.append(self._file.begin(layer, self.on_disk[layer][part], target))
                self._asked += 1

    def _weights(self, number: int) -> torch.Tensor:
        return self._buffers[number].view(self._dtype)[: self._parameters]


class DiskTasks:
    """The handlers of experts on disk, in either phase; to a GPU they cross as pages."""

    def __init__(self, state: WaveState) -> None:
        self.state = state
        self._form = ExpertForm.of(state.model)
        self._chosen = torch.empty(0, dtype=torch.int64)
        self._assigned: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def read(self, step: Step) -> None:
        """Read an expert into its buffer."""
        assert self.state.disk is not None
        self.state.disk.read(step.task.layer, step.task.part)

    def kept(self, step: Step) -> None:
        """Add the outputs of the experts in memory to the sums."""
        self._add(step, 0, self.state.experts.on_cpu(step.task.layer))

    def compute(self, step: Step) -> None:
        """Add an expert's output to the sums; with the layer's last one, add these to the hidden states."""
        state, disk, (_, layer, part) = self.state, self.state.disk, step.task.key
        assert disk is not None
        self._add(step, disk.on_disk[layer][part], [disk.expert()])
        disk.used()
        if part == len(disk.on_disk[layer]) - 1:
            hidden = state.all_hidden(step)
            add_to(hidden, state.buffers.disk.sums[: len(hidden)])

    def _add(self, step: Step, first: int, experts: Sequence[torch.Tensor]) -> None:
        """Add the outputs of experts number `first` and following to the sums, in the order of their numbers."""
        flight, tokens = self.state.buffers.disk, len(self.state.all_hidden(step))
        shares, chosen, normed = flight.routed.parts(tokens)
        sums, compiled = flight.sums[:tokens], self._form == PLAIN and suits_compiled(experts[0])
        if first == 0:
            self._find(shares, chosen, compiled)
        if compiled:
            routed = (torch.split(one, ROWS_AT_A_TIME) for one in (normed, self._chosen, shares, sums))
            for some, numbers, parts, total in zip(*routed, strict=True):
                add_compiled(native.Experts(some, numbers, parts, experts, first), total, self.state.workspace)
            return
        for expert, weights in enumerate(experts, start=first):
            if (mine := self._assigned.get(expert)) is not None:
                apply_expert(normed, *mine, weights, self.state.workspace, sums, self._form)

    def _find(self, shares: torch.Tensor, chosen: torch.Tensor, compiled: bool) -> None:
        """Work out, once a layer, who goes to which expert."""
        self._chosen = chosen.to(torch.int64)
        if not compiled:
            found = assignments(shares, chosen, self.state.model.num_experts)
            self._assigned = {number: (rows, parts) for number, rows, parts in found}
