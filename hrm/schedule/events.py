"""Lanes at work: from one end of a task to the next, with what is shared dealt out anew whenever who draws changes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hrm.schedule.sharing import Shared, Work, fair_paces
from hrm.schedule.task import Lane, TaskKind
from hrm.schedule.templates import LANES, Reference

__all__ = ["NEVER", "Lanes", "Ran", "SortName"]

NEVER = float("inf")
NOTHING = -1
"""What a lane draws as that draws on nothing shared."""


class Ran(NamedTuple):
    """A task that has run, by lane and place in it; and the one whose end the lane had to wait for, if it had to."""

    lane: int
    place: int
    start_s: float
    end_s: float
    waited_for: tuple[int, int] | None


class SortName(NamedTuple):
    """What is told apart where tasks are counted; `load` is the stretch of passes that they belong to."""

    load: int
    lane: int
    kind: TaskKind


class _Sort(NamedTuple):
    """Tasks that cost the same: first they draw on nothing, then they move."""

    name: SortName
    seconds: float
    still_s: float
    moving_s: float
    demands: tuple[float, ...]


class Lanes(ABC):
    """Lanes by number, each with the sorts of its tasks and what they need, as far as they have been given.

    `bases` holds, for each task and each source that its needs point to, how many tasks the lanes were given before it.
    While others draw too a lane gets on no faster than at the share of its pace that it has `kept` beside busy ones.
    `busy_s` counts, per sort, how long its tasks ran; `waits_s`, per sort and the sort it waited for, how long lanes
    stood still before; `free_s` when each lane last ended a task.
    """

    def __init__(self, shared: Sequence[Shared], kept: Mapping[Lane, float]) -> None:
        number = len(LANES)
        # Two at once take no longer than one after the other.
        self._kept = [max(kept.get(lane, 1.0), 0.5) for lane in LANES]
        self._shared = shared
        self._rates = [one.bytes_per_s for one in shared]
        self._paces: dict[tuple[int, ...], tuple[float, ...]] = {}
        self._numbers: dict[tuple[SortName, Work], int] = {}
        self.sorts: list[_Sort] = []
        self.queues: list[list[int]] = [[] for _ in LANES]
        self.needs: list[list[list[Reference]]] = [[] for _ in LANES]
        self.bases: list[list[list[list[int]]]] = [[] for _ in LANES]
        self.done = [0] * number
        self.ends = [NEVER] * number
        self.pace = [1.0] * number
        self.still_to_move = [0.0] * number
        self._drawing = [NOTHING] * number
        self._started = [0.0] * number
        self.free_s = [0.0] * number
        self._cause: list[tuple[int, int] | None] = [None] * number
        self._blocked_by: list[int | None] = [None] * number
        self.lanes: list[int] = []
        self.marks = [NEVER] * number
        self.busy_s: list[float] = []
        self.waits_s: dict[tuple[int, int], float] = defaultdict(float)
        self.log: list[Ran] | None = None

    @abstractmethod
    def on_mark(self, lane: int, now_s: float) -> None:
        """Hear that a lane has done as many tasks as `marks` says; may give the lanes more."""

    def sort(self, name: SortName, work: Work) -> int:
        """Return the number of the sort of tasks that has this name and work."""
        key = name, work
        if key not in self._numbers:
            self._numbers[key] = len(self.sorts)
            demands = tuple(one.demand_bytes_per_s(LANES[name.lane], work) for one in self._shared)
            moving_s = work.seconds - work.latency_s if any(demands) else 0.0
            still_s = work.latency_s if any(demands) else work.seconds
            self.sorts.append(_Sort(name, work.seconds, still_s, moving_s, demands))
            self.busy_s.append(0.0)
        return self._numbers[key]

    def run(self) -> None:
        """Work until every lane has done all it was given."""
        ends = self.ends
        if self._start_lanes(0.0, None):
            self._share(0.0)
        while (now := min(ends)) < NEVER:
            lane = ends.index(now)
            if self.still_to_move[lane]:
                self._move(lane, now)
            else:
                self._end(lane, now)

    def left_s(self, lane: int, now_s: float) -> float:
        """Return how much of a lane's task is left, in seconds of its work alone; -1 where none is running."""
        if self.ends[lane] == NEVER:
            return -1.0
        return (self.ends[lane] - now_s) * self.pace[lane] + self.still_to_move[lane]

    def _end(self, lane: int, now: float) -> None:
        place = self.done[lane]
        self.done[lane] = place + 1
        self.ends[lane] = NEVER
        self.free_s[lane] = now
        self.busy_s[self.queues[lane][place]] += now - self._started[lane]
        if self.log is not None:
            self.log.append(Ran(lane, place, self._started[lane], now, self._cause[lane]))
        if place + 1 == self.marks[lane]:
            self.on_mark(lane, now)
        changed = self._drawing[lane] != NOTHING
        self._drawing[lane] = NOTHING
        self.pace[lane] = 1.0
        if self._start_lanes(now, lane) or changed:
            self._share(now)

    def _move(self, lane: int, now: float) -> None:
        """Let a task whose latency is over begin to draw."""
        self.ends[lane] = now + self.still_to_move[lane]
        self.still_to_move[lane] = 0.0
        self._drawing[lane] = self.queues[lane][self.done[lane]]
        self._share(now)

    def _start_lanes(self, now: float, ended: int | None) -> bool:
        """Start what can start on the lanes that stand still, because a task of lane `ended` is over."""
        changed = False
        done, ends, blocked_by = self.done, self.ends, self._blocked_by
        for lane in self.lanes:
            if ends[lane] != NEVER or blocked_by[lane] not in (ended, None):
                continue
            place = done[lane]
            if place == len(self.needs[lane]):
                continue
            blocked_by[lane] = None
            bases = self.bases[lane][place]
            for source, other, tasks in self.needs[lane][place]:
                if done[other] < bases[source][other] + tasks:
                    blocked_by[lane] = other
                    break
            else:
                changed |= self._start(lane, place, now, ended)
        return changed

    def _start(self, lane: int, place: int, now: float, ended: int | None) -> bool:
        """Start a task; say whether it draws on something shared at once."""
        number = self.queues[lane][place]
        sort = self.sorts[number]
        self._started[lane] = now
        self._cause[lane] = None
        if now > self.free_s[lane] and ended is not None:
            cause = self.done[ended] - 1
            self._cause[lane] = ended, cause
            self.waits_s[number, self.queues[ended][cause]] += now - self.free_s[lane]
        if sort.moving_s == 0.0:
            self.ends[lane] = now + sort.still_s
            return False
        if sort.still_s > 0.0:
            self.ends[lane] = now + sort.still_s
            self.still_to_move[lane] = sort.moving_s
            return False
        self.ends[lane] = now + sort.moving_s
        self._drawing[lane] = number
        return True

    def _share(self, now: float) -> None:
        """Deal out what is shared among those that draw; who is at another pace now ends at another time."""
        key = tuple(self._drawing)
        paces = self._paces.get(key)
        if paces is None:
            none = (0.0,) * len(self._rates)
            demands = [none if number == NOTHING else self.sorts[number].demands for number in key]
            paces = self._collided(demands, fair_paces(demands, self._rates))
            if key.count(NOTHING) < len(key) - 1:
                paces = tuple(map(min, paces, self._kept))
            self._paces[key] = paces
        for lane, pace in enumerate(paces):
            if pace != self.pace[lane]:
                self.ends[lane] = now + (self.ends[lane] - now) * self.pace[lane] / pace
                self.pace[lane] = pace

    def _collided(self, demands: Sequence[Sequence[float]], paces: tuple[float, ...]) -> tuple[float, ...]:
        """Return what is left of the lanes' paces where those collide that share a memory."""
        for number, one in enumerate(self._shared):
            if one.bursts:
                kept = one.colliding_paces({lane: demands[at][number] for at, lane in enumerate(LANES)})
                paces = tuple(min(pace, kept.get(lane, 1.0)) for lane, pace in zip(LANES, paces, strict=True))
        return paces
