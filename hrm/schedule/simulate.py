"""Simulating a schedule: lanes work in order, a task starts when its lane is free and its needs are met."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hrm.records import record
from hrm.schedule.task import Lane, Task, TaskKey

__all__ = ["TimedTask", "Timeline", "simulate"]


@record
class TimedTask:
    """A task with its start and end, seconds from the start of the timeline; `pass_index` -1 is the prologue."""

    pass_index: int
    task: Task
    start_s: float
    end_s: float


@record
class Timeline:
    """Tasks with times, and when each pass ended."""

    tasks: tuple[TimedTask, ...]
    pass_end_s: tuple[float, ...]

    def busy_s(self, lane: Lane) -> float:
        """Seconds in which a lane was working."""
        return sum(timed.end_s - timed.start_s for timed in self.tasks if timed.task.lane is lane)


def simulate(prologue: Sequence[Task], passes: Sequence[tuple[Sequence[Task], Callable[[Task], float]]]) -> Timeline:
    """Run the prologue and the passes, each with the seconds of its tasks; the prologue takes those of the first pass.

    The result lies between the busiest lane and the sum of all tasks: in-order lanes with needs that point backward
    always have a task running.
    """
    lane_free: dict[Lane, float] = {}
    ends: dict[tuple[int, TaskKey], float] = {}
    timed: list[TimedTask] = []
    pass_end: list[float] = []
    for index, (tasks, task_s) in enumerate([(prologue, passes[0][1]), *passes], start=-1):
        for task in tasks:
            ready = max((ends.get((index - need.passes_ago, need.key), 0.0) for need in task.needs), default=0.0)
            start = max(ready, lane_free.get(task.lane, 0.0))
            end = start + task_s(task)
            lane_free[task.lane] = ends[index, task.key] = end
            timed.append(TimedTask(pass_index=index, task=task, start_s=start, end_s=end))
        if index >= 0:
            pass_end.append(max(ends[index, task.key] for task in tasks if not task.for_next_pass))
    return Timeline(tasks=tuple(timed), pass_end_s=tuple(pass_end))
