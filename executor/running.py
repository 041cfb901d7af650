"""Submitting a schedule's tasks, in its order and behind its dependencies, and collecting when each ran."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from executor.tasks import TaskRunner
from hrm.device.backend import Backend, Event
from hrm.schedule.task import Lane, Phase, Schedule, Task, TaskKey

__all__ = ["Span", "run_schedule"]

Events = dict[TaskKey, Event]


class Span(NamedTuple):
    """When a task ran: `time.perf_counter()` seconds. The prologue counts as pass 0."""

    phase: Phase
    pass_index: int
    key: TaskKey
    lane: Lane
    started_s: float
    ended_s: float


class _Submitted(NamedTuple):
    phase: Phase
    pass_index: int
    task: Task
    event: Event

    def span(self) -> Span:
        task, event = self.task, self.event
        return Span(self.phase, self.pass_index, task.key, task.lane, event.started_s, event.ended_s)


def run_schedule(
    schedule: Schedule,
    gen_len: int,
    runner: TaskRunner,
    backend: Backend,
    on_pass: Callable[[int], None],
) -> list[Span]:
    """Run all passes; `on_pass` hears of each one that has ended, by its number.

    A pass is submitted while the one before it runs, so that lanes find work and memory stays bounded.

    Raises
    ------
    HrmError
        What the first failing task raised, once everything submitted has come to rest.
    """
    submitting = _Submitting(runner, backend)
    try:
        before = submitting.submit(schedule.prologue, Phase.PREFILL, 0, {})
        for index, (phase, tasks) in enumerate(schedule.passes(gen_len)):
            now = submitting.submit(tasks, phase, index, before)
            _wait(before)
            if index:
                on_pass(index - 1)
            before = now
        _wait(before)
        on_pass(gen_len - 1)
    except Exception:
        submitting.settle()
        raise
    return [entry.span() for entry in submitting.submitted]


class _Submitting:
    """Submits tasks and remembers all of them."""

    def __init__(self, runner: TaskRunner, backend: Backend) -> None:
        self._runner = runner
        self._backend = backend
        self.submitted: list[_Submitted] = []

    def submit(self, tasks: tuple[Task, ...], phase: Phase, pass_index: int, before: Events) -> Events:
        """Submit the tasks of a pass behind their needs among its own and those of the pass before."""
        now: Events = {}
        for task in tasks:
            after = []
            for need in task.needs:
                # A need of the pass before that has no such task there is met: the first pass has only the prologue.
                event = before.get(need.key) if need.passes_ago else now.get(need.key)
                assert event is not None or (need.passes_ago and pass_index == 0), (task, need)
                if event is not None:
                    after.append(event)
            work = self._runner.work(phase, task, pass_index)
            now[task.key] = self._backend.stream(task.lane).submit(work, after)
            self.submitted.append(_Submitted(phase, pass_index, task, now[task.key]))
        return now

    def settle(self) -> None:
        """Wait until nothing runs any more, whatever it raises: what runs still uses the buffers."""
        for entry in self.submitted:
            with suppress(Exception):
                entry.event.wait()


def _wait(events: Events) -> None:
    for event in events.values():
        event.wait()
