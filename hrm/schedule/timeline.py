"""Timelines: every task of a few passes with its times, and for each gap of a lane what it waited for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hrm.records import record
from hrm.schedule.loads import PassLoad
from hrm.schedule.sharing import Shared
from hrm.schedule.simulation import Simulation
from hrm.schedule.task import Lane, Schedule, Task
from hrm.schedule.templates import LANES

__all__ = ["TimedTask", "Timeline", "simulate_timeline"]


@record
class TimedTask:
    """A task with its start and end, seconds from the start of the timeline; `pass_index` -1 is the prologue.

    `waited_s` is how long its lane had stood still; `waited_for` the task whose end let it start, None where it did not
    have to wait.
    """

    pass_index: int
    task: Task
    start_s: float
    end_s: float
    waited_s: float = 0.0
    waited_for: Task | None = None


@record
class Timeline:
    """Tasks with times, in the order in which they ended, and when each pass ended."""

    tasks: tuple[TimedTask, ...]
    pass_end_s: tuple[float, ...]

    def of_lane(self, lane: Lane) -> tuple[TimedTask, ...]:
        """Return the tasks of a lane, in order."""
        return tuple(timed for timed in self.tasks if timed.task.lane is lane)

    def busy_s(self, lane: Lane) -> float:
        """Seconds in which a lane was working."""
        return sum(timed.end_s - timed.start_s for timed in self.of_lane(lane))

    def between(self, begin_s: float, end_s: float) -> Timeline:
        """Return what runs in a stretch of time, cut off at its ends, as if it began at 0."""
        cut = [
            TimedTask(
                pass_index=timed.pass_index,
                task=timed.task,
                start_s=max(timed.start_s, begin_s) - begin_s,
                end_s=min(timed.end_s, end_s) - begin_s,
                waited_s=min(timed.waited_s, max(timed.start_s - begin_s, 0.0)),
                waited_for=timed.waited_for,
            )
            for timed in self.tasks
            if timed.end_s > begin_s and timed.start_s < end_s
        ]
        ends = tuple(end - begin_s for end in self.pass_end_s if begin_s <= end <= end_s)
        return Timeline(tasks=tuple(cut), pass_end_s=ends)


def simulate_timeline(
    schedule: Schedule,
    loads: Sequence[PassLoad],
    shared: Sequence[Shared] = (),
    kept: Mapping[Lane, float] | None = None,
) -> Timeline:
    """Simulate every layer of every pass and keep all times; for a few passes, as memory goes with their number."""
    singly = [PassLoad(phase=load.phase, work_of=load.work_of) for load in loads for _ in range(load.count)]
    simulation = Simulation(schedule, singly, shared, exact=True, kept=kept)
    log = simulation.log = []
    simulation.run()
    free_s = [0.0] * len(LANES)
    timed = []
    for ran in log:
        pass_index, task = simulation.tasks[ran.lane][ran.place]
        cause = None if ran.waited_for is None else simulation.tasks[ran.waited_for[0]][ran.waited_for[1]][1]
        waited_s = ran.start_s - free_s[ran.lane]
        free_s[ran.lane] = ran.end_s
        timed.append(
            TimedTask(
                pass_index=pass_index,
                task=task,
                start_s=ran.start_s,
                end_s=ran.end_s,
                waited_s=waited_s,
                waited_for=cause,
            )
        )
    return Timeline(tasks=tuple(timed), pass_end_s=tuple(load.end_s for load in simulation.result().loads))
