"""Traces and pictures of a pipeline: what `hrm predict` foresees, and beside it what `hrm run` measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.errors import HrmError

if TYPE_CHECKING:
    from executor.engine import Generation
    from hrm.hardware import HardwareProfile
    from hrm.model import ModelSpec
    from hrm.plan import Plan
    from hrm.policy import Policy
    from hrm.workload import Workload

__all__ = ["GanttFile", "TraceFile", "check_files", "profile_of", "show_preview", "write_run_trace"]

TraceFile = Annotated[
    Path | None, typer.Option("--trace", help="Timeline to write, JSON for ui.perfetto.dev or chrome://tracing.")
]
GanttFile = Annotated[Path | None, typer.Option("--gantt", help="Picture of a few layers to draw, .png or .svg.")]


def check_files(trace: Path | None, gantt: Path | None, *, one_schedule: bool) -> None:
    """Refuse a trace or a picture that could not be written, before any work is spent on it.

    Raises
    ------
    HrmError
        For the path at fault; or when there is not one schedule but all, so that there is no one timeline.
    """
    from hrm.files import check_output
    from hrm.views.gantt import check_picture

    for path in filter(None, (trace, gantt)):
        check_output(path)
    if gantt is not None:
        check_picture(gantt)
    if (trace or gantt) and not one_schedule:
        raise HrmError("--trace, --gantt: show one schedule, not all of them (name one with --schedule)")


def show_preview(
    policy: Policy, model: ModelSpec, hardware: HardwareProfile, workload: Workload, files: tuple[Path | None, ...]
) -> None:
    """Simulate the first passes of a policy and write them as a trace, a picture, or both: `files` in that order."""
    trace, gantt = files
    if trace is None and gantt is None:
        return
    from hrm.views.gantt import draw_gantt
    from hrm.views.preview import middle_layers, preview
    from hrm.views.trace import write_trace

    timeline = preview(policy, model, hardware, workload)
    if trace is not None:
        write_trace(trace, {"predicted": timeline})
    if gantt is not None:
        stretch, words = middle_layers(timeline)
        sizes = f"N = {policy.batch_size:,}, μ = {policy.micro_batch_size:,}"
        draw_gantt(stretch, gantt, f"{model.name} on {hardware.label}: {policy.schedule}", f"{sizes}; {words}")


def profile_of(plan: Plan, hardware: str) -> HardwareProfile:
    """Load the profile of the machine that a plan is for.

    Raises
    ------
    HrmError
        When it is that of another machine.
    """
    from hrm.hardware import load_profile

    profile = load_profile(hardware)
    if profile.name != plan.machine.name:
        raise HrmError(f"--hardware {hardware}: is {profile.name}, the plan is for {plan.machine.name} (give that one)")
    return profile


def write_run_trace(path: Path, plan: Plan, generation: Generation, hardware: HardwareProfile | None) -> None:
    """Write when each task of a job's first wave ran, beside what was predicted for its first passes."""
    from hrm.schedule.catalog import build_schedule
    from hrm.views.preview import preview
    from hrm.views.trace import measured_timeline, write_trace

    schedule = build_schedule(plan.policy, plan.model)
    ran = ((span.pass_index, span.key, span.started_s, span.ended_s) for span in generation.waves[0].spans)
    timelines = {} if hardware is None else {"predicted": preview(plan.policy, plan.model, hardware, plan.workload)}
    timelines["measured"] = measured_timeline(schedule, plan.workload.gen_len, ran)
    write_trace(path, timelines)
