"""What predictions should reach, and whether they do."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from hrm.records import record
from hrm.validation.judgement import Judgement
from hrm.validation.quantities import END_TO_END

__all__ = ["SURE", "Target", "targets"]

MOST_MAPE, LEAST_CASES, LEAST_BUSY = 0.06, 40, 1 / 3
LEAST_TAU, MOST_REGRET, SURE = 0.9, 0.03, 0.8


@record
class Target:
    """An aim in words, what was reached, what was wanted, and whether that is met; None without a limit."""

    name: str
    reached: str
    wanted: str
    met: bool | None


def targets(judgement: Judgement) -> Iterator[Target]:
    """Yield the aims; what is given beside them has nothing to meet."""
    cases, error = len(judgement.cases), judgement.errors[END_TO_END]
    yield _target("cases", cases, f"at least {LEAST_CASES}", cases >= LEAST_CASES)
    reached = f"{error.mape:.1%} (mean {error.mean:+.1%}, worst {error.worst:+.1%})"
    yield _target("error end to end (MAPE)", reached, f"at most {MOST_MAPE:.0%}", error.mape <= MOST_MAPE)
    yield _target("the same at ceiling", f"{judgement.ceiling_error.mape:.1%}", "", None)
    for name, found in judgement.task_errors.items():
        yield _target(f"error of tasks that are {name} (MAPE)", f"{found.mape:.1%} of {found.count}", "", None)
    share = judgement.two_lanes_busy / cases
    words = f"{judgement.two_lanes_busy} of {cases}"
    yield _target("cases with two lanes busy for 60 %", words, "at least a third", share >= LEAST_BUSY)
    tau = judgement.tau
    words = "no pairs" if tau is None else f"{tau:.3f} over {judgement.pairs} pairs"
    yield _target("Kendall tau", words, f"at least {LEAST_TAU}", tau is not None and tau >= LEAST_TAU)
    if judgement.decisions:
        worst = max(one.regret for one in judgement.decisions)
        by_medians, held_out = (
            statistics.fmean(getattr(one, name) for one in judgement.decisions)
            for name in ("regret", "held_out_regret")
        )
        words = f"mean {held_out:.1%} of {len(judgement.decisions)} decisions"
        yield _target(
            "regret, the best plan by other runs", words, f"at most {MOST_REGRET:.0%}", held_out <= MOST_REGRET
        )
        yield _target("regret by the medians of all runs", f"mean {by_medians:.1%}, worst {worst:.1%}", "", None)
    held = judgement.coverage[END_TO_END]
    words = f"{held.inside} of {held.count}: {held.low:.0%} to {held.high:.0%}"
    yield _target("in the 80 % interval", words, f"contains {SURE:.0%}", held.low <= SURE <= held.high)


def _target(name: str, reached: object, wanted: str, met: bool | None) -> Target:
    return Target(name=name, reached=str(reached), wanted=wanted, met=met)
