"""What each lane has to do in a pass, and how long the pass takes if all lanes overlap perfectly."""

from __future__ import annotations

from collections.abc import Callable

from hrm.estimate import Cost, Fidelity, PassShape, TaskCosts, add_costs, task_costs
from hrm.hardware import HardwareProfile
from hrm.memory import streamed_layer_bytes
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor, Staging
from hrm.records import record
from hrm.roofline import Bound
from hrm.schedule.task import Lane, Phase, Task, TaskKind

__all__ = ["LaneWork", "PassCosts", "lane_work", "pass_costs"]


@record
class PassCosts:
    """Costs of the tasks of one pass: of a full micro-batch, and of the last one where it is smaller.

    `stretch` says by what factor each lane's tasks take longer because other lanes are busy.
    """

    full: TaskCosts
    last: TaskCosts
    num_micro_batches: int
    num_layers: int
    stretch: dict[Lane, float]

    def task_s(self, task: Task) -> float:
        """Seconds of one task of the pass."""
        costs = self.last if task.part == self.num_micro_batches - 1 else self.full
        seconds = costs.by_kind[task.kind].seconds
        if task.kind is TaskKind.POST_ATTENTION and task.layer == self.num_layers - 1:
            seconds += costs.head.seconds
        return seconds * self.stretch.get(task.lane, 1.0)


@record
class LaneWork:
    """What the lanes have to do in a pass, contention included: seconds per lane, and the roof that sets most of them.

    `by_kind` splits the same seconds by kind of task. `lower_s` is the pass with all lanes overlapped, `upper_s` with
    one lane at a time.
    """

    seconds: dict[Lane, float]
    bound: dict[Lane, Bound]
    by_kind: dict[TaskKind, float]

    @property
    def lower_s(self) -> float:
        """The busiest lane."""
        return max(self.seconds.values())

    @property
    def upper_s(self) -> float:
        """All lanes in turn."""
        return sum(self.seconds.values())

    @property
    def bottleneck(self) -> Lane:
        """The lane that is busy longest."""
        return max(self.seconds, key=lambda lane: self.seconds[lane])


def pass_costs(
    policy: Policy,
    model: ModelSpec,
    hardware: HardwareProfile,
    shape_of: Callable[[float], PassShape],
    fidelity: Fidelity,
) -> PassCosts:
    """Cost the tasks of a pass; `shape_of` describes a micro-batch of so many sequences."""
    first, end = policy.micro_batch_bounds(policy.num_micro_batches - 1)
    full = task_costs(policy, model, hardware, shape_of(policy.micro_batch_size), fidelity)
    same = end - first == policy.micro_batch_size
    last = full if same else task_costs(policy, model, hardware, shape_of(end - first), fidelity)
    phase = shape_of(1).phase
    alone = PassCosts(
        full=full,
        last=last,
        num_micro_batches=policy.num_micro_batches,
        num_layers=model.num_layers,
        stretch={},
    )
    if fidelity is Fidelity.ROOF:
        return alone
    work = lane_work(alone, policy, model, phase)
    stretch = {lane: _contention(lane, work.seconds, hardware) for lane in work.seconds}
    return PassCosts(
        full=full, last=last, num_micro_batches=alone.num_micro_batches, num_layers=model.num_layers, stretch=stretch
    )


def lane_work(costs: PassCosts, policy: Policy, model: ModelSpec, phase: Phase) -> LaneWork:
    """Sum the tasks of a pass per lane: layers x micro-batches (and pages) of each kind, the head once per batch."""
    per_lane: dict[Lane, list[Cost]] = {}
    by_kind: dict[TaskKind, float] = {}
    whole = policy.num_micro_batches - 1
    for kind, lane in _lanes_of(policy, model, phase).items():
        pages = kind in (TaskKind.PAGE_COPY, TaskKind.PAGE_PIN)
        full_count, last_count = (policy.num_pages, 0) if pages else (whole, 1)
        parts = [
            _times(costs.full.by_kind[kind], model.num_layers * full_count),
            _times(costs.last.by_kind[kind], model.num_layers * last_count),
        ]
        if kind is TaskKind.POST_ATTENTION:
            parts += [_times(costs.full.head, whole), costs.last.head]
        per_lane.setdefault(lane, []).extend(parts)
        by_kind[kind] = add_costs(parts).seconds * costs.stretch.get(lane, 1.0)
    total = {lane: add_costs(parts) for lane, parts in per_lane.items()}
    return LaneWork(
        seconds={lane: cost.seconds * costs.stretch.get(lane, 1.0) for lane, cost in total.items()},
        bound={lane: cost.bound for lane, cost in total.items()},
        by_kind=by_kind,
    )


def _times(cost: Cost, count: int) -> Cost:
    by_bound = {bound: seconds * count for bound, seconds in cost.by_bound.items()}
    return Cost(seconds=cost.seconds * count, by_bound=by_bound)


def _lanes_of(policy: Policy, model: ModelSpec, phase: Phase) -> dict[TaskKind, Lane]:
    """Return the kinds of task that a pass has, and the lane each runs on."""
    main = Lane(policy.ffn_device)
    lanes = dict.fromkeys((TaskKind.PRE_ATTENTION, TaskKind.ATTENTION, TaskKind.POST_ATTENTION), main)
    if policy.ffn_device is Processor.GPU and policy.attention_device is Processor.CPU:
        lanes[TaskKind.QKV_OFFLOAD] = Lane.D2H
        if phase is Phase.DECODE:
            lanes |= {TaskKind.ATTENTION: Lane.CPU, TaskKind.HIDDEN_UPLOAD: Lane.H2D}
    if streamed_layer_bytes(policy, model):
        lanes[TaskKind.PAGE_COPY] = Lane.H2D
        if policy.staging is Staging.PAGEABLE:
            lanes[TaskKind.PAGE_PIN] = Lane.PIN
    return lanes


def _contention(lane: Lane, lane_s: dict[Lane, float], hardware: HardwareProfile) -> float:
    """Return by what factor a lane's work is stretched because other lanes are busy.

    The profile gives the share of its rate that a lane keeps while the others work; the lane is slowed only for the
    part of its own time in which another lane has work at all.
    """
    kept = hardware.contention.get(lane, 1.0)
    others = max((seconds for other, seconds in lane_s.items() if other is not lane), default=0.0)
    if kept in (0.0, 1.0) or lane_s[lane] == 0.0:
        return 1.0
    overlap = min(1.0, others / lane_s[lane])
    return 1.0 + overlap * (1.0 / kept - 1.0)
