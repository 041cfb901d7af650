"""Predictions and decisions judged by runs, over all cases: errors, coverage of intervals, ranks and regret."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from hrm.hardware import HardwareProfile
from hrm.model import ModelSpec
from hrm.records import record
from hrm.schedule.task import TaskKind
from hrm.validation.cases import Case, Run
from hrm.validation.decisions import Decision, Order, decisions, orders, plans_of
from hrm.validation.judged_case import JudgedCase, Quantity, judged_case
from hrm.validation.quantities import END_TO_END
from hrm.validation.statistics import Coverage, Error, coverage, error_of, told_apart

__all__ = ["Judgement", "judge"]

NOTEWORTHY = 0.02
"""Kinds of task that took less than this share of their run say nothing of the prediction."""


@record
class Judgement:
    """Everything judged. `errors` and `coverage` go by quantity; `task_errors` tells paced tasks from others.

    `pairs` and `tau` are over all pairs of plans of a model on a machine that measurement tells apart.
    """

    cases: tuple[JudgedCase, ...]
    failed: dict[str, str]
    errors: dict[str, Error]
    ceiling_error: Error
    task_errors: dict[str, Error]
    coverage: dict[str, Coverage]
    orders: tuple[Order, ...]
    decisions: tuple[Decision, ...]
    pairs: int
    tau: float | None
    two_lanes_busy: int


def judge(
    cases: Sequence[Case],
    runs: Iterable[Run],
    machines: Mapping[str, HardwareProfile],
    models: Mapping[str, ModelSpec],
    on_case: Callable[[str], None] = lambda _: None,
) -> Judgement:
    """Predict every case that has run, on the profile made before its runs, and judge.

    Runs beside other processes count only where a case has no others.

    Raises
    ------
    ValueError
        When no run succeeded.
    """
    by_case: dict[str, list[Run]] = defaultdict(list)
    failed: dict[str, str] = {}
    for run in runs:
        if run.failed is not None:
            failed[run.case] = run.failed
        else:
            by_case[run.case].append(run)
    judged = []
    for case in cases:
        if case.name in by_case:
            on_case(case.name)
            undisturbed = [run for run in by_case[case.name] if not run.disturbed] or by_case[case.name]
            judged.append(judged_case(case, undisturbed, machines[case.machine], models[case.model]))
    return _summed(judged, failed)


def _summed(judged: Sequence[JudgedCase], failed: dict[str, str]) -> Judgement:
    if not judged:
        raise ValueError("no run succeeded")
    by_name: dict[str, list[Quantity]] = defaultdict(list)
    tasks: dict[str, list[float]] = defaultdict(list)
    for one in judged:
        whole_s = one.quantities[END_TO_END].measured_s
        for name, quantity in one.quantities.items():
            if quantity.measured_s < NOTEWORTHY * whole_s:
                continue
            by_name[name].append(quantity)
            if name.partition(".")[2] in set(TaskKind):
                tasks["paced" if quantity.paced else "not paced"].append(quantity.error)
    told = [told_apart(plans) for plans in plans_of(judged).values()]
    pairs, concordant = sum(one.count for one in told), sum(one.concordant for one in told)
    return Judgement(
        cases=tuple(judged),
        failed=failed,
        errors={name: error_of(one.error for one in found) for name, found in by_name.items()},
        ceiling_error=error_of(one.ceiling_error for one in judged),
        task_errors={name: error_of(found) for name, found in tasks.items()},
        coverage={name: coverage(one.inside for one in found) for name, found in by_name.items()},
        orders=orders(judged),
        decisions=decisions(judged),
        pairs=pairs,
        tau=2.0 * concordant / pairs - 1.0 if pairs else None,
        two_lanes_busy=sum(one.busy_lanes >= 2 for one in judged),
    )
