"""`hrm run` and `hrm compare`: running a plan, and holding the prediction against it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli.options import Json
from hrm.cli.timelines import TraceFile, profile_of, write_run_trace
from hrm.errors import HrmError

if TYPE_CHECKING:
    from executor.progress import Progress
    from hrm.plan import Plan

__all__ = ["compare", "run"]


Temperature = Annotated[float, typer.Option("--temperature", min=0, help="0 takes the likeliest token.")]
TopK = Annotated[int | None, typer.Option("--top-k", min=1, help="Draw among so many likeliest tokens.")]
TopP = Annotated[float, typer.Option("--top-p", max=1, help="Draw among the likeliest with this share together.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="What is drawn follows from it and the prompt's id.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Text that ends an answer; may be given again.")]
MaxNewTokens = Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Below the plan's gen_len.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Answers go on behind the model's end token.")]


def run(
    plan: Annotated[Path, typer.Argument(help="Plan made by hrm solve or hrm predict.")],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="Checkpoint folder.")],
    prompts: Annotated[Path, typer.Option("--prompts", help="Prompts as JSONL: id and prompt, messages or tokens.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Completions to write, JSONL.")],
    report: Annotated[Path | None, typer.Option("--report", help="Run report to write, JSON.")] = None,
    trace: TraceFile = None,
    hardware: Annotated[str | None, typer.Option("--hardware", help="Profile for the prediction in --trace.")] = None,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    stop: Stop = None,
    max_new_tokens: MaxNewTokens = None,
    ignore_eos: IgnoreEos = False,
    json: Json = False,
) -> None:
    """Run a plan as written and print predicted beside measured.

    The options from --temperature on hold for prompts that do not say otherwise, in fields of the same names.
    """
    from executor.job import Job, run_job
    from executor.native import status_line
    from executor.sampling import Settings
    from hrm.compare import report_run
    from hrm.device.opening import open_backend
    from hrm.files import from_plain, write_json
    from hrm.plan import load_plan
    from hrm.report import progress, show_json, show_run

    _check_paths(inputs=(plan, prompts), outputs=tuple(path for path in (output, report, trace) if path is not None))
    settings = from_plain(
        Settings,
        {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
            "stop": stop or [],
            "max_new_tokens": max_new_tokens,
            "ignore_eos": ignore_eos,
        },
        where="hrm run",
    )
    job = Job(checkpoint=checkpoint, prompts=prompts, output=output, settings=settings)
    loaded = load_plan(plan)
    profile = profile_of(loaded, hardware) if hardware else None
    backend = open_backend(loaded.machine.device, loaded.machine.emulated)
    try:
        with progress("running") as step:
            step("loading the checkpoint")
            generation = run_job(loaded, job, backend, lambda at: step(_pace(at, loaded)))
    finally:
        backend.close()
    result = report_run(loaded, generation.measured)
    if report is not None:
        write_json(report, result)
    if trace is not None:
        write_run_trace(trace, loaded, generation, profile)
    if json:
        show_json(result)
    else:
        show_run([result])
        typer.echo(status_line())


def _pace(at: Progress, plan: Plan) -> str:
    """Say how far a job is, and how fast beside what was predicted."""
    return (
        f"{at.answered} of {at.prompts} answered, {at.tokens} tokens, {at.tokens / at.elapsed_s:.1f} tokens/s "
        f"(predicted {plan.prediction.times.throughput_tokens_per_s:.1f})"
    )


def _check_paths(inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> None:
    """Refuse outputs that could not be written, or would replace an input or one another."""
    from hrm.files import check_output

    taken = {path.resolve() for path in inputs}
    for path in outputs:
        check_output(path)
        if path.resolve() in taken:
            raise HrmError(f"{path}: is given twice, and would be overwritten (name another output)")
        taken.add(path.resolve())


def compare(
    reports: Annotated[list[Path], typer.Argument(help="Run reports made by hrm run --report.")],
    tolerance: Annotated[float, typer.Option("--tolerance", min=0, help="Fail beyond this relative error.")] = 0.25,
    json: Json = False,
) -> None:
    """Print predicted beside measured; exit with 1 when decode throughput is off by more than the tolerance."""
    from hrm.compare import compare_runs, load_run_report
    from hrm.report import show_json, show_run

    comparison = compare_runs([load_run_report(path) for path in reports], tolerance=tolerance)
    show_json(comparison) if json else show_run(comparison.runs)
    if not comparison.within_tolerance:
        typer.echo(
            f"hrm: measured decode throughput is off the prediction by {comparison.worst_error:.0%}, the tolerance is "
            f"{tolerance:.0%} (the task kinds say where; profile again when the machine is quiet)",
            err=True,
        )
        raise typer.Exit(1)
