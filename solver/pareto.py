"""What low latency costs: the policies of which none is both slower and later than another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hrm.estimate import Fidelity
from hrm.policy import Policy
from hrm.policy_grid import PolicyGrid
from hrm.predict import predict_grid
from hrm.records import record
from solver.optimum import optimum
from solver.problem import Problem

__all__ = ["Point", "pareto_front"]

RATIO = 2**0.5
"""Between neighbouring N of the sweep."""
LARGEST = 1 << 14
"""N up to which a job without a size is swept."""


@record
class Point:
    """A policy on the front: throughput of the whole job, and what one sequence of a batch waits.

    `time_to_first_token_s` is the prefill of a batch, `time_per_token_s` a decode step of it (0 where only one token is
    generated), `batch_s` both phases: the makespan of a job of one batch.
    """

    policy: Policy
    throughput_tokens_per_s: float
    time_to_first_token_s: float
    time_per_token_s: float
    batch_s: float

    @property
    def latency_s(self) -> float:
        """What the front sets against throughput: time per token, or to the only one."""
        return self.time_per_token_s or self.time_to_first_token_s


def pareto_front(problem: Problem) -> tuple[Point, ...]:
    """Search the best policy for each N of a sweep, and return those that no other beats in both, least latency first.

    At `ceiling`, limits on time aside. Each N is posed as a job of that many sequences; the throughput is that of the
    problem's own job in batches of N.
    """
    points: list[Point] = []
    problem = replace(problem, max_ttft_s=None, max_tpot_s=None, max_makespan_s=None)
    for batch_size in _sweep(problem.workload.num_sequences or LARGEST):
        job = replace(problem.workload, num_sequences=batch_size)
        found = optimum(replace(problem, workload=job))
        if found is None:
            break
        points.append(_point(problem, found.policy))
    return _front(points)


def _sweep(largest: int) -> Iterator[int]:
    """Yield N = 1, 2, 3, 4, 6, 8, 11, ... and the largest."""
    exact, last = 1.0, 0
    while round(exact) < largest:
        if round(exact) > last:
            last = round(exact)
            yield last
        exact *= RATIO
    yield largest


def _point(problem: Problem, policy: Policy) -> Point:
    grid, level = PolicyGrid.of(policy), Fidelity.CEILING
    times = predict_grid(grid, problem.model, problem.hardware, problem.workload, level)
    first_s, token_s = float(times.time_to_first_token_s), float(times.time_per_token_s)
    return Point(
        policy=policy,
        throughput_tokens_per_s=float(times.throughput_tokens_per_s),
        time_to_first_token_s=first_s,
        time_per_token_s=token_s,
        batch_s=first_s + (problem.workload.gen_len - 1) * token_s,
    )


def _front(points: list[Point]) -> tuple[Point, ...]:
    front: list[Point] = []
    for point in sorted(points, key=lambda one: (one.latency_s, -one.throughput_tokens_per_s)):
        if not front or point.throughput_tokens_per_s > front[-1].throughput_tokens_per_s:
            front.append(point)
    return tuple(front)
