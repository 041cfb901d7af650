"""Exhaustive search, the oracle: every candidate with every number of resident experts goes through the core itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hrm.estimate import Fidelity
from hrm.memory import ledger
from hrm.plan import Plan, PlanStatus, Search, machine_of
from hrm.policy import Policy
from hrm.policy_grid import PolicyGrid
from hrm.predict import GridTimes, Prediction, Times, predict, predict_grid, with_interval
from hrm.records import record
from solver.problem import Objective, Problem
from solver.room import fits, most_resident, with_resident
from solver.space import SearchSpace

__all__ = ["Best", "bind", "exhaustive", "make_plan", "objective_s", "within_limits"]

POLICIES_AT_A_TIME = 50_000


@record
class Best:
    """The best policy of a space, its objective in seconds, and the candidates of which some policy is allowed."""

    policy: Policy
    objective_s: float
    feasible: int


def exhaustive(problem: Problem, space: SearchSpace, fidelity: Fidelity = Fidelity.CEILING) -> Best | None:
    """Predict every policy of a space at `roof` or `ceiling` and return the best; None if none is allowed."""
    best: Best | None = None
    feasible = 0
    for grid in space.grids:
        allowed_at_all = np.zeros(np.size(grid.batch_size), dtype=bool)
        for places, some in _whole_policies(problem, grid):
            times = predict_grid(some, problem.model, problem.hardware, problem.workload, fidelity)
            objective = np.where(within_limits(problem, times), objective_s(problem, times), np.inf)
            allowed_at_all[places[np.isfinite(objective)]] = True
            leader = int(np.argmin(objective))
            if objective[leader] < (best.objective_s if best else np.inf):
                best = Best(policy=some.take(leader), objective_s=float(objective[leader]), feasible=0)
        feasible += int(allowed_at_all.sum())
    return replace(best, feasible=feasible) if best else None


def _whole_policies(problem: Problem, grid: PolicyGrid) -> Iterator[tuple[NDArray[np.int64], PolicyGrid]]:
    """Yield all policies of a grid that fit, some at a time, with the candidates that they belong to."""
    most = most_resident(problem, grid)
    counts = most.astype(np.int64) + 1
    places = np.repeat(np.arange(len(most)), counts)
    resident = np.arange(len(places), dtype=np.float64) - np.repeat(np.cumsum(counts) - counts, counts)
    for first in range(0, len(places), POLICIES_AT_A_TIME):
        here = slice(first, first + POLICIES_AT_A_TIME)
        some = with_resident(grid.select(places[here]), resident[here])
        fitting = fits(problem, some)
        if fitting.any():
            yield places[here][fitting], some.select(fitting)


def objective_s(problem: Problem, times: GridTimes | Times) -> NDArray[np.float64]:
    """Return what a problem wants least of: seconds per generated token of the job, or seconds of a wave."""
    if problem.objective is Objective.THROUGHPUT:
        return 1.0 / np.asarray(times.throughput_tokens_per_s)
    decode_s = (problem.workload.gen_len - 1) * np.asarray(times.time_per_token_s)
    found: NDArray[np.float64] = times.time_to_first_token_s + decode_s
    return found


def within_limits(problem: Problem, times: GridTimes | Times) -> NDArray[np.bool_]:
    """Say whether predicted times keep a problem's limits."""
    kept = np.ones(np.shape(times.prefill_s), dtype=bool)
    for share in problem.limits.shares(times).values():
        kept &= share <= 1.0
    return kept


def make_plan(
    problem: Problem,
    policy: Policy,
    status: PlanStatus,
    fidelity: Fidelity,
    search: Search | None = None,
    *,
    simulate: bool = True,
) -> Plan:
    """Predict a policy and bind it into a plan; without `simulate` at `roof` and `ceiling` alone, with no interval."""
    levels = tuple(Fidelity) if simulate else (Fidelity.ROOF, Fidelity.CEILING)
    inputs = problem.model, problem.hardware, problem.workload
    made = predict(policy, *inputs, fidelity=fidelity, fidelities=levels)
    if simulate:
        made = with_interval(made, policy, *inputs)
    return bind(problem, policy, made, status, search)


def bind(problem: Problem, policy: Policy, made: Prediction, status: PlanStatus, search: Search | None) -> Plan:
    """Bind a policy and its prediction into a plan."""
    return Plan(
        status=status,
        policy=policy,
        machine=machine_of(problem.hardware),
        model=problem.model,
        workload=problem.workload,
        limits=problem.limits,
        memory=ledger(policy, problem.model, problem.workload),
        prediction=made,
        search=search,
    )
