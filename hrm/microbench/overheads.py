"""What a task costs beyond its kernels and bytes: the interpreter, views, waking up; found by running small ones.

The executor runs a small model and hands in how long its tasks took; what their kernels' tables and the links explain
of it is taken off. What is left is paid by task, and where the executor goes through a task's sequences one by one, by
sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, replace

from hrm.ceilings import Kernel
from hrm.hardware import HardwareProfile
from hrm.model import ModelSpec
from hrm.pass_costs import items_of, pass_costs
from hrm.policy import Policy, Processor
from hrm.policy_grid import PolicyGrid
from hrm.rates import Rates, placement_of
from hrm.records import record
from hrm.schedule.task import Phase, TaskKind
from hrm.units import NonNegative
from hrm.workload import Workload

__all__ = ["HOST_KERNELS", "BySequence", "ByTask", "TaskRun", "WakingUp", "by_sequence", "overheads", "repeated"]

_WITHOUT = (TaskKind.PAGE_COPY, TaskKind.PAGE_PIN, TaskKind.DISK_READ)
_ONE_BY_ONE = {
    Phase.PREFILL: (TaskKind.PRE_ATTENTION, TaskKind.ATTENTION, TaskKind.QKV_OFFLOAD),
    Phase.DECODE: (TaskKind.KV_LOAD,),
}
"""Tasks in which the executor lays out, stores or copies a sequence's keys and values after the other's."""

WakingUp = Mapping[Kernel, float]
HOST_KERNELS = (Kernel.EXPERT_FFN, Kernel.ATTENTION_DECODE)
"""What a host's tasks run beside a device: waking up after a slowed one's sleep is timed for each."""

ByTask = dict[str, dict[TaskKind, float]]
BySequence = dict[str, dict[Phase, dict[TaskKind, float]]]


@record
class TaskRun:
    """A small job of one size of micro-batch, and the median seconds of a task of each kind by phase.

    Where decode passes repeat what the first one called, its tasks count as decode's, and the others' are `repeated`.
    """

    policy: Policy
    model: ModelSpec
    workload: Workload
    seconds: dict[Phase, dict[TaskKind, NonNegative]]
    repeated: dict[TaskKind, NonNegative] = field(default_factory=dict)


def repeated(profile: HardwareProfile, runs: Iterable[TaskRun], waking_s: WakingUp | None = None) -> ByTask:
    """Return `overheads` of the decode passes that repeat the first one's calls."""
    later = [replace(run, seconds={Phase.DECODE: run.repeated}) for run in runs if run.repeated]
    return overheads(profile, later, waking_s)


def overheads(profile: HardwareProfile, runs: Iterable[TaskRun], waking_s: WakingUp | None = None) -> ByTask:
    """Return, by placement and kind, what tasks took beyond what the profile explains; never less than nothing.

    Decode tells, whose tasks are short; what goes by the sequence must be in the profile already. Where several runs
    have tasks that do the same, the first one counts. The host's tasks in a small job are too short for the sleeps of a
    slowed one to cost them `waking_s`, which comes on top.
    """
    found: ByTask = {}
    for run in runs:
        if run.policy.disk_experts and "disk" not in profile.links:
            continue
        for kind, beyond_s in _beyond(profile, run, Phase.DECODE):
            kernel = Kernel.ATTENTION_DECODE if kind is TaskKind.ATTENTION else Kernel.EXPERT_FFN
            woken_s = (waking_s or {}).get(kernel, 0.0) if _is_host(run.policy, kind) else 0.0
            found.setdefault(placement_of(run.policy, kind), {}).setdefault(kind, max(0.0, beyond_s) + woken_s)
    return found


def _is_host(policy: Policy, kind: TaskKind) -> bool:
    """Whether tasks of a kind run on the CPU lane in decode."""
    if kind is TaskKind.ATTENTION:
        return policy.attention_device is Processor.CPU
    return policy.main_device is Processor.CPU or kind is TaskKind.CPU_EXPERTS


def by_sequence(profile: HardwareProfile, runs: Iterable[TaskRun]) -> BySequence:
    """Return, by placement, phase and kind, what each further sequence adds to a task beyond what the profile explains.

    It is the slope from the first run of a placement to the first one with more sequences, by what `items_of` counts.
    Of a cache that is fetched it is all that each adds: its bytes cross while the next copy is asked for.
    """
    first: dict[tuple[str, Phase, TaskKind], tuple[int, float]] = {}
    found: BySequence = {}
    for run in runs:
        if run.policy.disk_experts:
            continue
        for phase, kinds in _ONE_BY_ONE.items():
            for kind, beyond_s in _beyond(profile, run, phase):
                place = placement_of(run.policy, kind)
                items = int(items_of(kind, run.model, run.policy.micro_batch_size))
                spent_s = run.seconds[phase][kind] if kind is TaskKind.KV_LOAD else beyond_s
                few, few_s = first.setdefault((place, phase, kind), (items, spent_s))
                if kind in kinds and items > few:
                    slope_s = max(0.0, spent_s - few_s) / (items - few)
                    found.setdefault(place, {}).setdefault(phase, {}).setdefault(kind, slope_s)
    return found


def _beyond(profile: HardwareProfile, run: TaskRun, phase: Phase) -> Iterator[tuple[TaskKind, float]]:
    """Yield by how much a run's tasks took longer than the profile explains, or how much shorter."""
    rates, step = Rates(hardware=profile, measured=True), run.workload.gen_len / 2 if phase is Phase.DECODE else 0.0
    costs = pass_costs(PolicyGrid.of(run.policy), run.model, rates, run.workload, phase, step)
    explained = costs.full[run.model.layer_kind(0)]
    for kind, seconds in run.seconds.get(phase, {}).items():
        if kind in explained and kind not in _WITHOUT:
            yield kind, seconds - float(explained[kind].seconds)
