"""The best policy at one fidelity, without simulation: what questions that take many searches ask again and again."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from hrm.errors import InfeasibleError
from hrm.estimate import Fidelity
from hrm.policy import Policy
from hrm.policy_grid import PolicyGrid
from hrm.predict import predict_grid
from hrm.records import record
from solver.grid import within_limits
from solver.problem import Problem
from solver.search import search

__all__ = ["Found", "found", "optimum"]


@record
class Found:
    """A policy and the throughput predicted of it; `in_time` where it keeps the problem's limits on time."""

    policy: Policy
    throughput_tokens_per_s: float
    in_time: bool = True


def found(problem: Problem, policy: Policy, fidelity: Fidelity = Fidelity.CEILING) -> Found | None:
    """Predict a given policy at `roof` or `ceiling`; None where it does not fit."""
    if problem.short_of(policy) is not None:
        return None
    times = predict_grid(PolicyGrid.of(policy), problem.model, problem.hardware, problem.workload, fidelity)
    return Found(
        policy=policy,
        throughput_tokens_per_s=float(times.throughput_tokens_per_s),
        in_time=bool(within_limits(problem, times)),
    )


def optimum(problem: Problem, fidelity: Fidelity = Fidelity.CEILING, also: Iterable[Policy] = ()) -> Found | None:
    """Return the fastest policy that fits and keeps the limits on time, at `roof` or `ceiling`, or None.

    The policies of `also` count where they do, before those that the search finds: its candidates of N and mu lie on
    a ladder of the machine's own, so that what is known to be good elsewhere may be a little better.
    """
    policies = list(also)
    with suppress(InfeasibleError):
        policies.append(search(problem, fidelity))
    candidates = [one for policy in policies if (one := found(problem, policy, fidelity)) is not None]
    candidates = [one for one in candidates if one.in_time]
    return max(candidates, key=lambda one: one.throughput_tokens_per_s, default=None)
