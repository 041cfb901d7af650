"""Choices judged: whether predictions order plans as measurement does, and what going by them costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from hrm.records import record
from hrm.validation.cases import Origin
from hrm.validation.judged_case import JudgedCase
from hrm.validation.statistics import Ranked, held_out_regret, regret, spearman, told_apart

__all__ = ["Decision", "Order", "decisions", "orders", "plans_of"]


@record
class Order:
    """How the plans of a model on a machine are ordered: pairs told apart, Kendall's tau over them, Spearman's rho."""

    machine: str
    model: str
    plans: int
    pairs: int
    tau: float | None
    spearman: float | None


@record
class Decision:
    """What choosing by prediction cost in a job: 1 - measured(chosen) / measured(best).

    `held_out_regret` is what that is without the luck of the best plan's runs.
    """

    machine: str
    model: str
    job: str
    plans: int
    chosen: str
    best: str
    regret: float
    held_out_regret: float


def plans_of(judged: Sequence[JudgedCase]) -> dict[tuple[str, str], list[Ranked]]:
    """Return the plans of each machine and model."""
    plans: dict[tuple[str, str], list[Ranked]] = defaultdict(list)
    for one in judged:
        plans[one.case.machine, one.case.model].append(one.throughput)
    return plans


def orders(judged: Sequence[JudgedCase]) -> tuple[Order, ...]:
    """Judge how predictions order the plans of each model on each machine."""
    found = []
    for (machine, model), plans in plans_of(judged).items():
        told = told_apart(plans)
        found.append(
            Order(
                machine=machine,
                model=model,
                plans=len(plans),
                pairs=told.count,
                tau=told.tau,
                spearman=spearman(plans),
            )
        )
    return tuple(found)


def decisions(judged: Sequence[JudgedCase]) -> tuple[Decision, ...]:
    """Judge the choice among the plans that are for one job: what `hrm solve` chose against the best that was run."""
    by_job: dict[str, list[JudgedCase]] = defaultdict(list)
    for one in judged:
        by_job[one.case.job].append(one)
    found = []
    for job, plans in by_job.items():
        if len(plans) < 2 or all(one.case.origin is Origin.SPREAD for one in plans):
            continue
        chosen = max(plans, key=lambda one: one.throughput.predicted)
        best = max(plans, key=lambda one: one.throughput.measured)
        found.append(
            Decision(
                machine=chosen.case.machine,
                model=chosen.case.model,
                job=job,
                plans=len(plans),
                chosen=chosen.case.name,
                best=best.case.name,
                regret=regret([one.throughput for one in plans]),
                held_out_regret=held_out_regret([one.throughput for one in plans]),
            )
        )
    return tuple(found)
