"""`hrm solve`: from a machine, a model and a job to the plan that does it best."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli import options
from hrm.cli.groups import grouped
from hrm.cli.plans import deliver, pose
from hrm.dtypes import DType
from hrm.errors import HrmError
from hrm.estimate import Fidelity
from hrm.policy import ScheduleName
from hrm.records import record
from hrm.units import format_bytes

if TYPE_CHECKING:
    from solver.problem import Problem

__all__ = ["solve"]


class _Method(StrEnum):
    """`solver.Method`, without importing the solver."""

    AUTO = "auto"
    MILP = "milp"
    GRID = "grid"


class _Objective(StrEnum):
    """`solver.Objective`, likewise."""

    THROUGHPUT = "throughput"
    LATENCY = "latency"


MethodOption = Annotated[
    _Method, typer.Option("--method", help="Breakpoints and simulation, HiGHS, or every candidate predicted.")
]
ObjectiveOption = Annotated[
    _Objective, typer.Option("--objective", help="Most tokens/s, or least time from a wave's start to its last token.")
]
MaxTtft = Annotated[float | None, typer.Option("--max-ttft-s", help="Most seconds to a wave's first tokens.")]
MaxTpot = Annotated[float | None, typer.Option("--max-tpot-s", help="Most seconds per further token, on average.")]
MaxMakespan = Annotated[float | None, typer.Option("--max-makespan-s", help="Most seconds for the whole job.")]
NoSimulate = Annotated[
    bool, typer.Option("--no-simulate", help="At once: rank by ceilings, with neither simulation nor interval.")
]
WriteLp = Annotated[Path | None, typer.Option("--write-lp", help="Write the program of --method milp to this file.")]
Schedules = Annotated[
    list[ScheduleName] | None,
    typer.Option("--schedule", help="A schedule to search among; may be repeated. Default: those that may win."),
]
AlsoWeights = Annotated[
    list[DType] | None,
    typer.Option("--also-weight-dtype", case_sensitive=False, help="A further format that weights may have."),
]
AlsoKv = Annotated[
    list[DType] | None,
    typer.Option("--also-kv-dtype", case_sensitive=False, help="A further format that the KV cache may have."),
]


@record
class _LimitOptions:
    """What a policy has to keep to."""

    ram_limit: options.RamLimit = None
    max_ttft_s: MaxTtft = None
    max_tpot_s: MaxTpot = None
    max_makespan_s: MaxMakespan = None


@record
class _SpaceOptions:
    """Among which policies is searched, and for what."""

    schedule: Schedules = None
    split_experts: options.SplitExperts = True
    also_weight_dtype: AlsoWeights = None
    also_kv_dtype: AlsoKv = None
    objective: ObjectiveOption = _Objective.THROUGHPUT


@record
class _SearchOptions:
    """How is searched."""

    method: MethodOption = _Method.AUTO
    no_simulate: NoSimulate = False
    write_lp: WriteLp = None
    fidelity: options.FidelityOption = Fidelity.CEILING


@grouped
def solve(
    model: options.ModelName,
    hardware: options.HardwareName,
    gen_len: options.GenLen,
    job: options.JobOptions,
    formats: options.FormatOptions,
    limits: _LimitOptions,
    space: _SpaceOptions,
    how: _SearchOptions,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Plan to write.")] = None,
    json: options.Json = False,
) -> None:
    """Find the best policy that fits in memory and keeps the limits on time."""
    from hrm.files import check_output
    from hrm.hardware import load_profile
    from hrm.model_config import load_model
    from hrm.report import progress, show_json
    from solver.disk_turn import disk_turn
    from solver.infeasible import NoPlanError
    from solver.search import Method
    from solver.search import solve as search

    for path in filter(None, (output, how.write_lp)):
        check_output(path)
    spec = load_model(model)
    problem = pose(spec, load_profile(hardware), job.workload(spec, gen_len), formats)
    problem = _narrowed(problem, limits, space)
    try:
        with progress("solving"):
            plan = search(
                problem,
                method=Method(how.method),
                fidelity=how.fidelity,
                simulate=not how.no_simulate,
                write_lp=how.write_lp,
            )
    except NoPlanError as error:
        if json:
            show_json(error.document())
        raise
    deliver(plan, output, json=json, disk_turn=disk_turn(problem, plan.policy))


def _narrowed(problem: Problem, limits: _LimitOptions, space: _SpaceOptions) -> Problem:
    """Return the problem within limits, over a space."""
    from solver.problem import Objective

    ram_limit = options.parse_bytes(limits.ram_limit, "--ram-limit") if limits.ram_limit else None
    host = problem.hardware.level("cpu")
    if ram_limit is not None and ram_limit > host.capacity_bytes * host.count:
        there = f"{format_bytes(host.capacity_bytes * host.count)} of {problem.hardware.name}"
        raise HrmError(f"--ram-limit {limits.ram_limit}: exceeds the {there} (lower it or leave it out)")
    return replace(
        problem,
        ram_limit_bytes=ram_limit,
        max_ttft_s=limits.max_ttft_s,
        max_tpot_s=limits.max_tpot_s,
        max_makespan_s=limits.max_makespan_s,
        schedules=tuple(dict.fromkeys(space.schedule or problem.schedules)),
        split_experts=space.split_experts,
        more_weight_dtypes=tuple(space.also_weight_dtype or ()),
        more_kv_dtypes=tuple(space.also_kv_dtype or ()),
        objective=Objective(space.objective),
    )
