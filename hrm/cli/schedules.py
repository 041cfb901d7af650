"""`hrm predict --schedule all`: one job under each schedule, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hrm.errors import HrmError

if TYPE_CHECKING:
    from hrm.policy import Policy
    from solver.ablation import ScheduleResult
    from solver.problem import Problem

__all__ = ["ALL", "show_comparison"]

ALL = "all"


def show_comparison(problem: Problem, policy: Policy | None, *, json: bool) -> None:
    """Show the job under each schedule, fastest first, with a policy or each at its own best.

    Raises
    ------
    HrmError
        When the machine has no GPU, or the policy does not use it.
    """
    from hrm.policy import Processor
    from hrm.report import show_json, show_table
    from solver.ablation import compare_schedules

    if not problem.hardware.has_gpu:
        raise HrmError(f"--schedule {ALL}: {problem.hardware.name} has no gpu to schedule (choose another machine)")
    if policy is not None and policy.main_device is Processor.CPU:
        raise HrmError(
            f"--schedule {ALL}: with everything on the CPU there is one schedule, host "
            "(choose --ffn-device gpu, or leave --schedule out)"
        )
    results = compare_schedules(problem, policy)
    if json:
        show_json({"schedules": [_summary(result, problem) for result in results]})
        return
    fastest = results[0].throughput_tokens_per_s
    rows = [
        {
            "schedule": result.schedule,
            "N": result.policy.batch_size if result.policy else "-",
            "mu": result.policy.micro_batch_size if result.policy else "-",
            "tokens/s": result.throughput_tokens_per_s,
            "slower by": fastest / result.throughput_tokens_per_s if result.prediction else float("inf"),
            "why": "; ".join(filter(None, (f"does not fit: {result.short}" if result.short else "", result.reason))),
        }
        for result in results
    ]
    show_table(f"{problem.model.name} on {problem.hardware.label}, simulated", rows)


def _summary(result: ScheduleResult, problem: Problem) -> dict[str, Any]:
    """Return one schedule's result as JSON: its policy, prediction and reason, or what is missing."""
    from hrm.files import to_plain
    from hrm.plan import policy_summary

    found = {"schedule": result.schedule.value, "reason": result.reason, "short": result.short}
    if result.policy is None or result.prediction is None:
        return found | {"policy": None}
    prediction = to_plain(result.prediction)
    return found | {
        "policy": policy_summary(result.policy, problem.model),
        **prediction["by_fidelity"]["simulated"],
        **prediction,
    }
