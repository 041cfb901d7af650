"""Everything on the CPU: one lane, the micro-batches of a layer one after another; beside it a disk that reads ahead.

Where experts lie on disk, all are computed with for all micro-batches at once, so that each is read once per pass. The
disk runs ahead of the CPU, over layers and passes, as far as the ring of buffers lets it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from hrm.model import ModelSpec
from hrm.policy import Policy
from hrm.schedule.disk_ring import DiskRing
from hrm.schedule.task import Lane, Need, Phase, Schedule, Task, TaskKey, TaskKind, Walk

__all__ = ["host"]

_STAGES = (TaskKind.PRE_ATTENTION, TaskKind.ATTENTION, TaskKind.POST_ATTENTION)


def host(policy: Policy, model: ModelSpec) -> Schedule:
    """Order the tasks of a policy that runs on the CPU alone; prefill and decode walk alike."""
    walk = _Host(policy, model).walk()
    return Schedule(prologue=(), walks=dict.fromkeys(Phase, walk))


class _Host:
    """Makes the tasks of a pass."""

    def __init__(self, policy: Policy, model: ModelSpec) -> None:
        self._model = model
        self._num_micro_batches = policy.num_micro_batches
        self._ring = DiskRing(policy, model)

    def walk(self) -> Walk:
        """Wrap up what makes the pass."""
        return Walk(
            num_layers=self._model.num_layers,
            layer=self._layer,
            like=self._like,
            main=Lane.CPU,
            reach=self._reach,
        )

    def _reach(self, layer: int) -> int:
        """Return how many layers ahead of the CPU the disk may be: what is read next waits for the oldest buffer."""
        if not self._ring.in_pass:
            return 1
        later = [other for other in self._ring.layers if other >= layer]
        following = later[0] if later else self._ring.layers[0] + self._model.num_layers
        back, _, _ = self._backs(following % self._model.num_layers)[0]
        return 1 + max(0, back - (following - layer))

    def _like(self, layer: int) -> Hashable:
        is_last = layer == self._model.num_layers - 1
        return self._model.layer_kind(layer), is_last, self._ring.parts(layer), self._backs(layer)

    def _backs(self, layer: int) -> tuple[tuple[int, int, int], ...]:
        """Say, of each expert read into a buffer of an earlier layer's, how many layers back that is, and which one."""
        found = (self._ring.before(layer, part) for part in range(min(self._ring.parts(layer), self._ring.buffers)))
        return tuple(
            (layer - use.layer + use.passes_ago * self._model.num_layers, use.part, use.passes_ago) for use in found
        )

    def _layer(self, layer: int) -> Iterator[Task]:
        """Yield what is given to the lanes while the CPU works on a layer."""
        reads = self._ring.parts(layer)
        for part in range(min(reads, self._ring.buffers)):
            yield self._read(layer, part)
        for micro_batch in range(self._num_micro_batches):
            before: tuple[Need, ...] = ()
            for kind in _STAGES:
                key = TaskKey(kind, layer, micro_batch)
                yield Task(key=key, lane=Lane.CPU, needs=before)
                before = (Need(key),)
        if reads:
            yield from self._experts(layer)

    def _experts(self, layer: int) -> Iterator[Task]:
        """Yield what the experts of a layer do for all micro-batches, and what needs all of them."""
        parts, buffers = self._ring.parts(layer), self._ring.buffers
        if parts < self._model.num_experts:
            yield Task(key=TaskKey(TaskKind.KEPT_EXPERTS, layer, 0), lane=Lane.CPU)
        for part in range(parts):
            read = Need(TaskKey(TaskKind.DISK_READ, layer, part))
            yield Task(key=TaskKey(TaskKind.DISK_EXPERTS, layer, part), lane=Lane.CPU, needs=(read,))
            if part + buffers < parts:
                yield self._read(layer, part + buffers)
        if layer == self._model.num_layers - 1:
            last = Need(TaskKey(TaskKind.DISK_EXPERTS, layer, parts - 1))
            for micro_batch in range(self._num_micro_batches):
                yield Task(key=TaskKey(TaskKind.HEAD, layer, micro_batch), lane=Lane.CPU, needs=(last,))

    def _read(self, layer: int, part: int) -> Task:
        before = self._ring.before(layer, part)
        free = Need(TaskKey(TaskKind.DISK_EXPERTS, before.layer, before.part), before.passes_ago)
        return Task(key=TaskKey(TaskKind.DISK_READ, layer, part), lane=Lane.DISK, needs=(free,))
