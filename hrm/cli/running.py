"""`hrm run` and `hrm compare`: running a plan, and holding the prediction against it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hrm.cli.options import Json

__all__ = ["compare", "run"]


def run(
    plan: Annotated[Path, typer.Argument(help="Plan made by hrm solve or hrm predict.")],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="Checkpoint folder.")],
    prompts: Annotated[Path, typer.Option("--prompts", help="Prompts as JSONL: id and prompt, messages or tokens.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Completions to write, JSONL.")],
    report: Annotated[Path | None, typer.Option("--report", help="Run report to write, JSON.")] = None,
    json: Json = False,
) -> None:
    """Run a plan as written and print predicted beside measured."""
    from executor.job import run_job
    from hrm.device.opening import open_backend
    from hrm.files import check_output, write_json
    from hrm.plan import load_plan
    from hrm.report import progress, show_json, show_run
    from hrm.run_report import run_report

    for path in (output, report):
        if path is not None:
            check_output(path)
    loaded = load_plan(plan)
    backend = open_backend(loaded.machine.device, loaded.machine.emulated)
    try:
        with progress("running", quiet=json) as step:
            generation = run_job(
                loaded, checkpoint, prompts, output, backend, lambda done, total: step(f"pass {done} of {total}")
            )
    finally:
        backend.close()
    result = run_report(loaded, generation.measured)
    if report is not None:
        write_json(report, result)
    show_json(result) if json else show_run([result])


def compare(
    reports: Annotated[list[Path], typer.Argument(help="Run reports made by hrm run --report.")],
    tolerance: Annotated[float, typer.Option("--tolerance", min=0, help="Fail beyond this relative error.")] = 0.25,
    json: Json = False,
) -> None:
    """Print predicted beside measured; exit with 1 when decode throughput is off by more than the tolerance."""
    from hrm.report import show_json, show_run
    from hrm.run_report import load_run_report

    found = [load_run_report(path) for path in reports]
    show_json({"runs": found}) if json else show_run(found)
    off = [one for one in found if abs(one.ratio.get("decode_throughput_tokens_per_s", 1.0) - 1.0) > tolerance]
    if off:
        raise typer.Exit(1)
