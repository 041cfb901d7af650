"""What a task costs beyond its kernels and bytes: the interpreter, views, waking up; found by running small ones.

The executor runs a small model and hands in how long its tasks took; what their kernels' tables and the links explain
of it is taken off.
"""

from __future__ import annotations

from collections.abc import Iterable

from hrm.hardware import HardwareProfile
from hrm.lanes import pass_costs
from hrm.model import ModelSpec
from hrm.policy import Policy, PolicyGrid
from hrm.rates import Rates, placement_of
from hrm.records import record
from hrm.schedule.task import Phase, TaskKind
from hrm.units import NonNegative
from hrm.workload import Workload

__all__ = ["TaskRun", "overheads"]

_WITHOUT = (TaskKind.PAGE_COPY, TaskKind.PAGE_PIN)


@record
class TaskRun:
    """A small job of one micro-batch, and the median seconds of a decode task of each kind."""

    policy: Policy
    model: ModelSpec
    workload: Workload
    seconds: dict[TaskKind, NonNegative]


def overheads(profile: HardwareProfile, runs: Iterable[TaskRun]) -> dict[str, dict[TaskKind, float]]:
    """Return, by placement and kind, what tasks took beyond what the profile explains; never less than nothing.

    Where several runs have tasks that do the same, the first one counts.
    """
    found: dict[str, dict[TaskKind, float]] = {}
    for run in runs:
        rates, step = Rates(hardware=profile, measured=True), run.workload.gen_len / 2
        costs = pass_costs(PolicyGrid.of(run.policy), run.model, rates, run.workload, Phase.DECODE, step)
        explained = costs.full[run.model.layer_kind(0)]
        for kind, seconds in run.seconds.items():
            if kind in explained and kind not in _WITHOUT:
                beyond_s = max(0.0, seconds - float(explained[kind].seconds))
                found.setdefault(placement_of(run.policy, kind), {}).setdefault(kind, beyond_s)
    return found
