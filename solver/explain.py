"""Why a policy is as fast as it is: what binds each phase, what stops it from growing, and what more would be worth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from hrm.errors import InfeasibleError
from hrm.estimate import Fidelity
from hrm.passes import JobPass, job_passes
from hrm.policy import Policy, Processor
from hrm.policy_grid import PolicyGrid
from hrm.records import record
from hrm.roofline import Bound
from hrm.schedule.task import Phase
from hrm.shortage import Shortage
from hrm.units import GB, GIB
from hrm.what_if import SIMPLE_RESOURCES, Change, Resource, amount
from solver.optimum import Found, found, optimum
from solver.pieces import bounds_by_name
from solver.problem import Problem
from solver.what_if import WhatIf, what_if

__all__ = ["Explanation", "Growth", "PhaseBounds", "Price", "explain", "fitting", "phase_bounds", "prices"]

STEP = 0.1
"""How much more of a resource is tried, as a share of what there is, and how much a policy is asked to grow."""
UNITS = {
    Resource.LINK: ("GB/s", GB),
    Resource.DISK: ("GB/s", GB),
    Resource.CPU_MEMORY: ("GiB", float(GIB)),
    Resource.GPU_MEMORY: ("GiB", float(GIB)),
    Resource.CPU_BANDWIDTH: ("GB/s", GB),
    Resource.GPU_BANDWIDTH: ("GB/s", GB),
    Resource.CPU_COMPUTE: ("TFLOP/s", 1e12),
    Resource.GPU_COMPUTE: ("TFLOP/s", 1e12),
}


@record
class PhaseBounds:
    """The bounds of a pass (of decode, the one in the middle): each as a share of the longest, which sets the pace.

    Bounds are named by lane, by what lanes share, or `chain`: one micro-batch's way through all layers. `roof` is what
    holds the pace-setting lane; None where the pace is the chain's, which is made of work under many roofs.
    """

    phase: Phase
    pass_s: float
    binding: str
    roof: Bound | None
    shares: dict[str, float]


@record
class Growth:
    """A step by which a policy could grow, and what stops it: a memory that is short, or a limit of the job.

    Neither where the step fits, so that it was left out for being no faster.
    """

    step: str
    short: Shortage | None = None
    limit: str = ""

    @property
    def stopped_by(self) -> str:
        """What stops the step, in words."""
        return str(self.short) if self.short else self.limit or "nothing: it fits"


@record
class Price:
    """A shadow price: tokens/s for each unit more of a resource, over an increment large enough to be used.

    `kept` holds the policy fixed, `solved` adapts it. An increment is a tenth of what there is; of GPU memory at least
    what one more expert of every layer takes, for a smaller step holds no whole expert.
    """

    resource: Resource
    unit: str
    increment: float
    effect: WhatIf

    @property
    def kept_tokens_per_s(self) -> float:
        """Tokens/s a unit with the policy as it stands: 0 for memory, which a policy that fits does not lack."""
        return max(0.0, self.effect.kept_gain_tokens_per_s) / self.increment

    @property
    def solved_tokens_per_s(self) -> float:
        """Tokens/s a unit with the policy adapted."""
        return max(0.0, self.effect.solved_gain_tokens_per_s) / self.increment

    @property
    def gain(self) -> float:
        """What the increment brings, as a share of the throughput before."""
        return max(0.0, self.effect.solved_gain_tokens_per_s) / self.effect.before.throughput_tokens_per_s


@record
class Explanation:
    """What binds a policy and what it would gain from; `best` is the fastest policy known for the machine as it is."""

    given: Found
    best: Found
    phases: tuple[PhaseBounds, ...]
    growths: tuple[Growth, ...]
    prices: tuple[Price, ...]


def explain(problem: Problem, policy: Policy) -> Explanation:
    """Explain a policy at `ceiling`.

    Raises
    ------
    InfeasibleError
        When the policy does not fit the machine.
    """
    given = fitting(problem, policy)
    best = optimum(problem, also=(policy,)) or given
    return Explanation(
        given=given,
        best=best,
        phases=phase_bounds(problem, policy),
        growths=tuple(_growths(problem, policy)),
        prices=prices(problem, best),
    )


def fitting(problem: Problem, policy: Policy) -> Found:
    """Predict a policy at `ceiling`.

    Raises
    ------
    InfeasibleError
        When it does not fit the machine, or is too slow there.
    """
    given = found(problem, policy)
    if given is None:
        raise InfeasibleError(
            f"the plan does not fit {problem.hardware.name}: {problem.short_of(policy)} (name its machine: --hardware)"
        )
    if not given.in_time:
        raise InfeasibleError(
            f"the plan misses a limit on time of its own on {problem.hardware.name} (name its machine: --hardware)"
        )
    return given


def phase_bounds(problem: Problem, policy: Policy) -> tuple[PhaseBounds, ...]:
    """Return what bounds a pass of prefill, and one in the middle of decode where there is any, of a full wave."""
    inputs = problem.model, problem.hardware, problem.workload
    passes = job_passes(PolicyGrid.of(policy), *inputs, Fidelity.CEILING)
    prefill, *decode = [one for one in passes if one.in_full_wave]
    middle = decode[len(decode) // 2 : len(decode) // 2 + 1]
    return tuple(_bounds_of(one) for one in (prefill, *middle))


def _bounds_of(one: JobPass) -> PhaseBounds:
    work = one.work
    bounds = {name: float(seconds) for name, seconds in bounds_by_name(work).items()}
    pass_s = float(work.lower_s)
    binding = max(bounds, key=lambda name: bounds[name] * (1 + 1e-9 * (name == work.busiest)))
    own_roof = {work.busiest: work.bound(work.busiest)} | dict.fromkeys(work.shared_s, Bound.MEMORY)
    return PhaseBounds(
        phase=one.phase,
        pass_s=pass_s,
        binding=binding,
        roof=own_roof.get(binding),
        shares={name: seconds / pass_s for name, seconds in sorted(bounds.items(), key=lambda item: -item[1])},
    )


def _growths(problem: Problem, policy: Policy) -> Iterator[Growth]:
    """Yield the steps that a policy could grow by: more sequences, larger micro-batches, one more resident expert."""
    more, job = math.ceil(policy.batch_size * (1 + STEP)), problem.workload.num_sequences
    step = f"{more} sequences in flight"
    if job is not None and policy.batch_size >= job:
        yield Growth(step=step, limit="the job has no more")
    else:
        yield Growth(step=step, short=problem.short_of(replace(policy, batch_size=more)))
    if policy.micro_batch_size < policy.batch_size:
        larger = min(math.ceil(policy.micro_batch_size * (1 + STEP)), policy.batch_size)
        yield Growth(
            step=f"micro-batches of {larger}", short=problem.short_of(replace(policy, micro_batch_size=larger))
        )
    if policy.main_device is Processor.GPU and policy.resident_experts < problem.model.num_experts:
        resident = policy.resident_experts + 1
        on_cpu = min(policy.cpu_experts, problem.model.num_experts - resident)
        on_disk = max(0, policy.disk_experts - 1)
        grown = replace(policy, resident_experts=resident, cpu_experts=on_cpu, disk_experts=on_disk)
        yield Growth(step="one more expert of each layer on the GPU", short=problem.short_of(grown))
    if policy.disk_experts:
        grown = replace(policy, disk_experts=policy.disk_experts - 1)
        yield Growth(step="one more expert of each layer in host memory", short=problem.short_of(grown))


def prices(problem: Problem, best: Found) -> tuple[Price, ...]:
    """Return the shadow price of each resource that is used, at `ceiling`, around the best policy."""
    reads_disk = best.policy.disk_experts > 0
    present = (resource for resource in SIMPLE_RESOURCES if resource is not Resource.GPUS)
    used = (
        resource
        for resource in present
        if (reads_disk if resource is Resource.DISK else problem.hardware.has_gpu or resource.value.startswith("cpu"))
    )
    return tuple(_price(problem, best, resource) for resource in used)


def _price(problem: Problem, best: Found, resource: Resource) -> Price:
    unit, size = UNITS[resource]
    there = amount(problem.hardware, resource)
    more = STEP * there
    if resource is Resource.GPU_MEMORY:
        more = max(more, _one_more_expert_bytes(problem))
    effect = what_if(problem, best, [Change(resource=resource, factor=1.0 + more / there)])
    return Price(resource=resource, unit=unit, increment=more / size, effect=effect)


def _one_more_expert_bytes(problem: Problem) -> float:
    """Return what one more expert of every layer adds to the cards' capacity, with what a card leaves unused."""
    gpu, model = problem.hardware.level("gpu"), problem.model
    dtype = problem.expert_dtype or problem.weight_dtype
    weights = model.num_moe_layers * model.expert_parameters * dtype.bytes_per_element
    return weights * gpu.capacity_bytes / gpu.usable_bytes
