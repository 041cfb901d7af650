"""Checking a schedule: needs point backward, no buffer is overwritten while read, every page crosses once per pass.

What happens before what follows from lanes (in order) and needs alone; no times are assumed. Buffers and their contents
come from `hrm.schedule.buffers`, which knows nothing of the schedule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from hrm.model import ModelSpec
from hrm.policy import Policy, ScheduleName
from hrm.schedule.buffers import Access, accesses
from hrm.schedule.task import Lane, Phase, Schedule, Task, TaskKey, TaskKind

__all__ = ["validate"]

GEN_LEN = 4
"""Passes that are checked: prefill, two that follow their like, and the last one."""
_PAGES = (TaskKind.PAGE_COPY, TaskKind.PAGE_PIN)


def validate(schedule: Schedule, policy: Policy, model: ModelSpec) -> tuple[str, ...]:
    """Return what is wrong with a schedule, a line each; nothing for a sound one."""
    return (
        *_Check(policy, model).problems(schedule),
        *_pages_that_do_not_cross_once(schedule, policy, model),
        *_long_waits(schedule, policy, model),
    )


class _Done(NamedTuple):
    """A task of a pass; `clock` counts, per lane, the tasks that have surely ended when it ends."""

    name: str
    lane: Lane
    clock: dict[Lane, int]

    def ends_before(self, clock: dict[Lane, int]) -> bool:
        """Say whether it has surely ended when a task starts that waits for `clock`."""
        return clock.get(self.lane, 0) >= self.clock[self.lane]


class _Check:
    """Walks over a generation in the order of its tasks."""

    def __init__(self, policy: Policy, model: ModelSpec) -> None:
        self.policy, self.model = policy, model
        self.done: dict[tuple[int, TaskKey], _Done] = {}
        self.last_in_lane: dict[Lane, _Done] = {}
        self.written: dict[tuple[str, int], tuple[_Done, Access]] = {}
        self.read: dict[tuple[str, int], list[_Done]] = {}

    def problems(self, schedule: Schedule) -> Iterator[str]:
        passes = [(Phase.PREFILL, schedule.prologue), *schedule.passes(GEN_LEN)]
        for index, (phase, tasks) in enumerate(passes, start=-1):
            for task in tasks:
                yield from self._task(phase, index, task)

    def _task(self, phase: Phase, index: int, task: Task) -> Iterator[str]:
        name = f"{task.kind} of layer {task.layer}, part {task.part}, in pass {index}"
        if (index, task.key) in self.done:
            yield f"{name}: given twice"
        clock: dict[Lane, int] = {}
        if task.lane in self.last_in_lane:
            _merge(clock, self.last_in_lane[task.lane])
        for need in task.needs:
            needed = self.done.get((index - need.passes_ago, need.key))
            if needed is not None:
                _merge(clock, needed)
            elif not (need.passes_ago and index <= 0):
                yield f"{name}: needs {need.key.kind} of layer {need.key.layer}, part {need.key.part}, not given before"
        own = _Done(name, task.lane, {**clock, task.lane: clock.get(task.lane, 0) + 1})
        found = accesses(self.policy, self.model, phase, index, task)
        for access in found.reads:
            yield from self._reads(own, clock, access)
        for access in found.writes:
            yield from self._writes(own, clock, access)
        self.done[index, task.key] = self.last_in_lane[task.lane] = own

    def _reads(self, own: _Done, clock: dict[Lane, int], access: Access) -> Iterator[str]:
        buffer = access.name, access.number
        writer, written = self.written.get(buffer, (None, None))
        if writer is None or written != access:
            yield f"{own.name}: finds the wrong thing in {access.name} {access.number}"
        elif not writer.ends_before(clock):
            yield f"{own.name}: may read {access.name} {access.number} before {writer.name} has written it"
        self.read.setdefault(buffer, []).append(own)

    def _writes(self, own: _Done, clock: dict[Lane, int], access: Access) -> Iterator[str]:
        buffer = access.name, access.number
        users = self.read.pop(buffer, [])
        if buffer in self.written:
            users.append(self.written[buffer][0])
        for user in users:
            if user is not own and not user.ends_before(clock):
                yield f"{own.name}: may overwrite {access.name} {access.number} while {user.name} uses it"
        self.written[buffer] = own, access


def _merge(clock: dict[Lane, int], done: _Done) -> None:
    for lane, count in done.clock.items():
        clock[lane] = max(clock.get(lane, 0), count)


def _pages_that_do_not_cross_once(schedule: Schedule, policy: Policy, model: ModelSpec) -> Iterator[str]:
    pages = policy.num_pages(model) if policy.streamed_experts(model) else 0
    for kind, name, parts_of in (
        (TaskKind.PAGE_COPY, "page", dict.fromkeys(model.moe_layers, pages)),
        (TaskKind.DISK_READ, "expert on disk", policy.disk_experts_of(model)),
    ):
        expected = {(layer, part) for layer, parts in parts_of.items() for part in range(parts)}
        for phase, tasks in ((Phase.PREFILL, schedule.prefill), (Phase.DECODE, schedule.decode)):
            crossed = Counter((task.layer, task.part) for task in tasks if task.kind is kind)
            for layer, part in sorted(expected | set(crossed)):
                times = crossed[layer, part]
                if times != ((layer, part) in expected):
                    yield f"{name} {part} of layer {layer} crosses {times} times in a {phase} pass"


def _long_waits(schedule: Schedule, policy: Policy, model: ModelSpec) -> Iterator[str]:
    """Find hidden states that come up behind more than their share of pages: one, where each has its page.

    Layers that bring none up, dense ones with attention on the GPU, have that share for each of their micro-batches.
    """
    if policy.schedule is not ScheduleName.CGOPIPE:
        return
    share = -(-policy.num_pages(model) // policy.num_micro_batches)
    positions = policy.num_micro_batches * model.num_layers
    behind, latest = 0, -1
    for pass_index in range(2):
        for task in _in_lane(Lane.H2D, schedule.decode):
            if task.kind in _PAGES:
                behind += 1
                continue
            position = pass_index * positions + task.layer * policy.num_micro_batches + task.part
            allowed = share * max(position - latest, 1)
            if behind > allowed:
                yield f"{task.kind} of layer {task.layer}, part {task.part}: waits behind {behind} pages, not {allowed}"
            behind, latest = 0, max(latest, position)


def _in_lane(lane: Lane, tasks: Iterable[Task]) -> Iterator[Task]:
    return (task for task in tasks if task.lane is lane)
