"""Predicted beside measured: what a run took, the report that holds both, and several runs judged together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hrm.files import from_plain, read_json, to_plain
from hrm.hardware import EmulatedSpec
from hrm.plan import Plan
from hrm.records import record
from hrm.schedule.task import Lane, Phase, TaskKind
from hrm.units import NonNegative, NonNegativeInt

__all__ = ["Comparison", "KindTime", "Measured", "RunReport", "compare_runs", "load_run_report", "report_run"]


@record
class KindTime:
    """Seconds that all tasks of a kind took together, and how many they were."""

    seconds: NonNegative
    count: NonNegativeInt


@record
class Measured:
    """What a run took. Rates are those of the predictions of the same names.

    `prefill_s` ends when the first tokens of a wave are made, `decode_s` when everything has ended; waves add up.
    `busy` is, per phase and lane, the share of the phase in which the lane worked; `task_s`, per phase, the time per
    task kind. `peak_bytes` holds what the run took of the device's memory (`gpu`) and of the host's (`cpu`, without an
    emulated device's), and what the process had before: interpreter and libraries (`runtime`).
    """

    num_sequences: NonNegativeInt
    prompt_tokens: NonNegativeInt
    generated_tokens: NonNegativeInt
    prefill_s: NonNegative
    decode_s: NonNegative
    throughput_tokens_per_s: NonNegative
    decode_throughput_tokens_per_s: NonNegative
    prefill_throughput_tokens_per_s: NonNegative
    peak_bytes: dict[str, NonNegativeInt]
    busy: dict[Phase, dict[Lane, NonNegative]]
    task_s: dict[Phase, dict[TaskKind, KindTime]]


@record
class RunReport:
    """A run: what it was, what was measured, what was predicted at the plan's fidelity, and measured / predicted.

    `notes` say what makes the two not comparable.
    """

    model: str
    machine: str
    emulated: EmulatedSpec | None
    measured: Measured
    predicted: dict[str, Any]
    ratio: dict[str, float]
    plan: dict[str, Any]
    notes: tuple[str, ...] = ()


@record
class Comparison:
    """Runs, the largest error of decode throughput among them, and whether it is within the tolerance."""

    runs: tuple[RunReport, ...]
    tolerance: float
    worst_error: float
    within_tolerance: bool


SAME_LENGTH = 0.05
"""Mean lengths, of prompts or of answers, that differ by less count as the job that was planned."""
COMPARED = (
    "prefill_s",
    "decode_s",
    "throughput_tokens_per_s",
    "decode_throughput_tokens_per_s",
    "prefill_throughput_tokens_per_s",
)


def report_run(plan: Plan, measured: Measured) -> RunReport:
    """Put a run beside its plan; `ratio` is measured / predicted."""
    times = to_plain(plan.prediction.times)
    predicted = {name: times[name] for name in COMPARED}
    peaks = {"gpu": plan.memory.gpu.total_bytes, "cpu": plan.memory.cpu.total_bytes}
    found = to_plain(measured)
    ratio = {name: found[name] / predicted[name] for name in COMPARED if predicted[name]}
    return RunReport(
        model=plan.model.name,
        machine=plan.machine.name,
        emulated=plan.machine.emulated,
        measured=measured,
        predicted=predicted
        | {
            "fidelity": plan.prediction.fidelity.value,
            "peak_bytes": peaks,
            "bottleneck": to_plain(plan.prediction.bottleneck),
            "by_fidelity": to_plain(plan.prediction.by_fidelity),
            "task_s": to_plain(plan.prediction.task_s),
        },
        ratio=ratio,
        plan=to_plain(plan.policy) | {"workload": to_plain(plan.workload)},
        notes=tuple(_notes(plan, measured)),
    )


def _notes(plan: Plan, measured: Measured) -> Iterator[str]:
    """Say where a run was not the job that was predicted."""
    planned = plan.workload.num_sequences or plan.policy.batch_size
    if measured.num_sequences != planned:
        yield (
            f"note: the plan was made for {planned} sequences and {measured.num_sequences} ran: "
            f"the prediction is not for this job (solve again with these prompts)"
        )
    answers = max(measured.num_sequences, 1)
    if measured.generated_tokens < (1 - SAME_LENGTH) * answers * plan.workload.gen_len:
        yield (
            f"note: the plan was made for answers of {plan.workload.gen_len} tokens and these have "
            f"{measured.generated_tokens / answers:.0f} on average: the prediction is not for this job (--ignore-eos "
            f"makes them as long, where no other limit is set)"
        )
    mean = measured.prompt_tokens / answers
    if abs(mean / plan.workload.mean_prompt_len - 1) > SAME_LENGTH:
        yield (
            f"note: the plan was made for prompts of {plan.workload.mean_prompt_len:.0f} tokens on average and these "
            f"have {mean:.0f}: the prediction is not for this job (solve again with these prompts)"
        )


def load_run_report(path: str | Path) -> RunReport:
    """Read a run report.

    Raises
    ------
    FileError
        When the file is missing or is no run report.
    """
    return from_plain(RunReport, read_json(path), where=str(path))


def compare_runs(runs: Sequence[RunReport], *, tolerance: float = 0.25) -> Comparison:
    """Judge runs by their decode throughput: the largest |measured / predicted - 1|, against a tolerance.

    A run that only prefills is judged by its throughput.
    """
    errors = [
        abs(run.ratio.get("decode_throughput_tokens_per_s", run.ratio["throughput_tokens_per_s"]) - 1.0) for run in runs
    ]
    worst = max(errors, default=0.0)
    return Comparison(runs=tuple(runs), tolerance=tolerance, worst_error=worst, within_tolerance=worst <= tolerance)
