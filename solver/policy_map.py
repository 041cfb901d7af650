"""Which policy wins where: the best placement over a range of two resources of a machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hrm.errors import HrmError
from hrm.estimate import Fidelity
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor
from hrm.records import record
from hrm.what_if import PARTS, Change, Resource, amount, format_amount, parse_changes, scaled
from solver.optimum import Found, optimum
from solver.problem import Problem

__all__ = ["Axis", "PolicyMap", "axis_of", "placement_of", "policy_map", "read_axes"]

STEPS = 9
"""Values on an axis: with an odd number the machine itself is the middle of the default range."""
REACH = 4.0
"""How far the default range goes to either side, as a factor."""


@record
class Axis:
    """A resource and the factors that it is changed by; `base` is what the machine has (None for a group of them)."""

    resource: Resource
    factors: tuple[float, ...]
    base: float | None

    def words(self, factor: float) -> str:
        """Return what there is at a factor, as it is printed."""
        return f"{factor:.3g}x" if self.base is None else format_amount(self.resource, self.base * factor)


@record
class PolicyMap:
    """The fastest policy at each pair of factors: `cells[j][i]` belongs to `y.factors[j]` and `x.factors[i]`.

    None where nothing fits.
    """

    x: Axis
    y: Axis
    fidelity: Fidelity
    cells: tuple[tuple[Found | None, ...], ...]

    @property
    def at_machine(self) -> Found | None:
        """The cell of the machine as it is, where the ranges hold it."""
        if 1.0 not in self.x.factors or 1.0 not in self.y.factors:
            return None
        return self.cells[self.y.factors.index(1.0)][self.x.factors.index(1.0)]


def policy_map(
    problem: Problem,
    axes: tuple[Axis, Axis],
    fidelity: Fidelity = Fidelity.CEILING,
    also: tuple[Policy, ...] = (),
    step: Callable[[str], None] = lambda _: None,
) -> PolicyMap:
    """Search the best policy at each pair of factors, at `roof` or `ceiling`.

    What wins next door, and the policies of `also`, count too where they fit: the ladder of N and mu that a search
    walks differs from machine to machine, and borders should not depend on it. `step` is told what is being searched.
    """
    x, y = axes
    cells: list[tuple[Found | None, ...]] = []
    for j, up in enumerate(y.factors):
        step(f"row {j + 1} of {len(y.factors)}")
        row: list[Found | None] = []
        for i, across in enumerate(x.factors):
            changes = (Change(resource=x.resource, factor=across), Change(resource=y.resource, factor=up))
            there = replace(problem, hardware=scaled(problem.hardware, changes))
            nearby = [*row[-1:], *(below[i] for below in cells[-1:])]
            known = (one.policy for one in nearby if one is not None)
            row.append(optimum(there, fidelity, also=(*also, *known)))
        cells.append(tuple(row))
    return PolicyMap(x=x, y=y, fidelity=fidelity, cells=tuple(cells))


def axis_of(
    problem: Problem, resource: Resource, low: float = 1 / REACH, high: float = REACH, count: int = STEPS
) -> Axis:
    """Return an axis of `count` factors from `low` to `high`, evenly spaced in logarithms.

    Raises
    ------
    HrmError
        When the machine has none of the resource, it comes in whole pieces, or the range is empty.
    """
    if resource is Resource.GPUS:
        raise HrmError("gpus: a map needs what can be had in any amount (use gpu, or --what-if gpus=2x)")
    if not 0 < low < high:
        raise HrmError(f"{resource}: no range from {low:.4g}x to {high:.4g}x (write the smaller first)")
    base = None
    for part in PARTS.get(resource, (resource,)):
        base = amount(problem.hardware, part)
    factors = (float(f"{factor:.12g}") for factor in np.geomspace(low, high, count))
    return Axis(resource=resource, factors=tuple(factors), base=None if resource in PARTS else base)


def read_axes(text: str, problem: Problem) -> tuple[Axis, Axis]:
    """Read two axes such as `link,cpu` or `link=100GB/s..500GB/s,cpu=1x..10x`.

    Raises
    ------
    HrmError
        When they are not two different resources with ranges.
    """
    axes = tuple(_axis(part.strip(), problem) for part in text.split(","))
    if len(axes) != 2 or axes[0].resource is axes[1].resource:
        raise HrmError(f"--map {text}: two different resources are needed (such as link,cpu)")
    return axes[0], axes[1]


def _axis(text: str, problem: Problem) -> Axis:
    name, _, ends = text.partition("=")
    low, dots, high = ends.partition("..")
    if ends and not dots:
        raise HrmError(f"--map {text}: no range (write {name}=0.5x..4x, or {name} alone)")
    bounds = (low, high) if ends else ("1x", "1x")
    first, last = (parse_changes(f"{name}={end}", problem.hardware)[0] for end in bounds)
    if not ends:
        return axis_of(problem, first.resource)
    return axis_of(problem, first.resource, first.factor, last.factor)


def placement_of(policy: Policy, model: ModelSpec) -> str:
    """Say in words where attention, its cache and the experts are: what a map's regions are named by."""
    if policy.main_device is Processor.CPU:
        return "all on the CPU"
    kv = {0.0: "CPU", 1.0: "GPU"}.get(policy.kv_on_gpu, "both")
    attention = policy.attention_device.upper()
    return f"attention {attention}, KV {kv}, {_experts_of(policy, model)}"


def _experts_of(policy: Policy, model: ModelSpec) -> str:
    if policy.resident_experts == model.num_experts:
        return "experts resident"
    on_cpu, streamed = policy.experts_on_cpu(model), policy.streamed_experts(model)
    if not on_cpu:
        return "experts streamed"
    return "experts split" if streamed or policy.resident_experts else "experts CPU"
