"""What tasks that run at once get of the rates they draw on together: max-min fair shares, less what collisions cost.

Each shared rate is dealt out by filling: whoever asks for no more than an equal share gets what it asks for, the others
divide the rest. A task gets on at the pace of the resource that it gets least of.

Kernels of two processors on one memory lose more than that. A kernel is on memory for a part of its time only, which
it draws at the full rate of its processor; where another one is on memory just then, both are served that much slower,
and what either computes meanwhile does not win it back. Seen on two cores of a Zen 5: two expert kernels that draw 21
GB/s alone, of 46 that both cores reach together, keep 0.85 of their pace, beside plain reading 0.72.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import NamedTuple

from hrm.records import record
from hrm.schedule.task import Lane

__all__ = ["Burst", "Shared", "Work", "fair_paces"]


class Work(NamedTuple):
    """What a task demands: seconds when nothing contends with it, and the bytes it moves (of memory, or as payload).

    `latency_s` is the part of the seconds, at the beginning, in which it draws on nothing: launches, set-up of a copy.
    """

    seconds: float
    bytes: float = 0.0
    latency_s: float = 0.0


class Burst(NamedTuple):
    """What a processor draws while it is on memory, and which part of the time it runs at all (a slowed one sleeps)."""

    bytes_per_s: float
    awake: float = 1.0


@record
class Shared:
    """A rate that lanes draw on together, by the bytes that each moves there per byte of its own work.

    Lanes that have `bursts` collide; the others draw steadily, as a copy engine does.
    """

    name: str
    bytes_per_s: float
    drawn_by: dict[Lane, float]
    bursts: dict[Lane, Burst] = field(default_factory=dict)

    def demand_bytes_per_s(self, lane: Lane, work: Work) -> float:
        """Return the rate that a task draws here when alone; never more than there is, for alone it takes `seconds`."""
        moving_s = work.seconds - work.latency_s
        drawn_bytes = work.bytes * self.drawn_by.get(lane, 0.0)
        return min(drawn_bytes / moving_s, self.bytes_per_s) if drawn_bytes > 0 and moving_s > 0 else 0.0

    def colliding_paces(self, demands: dict[Lane, float]) -> dict[Lane, float]:
        """Return how fast those of the lanes get on that collide, as a share of their pace alone.

        `demands` are what they draw alone, in bytes/s, sleep included. A lane's part of time on memory is what it draws
        of what it can draw. That another is there too is as likely as that one's part; then all are served at the
        shared rate instead of what they draw in bursts together. No lane keeps less than an equal share of its time.

        >>> bursts = dict.fromkeys((Lane.CPU, Lane.GPU), Burst(40.0))
        >>> memory = Shared(name="memory", bytes_per_s=50.0, drawn_by={}, bursts=bursts)
        >>> memory.colliding_paces({Lane.CPU: 40.0, Lane.GPU: 40.0})[Lane.CPU]
        0.625
        """
        on_memory = {
            lane: min(1.0, demands[lane] / (burst.awake * self._in_burst(lane)))
            for lane, burst in self.bursts.items()
            if demands.get(lane)
        }
        met = [(lane, part * self.bursts[lane].awake) for lane, part in on_memory.items()]
        return {lane: 1.0 / (1.0 - part + part * self._stretch(0.0, lane, met)) for lane, part in on_memory.items()}

    def _in_burst(self, lane: Lane) -> float:
        return min(self.bursts[lane].bytes_per_s, self.bytes_per_s)

    def _stretch(self, drawn: float, lane: Lane, met: Sequence[tuple[Lane, float]]) -> float:
        """Return how many times as long a lane's bursts take, expected over whom they meet, each with its chance."""
        if not met:
            return max(1.0, drawn / self.bytes_per_s)
        (other, chance), *rest = met
        more = drawn + self._in_burst(other)
        if other == lane:
            return self._stretch(more, lane, rest)
        return chance * self._stretch(more, lane, rest) + (1.0 - chance) * self._stretch(drawn, lane, rest)


def fair_paces(demands: Sequence[Sequence[float]], rates: Sequence[float]) -> tuple[float, ...]:
    """Return for each task how fast it gets on, as a share of its pace alone.

    `demands[i][r]` is the rate of resource r that task i draws when alone; `rates[r]` is what there is.

    >>> fair_paces([[30.0], [80.0], [80.0]], [100.0])
    (1.0, 0.4375, 0.4375)
    """
    paces = [1.0] * len(demands)
    for resource, rate in enumerate(rates):
        asked = [(demand[resource], task) for task, demand in enumerate(demands) if demand[resource] > 0]
        left = rate
        for place, (demand, task) in enumerate(sorted(asked)):
            given = min(demand, left / (len(asked) - place))
            left -= given
            paces[task] = min(paces[task], given / demand)
    return tuple(paces)
