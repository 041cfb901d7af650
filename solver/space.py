"""The discrete space that is searched: devices, schedule, formats, N, mu, KV share, and whole experts on each device.

All methods search the same `SearchSpace`. In it every candidate leaves one number open, the experts resident per layer,
in which time and memory are affine (`solver.pieces`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hrm.dtypes import DType
from hrm.policy import Policy, Processor, ScheduleName
from hrm.policy_grid import PolicyGrid
from hrm.records import record
from solver.problem import Problem
from solver.room import exceeds_host, fits_at_all, on_disk_beside_host

__all__ = ["SearchSpace", "build_space", "one_at_a_time", "placements", "refined", "single"]

BATCH_STEP, WIDE_BATCH_STEP = 1.3, 1.5
"""Ratio of neighbouring candidates of N and of the number of micro-batches, and where experts or the cache are divided
in many ways besides; `refined` fills in around the best."""
LARGEST_BATCH = 1 << 16
SPLIT_STEPS = 16
"""A layer of more experts is split between CPU and link in so many steps; `refined` goes on by single experts."""
FITTED = 400
"""Values of N tried for the largest that fits, a few per cent apart; `refined` goes on from there."""
REFINED_BATCHES, REFINED_PARTS = 25, 5
"""Values of N that a refinement looks at, and how many micro-batches more or fewer."""
WIDEST_REFINEMENT = 1.3
"""Radius of a refinement that reaches half-way to the neighbouring steps of a split."""
WIDEST_SHARE = 0.25
"""How far it reaches from a share of the KV cache."""

Column = NDArray[np.float64]


@record
class SearchSpace:
    """Candidates: a grid per placement, its resident experts (left open) at 0."""

    grids: tuple[PolicyGrid, ...]


def build_space(problem: Problem) -> SearchSpace:
    """Lay out the candidates of a problem; N goes up to the job's size or what memory can hold at all."""
    return SearchSpace(grids=tuple(_coarse(problem, placement) for placement in placements(problem)))


def refined(problem: Problem, policy: Policy, radius: float) -> PolicyGrid:
    """Lay out candidates around a policy: N up to `radius` times more or fewer, in a few micro-batches more or fewer.

    Beside equal micro-batches, mu a little off its own: the fewer tokens the last micro-batch has, the fewer experts
    it hits, which may be worth more than evenness.
    """
    limit = problem.workload.num_sequences or policy.batch_size * radius
    ends = policy.batch_size / radius, min(policy.batch_size * radius, limit)
    batches = np.union1d(np.round(np.linspace(*ends, REFINED_BATCHES)).clip(1), float(policy.batch_size))
    batches = _even(problem, batches)
    near = np.arange(-REFINED_PARTS, REFINED_PARTS + 1.0)
    equal, odd = _equal_parts(batches, policy.num_micro_batches + near), _pairs(batches, policy.micro_batch_size + near)
    split = _nearby_splits(problem, policy, radius) if policy.cpu_experts else np.zeros(1)
    return _grid(problem, policy, np.concatenate([equal, odd], axis=1), split, _nearby_shares(policy, radius))


def _nearby_shares(policy: Policy, radius: float) -> Column:
    """Return shares of the KV cache around a policy's, where the schedule divides it."""
    if policy.schedule is not ScheduleName.KV_TRANSFER:
        return np.array([policy.kv_on_gpu])
    reach = WIDEST_SHARE * min(1.0, (radius - 1.0) / (WIDEST_REFINEMENT - 1.0))
    return np.unique(np.clip(policy.kv_on_gpu + reach * np.arange(-1.0, 2.0), 0.0, 1.0))


def _nearby_splits(problem: Problem, policy: Policy, radius: float) -> Column:
    """Return numbers of experts on the CPU around a policy's: single ones, and up to half a coarse step away."""
    experts = problem.model.num_experts
    reach = experts / SPLIT_STEPS / 2.0 * min(1.0, (radius - 1.0) / (WIDEST_REFINEMENT - 1.0))
    split = np.union1d(np.arange(-1.0, 2.0), np.round(np.array([-1.0, -0.5, 0.5, 1.0]) * reach)) + policy.cpu_experts
    return split[(split > 0) & (split <= _most_on_cpu(problem, policy))]


def single(problem: Problem, policy: Policy) -> PolicyGrid:
    """Return the grid of one candidate, a policy whose resident experts are left open."""
    sizes = np.array([[policy.batch_size], [policy.micro_batch_size]], dtype=np.float64)
    grid = _grid(problem, policy, sizes, np.array([float(policy.cpu_experts)]), np.array([policy.kv_on_gpu]))
    if policy.main_device is Processor.GPU and policy.disk_experts:
        return replace(grid, disk_experts=np.array([float(policy.disk_experts + policy.resident_experts)]))
    return grid


def placements(problem: Problem) -> Iterator[Policy]:
    """Yield a template for each way in which formats may be chosen and the schedules place attention and experts.

    Where the CPU computes experts beside the GPU, it has one in the template; either they are divided or the cache is.
    Where experts may lie on disk the template has some there: with a GPU beside one that has none, and only if host
    memory does not hold them.
    """
    for weights, experts in _weight_formats(problem):
        for kv in dict.fromkeys((problem.kv_dtype, *problem.more_kv_dtypes)):
            for schedule, attention, ffn in _devices(problem):
                split = problem.split_experts and ffn is Processor.GPU and schedule is not ScheduleName.KV_TRANSFER
                for cpu_experts in (0, 1) if split else (0,):
                    in_gpu_memory = attention is Processor.GPU and schedule is not ScheduleName.KV_TRANSFER
                    placement = Policy(
                        batch_size=1,
                        micro_batch_size=1,
                        attention_device=attention,
                        ffn_device=ffn,
                        resident_experts=0,
                        cpu_experts=cpu_experts,
                        kv_on_gpu=1.0 if in_gpu_memory else 0.0,
                        schedule=schedule,
                        weight_dtype=weights,
                        expert_dtype=experts,
                        kv_dtype=kv,
                        staging=problem.staging,
                    )
                    yield from _with_and_without_disk(problem, placement)


def _with_and_without_disk(problem: Problem, placement: Policy) -> Iterator[Policy]:
    experts = problem.model.num_experts - placement.cpu_experts
    if placement.main_device is Processor.CPU:
        yield replace(placement, disk_experts=experts if problem.reads_disk else 0)
        return
    yield placement
    may_read = problem.reads_disk and experts > 0 and problem.model.num_moe_layers > 0
    if may_read and exceeds_host(problem, placement):
        yield replace(placement, disk_experts=experts)


def _most_on_cpu(problem: Problem, policy: Policy) -> int:
    """Return how many experts the CPU may compute beside the GPU: with a disk, one crosses the link at least."""
    return problem.model.num_experts - (policy.disk_experts > 0)


def _weight_formats(problem: Problem) -> Iterator[tuple[DType, DType | None]]:
    """Yield formats of all weights and of the experts apart; a further format is that of all."""
    yield problem.weight_dtype, problem.expert_dtype
    for dtype in problem.more_weight_dtypes:
        if (dtype, None) != (problem.weight_dtype, problem.expert_dtype):
            yield dtype, None


def _devices(problem: Problem) -> Iterator[tuple[ScheduleName, Processor, Processor]]:
    for schedule in problem.schedules:
        for attention, ffn in _DEVICES[schedule]:
            if problem.hardware.has_gpu or Processor.GPU not in (attention, ffn):
                yield schedule, attention, ffn


_CPU, _GPU = Processor.CPU, Processor.GPU
_DEVICES = {
    ScheduleName.CGOPIPE: ((_CPU, _GPU), (_GPU, _GPU)),
    ScheduleName.UNPAGED: ((_CPU, _GPU),),
    ScheduleName.SERIAL: ((_CPU, _GPU),),
    ScheduleName.KV_TRANSFER: ((_GPU, _GPU),),
    ScheduleName.LAYERWISE: ((_GPU, _GPU),),
    ScheduleName.HOST: ((_CPU, _CPU),),
}


def one_at_a_time(problem: Problem, placement: Policy, batches: Column) -> PolicyGrid:
    """Return for each N the candidates with mu = 1, which hold the least, splits and shares in steps."""
    sizes = np.stack([batches, np.ones_like(batches)])
    return _grid(problem, placement, sizes, _coarse_splits(problem, placement), _coarse_shares(problem, placement))


def _coarse(problem: Problem, placement: Policy) -> PolicyGrid:
    """Return a placement's candidates: N and the number of micro-batches on ladders, splits and shares in steps."""
    split, shares = _coarse_splits(problem, placement), _coarse_shares(problem, placement)
    step = BATCH_STEP if len(split) * len(shares) == 1 else WIDE_BATCH_STEP
    batches = _ladder(_largest_batch(problem, placement), step)
    return _grid(problem, placement, _equal_parts(_even(problem, batches), batches), split, shares)


def _coarse_shares(problem: Problem, placement: Policy) -> Column:
    divides = placement.schedule is ScheduleName.KV_TRANSFER
    return np.array(problem.kv_shares if divides else (placement.kv_on_gpu,), dtype=np.float64)


def _coarse_splits(problem: Problem, placement: Policy) -> Column:
    """Return how many experts the CPU may compute beside the GPU: none, or steps from one to all of a layer's."""
    if not placement.cpu_experts:
        return np.zeros(1)
    return np.unique(np.ceil(np.linspace(1.0, _most_on_cpu(problem, placement), SPLIT_STEPS)))


def _grid(problem: Problem, template: Policy, sizes: Column, split: Column, shares: Column) -> PolicyGrid:
    """Combine pairs of N and mu (2 x any number) with experts on the CPU and KV shares.

    None is resident: without a GPU all experts may lie on disk, beside one those that host memory has no room for.
    """
    pairs = np.unique(sizes[0] + 1j * sizes[1])
    place = np.repeat(np.arange(len(pairs)), len(split) * len(shares))
    on_cpu = np.tile(np.repeat(split, len(shares)), len(pairs))
    share = np.tile(shares, len(pairs) * len(split))
    batch, micro = pairs.real[place], pairs.imag[place]
    grid = PolicyGrid(
        template=template,
        batch_size=batch,
        micro_batch_size=micro,
        resident_experts=np.zeros_like(batch),
        cpu_experts=on_cpu,
        kv_on_gpu=share,
        disk_experts=np.zeros_like(batch),
        fuller_layers=np.zeros_like(batch),
    )
    if template.main_device is Processor.CPU:
        return replace(grid, disk_experts=np.full_like(batch, problem.model.num_experts * problem.reads_disk))
    return replace(grid, disk_experts=on_disk_beside_host(problem, grid)) if template.disk_experts else grid


def _equal_parts(batches: Column, counts: Column) -> Column:
    """Return N and mu of batches cut into so many equal micro-batches."""
    batch, count = np.repeat(batches, len(counts)), np.tile(counts, len(batches))
    possible = (count >= 1) & (count <= batch)
    return np.stack([batch[possible], np.ceil(batch[possible] / count[possible])])


def _pairs(batches: Column, micros: Column) -> Column:
    """Return all pairs of N and mu in which mu is possible."""
    batch, micro = np.repeat(batches, len(micros)), np.tile(micros, len(batches))
    possible = (micro >= 1) & (micro <= batch)
    return np.stack([batch[possible], micro[possible]])


def _even(problem: Problem, batches: Column) -> Column:
    """Add to values of N those that do the job in as many waves, but equal ones."""
    total = problem.workload.num_sequences
    return batches if total is None else np.union1d(batches, np.ceil(total / np.ceil(total / batches)))


def _ladder(largest: int, step: float) -> Column:
    """Return whole numbers from 1 to `largest`, each at most `step` times the one before or one more."""
    rungs: list[float] = []
    value = 1.0
    while value < largest:
        rungs.append(value)
        value = max(math.floor(value * step), value + 1.0)
    return np.array([*rungs, float(largest)] if largest else rungs)


def _largest_batch(problem: Problem, placement: Policy) -> int:
    """Return the largest N tried that fits with mu = 1."""
    batches = np.unique(np.round(np.geomspace(1.0, problem.workload.num_sequences or LARGEST_BATCH, FITTED)))
    fitting = fits_at_all(problem, one_at_a_time(problem, placement, batches)).reshape(len(batches), -1)
    return int(batches[fitting.any(axis=1)].max(initial=0.0))
