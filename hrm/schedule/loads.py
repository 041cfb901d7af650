"""What is simulated, and what comes of it: loads of passes with their costs, and the times of each."""

from __future__ import annotations

from collections.abc import Callable

from hrm.records import record
from hrm.schedule.sharing import Work
from hrm.schedule.task import Lane, Phase, Task, TaskKind

__all__ = ["LoadTimes", "PassLoad", "Simulated"]


@record
class PassLoad:
    """`count` passes of a phase, one after the other, that cost the same; `work_of` says what a task demands."""

    phase: Phase
    work_of: Callable[[Task], Work]
    count: int = 1


@record
class LoadTimes:
    """When the last of a load's passes ended; and how long, over all of them, lanes were busy and stood still.

    `seconds` goes by lane and kind of task, contention included. `waits_s` goes by lane and the kind of task whose end
    the lane waited for. The prologue counts with the first load.
    """

    end_s: float
    seconds: dict[Lane, dict[TaskKind, float]]
    waits_s: dict[Lane, dict[TaskKind, float]]

    def busy_s(self, lane: Lane) -> float:
        """Seconds in which a lane was working."""
        return sum(self.seconds.get(lane, {}).values())


@record
class Simulated:
    """What came of each load; times count from the start of the prologue."""

    loads: tuple[LoadTimes, ...]

    @property
    def end_s(self) -> float:
        """When the last pass ended."""
        return self.loads[-1].end_s

    def busy_s(self, lane: Lane) -> float:
        """Seconds in which a lane was working, in all passes."""
        return sum(load.busy_s(lane) for load in self.loads)
