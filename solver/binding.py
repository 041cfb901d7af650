"""Which constraints bind at a policy, by the names that the MILP gives them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hrm.policy import Policy, Processor
from solver.pieces import Pieces
from solver.problem import Problem
from solver.room import resident_of

__all__ = ["binding"]

NEARLY = 0.01
"""A limit on time binds within so much of it: N is whole, and seldom meets it exactly."""


def binding(problem: Problem, policy: Policy, pieces: Pieces, index: int) -> tuple[str, ...]:
    """Return what each pass of a full wave waits for, the memories that stop the policy growing, and limits reached.

    The policy is candidate `index` of the pieces. A memory binds where one more sequence, or one more resident expert
    per layer, does not fit in it.
    """
    resident = np.full(pieces.room.size, float(resident_of(problem, policy)))
    longest = pieces.bounds.at(resident)[:, :, index].argmax(axis=1)
    names = zip(pieces.pass_names, longest, strict=True)
    found = [f"{name}_{pieces.bound_names[bound]}" for name, bound in names if not name.startswith("last_")]
    grown = [replace(policy, batch_size=policy.batch_size + 1)]
    if policy.main_device is Processor.GPU and policy.streamed_experts(problem.model):
        on_disk = max(0, policy.disk_experts - 1)
        grown.append(replace(policy, resident_experts=policy.resident_experts + 1, disk_experts=on_disk))
    if policy.disk_experts:
        grown.append(replace(policy, disk_experts=policy.disk_experts - 1))
    shortages = (problem.short_of(one) for one in grown)
    found += dict.fromkeys(f"{short.device}_memory" for short in shortages if short is not None)
    sums = pieces.sums(resident)
    return (*found, *(name for name in problem.time_limits_s if sums[name][index] >= 1.0 - NEARLY))
