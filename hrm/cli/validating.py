"""`hrm validate`: runs a spread of plans on the machine at hand, and judges predictions and decisions by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli.options import Json
from hrm.errors import HrmError

if TYPE_CHECKING:
    from hrm.cli.validation_cases import Asked, Source
    from hrm.cli.validation_runs import Folder
    from hrm.hardware import HardwareProfile
    from hrm.validation.cases import Case, Cases

__all__ = ["validate"]

DEVICES = ("none", "emulated:mini-link-bound", "emulated:mini-host-bound", "emulated:mini-device-bound")

Say = Callable[[str], None]


def validate(
    checkpoints: Annotated[list[Path], typer.Option("--checkpoint", help="Checkpoint folder; may be given again.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the report and all that it is made of.")],
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Prompts as JSONL, for checkpoints with a tokenizer; else random.")
    ] = None,
    devices: Annotated[
        list[str] | None, typer.Option("--device", help="As for hrm profile; may be given again. Default four.")
    ] = None,
    plans: Annotated[int, typer.Option("--plans", min=1, help="Best plans per model and device.")] = 3,
    spread: Annotated[int, typer.Option("--spread", min=1, help="Plans drawn from everywhere, likewise.")] = 3,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Runs of each case.")] = 3,
    case_s: Annotated[float, typer.Option("--case-s", min=0.1, help="Seconds that a run should take, about.")] = 3.0,
    budget_s: Annotated[
        float, typer.Option("--budget-s", min=1, help="Stop after so long; the same command goes on from there.")
    ] = 3600.0,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    kernels_s: Annotated[
        float, typer.Option("--kernels-s", min=1, help="Seconds to profile the kernels of each device.")
    ] = 30.0,
    report_only: Annotated[bool, typer.Option("--report-only", help="Judge the runs that are there.")] = False,
    json: Json = False,
) -> None:
    """Run the best plans, every schedule and plans drawn from everywhere; judge predictions and decisions.

    Device after device is profiled and its plans run. What has been done is kept: the same command goes on where it was
    cut off.
    """
    import time

    from hrm.cli.validation_cases import Asked
    from hrm.cli.validation_runs import run_cases
    from hrm.report import progress

    began_s = time.monotonic()
    sources = _sources(checkpoints, prompts)
    folder = _folder(output)
    asked = Asked(plans=plans, spread=spread, case_s=case_s, seed=seed)
    machines: dict[str, HardwareProfile] = {}
    parts: list[Cases] = []
    with progress("validating") as say:
        for device in devices or DEVICES:
            name = _name_of(device)
            if report_only and not folder.cases(name).exists():
                say(f"{name}: not reached yet, left out")
                continue
            machines[name] = _machine(folder, name, device, kernels_s, say)
            parts.append(_cases(folder, name, machines[name], sources, asked, say))
            if report_only:
                continue
            left_s = budget_s - (time.monotonic() - began_s)
            missing = run_cases(folder, parts[-1], machines[name], rounds=rounds, budget_s=left_s, say=say)
            if missing:
                say(f"{missing} runs on {name} are missing: the time is spent (the same command goes on)")
                break
    _report(folder, parts, machines, json=json)


def _folder(path: Path) -> Folder:
    from hrm.cli.validation_runs import Folder

    try:
        for inside in (path, path / "machines", path / "cases", path / "jobs"):
            inside.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HrmError(f"-o {path}: cannot be made: {error.strerror or error} (choose another folder)") from None
    return Folder(path)


def _sources(checkpoints: Sequence[Path], prompts: Path | None) -> dict[str, Source]:
    """Return model and prompts of each checkpoint by its folder's name; what is wrong with them shows here."""
    from hrm.cli.validation_cases import Source, pool_of
    from hrm.model_config import load_model

    sources = {}
    for path in checkpoints:
        folder = path.resolve()
        if folder.name in sources:
            raise HrmError(f"--checkpoint {path}: another folder has this name too (rename one: cases are named so)")
        if not folder.is_dir():
            raise HrmError(f"--checkpoint {path}: no such folder (give a checkpoint folder)")
        model = load_model(folder)
        sources[folder.name] = Source(folder=str(folder), model=model, pool=pool_of(folder, model, prompts))
    return sources


def _name_of(device: str) -> str:
    from hrm.device.opening import parse_device

    choice = parse_device(device)
    return choice.emulated.name if choice.emulated else {"none": "cpu"}.get(choice.device, choice.device)


def _machine(folder: Folder, name: str, device: str, kernels_s: float, say: Say) -> HardwareProfile:
    """Profile a device that has not been, and return its profile."""
    from executor.kernels import kernel_probes
    from executor.small_runs import small_runs
    from hrm.device.backend import Backend
    from hrm.device.opening import open_backend, parse_device
    from hrm.dtypes import DType
    from hrm.files import write_yaml
    from hrm.hardware import load_profile
    from hrm.microbench.overheads import TaskRun
    from hrm.microbench.profile import Request, profile_machine

    def every_placement(backend: Backend, _: float) -> tuple[TaskRun, ...]:
        # What a quick profile has time for would leave most placements out, and the cases have them all.
        return small_runs(backend)

    choice = parse_device(device)
    if not folder.profile(name).exists():
        backend = open_backend(choice.device, choice.emulated, index=choice.index)
        request = Request(quick=True, kernels_s=kernels_s, command=f"hrm validate --device {device}", name=name)
        try:
            probes = kernel_probes(DType.BFLOAT16, quick=False)
            profile = profile_machine(
                backend, probes, request, small_runs=every_placement, progress=lambda step: say(f"{name}: {step}")
            )
        finally:
            backend.close()
        write_yaml(folder.profile(name), profile)
    return load_profile(folder.profile(name))


def _cases(
    folder: Folder, machine: str, hardware: HardwareProfile, sources: dict[str, Source], asked: Asked, say: Say
) -> Cases:
    """Return the cases of a machine that were laid out before, or lay them out."""
    from hrm.files import to_plain, write_json
    from hrm.validation.cases import Cases, load_cases

    made_for = {name: str(value) for name, value in to_plain(asked).items()}
    made_for |= {"models": ", ".join(sources)}
    path = folder.cases(machine)
    if path.exists():
        found = load_cases(path)
        if found.asked != made_for:
            changed = ", ".join(name for name in made_for if made_for[name] != found.asked.get(name))
            raise HrmError(f"{path}: was made with other {changed} (give the same again, or another folder)")
        return found
    folders = {name: source.folder for name, source in sources.items()}
    cases = tuple(_laid_out(folder, machine, hardware, sources, asked, say))
    write_json(path, Cases(asked=made_for, checkpoints=folders, cases=cases))
    return load_cases(path)


def _laid_out(
    folder: Folder, machine: str, hardware: HardwareProfile, sources: dict[str, Source], asked: Asked, say: Say
) -> Iterator[Case]:
    """Choose the cases of each model on a machine, and write their prompts."""
    from hrm.cli.validation_cases import Site, plan_cases

    for model_name, source in sources.items():
        name = f"{machine}-{model_name}"
        say(f"choosing plans: {name}")
        site = Site(name=name, machine=machine, model_name=model_name, source=source, hardware=hardware)
        for case, tokens in plan_cases(site, asked):
            _write_job(folder.prompts(case.job), tokens)
            yield case


def _write_job(path: Path, tokens: Sequence[Sequence[int]]) -> None:
    from json import dumps

    from hrm.files import atomic_writer

    with atomic_writer(path) as stream:
        for number, one in enumerate(tokens):
            stream.write(dumps({"id": str(number), "tokens": list(one)}) + "\n")


def _report(folder: Folder, parts: Sequence[Cases], machines: dict[str, HardwareProfile], *, json: bool) -> None:
    """Judge what has run, and write and show the report."""
    from hrm.files import write_json
    from hrm.model_config import load_model
    from hrm.report import progress, show_json
    from hrm.report_validation import document, show_judgement
    from hrm.validation.cases import load_runs
    from hrm.validation.judgement import judge
    from hrm.validation.report_page import Validation, write_report_page

    models = {name: load_model(path) for part in parts for name, path in part.checkpoints.items()}
    cases = [case for part in parts for case in part.cases]
    runs = load_runs(folder.runs)
    if not any(run.failed is None for run in runs):
        raise HrmError(f"{folder.runs}: no run has succeeded (raise --budget-s, or see the file for what failed)")
    with progress("judging") as say:
        judgement = judge(cases, runs, machines, models, say)
    found = document(judgement, machines)
    write_json(folder.report, found)
    shown = Validation(judgement=judgement, runs=tuple(runs), machines=machines, models=models)
    write_report_page(folder.page, shown)
    if json:
        show_json(found)
    else:
        show_judgement(judgement)
        typer.echo(f"wrote {folder.page} and {folder.report}")
