"""The figures by which predictions and decisions are judged."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import combinations

from hrm.records import record

__all__ = [
    "Coverage",
    "Error",
    "Pairs",
    "Ranked",
    "coverage",
    "error_of",
    "held_out_regret",
    "regret",
    "spearman",
    "told_apart",
]

BAND = 0.95
"""How often the band of a share should hold the true one."""
SPREADS = 2.0
"""Two plans differ for certain when their medians are further apart than so many spreads."""


@record
class Error:
    """Signed errors, predicted / measured - 1, of one quantity over some cases: how many, mean, mean of |.|, worst."""

    count: int
    mean: float
    mape: float
    worst: float


@record
class Coverage:
    """How many intervals held what was measured, and where the true share lies with 95 % (Clopper and Pearson)."""

    inside: int
    count: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """The share that was found."""
        return self.inside / self.count


@record
class Ranked:
    """A plan as it was predicted and as it was measured, both in tokens/s, how far its runs were apart, and these."""

    predicted: float
    measured: float
    spread: float
    runs: tuple[float, ...] = ()


@record
class Pairs:
    """Pairs of plans that measurement tells apart, and how many the prediction orders alike; a tie counts as half."""

    concordant: float
    count: int

    @property
    def tau(self) -> float | None:
        """Kendall's tau: concordant less discordant pairs, as a share of all; None where there are none."""
        return 2.0 * self.concordant / self.count - 1.0 if self.count else None


def error_of(errors: Iterable[float]) -> Error:
    """Sum up signed errors, at least one."""
    found = tuple(errors)
    return Error(
        count=len(found),
        mean=statistics.fmean(found),
        mape=statistics.fmean(map(abs, found)),
        worst=max(found, key=abs),
    )


def coverage(inside: Iterable[bool]) -> Coverage:
    """Count how many intervals held their outcome, of at least one, with the binomial band of the share."""
    from scipy.stats import binomtest

    found = tuple(inside)
    band = binomtest(sum(found), len(found)).proportion_ci(BAND, method="exact")
    return Coverage(inside=sum(found), count=len(found), low=float(band.low), high=float(band.high))


def told_apart(plans: Sequence[Ranked]) -> Pairs:
    """Compare all pairs of plans whose measured medians differ by more than twice the larger of their spreads."""
    concordant, count = 0.0, 0
    for one, other in combinations(plans, 2):
        difference = one.measured - other.measured
        if abs(difference) > SPREADS * max(one.spread, other.spread):
            count += 1
            agreement = (one.predicted - other.predicted) * difference
            concordant += 0.5 if agreement == 0 else float(agreement > 0)
    return Pairs(concordant=concordant, count=count)


def spearman(plans: Sequence[Ranked]) -> float | None:
    """Return the rank correlation of predicted and measured; None where fewer than three plans, or all alike."""
    from scipy.stats import spearmanr

    predicted, measured = ([getattr(plan, name) for plan in plans] for name in ("predicted", "measured"))
    if len(plans) < 3 or len(set(predicted)) < 2 or len(set(measured)) < 2:
        return None
    return float(spearmanr(predicted, measured).statistic)


def regret(plans: Sequence[Ranked]) -> float:
    """Return what choosing by prediction costs: 1 - measured(predicted best) / measured(best)."""
    chosen = max(plans, key=lambda plan: plan.predicted)
    return 1.0 - chosen.measured / max(plan.measured for plan in plans)


def held_out_regret(plans: Sequence[Ranked]) -> float:
    """Return the regret where the best plan is found in some runs and measured in another, on average over these.

    The largest of several noisy medians lies above what its plan can do, and regret by it is never negative; what is
    told apart by chance costs nothing here on average. With one run of a plan, the regret by medians.
    """
    rounds = min(len(plan.runs) for plan in plans)
    if rounds < 2:
        return regret(plans)
    chosen = max(plans, key=lambda plan: plan.predicted)
    found = []
    for held in range(rounds):
        best = max(plans, key=lambda plan: statistics.median(plan.runs[:held] + plan.runs[held + 1 :]))
        found.append(1.0 - chosen.runs[held] / best.runs[held])
    return statistics.fmean(found)
