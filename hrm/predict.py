"""Predicting a policy: prefill, decode and throughput at three fidelities, and what binds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hrm.arrays import Reals
from hrm.estimate import Fidelity
from hrm.hardware import HardwareProfile
from hrm.interval import Interval, interval_around
from hrm.lanes import LaneWork
from hrm.model import ModelSpec
from hrm.passes import job_passes, rates_at, wave_costs, wave_work
from hrm.policy import Policy
from hrm.policy_grid import PolicyGrid
from hrm.records import record
from hrm.roofline import Bound
from hrm.schedule.catalog import build_schedule
from hrm.schedule.simulator import PassLoad, Simulated, simulate_passes
from hrm.schedule.task import Lane, Phase, TaskKind
from hrm.workload import Workload

__all__ = ["Bottleneck", "GridTimes", "Prediction", "Times", "predict", "predict_grid", "with_interval"]


@record
class Bottleneck:
    """What sets the pace of a phase: the busiest lane and the roof that sets it, and how busy each lane is beside.

    `limit` names what is longer than the busiest lane where something is: `chain`, one micro-batch's way through all
    layers with nothing to overlap it, or the rate that lanes share. Else it is `lane`. Busy shares are of the pass.
    """

    lane: Lane
    bound: Bound
    limit: str = "lane"
    busy: dict[Lane, float]


@record
class Times:
    """Predicted seconds and rates of a whole job.

    `throughput` is generated tokens / (prefill + decode); `decode_throughput` counts the gen_len - 1 tokens a sequence
    that decode makes, the first being prefill's. A full wave has its first tokens after `time_to_first_token_s`, and a
    further one of each sequence every `time_per_token_s`, on average over its decode.
    """

    prefill_s: float
    decode_s: float
    throughput_tokens_per_s: float
    decode_throughput_tokens_per_s: float
    prefill_throughput_tokens_per_s: float
    time_to_first_token_s: float
    time_per_token_s: float


@record
class GridTimes:
    """Predicted seconds and throughput of a whole job under each policy of a grid, as `Times`."""

    prefill_s: Reals
    decode_s: Reals
    throughput_tokens_per_s: Reals
    time_to_first_token_s: Reals
    time_per_token_s: Reals


@record
class Prediction:
    """A policy's prediction: times per fidelity; at the chosen one the bottleneck and the task seconds of each phase.

    `task_s` adds up the tasks of a kind over the whole job, as a run reports them. `routing` says which law gave the
    experts that a micro-batch hits. `interval` is that of the throughput at `ceiling`, moved to the chosen fidelity.
    """

    fidelity: Fidelity
    by_fidelity: dict[Fidelity, Times]
    bottleneck: dict[Phase, Bottleneck]
    task_s: dict[Phase, dict[TaskKind, float]]
    routing: str = "uniform"
    interval: Interval | None = None

    @property
    def times(self) -> Times:
        """The times at the chosen fidelity."""
        return self.by_fidelity[self.fidelity]


@record
class _Wave:
    """One batch from its first task to its last token: prefill, then stretches of decode passes that cost the same.

    With a `simulated` run its times count, else the bounds of the passes.
    """

    passes: tuple[tuple[int, LaneWork], ...]
    simulated: Simulated | None = None

    @property
    def prefill_s(self) -> float:
        return self.simulated.loads[0].end_s if self.simulated else float(self.passes[0][1].lower_s)

    @property
    def decode_s(self) -> float:
        if self.simulated:
            return self.simulated.end_s - self.prefill_s
        return float(sum(count * work.lower_s for count, work in self.passes[1:]))

    def bottleneck(self) -> dict[Phase, Bottleneck]:
        """Return what binds prefill, and a decode pass in the middle of the generation."""
        found = {Phase.PREFILL: _bottleneck(self.passes[0][1])}
        if len(self.passes) > 1:
            found[Phase.DECODE] = _bottleneck(self.passes[1 + (len(self.passes) - 1) // 2][1])
        return (
            found if self.simulated is None else {phase: self._as_simulated(one, phase) for phase, one in found.items()}
        )

    def _as_simulated(self, bottleneck: Bottleneck, phase: Phase) -> Bottleneck:
        assert self.simulated is not None
        prefill = phase is Phase.PREFILL
        loads = self.simulated.loads[:1] if prefill else self.simulated.loads[1:]
        whole_s = self.prefill_s if prefill else self.decode_s
        busy = {lane: sum(load.busy_s(lane) for load in loads) / whole_s for lane in bottleneck.busy}
        return replace(bottleneck, busy=busy)

    def task_s(self) -> Iterator[tuple[Phase, dict[TaskKind, float]]]:
        """Yield the seconds of each kind of task in prefill and each stretch of decode.

        Simulated ones are of the tasks as they ran: beside others that share their rates, the first pages with prefill.
        """
        for index, (count, work) in enumerate(self.passes):
            phase = Phase.DECODE if index else Phase.PREFILL
            if self.simulated is None:
                yield phase, {kind: count * float(seconds) for kind, seconds in work.by_kind.items()}
            else:
                lanes = self.simulated.loads[index].seconds.values()
                yield phase, {kind: seconds for by_kind in lanes for kind, seconds in by_kind.items()}


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

    >>> import hrm
    >>> policy = hrm.Policy(
    ...     batch_size=1024,
    ...     micro_batch_size=128,
    ...     attention_device=hrm.Processor.CPU,
    ...     ffn_device=hrm.Processor.GPU,
    ...     resident_experts=0,
    ...     kv_on_gpu=0.0,
    ...     schedule=hrm.ScheduleName.CGOPIPE,
    ...     weight_dtype=hrm.DType.FLOAT16,
    ...     kv_dtype=hrm.DType.FLOAT16,
    ... )
    >>> model, machine = hrm.load_model("mixtral-8x7b"), hrm.load_profile("l4-case-study")
    >>> job = hrm.Workload(mean_prompt_len=77, max_prompt_len=418, gen_len=32, num_sequences=4096)
    >>> prediction = predict(policy, model, machine, job, fidelities=(hrm.Fidelity.CEILING,))
    >>> {str(phase): str(found.lane) for phase, found in prediction.bottleneck.items()}
    {'prefill': 'gpu', 'decode': 'h2d'}
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
        routing=workload.routing.describe(),
    )


def with_interval(
    prediction: Prediction, policy: Policy, model: ModelSpec, hardware: HardwareProfile, workload: Workload
) -> Prediction:
    """Return the prediction with the interval of its throughput, from how sure the machine's numbers are."""
    grid, level = PolicyGrid.of(policy), Fidelity.CEILING

    def on(machine: HardwareProfile) -> float:
        return float(predict_grid(grid, model, machine, workload, level).throughput_tokens_per_s)

    around = interval_around(prediction.times.throughput_tokens_per_s, hardware, on)
    return replace(prediction, interval=around)


def predict_grid(
    grid: PolicyGrid, model: ModelSpec, hardware: HardwareProfile, workload: Workload, fidelity: Fidelity
) -> GridTimes:
    """Predict a job under each policy of a grid, at `roof` or `ceiling`: what `predict` says, for all at once."""
    passes = job_passes(grid, model, hardware, workload, fidelity)
    lower_s = [one.work.lower_s for one in passes]
    prefill_s, decode_s = (
        sum(one.count * seconds for one, seconds in zip(passes, lower_s, strict=True) if one.phase is phase)
        for phase in (Phase.PREFILL, Phase.DECODE)
    )
    first_s, tokens_s = (
        sum(
            one.per_wave * seconds
            for one, seconds in zip(passes, lower_s, strict=True)
            if one.phase is phase and one.in_full_wave
        )
        for phase in (Phase.PREFILL, Phase.DECODE)
    )
    tokens = (workload.num_sequences or grid.batch_size) * workload.gen_len
    return GridTimes(
        prefill_s=prefill_s,
        decode_s=decode_s,
        throughput_tokens_per_s=tokens / (prefill_s + decode_s),
        time_to_first_token_s=first_s,
        time_per_token_s=tokens_s / max(workload.gen_len - 1, 1),
    )


def _task_s(waves: list[tuple[int, _Wave]]) -> dict[Phase, dict[TaskKind, float]]:
    total: dict[Phase, dict[TaskKind, float]] = {}
    for count, wave in waves:
        for phase, by_kind in wave.task_s():
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
    lane, pace_s = work.busiest, float(work.lower_s)
    longest = {"lane": float(work.seconds[lane]), "chain": float(work.chain_s)}
    longest |= {name: float(seconds) for name, seconds in work.shared_s.items()}
    limit = max(longest, key=lambda name: longest[name] * (1 + 1e-9 * (name == "lane")))
    return Bottleneck(
        lane=lane,
        bound=work.bound(lane),
        limit=limit,
        busy={name: float(seconds) / pace_s for name, seconds in work.seconds.items()},
    )


def _times(waves: list[tuple[int, _Wave]], workload: Workload, total: int) -> Times:
    prefill_s = sum(count * wave.prefill_s for count, wave in waves)
    decode_s = sum(count * wave.decode_s for count, wave in waves)
    return Times(
        prefill_s=prefill_s,
        decode_s=decode_s,
        throughput_tokens_per_s=total * workload.gen_len / (prefill_s + decode_s),
        decode_throughput_tokens_per_s=total * (workload.gen_len - 1) / decode_s if decode_s else 0.0,
        prefill_throughput_tokens_per_s=total * workload.mean_prompt_len / prefill_s,
        time_to_first_token_s=waves[0][1].prefill_s,
        time_per_token_s=waves[0][1].decode_s / max(workload.gen_len - 1, 1),
    )


def _wave(policy: Policy, model: ModelSpec, hardware: HardwareProfile, workload: Workload, fidelity: Fidelity) -> _Wave:
    """Predict one batch from its first task to its last token."""
    rates = rates_at(hardware, fidelity)
    passes = wave_costs(PolicyGrid.of(policy), model, rates, workload)
    bounds = _Wave(passes=wave_work(passes, rates))
    if fidelity is not Fidelity.SIMULATED:
        return bounds
    loads = [PassLoad(phase=costs.phase, work_of=costs.remembered(), count=count) for count, costs in passes]
    found = simulate_passes(build_schedule(policy, model), loads, rates.shared, kept=rates.kept)
    return replace(bounds, simulated=found)
