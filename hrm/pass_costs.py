"""What the tasks of a pass cost, by kind of task and of layer: of a full micro-batch, of the last, and added up."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

import numpy as np

from hrm.arrays import Reals
from hrm.cost import Cost, add_costs
from hrm.estimate import PassShape, attention_cost, head_cost, kv_load_cost, splits_experts, task_costs
from hrm.model import LayerKind, ModelSpec
from hrm.policy_grid import PolicyGrid
from hrm.rates import Rates
from hrm.records import record
from hrm.schedule.sharing import Work
from hrm.schedule.task import Lane, Phase, Task, TaskKind
from hrm.workload import Workload

__all__ = ["PassCosts", "at_step", "contended", "items_of", "pass_costs"]

_PAGE_KINDS = (TaskKind.PAGE_COPY, TaskKind.PAGE_PIN)
_OF_A_LAYER = (TaskKind.DISK_READ, TaskKind.KEPT_EXPERTS, TaskKind.DISK_EXPERTS)
"""With experts on disk, what happens once for all micro-batches: once a layer, or once for each expert there."""
_LANE_OF = {
    TaskKind.QKV_OFFLOAD: Lane.D2H,
    TaskKind.HIDDEN_UPLOAD: Lane.H2D,
    TaskKind.KV_LOAD: Lane.H2D,
    TaskKind.EXPERT_OFFLOAD: Lane.D2H,
    TaskKind.CPU_EXPERTS: Lane.CPU,
    TaskKind.GPU_EXPERTS: Lane.GPU,
    TaskKind.EXPERT_UPLOAD: Lane.H2D,
    TaskKind.PAGE_COPY: Lane.H2D,
    TaskKind.PAGE_PIN: Lane.PIN,
    TaskKind.DISK_READ: Lane.DISK,
}
_WITH_CONTEXT = (TaskKind.ATTENTION, TaskKind.KV_LOAD)
"""Kinds whose cost in decode grows with the context."""

Kinds = dict[TaskKind, Cost]


@record
class PassCosts:
    """Costs of the tasks of one pass, by kind of layer: of a full micro-batch and of the last, which may be smaller.

    `summed` adds up the tasks of a kind over the pass, the head's under the kind that has it to do. `stretch` says by
    what factor each lane's tasks take longer because other lanes are busy: at `ceiling` alone, for a simulation shares
    rates itself.
    """

    grid: PolicyGrid
    model: ModelSpec
    phase: Phase
    full: dict[LayerKind, Kinds]
    last: dict[LayerKind, Kinds]
    full_head: Cost
    last_head: Cost
    summed: Kinds
    stretch: dict[Lane, Reals]

    def work_of(self, task: Task) -> Work:
        """Return what one task of the pass demands, for a grid of one policy."""
        kind, is_last = task.kind, task.part == self.grid.num_micro_batches - 1
        head = self.last_head if is_last else self.full_head
        if kind is TaskKind.HEAD:
            cost = head
        else:
            here = (self.last if is_last else self.full)[self.model.layer_kind(task.layer)]
            cost = here[kind]
            if kind is TaskKind.KEPT_EXPERTS and task.layer in self.fuller_layers:
                cost = add_costs([cost, _kept_expert(here)])
            if task.layer == self.model.num_layers - 1 and kind is self.head_kind:
                cost = add_costs([cost, head])
        seconds = float(self.stretched(task.lane, cost.seconds))
        return Work(seconds=seconds, bytes=float(cost.bytes), latency_s=float(cost.latency_s))

    def remembered(self) -> Callable[[Task], Work]:
        """Return `work_of` as a function that works out each of the few different answers once."""
        works: dict[tuple[TaskKind, Hashable, bool, bool], Work] = {}
        last_part, last_layer = self.grid.num_micro_batches - 1, self.model.num_layers - 1
        fuller = self.fuller_layers
        kinds = [(self.model.layer_kind(layer), layer in fuller) for layer in range(self.model.num_layers)]

        def work_of(task: Task) -> Work:
            kind, layer, part = task.key
            key = (kind, kinds[layer], part == last_part, layer == last_layer)
            if key not in works:
                works[key] = self.work_of(task)
            return works[key]

        return work_of

    @property
    def fuller_layers(self) -> tuple[int, ...]:
        """The layers that keep one expert more in memory than the others, for a grid of one policy."""
        return self.model.moe_layers[: int(self.grid.fuller_layers)]

    @property
    def head_kind(self) -> TaskKind:
        """The kind of task that has the head to do."""
        later = splits_experts(self.grid, self.model) or self.grid.computes_from_disk
        return (
            TaskKind.HEAD if later and self.model.layer_kind(self.model.num_layers - 1).moe else TaskKind.POST_ATTENTION
        )

    def lane_of(self, kind: TaskKind) -> Lane:
        """Return the lane on which a kind of task runs."""
        choices = self.grid.template
        if kind is TaskKind.ATTENTION and self.phase is Phase.DECODE:
            return Lane(choices.attention_device)
        return _LANE_OF.get(kind, Lane(choices.main_device))

    def stretched(self, lane: Lane, seconds: Reals) -> Reals:
        """Return a lane's seconds with what its tasks take longer beside other lanes."""
        return seconds * self.stretch[lane] if lane in self.stretch else seconds

    def times_in_a_layer(self, kind: TaskKind) -> Reals:
        """Return how often a layer does what is done once for all micro-batches: once, or for each expert on disk."""
        return 1.0 if kind is TaskKind.KEPT_EXPERTS else self.grid.disk_experts

    def moved_to_memory(self) -> Kinds:
        """Return what a layer that keeps one expert more has more to do: one to compute with, and one less to read."""
        here = next(kinds for kinds in self.full.values() if TaskKind.DISK_EXPERTS in kinds)
        less = {kind: here[kind].times(-1.0) for kind in (TaskKind.DISK_READ, TaskKind.DISK_EXPERTS)}
        return {TaskKind.KEPT_EXPERTS: _kept_expert(here), **less}

    def chain_kinds(self) -> tuple[TaskKind, ...]:
        """Return the kinds that one micro-batch goes through one after another in a layer."""
        choices, split = self.grid.template, splits_experts(self.grid, self.model)
        kinds = [TaskKind.PRE_ATTENTION, TaskKind.ATTENTION, TaskKind.POST_ATTENTION]
        if self.phase is Phase.DECODE and self.lane_of(TaskKind.ATTENTION) is not Lane(choices.main_device):
            kinds += [TaskKind.QKV_OFFLOAD, TaskKind.HIDDEN_UPLOAD]
        return (*kinds, TaskKind.EXPERT_OFFLOAD, TaskKind.CPU_EXPERTS, TaskKind.EXPERT_UPLOAD) if split else (*kinds,)


def pass_costs(
    grid: PolicyGrid, model: ModelSpec, rates: Rates, workload: Workload, phase: Phase, step: float = 0.0
) -> PassCosts:
    """Cost the tasks of a pass, without contention; `step` as in `PassShape`."""

    def costs_of(size: Reals) -> tuple[dict[LayerKind, Kinds], Cost]:
        shape = PassShape(phase=phase, sequences=size, step=step, workload=workload)
        by_layer = {
            layer: _as_tasks(task_costs(grid, model, rates, shape, layer), grid, model, rates, shape)
            for layer in model.layer_kinds
        }
        return by_layer, head_cost(grid, model, rates, size)

    full, full_head = costs_of(grid.micro_batch_size)
    same = np.array_equal(grid.last_micro_batch_size, grid.micro_batch_size)
    last, last_head = (full, full_head) if same else costs_of(grid.last_micro_batch_size)
    costs = PassCosts(
        grid=grid,
        model=model,
        phase=phase,
        full=full,
        last=last,
        full_head=full_head,
        last_head=last_head,
        summed={},
        stretch={},
    )
    return replace(costs, summed=_summed(costs))


def items_of(kind: TaskKind, model: ModelSpec, sequences: Reals) -> Reals:
    """Return what a task goes through one by one: its sequences; of a cache that is fetched, the heads of each."""
    return sequences * (model.cache_parts * model.cache_heads[0] if kind is TaskKind.KV_LOAD else 1)


def _as_tasks(costs: Kinds, grid: PolicyGrid, model: ModelSpec, rates: Rates, shape: PassShape) -> Kinds:
    """Add to each task that has something to do what it takes beyond its kernels and bytes.

    A cache is fetched by many small copies, each asked for while the one before crosses: of asking and crossing what
    takes longer counts.
    """
    found = {}
    for kind, cost in costs.items():
        extra_s: Reals = rates.each_s(grid.template, kind, shape.phase) * items_of(kind, model, shape.sequences)
        if kind is TaskKind.KV_LOAD:
            extra_s = np.maximum(extra_s - cost.seconds, 0.0)
        extra_s = extra_s + rates.task_s(grid.template, kind, shape.phase, shape.workload.gen_len - 1)
        if np.any(extra_s):
            beyond_s = extra_s * np.sign(cost.seconds)
            cost = add_costs([cost, Cost(seconds=beyond_s, latency_s=beyond_s)])
        found[kind] = cost
    return found


def at_step(costs: PassCosts, rates: Rates, workload: Workload, step: float) -> PassCosts:
    """Return the costs of a decode pass at another step: only attention over the cache depends on it."""
    grid, model = costs.grid, costs.model

    def moved(by_layer: dict[LayerKind, Kinds], size: Reals) -> dict[LayerKind, Kinds]:
        shape = PassShape(phase=Phase.DECODE, sequences=size, step=step, workload=workload)
        found = {}
        for layer, kinds in by_layer.items():
            changed = {TaskKind.ATTENTION: attention_cost(grid, model, rates, shape, layer)}
            if TaskKind.KV_LOAD in kinds:
                changed[TaskKind.KV_LOAD] = kv_load_cost(grid, model, rates, shape, layer)
            found[layer] = kinds | _as_tasks(changed, grid, model, rates, shape)
        return found

    full = moved(costs.full, grid.micro_batch_size)
    same = costs.last is costs.full
    there = replace(costs, full=full, last=full if same else moved(costs.last, grid.last_micro_batch_size))
    changed = {kind: _summed_of(there, kind) for kind in _WITH_CONTEXT if kind in costs.summed}
    return replace(there, summed=costs.summed | changed)


def contended(costs: PassCosts, rates: Rates) -> PassCosts:
    """Return the costs at contended rates: what the profile measured that each lane keeps while the others are busy.

    A pass that uses one lane only has nothing to contend with.
    """
    kept = rates.hardware.contention
    if not kept:
        return costs
    busy: dict[Lane, Reals] = {}
    for kinds in costs.full.values():
        for kind, cost in kinds.items():
            lane = costs.lane_of(kind)
            busy[lane] = np.maximum(busy.get(lane, 0.0), np.sign(cost.seconds))
    contends = np.greater(sum(busy.values()), 1.0)
    if not np.any(contends):
        return costs
    stretch: dict[Lane, Reals] = {
        lane: np.where(contends, 1.0 / kept[lane], 1.0) for lane in busy if kept.get(lane, 0.0) > 0.0
    }
    return replace(costs, stretch=stretch)


def _summed(costs: PassCosts) -> Kinds:
    """Return the work of a pass by kind of task."""
    kinds = dict.fromkeys(kind for by_kind in costs.full.values() for kind in by_kind)
    found = {kind: _summed_of(costs, kind) for kind in kinds}
    head = _over_batch(costs.full_head, costs.last_head, costs.grid.num_micro_batches - 1, 1.0)
    beside = [found[costs.head_kind]] if costs.head_kind in found else []
    return found | {costs.head_kind: add_costs([*beside, head])}


def _summed_of(costs: PassCosts, kind: TaskKind) -> Cost:
    """Return the work of all tasks of a kind, the head's aside: of all layers, micro-batches and pages."""
    grid, parts = costs.grid, []
    for layer, count in costs.model.layer_kinds.items():
        if kind not in costs.full[layer]:
            continue
        full = costs.full[layer][kind]
        if kind in _PAGE_KINDS:
            parts.append(full.times(count * _pages_of(kind, grid, costs.model)))
        elif kind in _OF_A_LAYER:
            parts.append(full.times(count * costs.times_in_a_layer(kind)))
        else:
            parts.append(_over_batch(full, costs.last[layer][kind], grid.num_micro_batches - 1, count))
    if kind in _OF_A_LAYER and np.any(grid.fuller_layers):
        parts.append(costs.moved_to_memory()[kind].times(grid.fuller_layers))
    return add_costs(parts)


def _pages_of(kind: TaskKind, grid: PolicyGrid, model: ModelSpec) -> Reals:
    return grid.pages_in_memory(model) if kind is TaskKind.PAGE_PIN else grid.num_pages(model)


def _kept_expert(here: Kinds) -> Cost:
    """Return what computing with one more expert in memory costs: a task less than with one on disk."""
    one = here[TaskKind.DISK_EXPERTS]
    return replace(one, seconds=one.seconds - one.latency_s, latency_s=0.0)


def _over_batch(full: Cost, last: Cost, whole: Reals, count: float) -> Cost:
    """Return `count` times the cost of `whole` full micro-batches and the last one."""
    return Cost(
        seconds=count * (whole * full.seconds + last.seconds),
        compute_s=count * (whole * full.compute_s + last.compute_s),
        bytes=count * (whole * full.bytes + last.bytes),
        latency_s=count * (whole * full.latency_s + last.latency_s),
    )
