"""Running the cases of a validation: in rounds, in an order that changes, a line of a file for each run that ended."""

from __future__ import annotations

import gc
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hrm.errors import HrmError

if TYPE_CHECKING:
    from executor.engine import Generation
    from executor.prompts import Prompt
    from hrm.hardware import HardwareProfile
    from hrm.model import ModelSpec
    from hrm.validation.cases import Bar, Case, Cases, Run

__all__ = ["Folder", "run_cases"]


WHOLE_CORES = 0.8
"""Share of two cores' speed below which a run counts as disturbed: two threads of one core have some 0.6."""


class Folder:
    """The files of a validation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = path / "runs.jsonl"
        self.report, self.page = path / "report.json", path / "report.html"

    def profile(self, machine: str) -> Path:
        """Where a machine's profile lies."""
        return self.path / "machines" / f"{machine}.yaml"

    def cases(self, machine: str) -> Path:
        """Where the cases of a machine lie."""
        return self.path / "cases" / f"{machine}.json"

    def prompts(self, job: str) -> Path:
        """Where a job's prompts lie."""
        return self.path / "jobs" / f"{job}.jsonl"


def run_cases(
    folder: Folder,
    cases: Cases,
    machine: HardwareProfile,
    *,
    rounds: int,
    budget_s: float,
    say: Callable[[str], None],
) -> int:
    """Make the runs of a machine that are missing until the time is spent; return how many are missing still."""
    from hrm.validation.cases import load_runs

    began_s = time.monotonic()
    done = load_runs(folder.runs)
    took = {run.case: run.took_s for run in done}
    missing = list(_missing(cases, {(run.case, run.round) for run in done}, rounds))
    _drop_cut_line(folder.runs)
    for number, (index, case) in enumerate(missing):
        expected_s = took.get(case.name, 0.0)
        if time.monotonic() - began_s + expected_s > budget_s:
            return len(missing) - number
        say(f"round {index + 1} of {rounds}, {case.name} ({number + 1} of {len(missing)} runs)")
        run = _run(case, index, cases.checkpoints[case.model], machine, folder)
        took[case.name] = run.took_s
        _append(folder.runs, run)
    return 0


def _missing(cases: Cases, done: set[tuple[str, int]], rounds: int) -> Iterator[tuple[int, Case]]:
    for index in range(rounds):
        ordered = list(cases.cases)
        random.Random(index).shuffle(ordered)
        yield from ((index, case) for case in ordered if (case.name, index) not in done)


def _drop_cut_line(path: Path) -> None:
    """Take off a last line that a killed process left unfinished."""
    if path.exists() and not (text := path.read_bytes()).endswith(b"\n") and text:
        path.write_bytes(text[: text.rfind(b"\n") + 1])


def _append(path: Path, run: Run) -> None:
    from hrm.files import to_plain

    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(to_plain(run)) + "\n")


def _run(case: Case, index: int, checkpoint: str, machine: HardwareProfile, folder: Folder) -> Run:
    from executor.prompts import read_prompts
    from hrm.microbench.measure import CpuWatch, cores_kept
    from hrm.validation.cases import Run

    prompts, before = read_prompts(folder.prompts(case.job), checkpoint), cores_kept()
    began_s, watch = time.monotonic(), CpuWatch()
    try:
        generation, timeline = _generate(case, checkpoint, machine, prompts)
    except HrmError as error:
        return Run(case=case.name, round=index, took_s=time.monotonic() - began_s, failed=str(error))
    finally:
        gc.collect()
    took_s, beside = time.monotonic() - began_s, watch.contaminated()
    kept = min(before, cores_kept())
    return Run(
        case=case.name,
        round=index,
        took_s=took_s,
        disturbed=beside or kept < WHOLE_CORES,
        cores_kept=kept,
        measured=generation.measured,
        timeline=timeline if index == 0 else (),
    )


def _generate(
    case: Case, checkpoint: str, machine: HardwareProfile, prompts: tuple[Prompt, ...]
) -> tuple[Generation, tuple[Bar, ...]]:
    from executor.engine import Engine
    from hrm.device.opening import open_backend
    from hrm.model_config import load_model

    backend = open_backend(machine.device, machine.emulated)
    try:
        job = _Job(case, load_model(checkpoint))
        generation = Engine(job, checkpoint, backend).generate(prompts)
        return generation, _stretch(job, generation)
    finally:
        backend.close()


class _Job:
    """A case as the engine wants it."""

    def __init__(self, case: Case, model: ModelSpec) -> None:
        self.policy, self.workload, self.model = case.policy, case.workload, model


def _stretch(job: _Job, generation: Generation) -> tuple[Bar, ...]:
    """Return what ran in the middle of one of the first passes."""
    from hrm.schedule.catalog import build_schedule
    from hrm.validation.timelines import bars, first_passes
    from hrm.views.trace import measured_timeline

    schedule = build_schedule(job.policy, job.model)
    ran = ((span.pass_index, span.key, span.started_s, span.ended_s) for span in generation.waves[0].spans)
    return bars(first_passes(measured_timeline(schedule, job.workload.gen_len, ran)))
