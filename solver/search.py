"""Which policy to run: bounds for all candidates, the best of them refined, proved by the method asked for.

`auto` ranks candidates by breakpoints and simulates the best few; `milp` hands the same space to HiGHS, which proves
the optimum; `grid` predicts every policy of it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import numpy as np

from hrm.errors import HrmError
from hrm.estimate import Fidelity
from hrm.plan import Plan, PlanStatus, Search
from hrm.policy import Policy
from hrm.predict import with_interval
from solver.binding import binding
from solver.candidates import Candidate, Explored, explore
from solver.grid import bind, exhaustive, make_plan, objective_s
from solver.pieces import pieces_of
from solver.problem import Objective, Problem
from solver.room import resident_of, room_for
from solver.simulated import simulated_best
from solver.space import single

__all__ = ["Method", "search", "solve"]


class Method(StrEnum):
    """How the optimum is found; all search the same space."""

    AUTO = "auto"
    MILP = "milp"
    GRID = "grid"


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

    `auto` simulates the best three that differ, without those that cannot win, and takes the best of them; where
    several tie, the simplest; memory that one with experts on disk leaves over is filled (`solver.disk_room`). Without
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


def _simulated_best(problem: Problem, explored: Explored, fidelity: Fidelity, found: Search, started: float) -> Plan:
    best = simulated_best(problem, explored, fidelity)
    policy = best.candidate.policy
    at_ceiling = float(objective_s(problem, best.prediction.by_fidelity[Fidelity.CEILING]))
    found = replace(
        found,
        bound=_shown(problem, min(explored.leader.best_s, at_ceiling)),
        gap=max(0.0, 1.0 - explored.leader.best_s / at_ceiling),
        binding=binding(problem, *best.candidate),
        ties=best.ties,
        solve_s=time.perf_counter() - started,
    )
    prediction = with_interval(best.prediction, policy, problem.model, problem.hardware, problem.workload)
    return bind(problem, policy, prediction, PlanStatus.OPTIMAL, found)


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
