"""`hrm run` and `hrm compare`: running a plan, and holding the prediction against it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli.options import Json, RamLimit, parse_bytes
from hrm.cli.timelines import TraceFile, profile_of, write_run_trace
from hrm.errors import HrmError

if TYPE_CHECKING:
    from executor.job import Job, JobResult
    from executor.progress import Progress
    from hrm.plan import Plan

__all__ = ["compare", "run"]

SHOWN_PROBLEMS = 5
"""Prompts that were not answered of which the reason is printed; the output has them all."""


RecordRouting = Annotated[
    Path | None, typer.Option("--record-routing", help="Experts chosen to write, JSONL for --routing of other verbs.")
]
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
    record_routing: RecordRouting = None,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    stop: Stop = None,
    max_new_tokens: MaxNewTokens = None,
    ignore_eos: IgnoreEos = False,
    ram_limit: RamLimit = None,
    json: Json = False,
) -> None:
    """Run a plan as written and print predicted beside measured.

    Answers are kept in OUTPUT.partial until all are there: interrupted, the same command goes on from it. A prompt that
    cannot be answered gets an error in the output, and the exit code is 1.

    The options from --temperature on hold for prompts that do not say otherwise, in fields of the same names.
    """
    from executor.job import Job
    from executor.sampling import Settings
    from hrm.files import from_plain
    from hrm.plan import load_plan

    asked = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "stop": stop or []}
    limits = {"max_new_tokens": max_new_tokens, "ignore_eos": ignore_eos}
    settings = from_plain(Settings, asked | limits, where="hrm run")
    job = Job(
        checkpoint=checkpoint,
        prompts=prompts,
        output=output,
        routing=record_routing,
        settings=settings,
        ram_limit_bytes=parse_bytes(ram_limit, "--ram-limit") if ram_limit else None,
    )
    outputs = (output, job.journal, report, trace, record_routing)
    _check_paths(inputs=(plan, prompts), outputs=tuple(path for path in outputs if path is not None))
    loaded = load_plan(plan)
    profile = profile_of(loaded, hardware) if hardware else None
    result = _run(loaded, job)
    if trace is not None and result.generation is not None:
        write_run_trace(trace, loaded, result.generation, profile)
    _report(loaded, result, report, json=json)
    _say(result, output)


def _run(plan: Plan, job: Job) -> JobResult:
    """Run a job and say how far it is."""
    from executor.job import run_job
    from hrm.device.opening import open_backend
    from hrm.report import progress

    backend = open_backend(plan.machine.device, plan.machine.emulated)
    try:
        with progress("running") as step:
            step("loading the checkpoint")
            return run_job(plan, job, backend, _Teller(step, plan).tell)
    except KeyboardInterrupt:
        if job.journal.exists():
            typer.echo(f"hrm: answers so far are in {job.journal}; the same command goes on from there", err=True)
        raise
    finally:
        backend.close()


def _report(plan: Plan, result: JobResult, path: Path | None, *, json: bool) -> None:
    """Write and print predicted beside measured, where anything was measured."""
    from executor.native import status_line
    from hrm.compare import report_run
    from hrm.files import to_plain, write_json
    from hrm.report import show_json, show_run

    measured = None if result.generation is None else report_run(plan, result.generation.measured)
    if path is not None and measured is not None:
        write_json(path, measured)
    if json:
        done = {"answered": result.answered, "resumed": result.resumed, "problems": result.problems}
        show_json((to_plain(measured) or {}) | {"job": done})
    elif measured is not None:
        show_run([measured])
        typer.echo(status_line())


def _say(result: JobResult, output: Path) -> None:
    """Say what a table of times does not; exit with 1 when prompts were not answered."""
    if result.resumed:
        typer.echo(f"hrm: resumed: {result.resumed} had been done before", err=True)
    if result.generation is None:
        typer.echo("hrm: nothing was left to run, so nothing was measured", err=True)
    for problem in result.problems[:SHOWN_PROBLEMS]:
        typer.echo(f"hrm: {problem}", err=True)
    if result.problems:
        total = result.answered + len(result.problems)
        typer.echo(
            f"hrm: {len(result.problems)} of {total} prompts were not answered (see error in {output}, correct them)",
            err=True,
        )
        raise typer.Exit(1)


class _Teller:
    """Says how far a job is, and how fast beside what was predicted; not more often than one can read."""

    def __init__(self, say: Callable[[str], None], plan: Plan) -> None:
        self._say = say
        self._predicted = plan.prediction.times.throughput_tokens_per_s
        self._pause_s = 0.5 if sys.stderr.isatty() else 10.0
        self._next_s = 0.0

    def tell(self, at: Progress) -> None:
        """Say it, if it is time or the job is done."""
        if at.elapsed_s < self._next_s and at.answered < at.prompts:
            return
        self._next_s = at.elapsed_s + self._pause_s
        pace = f"{at.tokens / at.elapsed_s:.1f} tokens/s (predicted {self._predicted:.1f})"
        self._say(f"{at.answered} of {at.prompts} answered, {at.tokens} tokens, {pace}")


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
