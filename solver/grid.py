"""Exhaustive search: every candidate of the space is checked against the ledger and predicted, then refined locally."""

from __future__ import annotations

import time
from dataclasses import replace

from hrm.errors import InfeasibleError
from hrm.estimate import Fidelity
from hrm.memory import ledger
from hrm.plan import Plan, PlanStatus, Search, machine_of
from hrm.policy import Policy
from hrm.predict import predict
from solver.space import Problem, SearchSpace, build_space, most_resident_experts

__all__ = ["make_plan", "solve"]

SIMULATED_WITHIN = 0.8
"""Candidates this close to the best at `ceiling` may be simulated; the gap between the two is rarely larger."""
SIMULATED_CANDIDATES = 8
"""How many of them are, spread evenly over the ranking."""


class _Candidates:
    """What was tried, and the predicted throughput of what fits."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.seen: set[Policy] = set()
        self.throughput: dict[Policy, float] = {}

    @property
    def best(self) -> Policy:
        """The fastest policy at `ceiling`; of equals, the one tried first."""
        return max(self.throughput, key=lambda policy: self.throughput[policy])

    def offer(self, candidate: Policy) -> bool:
        """Evaluate a candidate with as many experts resident as fit; say whether it is the best so far."""
        if candidate in self.seen:
            return False
        self.seen.add(candidate)
        policy = most_resident_experts(self.problem, candidate)
        if policy is None:
            return False
        before = self.throughput[self.best] if self.throughput else 0.0
        self.throughput[policy] = _throughput(self.problem, policy, Fidelity.CEILING)
        return self.throughput[policy] > before * (1 + 1e-9)

    def best_simulated(self) -> Policy:
        """Simulate some of the fastest and return the best: perfect overlap flatters few, large micro-batches."""
        ranked = sorted(self.throughput, key=lambda policy: -self.throughput[policy])
        tolerated = self.throughput[ranked[0]] * SIMULATED_WITHIN
        close = [policy for policy in ranked if self.throughput[policy] >= tolerated]
        chosen = close[:: max(len(close) // SIMULATED_CANDIDATES, 1)]
        return max(chosen, key=lambda policy: _throughput(self.problem, policy, Fidelity.SIMULATED))


def solve(problem: Problem, *, fidelity: Fidelity = Fidelity.CEILING) -> Plan:
    """Find the policy with the highest predicted throughput and return it as a plan that runs as written.

    Throughput is generated tokens / (prefill + decode). All candidates are ranked at `ceiling`, the best of them again
    by simulation; the plan carries all fidelities and headlines `fidelity`.

    Raises
    ------
    InfeasibleError
        When no policy fits; the text names the short device and the bytes missing.
    """
    started = time.perf_counter()
    space = build_space(problem)
    candidates = _Candidates(problem)
    for placement in space.placements:
        for batch_size in space.batch_sizes:
            for micro_batch_size in space.micro_batch_sizes(batch_size):
                candidates.offer(replace(placement, batch_size=batch_size, micro_batch_size=micro_batch_size))
    if not candidates.throughput:
        raise InfeasibleError(_why_infeasible(problem, space))
    _refine(candidates)
    policy = candidates.best_simulated()
    search = Search(
        method="grid",
        candidates=len(candidates.seen),
        feasible=len(candidates.throughput),
        solve_s=time.perf_counter() - started,
    )
    return make_plan(problem, policy, PlanStatus.OPTIMAL, fidelity, search)


def make_plan(
    problem: Problem, policy: Policy, status: PlanStatus, fidelity: Fidelity, search: Search | None = None
) -> Plan:
    """Predict a policy at all fidelities and bind it into a plan."""
    return Plan(
        status=status,
        policy=policy,
        machine=machine_of(problem.hardware),
        model=problem.model,
        workload=problem.workload,
        memory=ledger(policy, problem.model, problem.workload),
        prediction=predict(policy, problem.model, problem.hardware, problem.workload, fidelity=fidelity),
        search=search,
    )


def _throughput(problem: Problem, policy: Policy, fidelity: Fidelity) -> float:
    prediction = predict(
        policy, problem.model, problem.hardware, problem.workload, fidelity=fidelity, fidelities=(fidelity,)
    )
    return prediction.times.throughput_tokens_per_s


def _refine(candidates: _Candidates) -> None:
    """Move N and mu by shrinking steps while that helps: the ladder's rungs lie 30 % apart."""
    step = max(candidates.best.batch_size // 8, 1)
    while step:
        neighbours = _neighbours(candidates.best, step, candidates.problem)
        if not any(candidates.offer(neighbour) for neighbour in neighbours):
            step //= 2


def _neighbours(policy: Policy, step: int, problem: Problem) -> list[Policy]:
    limit = problem.workload.num_sequences
    moves = [(step, 0), (-step, 0), (0, step), (0, -step), (step, step), (-step, -step)]
    found = []
    for more, wider in moves:
        batch, micro = policy.batch_size + more, policy.micro_batch_size + wider
        if 1 <= micro <= batch and (limit is None or batch <= limit):
            found.append(replace(policy, batch_size=batch, micro_batch_size=micro))
    return found


def _why_infeasible(problem: Problem, space: SearchSpace) -> str:
    shortages = [problem.short_of(placement) for placement in space.placements]
    least = min((short for short in shortages if short is not None), key=lambda short: short.missing_bytes)
    return (
        f"{problem.model.name} does not fit {problem.hardware.name} with one sequence: {least} "
        f"(use a narrower --weight-dtype, more memory, or a smaller model)"
    )
