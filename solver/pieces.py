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
from hrm.policy import Policy, Processor
from hrm.policy_grid import PolicyGrid
from hrm.records import record
from hrm.schedule.task import Phase
from solver.problem import Objective, Problem
from solver.room import WHOLE, Affine, Room, with_resident

__all__ = ["Pieces", "bounds_by_name", "pieces_of"]

Column = NDArray[np.float64]


@record
class Pieces:
    """The K candidates of a grid that fit in memory, and what bounds their passes.

    `bounds` holds S passes x L bounds x K candidates, in seconds. `weights` says how many of each pass (S x K) make up
    the objective and, as shares of what is allowed, each limit: `weights["objective"]` sums to seconds, the others must
    not exceed 1.
    """

    room: Room
    pass_names: tuple[str, ...]
    bound_names: tuple[str, ...]
    bounds: Affine
    weights: dict[str, Column]

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
        policy = self.room.grid.take(index)
        if policy.disk_experts:
            policy = replace(policy, disk_experts=policy.disk_experts - resident)
        return policy if policy.main_device is Processor.CPU else replace(policy, resident_experts=resident)


def pieces_of(problem: Problem, room: Room, fidelity: Fidelity = Fidelity.CEILING) -> Pieces:
    """Return the pieces at `roof` or `ceiling` of candidates that there is room for."""
    first = np.clip(np.floor(room.high + WHOLE), room.least, room.most)
    second = np.where(first > room.least, room.least, room.most)
    passes, names, bounds = _bounds(problem, room.grid, (first, second), fidelity)
    return Pieces(
        room=room,
        pass_names=tuple(one.name for one in passes),
        bound_names=names,
        bounds=bounds,
        weights=_weights(problem, room.grid, passes),
    )


def _bounds(
    problem: Problem, grid: PolicyGrid, ends: tuple[Column, Column], fidelity: Fidelity
) -> tuple[tuple[JobPass, ...], tuple[str, ...], Affine]:
    """Evaluate the core at two numbers of resident experts at once, and draw a line through each pair of values."""
    first, second = ends
    count = len(first)
    both = with_resident(grid.select(np.tile(np.arange(count), 2)), np.concatenate(ends))
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
