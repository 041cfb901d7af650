"""The best of the few candidates that are simulated: perfect overlap flatters few, large micro-batches."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from hrm.errors import InfeasibleError
from hrm.estimate import Fidelity
from hrm.passes import job_passes
from hrm.policy import Policy, Processor
from hrm.policy_grid import PolicyGrid
from hrm.predict import Prediction, predict
from hrm.records import record
from solver.candidates import Candidate, Explored, distinct, explore
from solver.disk_room import finished
from solver.grid import objective_s
from solver.infeasible import missed_when_simulated
from solver.problem import Problem

__all__ = ["SIMULATED_CANDIDATES", "TIED_WITHIN", "SimulatedBest", "simulated_best"]

SIMULATED_CANDIDATES = 3
TIGHTENINGS = 4
"""How often candidates are simulated before it is given up to keep the limits on time."""
TIED_WITHIN = 0.01
"""Simulated objectives closer than this are a tie: much less than the interval of either prediction."""


@record
class SimulatedBest:
    """The candidate to take, its prediction, and the policies that tie with it."""

    candidate: Candidate
    prediction: Prediction
    ties: tuple[Policy, ...]


def simulated_best(problem: Problem, explored: Explored, fidelity: Fidelity) -> SimulatedBest:
    """Take the best of the few simulated; of ties the simplest."""
    made = _within_limits(problem, explored, fidelity)
    cost = [_simulated_s(problem, one) for _, one in made]
    tied = [one for one, own in zip(made, cost, strict=True) if own <= min(cost) * (1.0 + TIED_WITHIN)]
    (best, prediction), *others = sorted(tied, key=lambda one: _complexity(one[0].policy))
    if best.policy.computes_from_disk:
        best, prediction = _finished(problem, best, prediction, fidelity)
    return SimulatedBest(candidate=best, prediction=prediction, ties=tuple(other.policy for other, _ in others))


def _finished(
    problem: Problem, best: Candidate, prediction: Prediction, fidelity: Fidelity
) -> tuple[Candidate, Prediction]:
    """Use what memory is left over beside experts on disk."""

    def objective(made: Prediction) -> float:
        return _simulated_s(problem, made) if _keeps_limits(problem, made) else math.inf

    def predicted(policy: Policy) -> Prediction:
        return predict(policy, problem.model, problem.hardware, problem.workload, fidelity=fidelity)

    policy, prediction = finished(problem, best.policy, prediction, predicted, objective)
    return best._replace(policy=policy), prediction


def _within_limits(problem: Problem, explored: Explored, fidelity: Fidelity) -> list[tuple[Candidate, Prediction]]:
    """Simulate the best few that differ, and return those that keep the limits on time when simulated.

    Where all of them miss one, others are searched that keep it at `ceiling` by as much as these missed it.
    """
    tightened = problem
    for _ in range(TIGHTENINGS):
        made = _simulated_while_hopeful(problem, explored, fidelity)
        kept = [one for one in made if _keeps_limits(problem, one[1])]
        if kept:
            return kept
        times = [prediction.by_fidelity[Fidelity.SIMULATED] for _, prediction in made]
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


def _simulated_while_hopeful(
    problem: Problem, explored: Explored, fidelity: Fidelity
) -> list[tuple[Candidate, Prediction]]:
    """Simulate the best few that differ, but for those that cannot tie even with the best one that may be taken."""
    made: list[tuple[Candidate, Prediction]] = []
    tied_s = np.inf
    for candidate in distinct(explored, SIMULATED_CANDIDATES):
        if made and _least_s(problem, candidate) > tied_s:
            continue
        found = predict(candidate.policy, problem.model, problem.hardware, problem.workload, fidelity=fidelity)
        made.append((candidate, found))
        if _keeps_limits(problem, found):
            tied_s = min(tied_s, _simulated_s(problem, found) * (1.0 + TIED_WITHIN))
    return made


def _least_s(problem: Problem, candidate: Candidate) -> float:
    """Return the objective that no simulation falls below: one lane's work, or that on one rate, slowed by no other."""
    alone = replace(problem.hardware, contention={})
    passes = job_passes(PolicyGrid.of(candidate.policy), problem.model, alone, problem.workload, Fidelity.CEILING)
    pieces = candidate.pieces
    counts = dict(zip(pieces.pass_names, pieces.weights["objective"][:, candidate.place], strict=True))
    totals: dict[str, float] = {}
    for one in passes:
        for name, seconds in (one.work.seconds | one.work.shared_s).items():
            totals[name] = totals.get(name, 0.0) + float(counts[one.name] * seconds)
    return max(totals.values())


def _keeps_limits(problem: Problem, prediction: Prediction) -> bool:
    return problem.limits.missed(prediction.by_fidelity[Fidelity.SIMULATED]) is None


def _simulated_s(problem: Problem, prediction: Prediction) -> float:
    return float(objective_s(problem, prediction.by_fidelity[Fidelity.SIMULATED]))


def _complexity(policy: Policy) -> tuple[bool, bool, bool, int, int]:
    """Order policies from simple to complex: one device before two, then few micro-batches."""
    on_gpu = policy.main_device is Processor.GPU
    return on_gpu, policy.cpu_experts > 0, policy.disk_experts > 0, policy.num_micro_batches, policy.batch_size
