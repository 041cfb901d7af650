"""Which policy to run: bounds for all candidates, the best of them refined, proved by the method asked for.

`auto` ranks candidates by breakpoints and simulates the best few; `milp` hands the same space to HiGHS, which proves
the optimum; `grid` predicts every policy of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from enum import StrEnum
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hrm.errors import HrmError, InfeasibleError
from hrm.estimate import Fidelity
from hrm.plan import Plan, PlanStatus, Search
from hrm.policy import Policy, PolicyGrid, Processor
from hrm.predict import Prediction, predict, with_interval
from hrm.records import record
from solver.binding import binding
from solver.breakpoints import Optima, relaxed_optima, whole_optima
from solver.grid import bind, exhaustive, make_plan, objective_s
from solver.infeasible import missed_when_simulated, no_plan
from solver.pieces import Pieces, pieces_of
from solver.problem import Objective, Problem
from solver.pruning import promising
from solver.room import resident_of, room_for
from solver.space import SearchSpace, build_space, refined, single

__all__ = ["Explored", "Method", "Ranked", "distinct", "explore", "search", "solve"]

REFINEMENTS = (1.3, 1.05, 1.01)
"""How far around the best N each round of refinement looks, as a ratio."""
SIMULATED_CANDIDATES = 3
SIMULATED_WITHIN = 0.8
"""Candidates this close to the best at `ceiling` may be simulated; the gap between the two is rarely larger."""
DISTINCT = 1.3
"""Of one placement, candidates are simulated that differ so much in the number of micro-batches, or in N."""
TIGHTENINGS = 4
"""How often candidates are simulated before it is given up to keep the limits on time."""
TIED_WITHIN = 0.01
"""Simulated objectives closer than this are a tie: much less than the interval of either prediction."""

_NUMBERS = {"batch_size", "micro_batch_size", "resident_experts", "cpu_experts", "disk_experts"}
_BESIDE_NUMBERS = attrgetter(*(one.name for one in fields(Policy) if one.name not in _NUMBERS))


class Method(StrEnum):
    """How the optimum is found; all search the same space."""

    AUTO = "auto"
    MILP = "milp"
    GRID = "grid"


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


def search(problem: Problem, fidelity: Fidelity = Fidelity.CEILING) -> Policy:
    """Return the best policy at `roof` or `ceiling`, without simulation."""
    return explore(problem, fidelity).leader.best.policy


def solve(
    problem: Problem,
    *,
    method: Method = Method.AUTO,
    fidelity: Fidelity = Fidelity.CEILING,
    simulate: bool = True,
    write_lp: Path | None = None,
) -> Plan:
    """Find the best policy and return it as a plan that runs as written; the plan headlines `fidelity`.

    `auto` simulates the best three that differ, and takes the best of them; where several tie, the simplest. Without
    `simulate` the best at `ceiling` is taken. `milp` and `grid` prove that one.

    >>> import hrm
    >>> import solver
    >>> problem = solver.Problem(
    ...     model=hrm.load_model("mixtral-8x7b"),
    ...     hardware=hrm.load_profile("l4-case-study"),
    ...     workload=hrm.Workload(mean_prompt_len=77, max_prompt_len=418, gen_len=32, num_sequences=4096),
    ...     weight_dtype=hrm.DType.FLOAT16,
    ...     kv_dtype=hrm.DType.FLOAT16,
    ... )
    >>> plan = solve(problem, simulate=False)
    >>> plan.policy.attention_device, plan.policy.ffn_device
    (<Processor.CPU: 'cpu'>, <Processor.GPU: 'gpu'>)

    Raises
    ------
    InfeasibleError
        When no policy is allowed; the text names what is short, and the least change that would do.
    """
    if fidelity is Fidelity.SIMULATED and not simulate:
        raise HrmError("--no-simulate: not with --fidelity simulated (leave one out)")
    if write_lp is not None and method is not Method.MILP:
        raise HrmError("--write-lp: needs --method milp (say so, or leave it out)")
    started = time.perf_counter()
    explored = explore(problem)
    found = _search_record(problem, explored, method)
    if method is Method.AUTO and simulate:
        return _simulated_best(problem, explored, fidelity, found, started)
    best = explored.leader.best
    if method is Method.GRID:
        best, found = _by_grid(problem, explored, found)
    elif method is Method.MILP:
        best, found = _by_milp(problem, explored, found, write_lp)
    found = replace(found, binding=binding(problem, *best), solve_s=time.perf_counter() - started)
    return make_plan(problem, best.policy, PlanStatus.OPTIMAL, fidelity, found, simulate=simulate)


def _ranked(problem: Problem, grid: PolicyGrid, fidelity: Fidelity, parts: Iterable[Ranked]) -> Iterator[Ranked]:
    """Yield the candidates of a grid ranked, without those that cannot reach the best of `parts`, even simulated."""
    room = room_for(problem, grid)
    room = room.select(promising(problem, room.fullest, fidelity, _least_s(parts) / SIMULATED_WITHIN))
    if room.size:
        pieces = pieces_of(problem, room, fidelity)
        relaxed = relaxed_optima(pieces)
        yield Ranked(pieces=pieces, relaxed=relaxed, whole=whole_optima(pieces, relaxed))


def _simulated_best(problem: Problem, explored: Explored, fidelity: Fidelity, found: Search, started: float) -> Plan:
    """Take the best of the few simulated: perfect overlap flatters few, large micro-batches; of ties the simplest."""
    made = _simulated(problem, explored, fidelity)
    cost = [float(objective_s(problem, one.by_fidelity[Fidelity.SIMULATED])) for _, one in made]
    tied = [one for one, own in zip(made, cost, strict=True) if own <= min(cost) * (1.0 + TIED_WITHIN)]
    (best, prediction), *others = sorted(tied, key=lambda one: _complexity(one[0].policy))
    at_ceiling = float(objective_s(problem, prediction.by_fidelity[Fidelity.CEILING]))
    found = replace(
        found,
        gap=max(0.0, 1.0 - explored.leader.best_s / at_ceiling),
        binding=binding(problem, *best),
        ties=tuple(other.policy for other, _ in others),
        solve_s=time.perf_counter() - started,
    )
    prediction = with_interval(prediction, best.policy, problem.model, problem.hardware, problem.workload)
    return bind(problem, best.policy, prediction, PlanStatus.OPTIMAL, found)


def _simulated(problem: Problem, explored: Explored, fidelity: Fidelity) -> list[tuple[Candidate, Prediction]]:
    """Simulate the best few that differ, and return those that keep the limits on time when simulated.

    Where all of them miss one, others are searched that keep it at `ceiling` by as much as these missed it.
    """
    inputs = problem.model, problem.hardware, problem.workload
    tightened = problem
    for _ in range(TIGHTENINGS):
        made = [(one, predict(one.policy, *inputs, fidelity=fidelity)) for one in distinct(explored)]
        times = [prediction.by_fidelity[Fidelity.SIMULATED] for _, prediction in made]
        kept = [one for one, own in zip(made, times, strict=True) if problem.limits.missed(own) is None]
        if kept:
            return kept
        closest = min(times, key=lambda own: max(map(float, problem.limits.shares(own).values())))
        shares = problem.limits.shares(closest)
        limits = {name: tightened.time_limits_s[name] / max(1.0, float(share)) for name, share in shares.items()}
        tightened = replace(
            tightened,
            max_ttft_s=limits.get("ttft"),
            max_tpot_s=limits.get("tpot"),
            max_makespan_s=limits.get("makespan"),
        )
        try:
            explored = explore(tightened)
        except InfeasibleError:
            break
    raise missed_when_simulated(problem, closest)


def distinct(explored: Explored, count: int = SIMULATED_CANDIDATES) -> list[Candidate]:
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


def _complexity(policy: Policy) -> tuple[bool, bool, bool, int, int]:
    """Order policies from simple to complex: one device before two, then few micro-batches."""
    on_gpu = policy.main_device is Processor.GPU
    return on_gpu, policy.cpu_experts > 0, policy.disk_experts > 0, policy.num_micro_batches, policy.batch_size


def _by_grid(problem: Problem, explored: Explored, found: Search) -> tuple[Candidate, Search]:
    """Return the optimum of the oracle, as the one candidate of a grid of its own."""
    proved = exhaustive(problem, explored.space)
    assert proved is not None
    pieces = pieces_of(problem, room_for(problem, single(problem, proved.policy)))
    resident = resident_of(problem, proved.policy)
    place = int(np.argmax((pieces.room.least <= resident) & (resident <= pieces.room.most)))
    best = Candidate(policy=proved.policy, pieces=pieces, place=place)
    return best, replace(found, feasible=proved.feasible, bound=_shown(problem, proved.objective_s))


def _by_milp(problem: Problem, explored: Explored, found: Search, write_lp: Path | None) -> tuple[Candidate, Search]:
    from solver.milp import solve_milp

    proved = solve_milp([part.pieces for part in explored.parts], known_s=explored.leader.best_s, write_lp=write_lp)
    pieces = explored.parts[proved.part].pieces
    best = Candidate(policy=pieces.policy(proved.index, round(proved.resident)), pieces=pieces, place=proved.index)
    return best, replace(found, pruned=proved.pruned, bound=_shown(problem, proved.bound_s), gap=proved.gap)


def _search_record(problem: Problem, explored: Explored, method: Method) -> Search:
    return Search(
        method=method.value,
        objective=problem.objective.value,
        candidates=sum(np.size(grid.batch_size) for grid in explored.space.grids),
        feasible=sum(part.feasible for part in explored.parts),
        bound=_shown(problem, explored.leader.best_s),
        gap=0.0,
        solve_s=0.0,
    )


def _shown(problem: Problem, objective: float) -> float:
    """Return an objective as it is reported: tokens/s, or seconds of a wave."""
    return 1.0 / objective if problem.objective is Objective.THROUGHPUT else objective
