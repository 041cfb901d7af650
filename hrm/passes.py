"""The passes of a job: how many of each one wave has and the whole job, and what the lanes do in one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np

from hrm.arrays import Reals
from hrm.estimate import Fidelity
from hrm.hardware import HardwareProfile
from hrm.lanes import LaneWork, lane_work
from hrm.model import ModelSpec
from hrm.pass_costs import PassCosts, at_step, contended, pass_costs
from hrm.policy_grid import PolicyGrid
from hrm.rates import Rates
from hrm.records import record
from hrm.schedule.task import Phase
from hrm.workload import Workload

__all__ = ["JobPass", "job_passes", "rates_at", "stretches", "wave_costs", "wave_work"]

CONTEXT_SAMPLES = 4
"""Decode steps evaluated between the first and the last; the growing context changes costs piecewise linearly."""
_LAST = "last_"


@record
class JobPass:
    """Passes of a job that cost alike: how many of them one wave has and the whole job, and what the lanes do in one.

    A job that does not come out even ends with a smaller wave; its passes have names that begin with `last_`.
    """

    name: str
    phase: Phase
    per_wave: int
    count: Reals
    work: LaneWork

    @property
    def in_full_wave(self) -> bool:
        """Whether the pass belongs to a wave of the whole batch."""
        return not self.name.startswith(_LAST)


def job_passes(
    grid: PolicyGrid, model: ModelSpec, hardware: HardwareProfile, workload: Workload, fidelity: Fidelity
) -> tuple[JobPass, ...]:
    """Return the passes of a job under each policy of a grid, at `roof` or `ceiling`."""
    rates, total = rates_at(hardware, fidelity), workload.num_sequences
    if total is None:
        return tuple(_wave_passes(grid, model, rates, workload, "", 1.0))
    whole, rest = np.divmod(total, grid.batch_size)
    passes = list(_wave_passes(grid, model, rates, workload, "", whole))
    if np.any(rest):
        last = np.where(rest > 0, rest, grid.batch_size)
        smaller = replace(grid, batch_size=last, micro_batch_size=np.minimum(grid.micro_batch_size, last))
        passes += _wave_passes(smaller, model, rates, workload, _LAST, np.sign(rest))
    return tuple(passes)


def _wave_passes(
    grid: PolicyGrid, model: ModelSpec, rates: Rates, workload: Workload, prefix: str, waves: Reals
) -> Iterator[JobPass]:
    for index, (per_wave, work) in enumerate(wave_work(wave_costs(grid, model, rates, workload), rates)):
        phase = Phase.DECODE if index else Phase.PREFILL
        yield JobPass(
            name=f"{prefix}{phase}" + (f"_{index}" if index else ""),
            phase=phase,
            per_wave=per_wave,
            count=per_wave * waves,
            work=work,
        )


def rates_at(hardware: HardwareProfile, fidelity: Fidelity) -> Rates:
    """Return the rates that a fidelity counts with: peaks at `roof`, else what was measured."""
    return Rates(hardware=hardware, measured=fidelity is not Fidelity.ROOF)


def wave_costs(grid: PolicyGrid, model: ModelSpec, rates: Rates, workload: Workload) -> list[tuple[int, PassCosts]]:
    """Cost the prefill pass, and for each stretch of decode how many passes it has and what its middle one costs."""
    works = [(1, pass_costs(grid, model, rates, workload, Phase.PREFILL))]
    base: PassCosts | None = None
    for count, step in stretches(workload.gen_len - 1):
        if base is None:
            base = costs = pass_costs(grid, model, rates, workload, Phase.DECODE, step)
        else:
            costs = at_step(base, rates, workload, step)
        works.append((count, costs))
    return works


def wave_work(works: list[tuple[int, PassCosts]], rates: Rates) -> tuple[tuple[int, LaneWork], ...]:
    """Return what the lanes have to do in each pass, at contended rates where measured ones count."""
    costed = [(count, contended(costs, rates) if rates.measured else costs) for count, costs in works]
    return tuple((count, lane_work(costs, rates.shared)) for count, costs in costed)


def stretches(steps: int) -> list[tuple[int, float]]:
    """Cut decode into stretches in which costs hardly change: how many steps each has, and its middle step (from 1)."""
    count = min(steps, CONTEXT_SAMPLES)
    ends = [round(index * steps / count) for index in range(count + 1)] if count else []
    return [(end - first, (first + 1 + end) / 2) for first, end in pairwise(ends)]
