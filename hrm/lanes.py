"""What each lane has to do in a pass, and how long the pass takes at least: the bounds that overlap cannot beat.

A pass lasts no less than its busiest lane, than what lanes draw on together takes, and than one micro-batch on its way
through all layers, which no overlap shortens.
"""

from __future__ import annotations

import functools

import numpy as np

from hrm.arrays import Reals
from hrm.cost import Cost, add_costs
from hrm.pass_costs import PassCosts
from hrm.policy import ScheduleName
from hrm.records import record
from hrm.roofline import Bound
from hrm.schedule.sharing import Shared
from hrm.schedule.task import Lane, Phase, TaskKind

__all__ = ["LaneWork", "lane_work"]

_LINKS = (Lane.H2D, Lane.D2H, Lane.DISK)
_IN_TURN = (
    TaskKind.PRE_ATTENTION,
    TaskKind.QKV_OFFLOAD,
    TaskKind.ATTENTION,
    TaskKind.HIDDEN_UPLOAD,
    TaskKind.POST_ATTENTION,
    TaskKind.GPU_EXPERTS,
)
"""What a micro-batch has behind it before the next begins where the GPU waits for CPU attention; the CPU's experts, and
what goes to and from them, the next one overlaps."""


@record
class LaneWork:
    """What the lanes have to do in a pass, contention included: seconds per lane, and those that a compute roof sets.

    `chain_s` is one micro-batch's way through all layers (all of them in turn where the schedule overlaps none),
    `shared_s` the time that each shared rate needs for what is drawn on it. `by_kind` splits the lanes' seconds by kind
    of task.
    """

    seconds: dict[Lane, Reals]
    compute_s: dict[Lane, Reals]
    chain_s: Reals
    shared_s: dict[str, Reals]
    by_kind: dict[TaskKind, Reals]

    @property
    def lower_s(self) -> Reals:
        """The longest of the bounds."""
        bounds = [*self.seconds.values(), self.chain_s, *self.shared_s.values()]
        longest: Reals = functools.reduce(np.maximum, bounds)
        return longest

    @property
    def upper_s(self) -> Reals:
        """All lanes in turn."""
        return sum(self.seconds.values())

    @property
    def busiest(self) -> Lane:
        """The lane that is busy longest, of one policy."""
        return max(self.seconds, key=lambda lane: float(self.seconds[lane]))

    def bound(self, lane: Lane) -> Bound:
        """Return the roof that sets most of a lane's time, of one policy."""
        cost = Cost(seconds=self.seconds[lane], compute_s=self.compute_s[lane])
        return cost.bound(crossing=lane in _LINKS)


def lane_work(costs: PassCosts, shared: tuple[Shared, ...]) -> LaneWork:
    """Sum the tasks of a pass per lane: layers x micro-batches (and pages) of each kind, the head once per batch."""
    lanes: dict[Lane, list[Cost]] = {}
    for kind, cost in costs.summed.items():
        lanes.setdefault(costs.lane_of(kind), []).append(cost)
    total = {lane: add_costs(parts) for lane, parts in lanes.items()}
    return LaneWork(
        seconds={lane: costs.stretched(lane, cost.seconds) for lane, cost in total.items()},
        compute_s={lane: costs.stretched(lane, cost.compute_s) for lane, cost in total.items()},
        chain_s=_chain_s(costs),
        shared_s={one.name: _shared_s(one, total) for one in shared},
        by_kind={kind: costs.stretched(costs.lane_of(kind), cost.seconds) for kind, cost in costs.summed.items()},
    )


def _chain_s(costs: PassCosts) -> Reals:
    """Return the way of one micro-batch through all layers, or of all of them through what they do in turn."""
    kinds = costs.chain_kinds()
    one: Reals = costs.full_head.seconds
    for layer, count in costs.model.layer_kinds.items():
        here = costs.full[layer]
        one = one + count * sum(here[kind].seconds for kind in kinds if kind in here)
        for kind in (TaskKind.KEPT_EXPERTS, TaskKind.DISK_EXPERTS):
            if kind in here:
                one = one + count * costs.times_in_a_layer(kind) * here[kind].seconds
    if np.any(costs.grid.fuller_layers):
        moved = costs.moved_to_memory()
        more_s = moved[TaskKind.KEPT_EXPERTS].seconds + moved[TaskKind.DISK_EXPERTS].seconds
        one = one + costs.grid.fuller_layers * more_s
    if costs.grid.template.schedule is ScheduleName.SERIAL and costs.phase is Phase.DECODE:
        one = np.maximum(one, sum(costs.summed[kind].seconds for kind in _IN_TURN if kind in costs.summed))
    return one


def _shared_s(shared: Shared, lanes: dict[Lane, Cost]) -> Reals:
    """Return the time that a shared rate needs for all lanes; a lane alone is never slower for it (caches serve it)."""
    drawn = {lane: cost.bytes * shared.drawn_by.get(lane, 0.0) / shared.bytes_per_s for lane, cost in lanes.items()}
    return sum(np.minimum(seconds, lanes[lane].seconds) for lane, seconds in drawn.items())
