"""The same job under each schedule: how much each of CGOPipe's ideas is worth here, and why (paper §5.3).

Either one policy is put into each schedule, its attention and KV cache where the schedule has them, or each schedule is
given the policy that is best for it, experts undivided as in the systems that it stands for.
"""

from __future__ import annotations

from dataclasses import replace

from hrm.errors import InfeasibleError
from hrm.estimate import Fidelity
from hrm.policy import Policy, Processor, ScheduleName
from hrm.predict import Prediction, predict
from hrm.records import record
from hrm.schedule.task import TaskKind
from solver.problem import Problem
from solver.search import solve

__all__ = ["GPU_SCHEDULES", "ScheduleResult", "compare_schedules"]

GPU_SCHEDULES = (
    ScheduleName.CGOPIPE,
    ScheduleName.UNPAGED,
    ScheduleName.SERIAL,
    ScheduleName.KV_TRANSFER,
    ScheduleName.LAYERWISE,
)
NOTEWORTHY = 0.02
"""Share of a job's time from which on something is named as a reason."""


@record
class ScheduleResult:
    """A job under one schedule; without a policy where nothing fits. `reason` says why it is behind the best."""

    schedule: ScheduleName
    policy: Policy | None = None
    prediction: Prediction | None = None
    short: str | None = None
    reason: str = ""

    @property
    def throughput_tokens_per_s(self) -> float:
        """Simulated throughput, 0 where nothing fits."""
        return self.prediction.by_fidelity[Fidelity.SIMULATED].throughput_tokens_per_s if self.prediction else 0.0


def compare_schedules(problem: Problem, policy: Policy | None = None) -> tuple[ScheduleResult, ...]:
    """Return the job under each schedule that uses the GPU, fastest first; with no policy, each at its own best.

    A policy that does not fit under a schedule is predicted all the same, after those that do; `short` says what is
    missing.
    """
    results = [_given(problem, policy, name) if policy else _best(problem, name) for name in GPU_SCHEDULES]
    ranked = sorted(results, key=lambda result: (result.short is not None, -result.throughput_tokens_per_s))
    return tuple(replace(result, reason=_reason(result, ranked[0])) for result in ranked)


def _given(problem: Problem, policy: Policy, name: ScheduleName) -> ScheduleResult:
    on_cpu = name in (ScheduleName.UNPAGED, ScheduleName.SERIAL)
    if name is ScheduleName.CGOPIPE:
        on_cpu = policy.attention_device is Processor.CPU or policy.schedule is not name
    on_gpu = name is ScheduleName.LAYERWISE or (name is ScheduleName.CGOPIPE and not on_cpu)
    put = replace(
        policy,
        schedule=name,
        attention_device=Processor.CPU if on_cpu else Processor.GPU,
        kv_on_gpu=1.0 if on_gpu else 0.0,
        pages_per_layer=policy.pages_per_layer if name is ScheduleName.CGOPIPE else None,
    )
    short = problem.short_of(put)
    made = predict(put, problem.model, problem.hardware, problem.workload, fidelity=Fidelity.SIMULATED)
    return ScheduleResult(schedule=name, policy=put, prediction=made, short=str(short) if short else None)


def _best(problem: Problem, name: ScheduleName) -> ScheduleResult:
    try:
        plan = solve(replace(problem, schedules=(name,), split_experts=False), fidelity=Fidelity.SIMULATED)
    except InfeasibleError as error:
        return ScheduleResult(schedule=name, short=str(error))
    return ScheduleResult(schedule=name, policy=plan.policy, prediction=plan.prediction)


def _reason(result: ScheduleResult, best: ScheduleResult) -> str:
    """Name what costs a schedule more per generated token than the best: fewer sequences, a kind of work, waiting."""
    if result is best or result.prediction is None or best.prediction is None:
        return "" if result.prediction is None else "the fastest"
    assert result.policy is not None
    assert best.policy is not None
    reasons = []
    if result.policy.batch_size < best.policy.batch_size / (1 + NOTEWORTHY):
        reasons.append(f"only {result.policy.batch_size} sequences fit, not {best.policy.batch_size}, to share a pass")
    reasons += _dearer_work(result, best)
    waiting, least = _waiting_share(result.prediction), _waiting_share(best.prediction)
    if waiting > least + NOTEWORTHY:
        reasons.append(f"lanes wait for each other {waiting:.0%} of the time, not {least:.0%}")
    return "; ".join(reasons) or "no difference worth naming"


def _dearer_work(result: ScheduleResult, best: ScheduleResult) -> list[str]:
    """Name the kind of task whose seconds per token grew most, if by enough to matter."""
    own, other = (_seconds_per_token(one) for one in (result, best))
    grown = {kind: seconds - other.get(kind, 0.0) for kind, seconds in own.items()}
    kind = max(grown, key=lambda name: grown[name])
    if grown[kind] * result.throughput_tokens_per_s < NOTEWORTHY:
        return []
    return [f"{kind} takes {1e3 * own[kind]:.3g} ms a token, not {1e3 * other.get(kind, 0.0):.3g}"]


def _seconds_per_token(result: ScheduleResult) -> dict[TaskKind, float]:
    assert result.prediction is not None
    times = result.prediction.by_fidelity[Fidelity.SIMULATED]
    tokens = times.throughput_tokens_per_s * (times.prefill_s + times.decode_s)
    total: dict[TaskKind, float] = {}
    for by_kind in result.prediction.task_s.values():
        for kind, seconds in by_kind.items():
            total[kind] = total.get(kind, 0.0) + seconds / tokens
    return total


def _waiting_share(prediction: Prediction) -> float:
    """Return the share of the simulated time beyond what any lane, chain or shared rate accounts for."""
    bound, simulated = (
        prediction.by_fidelity[fidelity].prefill_s + prediction.by_fidelity[fidelity].decode_s
        for fidelity in (Fidelity.CEILING, Fidelity.SIMULATED)
    )
    return max(0.0, 1.0 - bound / simulated)
