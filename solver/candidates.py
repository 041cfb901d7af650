"""Candidates of a search space, ranked by what they reach at `roof` or `ceiling`, with finer ones around the best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from hrm.estimate import Fidelity
from hrm.policy import Policy
from hrm.policy_grid import PolicyGrid
from hrm.records import record
from solver.breakpoints import Optima, relaxed_optima, whole_optima
from solver.infeasible import no_plan
from solver.pieces import Pieces, pieces_of
from solver.problem import Problem
from solver.pruning import promising
from solver.room import room_for
from solver.space import SearchSpace, build_space, refined

__all__ = ["SIMULATED_WITHIN", "Candidate", "Explored", "Ranked", "distinct", "explore"]

REFINEMENTS = (1.3, 1.05, 1.01)
"""How far around the best N each round of refinement looks, as a ratio."""
SIMULATED_WITHIN = 0.8
"""Candidates this close to the best at `ceiling` may be simulated; the gap between the two is rarely larger."""
DISTINCT = 1.3
"""Of one placement, candidates differ that are so much apart in the number of micro-batches, or in N."""

_NUMBERS = {"batch_size", "micro_batch_size", "resident_experts", "cpu_experts", "disk_experts", "fuller_layers"}
_BESIDE_NUMBERS = attrgetter(*(one.name for one in fields(Policy) if one.name not in _NUMBERS))


class Candidate(NamedTuple):
    """A policy, and where it stands in the pieces of its grid."""

    policy: Policy
    pieces: Pieces
    place: int


@record
class Ranked:
    """Candidates of one grid: the least objective over real numbers of resident experts, and over whole ones."""

    pieces: Pieces
    relaxed: Optima
    whole: Optima

    @property
    def feasible(self) -> int:
        """How many candidates have a policy that is allowed."""
        grid = self.pieces.room.grid.select(np.isfinite(self.whole.objective))
        columns = (grid.batch_size, grid.micro_batch_size, grid.cpu_experts, grid.kv_on_gpu)
        return int(np.unique(np.stack(columns), axis=1).shape[1])

    @property
    def best_s(self) -> float:
        """The least objective, in seconds; infinite where nothing is allowed."""
        return float(self.whole.objective.min(initial=np.inf))

    @property
    def best(self) -> Candidate:
        """The best candidate."""
        return self.candidate(int(np.argmin(self.whole.objective)))

    def candidate(self, index: int) -> Candidate:
        """Return a candidate with the policy that is best for it."""
        policy = self.pieces.policy(index, int(self.whole.resident[index]))
        return Candidate(policy=policy, pieces=self.pieces, place=index)


@record
class Explored:
    """The space of a problem, refined around its best candidates, and all candidates ranked."""

    space: SearchSpace
    parts: tuple[Ranked, ...]

    @property
    def leader(self) -> Ranked:
        """The part that holds the best candidate."""
        return min(self.parts, key=lambda part: part.best_s)

    def best_first(self) -> list[tuple[float, Ranked, int]]:
        """Return objective, part and index of the allowed candidates."""
        found = [
            (float(part.whole.objective[index]), part, int(index))
            for part in self.parts
            for index in np.flatnonzero(part.whole.objective <= self.leader.best_s / SIMULATED_WITHIN)
        ]
        return sorted(found, key=lambda one: one[0])


def explore(problem: Problem, fidelity: Fidelity = Fidelity.CEILING) -> Explored:
    """Rank all candidates at `roof` or `ceiling`, and finer ones around the best.

    Raises
    ------
    InfeasibleError
        When no policy is allowed; the text names what is short, and the least change that would do.
    """
    grids, parts = list(build_space(problem).grids), list[Ranked]()
    for grid in grids:
        parts += _ranked(problem, grid, fidelity, parts)
    if not np.isfinite(_least_s(parts)):
        raise no_plan(problem)
    for radius in REFINEMENTS:
        leader = min(parts, key=lambda part: part.best_s)
        grids.append(refined(problem, leader.best.policy, radius))
        parts += _ranked(problem, grids[-1], fidelity, parts)
    return Explored(space=SearchSpace(grids=tuple(grids)), parts=tuple(parts))


def _least_s(parts: Iterable[Ranked]) -> float:
    return min((part.best_s for part in parts), default=np.inf)


def _ranked(problem: Problem, grid: PolicyGrid, fidelity: Fidelity, parts: Iterable[Ranked]) -> Iterator[Ranked]:
    """Yield the candidates of a grid ranked, without those that cannot reach the best of `parts`, even simulated."""
    room = room_for(problem, grid)
    room = room.select(promising(problem, room.fullest, fidelity, _least_s(parts) / SIMULATED_WITHIN))
    if room.size:
        pieces = pieces_of(problem, room, fidelity)
        relaxed = relaxed_optima(pieces)
        yield Ranked(pieces=pieces, relaxed=relaxed, whole=whole_optima(pieces, relaxed))


def distinct(explored: Explored, count: int) -> list[Candidate]:
    """Return the best candidates that differ: in placement, or by enough in the number of micro-batches or in N."""
    chosen: list[Candidate] = []
    for _, part, index in explored.best_first():
        candidate = part.candidate(index)
        if all(_differ(candidate.policy, other.policy) for other in chosen):
            chosen.append(candidate)
        if len(chosen) == count:
            break
    return chosen


def _differ(one: Policy, other: Policy) -> bool:
    sizes = ((one.batch_size, other.batch_size), (one.num_micro_batches, other.num_micro_batches))
    return any(max(pair) >= DISTINCT * min(pair) for pair in sizes) or _placement(one) != _placement(other)


def _placement(policy: Policy) -> tuple[object, ...]:
    """Return what a policy says beside its numbers, and whether the CPU and the disk have experts at all."""
    return (*_BESIDE_NUMBERS(policy), policy.cpu_experts > 0, policy.disk_experts > 0)
