"""What `hrm solve` and `hrm predict` share: the problem that options pose, and the plan that comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hrm.cli import options
from hrm.dtypes import DType
from hrm.policy import Staging

if TYPE_CHECKING:
    from hrm.hardware import HardwareProfile
    from hrm.plan import Plan
    from hrm.workload import Workload
    from solver.space import Problem

__all__ = ["deliver", "pose", "problem_of"]


def pose(
    model: str,
    hardware: str,
    workload: Workload,
    *,
    weight_dtype: DType | None,
    expert_dtype: DType | None,
    kv_dtype: DType | None,
    staging: Staging,
    ram_limit: str | None,
) -> Problem:
    """Pose the problem of running a job.

    Weights have the model's published formats unless one is named; the KV cache that of the activations beside them.
    """
    from hrm.hardware import load_profile
    from hrm.model_config import load_model
    from solver.space import Problem

    spec = load_model(model)
    weights = weight_dtype or spec.dtype
    return Problem(
        model=spec,
        hardware=load_profile(hardware),
        workload=workload,
        weight_dtype=weights,
        expert_dtype=expert_dtype or (None if weight_dtype else spec.expert_dtype),
        kv_dtype=kv_dtype or weights.activation_dtype,
        staging=staging,
        ram_limit_bytes=options.parse_bytes(ram_limit, "--ram-limit") if ram_limit else None,
    )


def deliver(plan: Plan, output: Path | None, *, json: bool, short: object = None) -> None:
    """Show the plan, write it if asked, and fail when it does not fit."""
    from hrm.errors import InfeasibleError
    from hrm.plan import save_plan, summary
    from hrm.report import show_json, show_plan

    if json:
        show_json(summary(plan) | ({"status": "infeasible", "short": str(short)} if short else {}))
    else:
        show_plan(plan)
    if short is not None:
        raise InfeasibleError(f"the policy does not fit: {short} (lower --batch-size, --weights-on-gpu or the dtype)")
    if output is not None:
        save_plan(output, plan)
        if not json:
            typer.echo(f"wrote {output}")


def problem_of(plan: Plan, machine: HardwareProfile) -> Problem:
    """Return the problem that a plan solves, on a machine."""
    from solver.problem import Problem

    return Problem(
        model=plan.model,
        hardware=machine,
        workload=plan.workload,
        weight_dtype=plan.policy.weight_dtype,
        expert_dtype=plan.policy.expert_dtype,
        kv_dtype=plan.policy.kv_dtype,
        staging=plan.policy.staging,
    )
