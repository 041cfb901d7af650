"""What a change of the machine is worth: to the policy as it stands, and to the best policy on the new machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hrm.estimate import Fidelity
from hrm.policy import Policy
from hrm.records import record
from hrm.what_if import Change, scaled
from solver.optimum import Found, found, optimum
from solver.problem import Problem

__all__ = ["WhatIf", "what_if"]


@record
class WhatIf:
    """Throughputs before a change, after it with the policy kept, and with the best policy then.

    `kept` or `solved` is None where nothing fits any more.
    """

    changes: tuple[Change, ...]
    before: Found
    kept: Found | None
    solved: Found | None

    @property
    def kept_gain_tokens_per_s(self) -> float:
        """What the change brings the policy as it stands; all is lost where it does not fit."""
        return _throughput(self.kept) - self.before.throughput_tokens_per_s

    @property
    def solved_gain_tokens_per_s(self) -> float:
        """What the change brings with the policy adapted to it."""
        return _throughput(self.solved) - self.before.throughput_tokens_per_s


def what_if(
    problem: Problem, before: Found, changes: Iterable[Change], fidelity: Fidelity = Fidelity.CEILING
) -> WhatIf:
    """Predict the policy of `before` on the changed machine, and search the best policy there.

    More of anything never gains less than nothing: the policy as it stands is among those searched.
    """
    made = tuple(changes)
    there = replace(problem, hardware=scaled(problem.hardware, made))
    policy: Policy = before.policy
    return WhatIf(
        changes=made,
        before=before,
        kept=found(there, policy, fidelity),
        solved=optimum(there, fidelity, also=(policy,)),
    )


def _throughput(one: Found | None) -> float:
    return one.throughput_tokens_per_s if one is not None else 0.0
