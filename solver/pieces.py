"""How long passes last, as the largest of affine pieces: for each candidate, affine in its resident experts per layer.

A pass lasts as long as its busiest lane, its chain, or a rate that lanes share, whichever is longest (`hrm.lanes`).
With devices, N, mu and the split fixed, more resident experts only take bytes off the link, or the disk: each bound is
affine in their number. The coefficients are not formulas of their own: the predicting core is evaluated at two numbers.
One jump is real: once nothing is streamed no copy is started, and its latency is gone. That is a candidate of its own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hrm.arrays import Reals
from hrm.estimate import Fidelity
from hrm.lanes import LaneWork
from hrm.passes import JobPass, job_passes
from hrm.policy import Policy, PolicyGrid
from hrm.records import record
from hrm.schedule.task import Phase
from solver.problem import Objective, Problem
from solver.room import WHOLE, Affine, MemoryRow, memory_rows, ranges, resident_range, with_resident

__all__ = ["Pieces", "bounds_by_name", "pieces_of", "select"]

Column = NDArray[np.float64]


@record
class Pieces:
    """The K candidates of a grid that fit in memory, and what bounds their passes.

    `bounds` holds S passes x L bounds x K candidates, in seconds. Resident experts may go from `least` to `most`, and
    memory leaves `low` to `high`, real numbers. `weights` says how many of each pass (S x K) make up the objective and,
    as shares of what is allowed, each limit: `weights["objective"]` sums to seconds, the others must not exceed 1.
    """

    grid: PolicyGrid
    pass_names: tuple[str, ...]
    bound_names: tuple[str, ...]
    bounds: Affine
    weights: dict[str, Column]
    memory: tuple[MemoryRow, ...]
    least: Column
    most: Column
    low: Column
    high: Column

    @property
    def size(self) -> int:
        """K: how many candidates there are."""
        return len(self.low)

    @property
    def whole(self) -> tuple[Column, Column]:
        """The fewest and the most whole experts that fit; some candidates have none."""
        return np.ceil(self.low - WHOLE), np.floor(self.high + WHOLE)

    def pass_s(self, resident: Column) -> Column:
        """Return how long each pass lasts (S x K)."""
        longest: Column = self.bounds.at(resident).max(axis=1)
        return longest

    def sums(self, resident: Column) -> dict[str, Column]:
        """Return objective and limits at so many resident experts (K each)."""
        lasting = self.pass_s(resident)
        return {name: (weights * lasting).sum(axis=0) for name, weights in self.weights.items()}

    def policy(self, index: int, resident: int) -> Policy:
        """Return a candidate with so many experts resident."""
        policy = self.grid.take(index)
        if policy.disk_experts:
            return replace(policy, disk_experts=policy.disk_experts - resident)
        return replace(policy, resident_experts=resident)


def select(grid: PolicyGrid, kept: NDArray[np.bool_] | NDArray[np.int64]) -> PolicyGrid:
    """Return some of a grid's candidates."""
    names = ("batch_size", "micro_batch_size", "resident_experts", "cpu_experts", "kv_on_gpu", "disk_experts")
    return replace(grid, **{name: getattr(grid, name)[kept] for name in names})


def pieces_of(problem: Problem, grid: PolicyGrid, fidelity: Fidelity = Fidelity.CEILING) -> Pieces:
    """Return the pieces at `roof` or `ceiling` of a grid's candidates.

    Each candidate stands for two, the second of which streams nothing.
    """
    ends = ranges(problem, grid)
    least, most = (np.concatenate(column) for column in zip(*ends, strict=True))
    grid = select(grid, np.tile(np.arange(np.size(grid.batch_size)), len(ends)))
    rows = memory_rows(problem, grid, least, most)
    low, high = resident_range(rows, least, most)
    kept = low <= high
    grid, least, most, low, high = select(grid, kept), least[kept], most[kept], low[kept], high[kept]
    memory = tuple(
        replace(row, held=Affine(intercept=row.held.intercept[kept], slope=row.held.slope[kept])) for row in rows
    )
    first = np.clip(np.floor(high + WHOLE), least, most)
    second = np.where(first > least, least, most)
    passes, names, bounds = _bounds(problem, grid, (first, second), fidelity)
    return Pieces(
        grid=grid,
        pass_names=tuple(one.name for one in passes),
        bound_names=names,
        bounds=bounds,
        weights=_weights(problem, grid, passes),
        memory=memory,
        least=least,
        most=most,
        low=low,
        high=high,
    )


def _bounds(
    problem: Problem, grid: PolicyGrid, ends: tuple[Column, Column], fidelity: Fidelity
) -> tuple[tuple[JobPass, ...], tuple[str, ...], Affine]:
    """Evaluate the core at two numbers of resident experts at once, and draw a line through each pair of values."""
    first, second = ends
    count = len(first)
    both = with_resident(select(grid, np.tile(np.arange(count), 2)), np.concatenate(ends))
    passes = job_passes(both, problem.model, problem.hardware, problem.workload, fidelity)
    named = [bounds_by_name(one.work) for one in passes]
    names = tuple(dict.fromkeys(name for bounds in named for name in bounds))
    values = np.zeros((len(passes), len(names), 2 * count))
    for place, bounds in enumerate(named):
        for name, seconds in bounds.items():
            values[place, names.index(name)] = seconds
    at_first, at_second = values[..., :count], values[..., count:]
    apart = second - first
    slope = (at_second - at_first) / np.where(apart == 0.0, 1.0, apart)
    return passes, names, Affine(intercept=at_first - slope * first, slope=slope)


def bounds_by_name(work: LaneWork) -> dict[str, Reals]:
    """Return the bounds of a pass by lane, `chain`, and what lanes share."""
    return {str(lane): seconds for lane, seconds in work.seconds.items()} | {"chain": work.chain_s} | work.shared_s


def _weights(problem: Problem, grid: PolicyGrid, passes: tuple[JobPass, ...]) -> dict[str, Column]:
    """Return what each pass adds to the objective, in seconds, and to each limit, as a share of it."""
    size = len(np.atleast_1d(grid.batch_size))
    counts = np.stack([np.broadcast_to(np.ravel(one.count)[:size], size) for one in passes])
    in_wave = np.array([[float(one.per_wave * one.in_full_wave)] for one in passes])
    prefill = np.array([[one.phase is Phase.PREFILL] for one in passes])
    tokens = (problem.workload.num_sequences or grid.batch_size) * problem.workload.gen_len
    sums = {
        "ttft": in_wave * prefill,
        "tpot": in_wave * ~prefill / max(problem.workload.gen_len - 1, 1),
        "makespan": counts,
    }
    weights = {name: sums[name] / limit for name, limit in problem.time_limits_s.items()}
    weights["objective"] = in_wave if problem.objective is Objective.LATENCY else counts / tokens
    return {name: np.broadcast_to(one, counts.shape) for name, one in weights.items()}
