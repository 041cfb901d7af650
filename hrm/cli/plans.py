"""What `hrm solve` and `hrm predict` share: the problem that options pose, and the plan that comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from hrm.cli.options import FormatOptions
    from hrm.hardware import HardwareProfile
    from hrm.model import ModelSpec
    from hrm.plan import Plan
    from hrm.workload import Workload
    from solver.disk_turn import DiskTurn
    from solver.problem import Problem

__all__ = ["deliver", "pose", "problem_of"]


def pose(spec: ModelSpec, hardware: HardwareProfile, workload: Workload, formats: FormatOptions) -> Problem:
    """Pose the problem of running a job.

    Weights have the model's published formats unless one is named; the KV cache that of the activations beside them.
    """
    from solver.problem import Problem

    weights = formats.weight_dtype or spec.dtype
    return Problem(
        model=spec,
        hardware=hardware,
        workload=workload,
        weight_dtype=weights,
        expert_dtype=formats.expert_dtype or (None if formats.weight_dtype else spec.expert_dtype),
        kv_dtype=formats.kv_dtype or weights.activation_dtype,
        staging=formats.staging,
    )


def deliver(
    plan: Plan, output: Path | None, *, json: bool, short: object = None, disk_turn: DiskTurn | None = None
) -> None:
    """Show the plan and where its disk stops binding, write it if asked, and fail when it does not fit."""
    from hrm.errors import InfeasibleError
    from hrm.files import to_plain
    from hrm.plan import save_plan, summary
    from hrm.report import show_json, show_plan

    if json:
        turn = {"disk_turn": to_plain(disk_turn)} if disk_turn else {}
        show_json(summary(plan) | turn | ({"status": "infeasible", "short": str(short)} if short else {}))
    else:
        show_plan(plan)
        if disk_turn is not None:
            typer.echo(str(disk_turn))
    if short is not None:
        raise InfeasibleError(f"the policy does not fit: {short} (lower --batch-size, --weights-on-gpu or the dtype)")
    if output is not None:
        save_plan(output, plan)
        if not json:
            typer.echo(f"wrote {output}")


def problem_of(plan: Plan, machine: HardwareProfile) -> Problem:
    """Return the problem that a plan solves, on a machine: most throughput within its limits."""
    from solver.problem import Problem

    return Problem(
        model=plan.model,
        hardware=machine,
        workload=plan.workload,
        weight_dtype=plan.policy.weight_dtype,
        expert_dtype=plan.policy.expert_dtype,
        kv_dtype=plan.policy.kv_dtype,
        staging=plan.policy.staging,
        ram_limit_bytes=plan.limits.ram_limit_bytes,
        max_ttft_s=plan.limits.max_ttft_s,
        max_tpot_s=plan.limits.max_tpot_s,
        max_makespan_s=plan.limits.max_makespan_s,
    )
