"""A case judged: its quantities beside their predictions, how busy its lanes were, and where it is off."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from hrm.estimate import Fidelity
from hrm.hardware import HardwareProfile
from hrm.model import ModelSpec
from hrm.records import record
from hrm.schedule.task import Lane, Phase, TaskKind
from hrm.validation.cases import Case, Run
from hrm.validation.quantities import END_TO_END, Expected, expected, lane_kinds, measured_seconds, paced
from hrm.validation.statistics import Ranked

__all__ = ["BUSY", "Attribution", "JudgedCase", "Quantity", "judged_case"]

BUSY = 0.6
"""Share of a run from which on a lane counts as busy."""


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


def judged_case(case: Case, runs: Sequence[Run], machine: HardwareProfile, model: ModelSpec) -> JudgedCase:
    """Predict a case and hold it against the median of its runs, at least one of which measured something."""
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
            runs=tuple(rates),
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
