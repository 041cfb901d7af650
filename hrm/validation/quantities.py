"""What is compared: seconds by name, end to end, per phase, and in a phase per lane and per kind of task.

Names are `end_to_end`, `prefill`, `decode`, and those of a phase's parts: `decode.gpu`, `prefill.page_copy`. A lane's
seconds are those in which it worked.
"""

from __future__ import annotations

from hrm.compare import Measured
from hrm.estimate import Fidelity
from hrm.hardware import HardwareProfile
from hrm.interval import Interval, intervals_around
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor
from hrm.predict import Prediction, predict
from hrm.records import record
from hrm.schedule.task import Lane, Phase, TaskKind
from hrm.validation.work import KindWork, work_of
from hrm.workload import Workload

__all__ = ["END_TO_END", "Expected", "expected", "lane_kinds", "measured_seconds", "paced"]

END_TO_END = "end_to_end"
_COPIES = (Lane.H2D, Lane.D2H)


@record
class Expected:
    """A prediction: seconds and intervals by quantity, as simulated; end to end at each fidelity; the work by kind."""

    seconds: dict[str, float]
    intervals: dict[str, Interval]
    by_fidelity: dict[Fidelity, float]
    throughput_tokens_per_s: float
    work: dict[str, KindWork]


def expected(policy: Policy, model: ModelSpec, hardware: HardwareProfile, workload: Workload) -> Expected:
    """Predict a case: as simulated, with the intervals that the machine's uncertainties leave at `ceiling`."""
    made = predict(policy, model, hardware, workload, fidelity=Fidelity.SIMULATED)
    seconds = _seconds(made)

    def on(machine: HardwareProfile) -> dict[str, float]:
        level = Fidelity.CEILING
        return _seconds(predict(policy, model, machine, workload, fidelity=level, fidelities=(level,)))

    return Expected(
        seconds=seconds,
        intervals=intervals_around(seconds, hardware, on),
        by_fidelity={level: times.prefill_s + times.decode_s for level, times in made.by_fidelity.items()},
        throughput_tokens_per_s=made.times.throughput_tokens_per_s,
        work=work_of(policy, model, hardware, workload),
    )


def _seconds(prediction: Prediction) -> dict[str, float]:
    """Return a prediction's quantities that are more than nothing."""
    times = prediction.times
    lasted = {Phase.PREFILL: times.prefill_s, Phase.DECODE: times.decode_s}
    found = {END_TO_END: times.prefill_s + times.decode_s} | {phase.value: lasted[phase] for phase in Phase}
    for phase, kinds in prediction.task_s.items():
        found |= {f"{phase}.{kind}": seconds for kind, seconds in kinds.items()}
    for phase, bottleneck in prediction.bottleneck.items():
        found |= {f"{phase}.{lane}": share * lasted[phase] for lane, share in bottleneck.busy.items()}
    return {name: seconds for name, seconds in found.items() if seconds > 0}


def measured_seconds(measured: Measured) -> dict[str, float]:
    """Return what a run measured, by the same names."""
    lasted = {Phase.PREFILL: measured.prefill_s, Phase.DECODE: measured.decode_s}
    found = {END_TO_END: measured.prefill_s + measured.decode_s} | {phase.value: lasted[phase] for phase in Phase}
    for phase, kinds in measured.task_s.items():
        found |= {f"{phase}.{kind}": time.seconds for kind, time in kinds.items()}
    for phase, lanes in measured.busy.items():
        found |= {f"{phase}.{lane}": share * lasted[phase] for lane, share in lanes.items()}
    return found


def lane_kinds(work: dict[str, KindWork], phase: Phase, lane: Lane) -> list[TaskKind]:
    """Return the kinds of task that run on a lane in a phase."""
    prefix = f"{phase}."
    return [
        TaskKind(name.removeprefix(prefix))
        for name, one in work.items()
        if name.startswith(prefix) and one.lane == lane
    ]


def paced(lane: Lane, hardware: HardwareProfile) -> bool:
    """Say whether the pace of a lane is imposed: an emulated link's, and a host's that was slowed."""
    spec = hardware.emulated
    if spec is None:
        return False
    return lane in _COPIES or (spec.host_slowdown > 1.0 and lane is not Lane(Processor.GPU))
