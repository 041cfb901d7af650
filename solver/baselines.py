"""What simpler ways of choosing reach on the same machine: whether the search was worth it.

All on the CPU; experts streamed, none kept; memory filled greedily; and the published planner. Each is predicted as the
optimum is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from hrm.estimate import Fidelity
from hrm.policy import Policy, Processor, ScheduleName
from hrm.policy_grid import PolicyGrid
from hrm.predict import predict_grid
from hrm.records import record
from solver.grid import within_limits
from solver.optimum import Found, found
from solver.problem import Problem
from solver.published_planner import published_plan
from solver.room import fits

__all__ = ["Baseline", "baselines"]

NO_GAIN = 0.02
"""Gain below which the simple way is the one to use: less than what predictions tell apart."""
RATIO, LARGEST_BATCH = 1.15, 1 << 16


@record
class Baseline:
    """A simple way to choose a policy: what it chose, how fast that is, and what the optimum gains over it.

    Where its own choice does not fit, `short` says by how much, and `found` is that choice with mu, then N, lowered
    until it does. Nothing is `found` where nothing fits.
    """

    name: str
    rule: str
    found: Found | None
    gain: float | None
    short: str = ""

    @property
    def verdict(self) -> str:
        """Say whether searching paid."""
        if self.gain is None:
            return "nothing fits"
        if self.found is not None and not self.found.in_time:
            return "misses a limit on time"
        return f"gain {self.gain:.0%}" if self.gain > NO_GAIN else "no gain: use the simple one"


def baselines(problem: Problem, best: Found) -> tuple[Baseline, ...]:
    """Return what the baselines reach at `ceiling` beside the optimum, simplest first."""
    return tuple(_judged(problem, best, *choice) for choice in _choices(problem))


def _choices(problem: Problem) -> Iterator[tuple[str, str, Policy | None]]:
    host = _template(problem, Processor.CPU, Processor.CPU)
    yield "all on the CPU", "the best N and mu without the GPU", _fastest(problem, host)
    if not problem.hardware.has_gpu:
        return
    for attention in Processor:
        template = _template(problem, attention, Processor.GPU)
        name = f"all streamed, attention on the {attention.upper()}"
        yield name, "the best N and mu with no expert resident", _fastest(problem, template)
    rule = "largest N that the host holds, then most experts that the GPU holds, then largest mu"
    yield "greedy by bytes", rule, _greedy(problem)
    published = published_plan(problem)
    rule = "its Eqs. 12 to 14: decode alone, at peaks, no projections"
    if published is not None:
        rule += f"; r_w = {published.weights_on_gpu:.3f}, rounded down to whole experts"
    yield "published planner", rule, None if published is None else published.policy


def _judged(problem: Problem, best: Found, name: str, rule: str, policy: Policy | None) -> Baseline:
    short = problem.short_of(policy) if policy is not None else None
    lowered = _lowered(problem, policy) if policy is not None and short is not None else policy
    reached = found(problem, lowered) if lowered is not None else None
    return Baseline(
        name=name,
        rule=rule,
        found=reached,
        gain=best.throughput_tokens_per_s / reached.throughput_tokens_per_s - 1.0 if reached else None,
        short=str(short) if short is not None else "",
    )


def _lowered(problem: Problem, policy: Policy) -> Policy | None:
    """Return the policy with the largest mu that fits, N lowered too where none does; None where nothing fits."""
    least = _largest(problem, policy.batch_size, lambda size: replace(policy, batch_size=size, micro_batch_size=1))
    if least is None:
        return None
    return _largest(problem, least.batch_size, lambda size: replace(least, micro_batch_size=size))


def _template(problem: Problem, attention: Processor, ffn: Processor) -> Policy:
    return Policy(
        batch_size=1,
        micro_batch_size=1,
        attention_device=attention,
        ffn_device=ffn,
        resident_experts=0,
        kv_on_gpu=1.0 if attention is Processor.GPU else 0.0,
        schedule=ScheduleName.CGOPIPE if ffn is Processor.GPU else ScheduleName.HOST,
        weight_dtype=problem.weight_dtype,
        expert_dtype=problem.expert_dtype,
        kv_dtype=problem.kv_dtype,
        staging=problem.staging,
    )


def _fastest(problem: Problem, template: Policy) -> Policy | None:
    """Return the template at the best N and mu of a ladder, in time where any is; None where none fits."""
    limit = problem.workload.num_sequences or LARGEST_BATCH
    steps = np.arange(int(np.log(limit) / np.log(RATIO)) + 1)
    ladder = np.unique(np.append(np.floor(RATIO**steps), limit))
    batches, parts = (axis.ravel() for axis in np.meshgrid(ladder, ladder))
    batches, parts = batches[parts <= batches], parts[parts <= batches]
    grid = replace(PolicyGrid.of(template), batch_size=batches, micro_batch_size=np.ceil(batches / parts))
    fitting = np.flatnonzero(fits(problem, grid))
    if not fitting.size:
        return None
    times = predict_grid(grid, problem.model, problem.hardware, problem.workload, Fidelity.CEILING)
    throughput, in_time = np.asarray(times.throughput_tokens_per_s), within_limits(problem, times)
    return grid.take(max(fitting.tolist(), key=lambda place: (in_time[place], throughput[place])))


def _greedy(problem: Problem) -> Policy | None:
    """Fill memory without looking at time; attention on the CPU, where the cache is."""
    template = _template(problem, Processor.CPU, Processor.GPU)
    most = problem.workload.num_sequences or LARGEST_BATCH
    filled = _largest(problem, most, lambda size: replace(template, batch_size=size))
    if filled is None:
        return None
    kept = _largest(problem, problem.model.num_experts, lambda count: replace(filled, resident_experts=count)) or filled
    return _largest(problem, kept.batch_size, lambda size: replace(kept, micro_batch_size=size))


def _largest(problem: Problem, most: int, grown: Callable[[int], Policy]) -> Policy | None:
    """Return the policy grown to the largest number from 1 to `most` that fits, by bisection; None where 1 does not."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if problem.short_of(grown(middle)) is None else (low, middle - 1)
    return grown(low) if low else None
