"""Predictions and decisions judged by runs: errors, coverage, ranks, regret, and where a large error comes from."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from hrm.estimate import Fidelity
from hrm.hardware import HardwareProfile
from hrm.model import ModelSpec
from hrm.records import record
from hrm.schedule.task import Lane, Phase, TaskKind
from hrm.validation.cases import Case, Origin, Run
from hrm.validation.quantities import END_TO_END, Expected, expected, lane_kinds, measured_seconds, paced
from hrm.validation.statistics import Coverage, Error, Ranked, coverage, error_of, regret, spearman, told_apart

__all__ = ["Attribution", "Decision", "JudgedCase", "Judgement", "Order", "Quantity", "judge"]

BUSY = 0.6
"""Share of a run from which on a lane counts as busy."""
NOTEWORTHY = 0.02
"""Kinds of task that took less than this share of their run say nothing of the prediction."""


@record
class Quantity:
    """Seconds as predicted and as measured: the median of the runs, and how far these are apart.

    `paced` says whether the pace was imposed by an emulated device (None of whole phases). A kind of task moves `bytes`
    and does `flop`, which make rates of its seconds.
    """

    predicted_s: float
    measured_s: float
    spread_s: float
    low_s: float
    high_s: float
    paced: bool | None = None
    bytes: float = 0.0
    flop: float = 0.0

    @property
    def error(self) -> float:
        """Signed: predicted / measured - 1."""
        return self.predicted_s / self.measured_s - 1.0

    @property
    def inside(self) -> bool:
        """Whether the interval held what was measured."""
        return self.low_s <= self.measured_s <= self.high_s


@record
class Attribution:
    """Where a case is off: the phase that is off most, its busiest lane, how much longer that worked and waited.

    `kind` is the lane's kind of task that is off most. Seconds are measured less predicted.
    """

    phase: Phase
    lane: Lane
    off_s: float
    working_s: float
    waiting_s: float
    kind: TaskKind | None
    kind_s: float

    def __str__(self) -> str:
        """Return it in words."""
        parts = [f"{self.phase} {_longer(self.off_s)}: {self.lane} worked {_longer(self.working_s)}"]
        if self.kind is not None:
            parts.append(f"({self.kind} {_longer(self.kind_s)})")
        return f"{' '.join(parts)}, waited {_longer(self.waiting_s)}"


@record
class JudgedCase:
    """A case with its quantities by name, the shares of the run in which lanes worked, and where it is off."""

    case: Case
    runs: int
    throughput: Ranked
    quantities: dict[str, Quantity]
    ceiling_error: float
    busy: dict[Lane, float]
    attribution: Attribution

    @property
    def error(self) -> float:
        """Signed error end to end."""
        return self.quantities[END_TO_END].error

    @property
    def busy_lanes(self) -> int:
        """Lanes that worked for most of the run."""
        return sum(share >= BUSY for share in self.busy.values())


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
    """What choosing by prediction cost in a job: 1 - measured(chosen) / measured(best)."""

    machine: str
    model: str
    job: str
    plans: int
    chosen: str
    best: str
    regret: float


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
            judged.append(_judged(case, undisturbed, machines[case.machine], models[case.model]))
    return _summed(judged, failed)


def _judged(case: Case, runs: Sequence[Run], machine: HardwareProfile, model: ModelSpec) -> JudgedCase:
    prediction = expected(case.policy, model, machine, case.workload)
    found = [measured_seconds(run.measured) for run in runs if run.measured is not None]
    quantities = {}
    for name in prediction.seconds:
        seconds = [one[name] for one in found if one.get(name, 0.0) > 0]
        if seconds:
            quantities[name] = _quantity(name, prediction, seconds, machine)
    whole_s = quantities[END_TO_END].measured_s
    rates = [run.measured.throughput_tokens_per_s for run in runs if run.measured is not None]
    busy = {lane: sum(_seconds(quantities, f"{phase}.{lane}")[1] for phase in Phase) / whole_s for lane in Lane}
    return JudgedCase(
        case=case,
        runs=len(found),
        throughput=Ranked(
            predicted=prediction.throughput_tokens_per_s,
            measured=statistics.median(rates),
            spread=max(rates) - min(rates),
        ),
        quantities=quantities,
        ceiling_error=prediction.by_fidelity[Fidelity.CEILING] / whole_s - 1.0,
        busy={lane: share for lane, share in busy.items() if share > 0},
        attribution=_attribution(quantities, prediction),
    )


def _quantity(name: str, prediction: Expected, seconds: Sequence[float], machine: HardwareProfile) -> Quantity:
    interval, work = prediction.intervals[name], prediction.work.get(name)
    part = name.partition(".")[2]
    lane = work.lane if work is not None else Lane(part) if part in set(Lane) else None
    return Quantity(
        predicted_s=prediction.seconds[name],
        measured_s=statistics.median(seconds),
        spread_s=max(seconds) - min(seconds),
        low_s=interval.low,
        high_s=interval.high,
        paced=None if lane is None else paced(lane, machine),
        bytes=work.bytes if work else 0.0,
        flop=work.flop if work else 0.0,
    )


def _seconds(quantities: Mapping[str, Quantity], name: str) -> tuple[float, float]:
    """Return predicted and measured seconds; nothing of what did not run."""
    found = quantities.get(name)
    return (found.predicted_s, found.measured_s) if found else (0.0, 0.0)


def _attribution(quantities: Mapping[str, Quantity], prediction: Expected) -> Attribution:
    def off(name: str) -> float:
        predicted_s, measured_s = _seconds(quantities, name)
        return measured_s - predicted_s

    phase = max(Phase, key=lambda one: abs(off(one.value)))
    lane = max(Lane, key=lambda one: _seconds(quantities, f"{phase}.{one}")[1])
    working_s = off(f"{phase}.{lane}")
    kinds = lane_kinds(prediction.work, phase, lane)
    kind = max(kinds, key=lambda one: abs(off(f"{phase}.{one}")), default=None)
    return Attribution(
        phase=phase,
        lane=lane,
        off_s=off(phase.value),
        working_s=working_s,
        waiting_s=off(phase.value) - working_s,
        kind=kind,
        kind_s=0.0 if kind is None else off(f"{phase}.{kind}"),
    )


def _longer(seconds: float) -> str:
    return f"{abs(seconds):.2g} s {'longer' if seconds >= 0 else 'shorter'}"


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
    orders, decisions = _orders(judged), _decisions(judged)
    told = [told_apart(plans) for plans in _plans(judged).values()]
    pairs, concordant = sum(one.count for one in told), sum(one.concordant for one in told)
    return Judgement(
        cases=tuple(judged),
        failed=failed,
        errors={name: error_of(one.error for one in found) for name, found in by_name.items()},
        ceiling_error=error_of(one.ceiling_error for one in judged),
        task_errors={name: error_of(found) for name, found in tasks.items()},
        coverage={name: coverage(one.inside for one in found) for name, found in by_name.items()},
        orders=orders,
        decisions=decisions,
        pairs=pairs,
        tau=2.0 * concordant / pairs - 1.0 if pairs else None,
        two_lanes_busy=sum(one.busy_lanes >= 2 for one in judged),
    )


def _plans(judged: Sequence[JudgedCase]) -> dict[tuple[str, str], list[Ranked]]:
    plans: dict[tuple[str, str], list[Ranked]] = defaultdict(list)
    for one in judged:
        plans[one.case.machine, one.case.model].append(one.throughput)
    return plans


def _orders(judged: Sequence[JudgedCase]) -> tuple[Order, ...]:
    orders = []
    for (machine, model), plans in _plans(judged).items():
        told = told_apart(plans)
        orders.append(
            Order(
                machine=machine,
                model=model,
                plans=len(plans),
                pairs=told.count,
                tau=told.tau,
                spearman=spearman(plans),
            )
        )
    return tuple(orders)


def _decisions(judged: Sequence[JudgedCase]) -> tuple[Decision, ...]:
    """Judge the choice among the plans that are for one job: what `hrm solve` chose against the best that was run."""
    by_job: dict[str, list[JudgedCase]] = defaultdict(list)
    for one in judged:
        by_job[one.case.job].append(one)
    decisions = []
    for job, plans in by_job.items():
        if len(plans) < 2 or all(one.case.origin is Origin.SPREAD for one in plans):
            continue
        chosen = max(plans, key=lambda one: one.throughput.predicted)
        best = max(plans, key=lambda one: one.throughput.measured)
        decisions.append(
            Decision(
                machine=chosen.case.machine,
                model=chosen.case.model,
                job=job,
                plans=len(plans),
                chosen=chosen.case.name,
                best=best.case.name,
                regret=regret([one.throughput for one in plans]),
            )
        )
    return tuple(decisions)
