"""Predicting a policy: prefill, decode and throughput at three fidelities, and what binds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hrm.estimate import Fidelity, PassShape, decode_shape, prefill_shape
from hrm.hardware import HardwareProfile
from hrm.lanes import LaneWork, PassCosts, lane_work, pass_costs
from hrm.model import ModelSpec
from hrm.policy import Policy
from hrm.records import record
from hrm.roofline import Bound
from hrm.schedule.catalog import build_schedule
from hrm.schedule.simulate import simulate
from hrm.schedule.task import Lane, Phase, TaskKind
from hrm.workload import Workload

__all__ = ["Bottleneck", "Prediction", "Times", "predict"]

CONTEXT_SAMPLES = 4
"""Decode steps evaluated between the first and the last; the growing context changes costs piecewise linearly."""


@record
class Bottleneck:
    """The lane that sets the pace of a phase, the roof that sets the lane's, and how busy each lane is beside it."""

    lane: Lane
    bound: Bound
    busy: dict[Lane, float]


@record
class Times:
    """Predicted seconds and rates of a whole job.

    `throughput` is generated tokens / (prefill + decode); `decode_throughput` counts the gen_len - 1 tokens a sequence
    that decode makes, the first being prefill's.
    """

    prefill_s: float
    decode_s: float
    throughput_tokens_per_s: float
    decode_throughput_tokens_per_s: float
    prefill_throughput_tokens_per_s: float


@record
class Prediction:
    """A policy's prediction: times per fidelity; at the chosen one the bottleneck and the task seconds of each phase.

    `task_s` adds up the tasks of a kind over the whole job, as a run reports them.
    """

    fidelity: Fidelity
    by_fidelity: dict[Fidelity, Times]
    bottleneck: dict[Phase, Bottleneck]
    task_s: dict[Phase, dict[TaskKind, float]]

    @property
    def times(self) -> Times:
        """The times at the chosen fidelity."""
        return self.by_fidelity[self.fidelity]


@record
class _Wave:
    prefill_s: float
    decode_s: float
    prefill: LaneWork
    decode: tuple[LaneWork, ...]
    """Sampled decode passes; each stands for as many of the `steps` passes."""
    steps: int

    def bottleneck(self) -> dict[Phase, Bottleneck]:
        typical = {Phase.DECODE: self.decode[len(self.decode) // 2]} if self.decode else {}
        return {phase: _bottleneck(work) for phase, work in ({Phase.PREFILL: self.prefill} | typical).items()}

    def task_s(self) -> dict[Phase, dict[TaskKind, float]]:
        by_phase = {Phase.PREFILL: dict(self.prefill.by_kind)}
        if self.decode:
            share = self.steps / len(self.decode)
            kinds = self.decode[0].by_kind
            by_phase[Phase.DECODE] = {kind: share * sum(work.by_kind[kind] for work in self.decode) for kind in kinds}
        return by_phase


def predict(
    policy: Policy,
    model: ModelSpec,
    hardware: HardwareProfile,
    workload: Workload,
    *,
    fidelity: Fidelity = Fidelity.CEILING,
    fidelities: tuple[Fidelity, ...] = tuple(Fidelity),
) -> Prediction:
    """Predict a job under a policy, at each of `fidelities` (which must hold `fidelity`).

    A job of more sequences than `batch_size` runs in waves, the last with what is left.
    Simulating costs milliseconds and more; leave it out of `fidelities` in a search.
    """
    total = workload.num_sequences or policy.batch_size
    by_fidelity, chosen = {}, []
    for level in fidelities:
        waves = [
            (count, _wave(_resized(policy, batch), model, hardware, workload, level))
            for batch, count in _wave_sizes(policy.batch_size, total)
        ]
        by_fidelity[level] = _times(waves, workload, total)
        if level is fidelity:
            chosen = waves
    assert chosen, "fidelities must hold fidelity"
    return Prediction(
        fidelity=fidelity,
        by_fidelity=by_fidelity,
        bottleneck=chosen[0][1].bottleneck(),
        task_s=_task_s(chosen),
    )


def _task_s(waves: list[tuple[int, _Wave]]) -> dict[Phase, dict[TaskKind, float]]:
    total: dict[Phase, dict[TaskKind, float]] = {}
    for count, wave in waves:
        for phase, by_kind in wave.task_s().items():
            sums = total.setdefault(phase, {})
            for kind, seconds in by_kind.items():
                sums[kind] = sums.get(kind, 0.0) + count * seconds
    return total


def _wave_sizes(batch_size: int, total: int) -> list[tuple[int, int]]:
    """Return (batch size, number of waves) for a job of `total` sequences."""
    whole, rest = divmod(total, batch_size)
    return [(batch, count) for batch, count in ((batch_size, whole), (rest, 1)) if batch and count]


def _resized(policy: Policy, batch_size: int) -> Policy:
    if batch_size == policy.batch_size:
        return policy
    return replace(policy, batch_size=batch_size, micro_batch_size=min(policy.micro_batch_size, batch_size))


def _bottleneck(work: LaneWork) -> Bottleneck:
    lane = work.bottleneck
    busy = {name: seconds / work.lower_s for name, seconds in work.seconds.items()}
    return Bottleneck(lane=lane, bound=work.bound[lane], busy=busy)


def _times(waves: list[tuple[int, _Wave]], workload: Workload, total: int) -> Times:
    prefill_s = sum(count * wave.prefill_s for count, wave in waves)
    decode_s = sum(count * wave.decode_s for count, wave in waves)
    return Times(
        prefill_s=prefill_s,
        decode_s=decode_s,
        throughput_tokens_per_s=total * workload.gen_len / (prefill_s + decode_s),
        decode_throughput_tokens_per_s=total * (workload.gen_len - 1) / decode_s if decode_s else 0.0,
        prefill_throughput_tokens_per_s=total * workload.mean_prompt_len / prefill_s,
    )


def _wave(policy: Policy, model: ModelSpec, hardware: HardwareProfile, workload: Workload, fidelity: Fidelity) -> _Wave:
    """Predict one batch from its first task to its last token."""

    def costs(shape_of: Callable[[float], PassShape]) -> PassCosts:
        return pass_costs(policy, model, hardware, shape_of, fidelity)

    prefill = costs(lambda sequences: prefill_shape(workload, sequences))
    steps = workload.gen_len - 1
    contexts = [workload.mean_prompt_len + 1 + step for step in _sampled_steps(steps)]
    decode = [costs(lambda sequences, at=context: decode_shape(sequences, at)) for context in contexts]  # type: ignore[misc]
    prefill_work = lane_work(prefill, policy, model, Phase.PREFILL)
    decode_work = tuple(lane_work(at, policy, model, Phase.DECODE) for at in decode)
    if fidelity is Fidelity.SIMULATED:
        prefill_s, step_s = _simulated(policy, model, prefill, decode, sampled=steps > len(decode))
    else:
        prefill_s, step_s = prefill_work.lower_s, [one.lower_s for one in decode_work]
    decode_s = steps * sum(step_s) / len(step_s) if step_s else 0.0
    return _Wave(prefill_s=prefill_s, decode_s=decode_s, prefill=prefill_work, decode=decode_work, steps=steps)


def _sampled_steps(steps: int) -> list[float]:
    """Return up to `CONTEXT_SAMPLES` decode steps at the middles of equal stretches, so that their mean is the mean."""
    count = min(steps, CONTEXT_SAMPLES)
    return [(index + 0.5) * steps / count - 0.5 for index in range(count)]


def _simulated(
    policy: Policy, model: ModelSpec, prefill: PassCosts, decode: list[PassCosts], *, sampled: bool
) -> tuple[float, list[float]]:
    """Simulate prefill and decode passes; a pass lasts from the end of the one before to its own.

    Passes `sampled` from many are simulated twice in a row and the second counts: the first still feels what came
    before. Where every pass is there, each is simulated once and feels it as it really will.
    """
    schedule = build_schedule(policy, model)
    repeats = 2 if sampled else 1
    passes = [(schedule.prefill, prefill.task_s)]
    passes += [(schedule.decode, at.task_s) for at in decode for _ in range(repeats)]
    ends = simulate(schedule.prologue, passes).pass_end_s
    counted = range(repeats, len(ends), repeats)
    return ends[0], [ends[index] - ends[index - 1] for index in counted]
