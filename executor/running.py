"""Submitting a schedule's tasks, in its order and behind its dependencies, and collecting when each ran."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from executor.tasks import TaskRunner
from hrm.device.backend import Backend, Event
from hrm.schedule.task import Lane, Phase, Schedule, Task, TaskKey

__all__ = ["Span", "Spans", "run_schedule"]


class Span(NamedTuple):
    """When a task ran: `time.perf_counter()` seconds. The prologue counts as pass 0."""

    phase: Phase
    pass_index: int
    key: TaskKey
    lane: Lane
    started_s: float
    ended_s: float


class _Ended(NamedTuple):
    """A pass that has ended, and when its tasks ran."""

    phase: Phase
    pass_index: int
    tasks: tuple[Task, ...]
    started_s: array[float]
    ended_s: array[float]


class Spans:
    """When each task of a run ran: two numbers of each are kept, for a long run has millions."""

    def __init__(self) -> None:
        self._passes: list[_Ended] = []

    def __iter__(self) -> Iterator[Span]:
        """Yield a span for each task, in the order of submission."""
        for ended in self._passes:
            for task, started_s, ended_s in zip(ended.tasks, ended.started_s, ended.ended_s, strict=True):
                yield Span(ended.phase, ended.pass_index, task.key, task.lane, started_s, ended_s)

    def add(self, phase: Phase, pass_index: int, tasks: tuple[Task, ...], events: Sequence[Event | Span]) -> None:
        """Note when the tasks of a pass ran; all have ended."""
        started_s, ended_s = array("d", (event.started_s for event in events)), array("d")
        ended_s.extend(event.ended_s for event in events)
        self._passes.append(_Ended(phase, pass_index, tasks, started_s, ended_s))


class _Submitted(NamedTuple):
    phase: Phase
    pass_index: int
    tasks: tuple[Task, ...]
    events: list[Event]


def run_schedule(
    schedule: Schedule,
    passes: int,
    runner: TaskRunner,
    backend: Backend,
    on_pass: Callable[[int], int],
) -> Spans:
    """Run so many passes, or fewer: `on_pass` hears of each that has ended, by its number, and says how many in all.

    A pass is submitted while the one before it runs, so that lanes find work and memory stays bounded; so one more pass
    may run than `on_pass` says.

    Raises
    ------
    HrmError
        What the first failing task raised, or `on_pass`, once what had begun has come to rest; the rest is dropped.
    """
    submitting, spans = _Submitting(runner, backend), Spans()
    try:
        before = submitting.submit(_Submitted(Phase.PREFILL, 0, schedule.prologue, []), ((), []))
        index = 0
        while index < passes:
            phase = Phase.DECODE if index else Phase.PREFILL
            tasks = _tasks(schedule, phase, last=index == passes - 1)
            now = submitting.submit(_Submitted(phase, index, tasks, []), (before.tasks, before.events))
            _finish(before, spans)
            if index:
                passes = min(passes, on_pass(index - 1))
            before, index = now, index + 1
        _finish(before, spans)
        on_pass(index - 1)
    except BaseException:
        runner.drop()
        submitting.settle()
        raise
    return spans


Place = tuple[bool, int]
"""Where a needed task stands: whether in the pass before, and which one there."""


def _tasks(schedule: Schedule, phase: Phase, *, last: bool) -> tuple[Task, ...]:
    """Return the tasks of a pass, look-ahead left out where no pass follows."""
    tasks = schedule.walks[phase].tasks
    return tuple(task for task in tasks if not task.for_next_pass) if last else tasks


class _Submitting:
    """Submits passes; remembers the last two, for what is older has ended."""

    def __init__(self, runner: TaskRunner, backend: Backend) -> None:
        self._runner = runner
        self._backend = backend
        self._needs: dict[tuple[int, int], list[tuple[Place, ...]]] = {}
        self._recent: list[_Submitted] = []

    def submit(self, now: _Submitted, before: tuple[tuple[Task, ...], list[Event]]) -> _Submitted:
        """Submit the tasks of a pass behind their needs among its own and those of the pass before."""
        tasks_before, events_before = before
        self._recent = [*self._recent[-1:], now]
        # Passes share their tuples of tasks, which the schedule keeps: most are placed once for all.
        passes = id(now.tasks), id(tasks_before)
        if passes not in self._needs:
            self._needs[passes] = _places(now.tasks, tasks_before, first=now.pass_index == 0)
        streams = {task.lane: self._backend.stream(task.lane) for task in now.tasks}
        events = now.events
        for task, needs in zip(now.tasks, self._needs[passes], strict=True):
            after = [events_before[place] if earlier else events[place] for earlier, place in needs]
            work = self._runner.work(now.phase, task, now.pass_index)
            events.append(streams[task.lane].submit(work, after))
        return now

    def settle(self) -> None:
        """Wait until nothing runs any more, whatever it raises: what runs still uses the buffers."""
        for submitted in self._recent:
            _settle(submitted)


def _places(tasks: tuple[Task, ...], before: tuple[Task, ...], *, first: bool) -> list[tuple[Place, ...]]:
    """Find each task's needs; in the first pass one of the pass before that has no such task is met."""
    earlier, own = ({task.key: place for place, task in enumerate(some)} for some in (before, tasks))
    found = []
    for at, task in enumerate(tasks):
        places = [(bool(need.passes_ago), (earlier if need.passes_ago else own).get(need.key)) for need in task.needs]
        assert all((ago and first) if place is None else (ago or place < at) for ago, place in places), task
        found.append(tuple((ago, place) for ago, place in places if place is not None))
    return found


def _finish(submitted: _Submitted, spans: Spans) -> None:
    """Wait for a pass to end; raises what its first failing task raised."""
    _settle(submitted)
    for event in submitted.events:
        event.wait()
    spans.add(*submitted)


def _settle(submitted: _Submitted) -> None:
    """Wait for a pass, its last tasks first: who waits for each in turn takes a core and the interpreter at each end.

    Tasks of 0.2 ms on 2 cores stood 26 us apart for that, and stand 2 apart.
    """
    for event in reversed(submitted.events):
        with suppress(Exception):
            event.wait()
