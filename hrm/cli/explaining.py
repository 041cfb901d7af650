"""`hrm explain`: why a plan is as fast as it is, what more of each resource is worth, and which policy wins where."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrm.cli import explanations as shown
from hrm.cli import options
from hrm.cli.plans import problem_of
from hrm.errors import FileError, HrmError
from hrm.estimate import Fidelity

if TYPE_CHECKING:
    from hrm.hardware import HardwareProfile
    from hrm.plan import Plan
    from solver.problem import Problem

__all__ = ["explain"]

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="The plan to explain.")]
Hardware = Annotated[
    str | None, typer.Option("--hardware", help="The plan's machine, where its name is no bundled profile.")
]
WhatIf = Annotated[
    list[str] | None,
    typer.Option("--what-if", help="Predict with more or less: link=2x,cpu_memory=+64GiB. May be repeated."),
]
Front = Annotated[
    Path | None, typer.Option("--pareto", metavar="FIG", help="Throughput against latency: table and .png or .svg.")
]
Map = Annotated[
    str | None, typer.Option("--map", help="Which policy wins where: link,cpu or link=100GB/s..500GB/s,cpu=1x..10x.")
]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Picture of the map: .png or .svg.")]
AtFidelity = Annotated[Fidelity, typer.Option("--fidelity", help="The map's prediction: ceiling, or roof for peaks.")]


def explain(
    plan: PlanFile,
    hardware: Hardware = None,
    what_if: WhatIf = None,
    pareto: Front = None,
    map_of: Map = None,
    fidelity: AtFidelity = Fidelity.CEILING,
    ram_limit: options.RamLimit = None,
    split_experts: options.SplitExperts = True,
    output: Output = None,
    json: options.Json = False,
) -> None:
    """Say what binds a plan, what more of each resource is worth, and what simpler ways of choosing reach.

    With --what-if, --pareto or --map, that instead. All at the `ceiling` fidelity, searched without simulation.
    """
    from hrm.plan import load_plan
    from hrm.report import show_json

    if fidelity is Fidelity.SIMULATED:
        raise HrmError("--fidelity simulated: too slow for a map (choose ceiling or roof)")
    if output is not None and map_of is None:
        raise HrmError("-o: is for the picture of a --map (add --map link,cpu)")
    _check_pictures({"--pareto": pareto, "-o": output})
    given = load_plan(plan)
    problem = _problem_of(given, _machine(given, hardware), ram_limit, split_experts)
    document: dict[str, Any] = {"model": given.model.name, "machine": problem.hardware.label}
    if what_if:
        document |= _what_ifs(_of_one_batch(problem, given), given, what_if, json=json)
    if pareto is not None:
        document |= _front(problem, pareto, json=json)
    if map_of is not None:
        document |= _map(_of_one_batch(problem, given), given, map_of, fidelity, output, json=json)
    if not (what_if or pareto or map_of):
        document |= _explanation(_of_one_batch(problem, given), given, json=json)
    if json:
        show_json(document)


def _check_pictures(pictures: dict[str, Path | None]) -> None:
    """Refuse a picture that could not be drawn before the search for what it shows."""
    from hrm.files import check_output
    from solver.drawing import check_picture

    for option, path in pictures.items():
        if path is not None:
            check_picture(path, option)
            check_output(path)


def _machine(plan: Plan, hardware: str | None) -> HardwareProfile:
    from hrm.hardware import load_profile

    if hardware is not None:
        return load_profile(hardware)
    try:
        return load_profile(plan.machine.name)
    except FileError:
        raise HrmError(
            f"--hardware: the plan is for {plan.machine.name}, which is no bundled profile (give its file)"
        ) from None


def _problem_of(plan: Plan, machine: HardwareProfile, ram_limit: str | None, split_experts: bool) -> Problem:
    """Pose the problem that a plan solves again, its own kind of policy among those searched."""
    policy = plan.policy
    problem = problem_of(plan, machine)
    if ram_limit is not None:
        problem = replace(problem, ram_limit_bytes=options.parse_bytes(ram_limit, "--ram-limit"))
    return replace(
        problem,
        schedules=tuple(dict.fromkeys((*problem.schedules, policy.schedule))),
        split_experts=split_experts or policy.cpu_experts > 0,
        kv_shares=tuple(sorted({*problem.kv_shares, policy.kv_on_gpu})),
    )


def _of_one_batch(problem: Problem, plan: Plan) -> Problem:
    """Return the problem of a plan made for latency as that of one batch, whose throughput is the more the sooner."""
    if plan.search is None or plan.search.objective != "latency":
        return problem
    size = plan.policy.batch_size
    makespan_s, total = problem.max_makespan_s, problem.workload.num_sequences
    if makespan_s is not None and total is not None:
        makespan_s /= ceil(total / size)
    return replace(problem, workload=replace(problem.workload, num_sequences=size), max_makespan_s=makespan_s)


def _explanation(problem: Problem, plan: Plan, *, json: bool) -> dict[str, Any]:
    from hrm.report import progress
    from solver.baselines import baselines
    from solver.explain import explain as why

    with progress("explaining"):
        found = why(problem, plan.policy)
        others = baselines(problem, found.best)
    if not json:
        shown.show_explanation(problem, found, others)
    return shown.explanation_document(problem, found, others)


def _what_ifs(problem: Problem, plan: Plan, texts: list[str], *, json: bool) -> dict[str, Any]:
    from hrm.report import progress
    from hrm.what_if import parse_changes
    from solver.explain import fitting
    from solver.what_if import what_if

    changes = [parse_changes(text, problem.hardware) for text in texts]
    before = fitting(problem, plan.policy)
    with progress("searching"):
        effects = [what_if(problem, before, change) for change in changes]
    if not json:
        shown.show_what_ifs(problem, before, list(zip(texts, effects, strict=True)))
    return {
        "throughput_tokens_per_s": before.throughput_tokens_per_s,
        "what_if": [
            {"change": text} | shown.what_if_document(problem, effect)
            for text, effect in zip(texts, effects, strict=True)
        ],
    }


def _front(problem: Problem, path: Path, *, json: bool) -> dict[str, Any]:
    from hrm.report import progress
    from solver.drawing import draw_front
    from solver.pareto import pareto_front

    with progress("searching"):
        points = pareto_front(problem)
    draw_front(points, problem.model, shown.title(problem), path)
    if not json:
        shown.show_front(problem, points)
        typer.echo(f"wrote {path}")
    return {"pareto": [shown.point_document(problem, point) for point in points]}


def _map(
    problem: Problem, plan: Plan, axes: str, fidelity: Fidelity, path: Path | None, *, json: bool
) -> dict[str, Any]:
    """Search a map, attention over a cache that the GPU fetches from the host included."""
    from hrm.policy import ScheduleName
    from hrm.report import progress
    from solver.drawing import draw_map
    from solver.policy_map import policy_map, read_axes

    schedules = tuple(dict.fromkeys((*problem.schedules, ScheduleName.KV_TRANSFER)))
    asked = replace(problem, schedules=schedules)
    if not problem.hardware.has_gpu:
        raise HrmError(f"--map: {problem.hardware.name} has no gpu, so there is one placement (choose another machine)")
    with progress("searching") as step:
        found = policy_map(asked, read_axes(axes, problem), fidelity, also=(plan.policy,), step=step)
    if path is not None:
        draw_map(found, problem.model, shown.title(problem), path)
    if not json:
        shown.show_map(problem, found, plan.policy)
        if path is not None:
            typer.echo(f"wrote {path}")
    return {"map": shown.map_document(problem, found)}
