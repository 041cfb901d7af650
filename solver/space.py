"""The discrete space that is searched: devices, N, mu, and whole experts resident per layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hrm.dtypes import DType
from hrm.hardware import HardwareProfile
from hrm.memory import Shortage, ledger, shortage
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor, ScheduleName, Staging
from hrm.records import record
from hrm.workload import Workload

__all__ = ["Problem", "SearchSpace", "build_space", "most_resident_experts"]

BATCH_STEP = 1.3
"""Ratio of neighbouring candidates of N and of mu; the search refines between them around the best."""
LARGEST_BATCH = 1 << 16


@record
class Problem:
    """What a policy is sought for."""

    model: ModelSpec
    hardware: HardwareProfile
    workload: Workload
    weight_dtype: DType
    kv_dtype: DType
    staging: Staging = Staging.PINNED
    ram_limit_bytes: int | None = None

    def short_of(self, policy: Policy) -> Shortage | None:
        """Return what the policy does not fit into, or None."""
        demand = ledger(policy, self.model, self.workload)
        return shortage(demand, self.hardware, self.ram_limit_bytes)


@record
class SearchSpace:
    """Candidates: a template policy per placement of the devices, and the values of N and mu."""

    placements: tuple[Policy, ...]
    batch_sizes: tuple[int, ...]

    def micro_batch_sizes(self, batch_size: int) -> tuple[int, ...]:
        """Candidates of mu for a batch: those that cut it into equal parts, the number of parts on the ladder too."""
        parts = (count for count in self.batch_sizes if count <= batch_size)
        return tuple(sorted({-(-batch_size // count) for count in parts}))


def build_space(problem: Problem) -> SearchSpace:
    """Lay out the candidates of a problem; N goes up to the job's size or what memory can hold at all."""
    placements = tuple(_placements(problem))
    largest = max(_largest_batch(problem, placement) for placement in placements)
    return SearchSpace(placements=placements, batch_sizes=tuple(_ladder(largest)))


def _placements(problem: Problem) -> Iterator[Policy]:
    pairs = [(Processor.CPU, Processor.CPU)]
    if problem.hardware.has_gpu:
        pairs += [(Processor.CPU, Processor.GPU), (Processor.GPU, Processor.GPU)]
    for attention, ffn in pairs:
        yield Policy(
            batch_size=1,
            micro_batch_size=1,
            attention_device=attention,
            ffn_device=ffn,
            resident_experts=0,
            kv_on_gpu=1.0 if attention is Processor.GPU else 0.0,
            schedule=ScheduleName.CGOPIPE if ffn is Processor.GPU else ScheduleName.HOST,
            weight_dtype=problem.weight_dtype,
            kv_dtype=problem.kv_dtype,
            staging=problem.staging,
        )


def _ladder(largest: int) -> Iterator[int]:
    value = 1.0
    last = 0
    while value < largest:
        if int(value) > last:
            last = int(value)
            yield last
        value = max(value * BATCH_STEP, value + 1)
    if largest > 0:
        yield largest


def _largest_batch(problem: Problem, placement: Policy) -> int:
    """Return the largest N that fits with mu = 1, by bisection (demand grows with N)."""
    limit = problem.workload.num_sequences or LARGEST_BATCH
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if _fits_at_all(problem, replace(placement, batch_size=middle)):
            low = middle
        else:
            high = middle - 1
    return low


def _fits_at_all(problem: Problem, policy: Policy) -> bool:
    """Say whether a policy fits with no or with all experts resident; the demand in between lies between."""
    counts = (0,) if policy.ffn_device is Processor.CPU else (0, problem.model.num_experts)
    return any(problem.short_of(replace(policy, resident_experts=count)) is None for count in counts)


def most_resident_experts(problem: Problem, policy: Policy) -> Policy | None:
    """Return the policy with as many experts resident as fit, or None where not even none fits.

    More resident experts only take work off the link, so no smaller count can be faster.
    """
    most = 0 if policy.ffn_device is Processor.CPU else problem.model.num_experts
    candidates = (replace(policy, resident_experts=count) for count in range(most, -1, -1))
    return next((candidate for candidate in candidates if problem.short_of(candidate) is None), None)
