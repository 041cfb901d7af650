"""Max-min fair shares: what tasks that run at once get of the rates they draw on together.

Each shared rate is dealt out by filling: whoever asks for no more than an equal share gets what it asks for, the others
divide the rest. A task gets on at the pace of the resource that it gets least of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hrm.records import record
from hrm.schedule.task import Lane

__all__ = ["Shared", "Work", "fair_paces"]


class Work(NamedTuple):
    """What a task demands: seconds when nothing contends with it, and the bytes it moves (of memory, or as payload).

    `latency_s` is the part of the seconds, at the beginning, in which it draws on nothing: launches, set-up of a copy.
    """

    seconds: float
    bytes: float = 0.0
    latency_s: float = 0.0


@record
class Shared:
    """A rate that lanes draw on together, by the bytes that each moves there per byte of its own work."""

    name: str
    bytes_per_s: float
    drawn_by: dict[Lane, float]

    def demand_bytes_per_s(self, lane: Lane, work: Work) -> float:
        """Return the rate that a task draws here when alone; never more than there is, for alone it takes `seconds`."""
        moving_s = work.seconds - work.latency_s
        drawn_bytes = work.bytes * self.drawn_by.get(lane, 0.0)
        return min(drawn_bytes / moving_s, self.bytes_per_s) if drawn_bytes > 0 and moving_s > 0 else 0.0


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
