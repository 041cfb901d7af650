"""Simulating a schedule on shared resources, without walking through what repeats.

    loads = [PassLoad(phase=Phase.PREFILL, work_of=...), PassLoad(phase=Phase.DECODE, work_of=..., count=255)]
    result = simulate_passes(schedule, loads, shared)
    result.end_s, result.loads[1].busy_s(Lane.GPU)

A lane does one task at a time, in the schedule's order; a task starts when its lane is free and its needs are met.
Running tasks share each rate of `shared` max-min fairly, less what collisions cost (`hrm.schedule.sharing`), and a lane
beside others that draw has no more than the share of its pace in `kept`; with none shared, a task lasts the `seconds`
of its `Work`. `work_of` is asked once for layers that are alike (`Walk.like`), and once per load: its answer may depend
on kind, part, kind of layer and whether it is the last.

Where the state of all lanes is as it was a few layers or a pass before, what repeats from there on is not simulated but
counted. A load of many passes is a stretch of generation in which costs hardly change: sample a growing context by a
few loads. Where not even a dozen passes of a load bring the same state twice, the rest take as long as the last one:
only queues still fill or drain then, in a pass by less than a dozenth of what they hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hrm.schedule.loads import LoadTimes, PassLoad, Simulated
from hrm.schedule.sharing import Shared, Work
from hrm.schedule.simulation import Simulation
from hrm.schedule.task import Lane, Schedule

__all__ = ["LoadTimes", "PassLoad", "Shared", "Simulated", "Work", "simulate_passes"]


def simulate_passes(
    schedule: Schedule,
    loads: Sequence[PassLoad],
    shared: Sequence[Shared] = (),
    *,
    exact: bool = False,
    kept: Mapping[Lane, float] | None = None,
) -> Simulated:
    """Simulate the prologue and all passes; the prologue's tasks cost what they cost in the first load.

    The result lies between the busiest lane and the sum of all tasks: in-order lanes with needs that point backward
    always have a task running, and n tasks that share a rate each keep at least an n-th of their pace.
    `exact` walks through every layer and pass.
    """
    simulation = Simulation(schedule, loads, shared, exact=exact, kept=kept)
    simulation.run()
    return simulation.result()
