"""Giving a schedule's layers to the lanes, and leaving out those that would go as others went.

The state of a run, when the main lane has finished a layer, is how far each lane is: how many tasks it has done and how
much of the running one is left. If that was so a few layers ago and those to come are like those since, the same must
follow; so layers that have been given already are taken for later ones, and what lies between counts as done. Likewise
for passes of a load.
"""

from __future__ import annotations

import operator
import sys
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from hrm.schedule.events import NEVER, Lanes, SortName
from hrm.schedule.loads import LoadTimes, PassLoad, Simulated
from hrm.schedule.sharing import Shared
from hrm.schedule.task import Lane, Phase, Schedule, Task, TaskKind
from hrm.schedule.templates import LANES, Book, PassKind, Source, Template

__all__ = ["Simulation"]

MOST_PASSES = 12
"""Passes of a load that are simulated at most: where even the last of them is unlike the one before, a queue is still
filling, and what it can hold at all was spread over all of them."""
LONGEST_PERIOD = 8
"""Layers after which a pattern of kinds of layer is looked for again, at most."""
SAME = 1e-9
"""How far two states may differ and count as one, as a share of the time between them."""
MET = [-sys.maxsize] * len(LANES)
"""Stands for tasks done before a source that was not simulated: whatever is counted from there is met."""


class _At(NamedTuple):
    """A layer of a pass: `number` counts the passes of a load, `serial` those that are simulated."""

    load: int
    number: int
    serial: int
    layer: int


class _Mark(NamedTuple):
    """A number of tasks done that means something: a layer finished by the main lane, or all a pass waits for."""

    done: int
    load: int
    layer_index: int | None


class _State(NamedTuple):
    """How far each lane was when the main lane had finished a layer, and what had been counted until then.

    `done` counts the tasks of each lane from the end of that layer on, back or ahead; `left_s` goes as `Lanes.left_s`;
    `still_s` is how long lanes have been standing still.
    """

    done: list[int]
    left_s: list[float]
    still_s: list[float]
    now_s: float
    busy_s: list[float]
    waits_s: dict[tuple[int, int], float]

    def same(self, other: _State) -> bool:
        """Say whether everything will go on from here as it did from there."""
        near_s = SAME * (self.now_s - other.now_s)
        return self.done == other.done and all(
            abs(one - two) <= near_s for one, two in zip(self.left_s, other.left_s, strict=True)
        )


class Simulation(Lanes):
    """Gives the lanes layer after layer, and leaves out those that would go as others went.

    Layers go by their place in `_given`; every lane has done all that came before place `_settled`.
    """

    def __init__(
        self,
        schedule: Schedule,
        loads: Sequence[PassLoad],
        shared: Sequence[Shared],
        *,
        exact: bool,
        kept: Mapping[Lane, float] | None = None,
    ) -> None:
        super().__init__(shared, kept or {})
        self.tasks: list[list[tuple[int, Task]]] = [[] for _ in LANES]
        self._loads = loads
        self._exact = exact
        self._book = Book(schedule, exact=exact)
        walks = [schedule.walks[load.phase] for load in loads]
        self._num_layers = walks[0].num_layers
        self._main = LANES.index(walks[0].main)
        self._reaches = [[walk.reach(layer) for layer in range(self._num_layers)] for walk in walks]
        self._next: _At | None = _At(0, 0, 0, 0)
        self._given: list[_At] = []
        self._finished = 0
        self._settled = 0
        self._bases = [[0] * len(LANES)]
        self._counted = [0] * len(LANES)
        self._index: dict[tuple[int, int], int] = {}
        self._sorts_of: dict[Hashable, list[list[int]]] = {}
        self._pending: list[deque[_Mark]] = [deque() for _ in LANES]
        self._states: dict[_At, _State] = {}
        self._first_serial: dict[int, int] = {}
        self._skipped_s = 0.0
        self._ends_s = [0.0] * len(loads)
        self._add(self._book.prologue(), ("prologue",), _At(0, -1, -1, 0), [self._bases[0]])
        self._fill()

    def result(self) -> Simulated:
        """Sum up what has been counted."""
        seconds: list[dict[Lane, dict[TaskKind, float]]] = [{} for _ in self._loads]
        waits: list[dict[Lane, dict[TaskKind, float]]] = [{} for _ in self._loads]
        for sort, busy_s in zip(self.sorts, self.busy_s, strict=True):
            _count(seconds, sort.name, sort.name.kind, busy_s)
        for (waiting, cause), waited_s in self.waits_s.items():
            _count(waits, self.sorts[waiting].name, self.sorts[cause].name.kind, waited_s)
        return Simulated(
            loads=tuple(
                LoadTimes(end_s=end_s, seconds=of_lanes, waits_s=of_waits)
                for end_s, of_lanes, of_waits in zip(self._ends_s, seconds, waits, strict=True)
            )
        )

    def _fill(self) -> None:
        """Give as many layers as there may be something to do in."""
        while (at := self._next) and (
            self._exact or len(self._given) < self._finished + self._reaches[at.load][at.layer]
        ):
            self._give(at)

    def _give(self, at: _At) -> None:
        load = self._loads[at.load]
        if at.number:
            before: Phase | None = load.phase
        else:
            before = self._loads[at.load - 1].phase if at.load else None
        last = at.load == len(self._loads) - 1 and at.number == load.count - 1
        kind = PassKind(load.phase, before, last)
        template = self._book.template(kind, at.layer)
        index = len(self._given)
        self._given.append(at)
        self._index[at.serial, at.layer] = index
        self._first_serial.setdefault(at.load, at.serial)
        bases = [self._base(source, at, index) for source in template.sources]
        self._add(template, (at.load, self._book.name(kind, at.layer)), at, bases)
        self._mark(self._main, _Mark(len(self.queues[self._main]), at.load, index))
        if at.layer == self._num_layers - 1:
            for lane, count in enumerate(self._counted):
                self._mark(lane, _Mark(count, at.load, None))
        self._next = self._after(at)

    def _after(self, at: _At) -> _At | None:
        """Return which layer comes after another."""
        if at.layer < self._num_layers - 1:
            return at._replace(layer=at.layer + 1)
        if at.number < self._loads[at.load].count - 1:
            return _At(at.load, at.number + 1, at.serial + 1, 0)
        return _At(at.load + 1, 0, at.serial + 1, 0) if at.load < len(self._loads) - 1 else None

    def _base(self, source: Source, at: _At, index: int) -> list[int]:
        """Return how many tasks each lane had been given before a source; what is settled is met in any case."""
        if source.passes_ago and at.serial == 0:
            return self._bases[0]
        found = self._index.get((at.serial - 1, at.layer - source.back)) if source.passes_ago else index - source.back
        return MET if found is None or found < self._settled else self._bases[found + 1]

    def _add(self, template: Template, name: Hashable, at: _At, bases: list[list[int]]) -> None:
        """Put the tasks of a layer into the lanes' queues."""
        if name not in self._sorts_of:
            self._sorts_of[name] = [
                [self.sort(SortName(at.load, lane, task.kind), self._loads[at.load].work_of(task)) for task in tasks]
                for lane, tasks in enumerate(template.tasks)
            ]
        for lane, sorts in enumerate(self._sorts_of[name]):
            if template.counted[lane]:
                self._counted[lane] = len(self.queues[lane]) + template.counted[lane]
            if sorts and lane not in self.lanes:
                self.lanes.append(lane)
            self.queues[lane] += sorts
            if self._exact:
                self.tasks[lane] += [(at.serial, task) for task in template.tasks[lane]]
            self.needs[lane] += template.needs[lane]
            self.bases[lane] += [bases] * len(sorts)
        self._bases.append([len(queue) for queue in self.queues])

    def _mark(self, lane: int, mark: _Mark) -> None:
        if mark.done > self.done[lane]:
            self._pending[lane].append(mark)
            self.marks[lane] = self._pending[lane][0].done

    def on_mark(self, lane: int, now_s: float) -> None:
        """Note the end of a pass; where the main lane has finished a layer, see whether all is as it was before."""
        pending = self._pending[lane]
        while pending and pending[0].done == self.done[lane]:
            mark = pending.popleft()
            if mark.layer_index is None:
                self._ends_s[mark.load] = now_s + self._skipped_s
            else:
                self._finished = mark.layer_index + 1
                if not self._exact:
                    self._look_back(mark.layer_index, now_s)
                self._fill()
        self.marks[lane] = pending[0].done if pending else NEVER

    def _look_back(self, index: int, now_s: float) -> None:
        """Skip what would only repeat what has been simulated."""
        at, base = self._given[index], self._bases[index + 2]
        state = self._states[at] = _State(
            done=[done - given for done, given in zip(self.done, base, strict=True)],
            left_s=[self.left_s(lane, now_s) for lane in range(len(LANES))],
            still_s=[now_s - free_s for free_s in self.free_s],
            now_s=now_s + self._skipped_s,
            busy_s=list(self.busy_s),
            waits_s=dict(self.waits_s),
        )
        while all(map(operator.ge, self.done, self._bases[self._settled + 2])) and self._settled < index:
            self._settled += 1
        if not self._skip_passes(index, at, state):
            self._skip_layers(index, at, state)

    def _skip_passes(self, index: int, at: _At, state: _State) -> bool:
        """Skip passes of a load once they repeat, but for the job's last one, which lays nothing ahead."""
        past = self._states.get(at._replace(number=at.number - 1, serial=at.serial - 1))
        upcoming = self._next or self._given[-1]
        if past is None or upcoming.load != at.load:
            return False
        same = self._given[self._settled].serial == at.serial and state.same(past)
        enough = at.layer == self._num_layers - 1 and at.serial - self._first_serial[at.load] >= MOST_PASSES - 1
        last_load = at.load == len(self._loads) - 1
        times = self._loads[at.load].count - 1 - last_load - upcoming.number
        if times <= 0 or not (same or enough):
            return False
        self._count_again(times, past, state)
        self._relabel(index + 1, passes=times)
        return True

    def _skip_layers(self, index: int, at: _At, state: _State) -> None:
        """Skip whole periods of layers, if those to come are like those that brought this state about."""
        ahead, oldest = len(self._given) - 1 - index, self._given[self._settled]
        if oldest.serial != at.serial:
            return
        for period in range(1, LONGEST_PERIOD + 1):
            past = self._states.get(at._replace(layer=at.layer - period))
            if past is None:
                return
            times = (self._periodic_until(at, period, oldest.layer) - at.layer - ahead) // period
            if times > 0 and state.same(past):
                self._count_again(times, past, state)
                self._relabel(index + 1, layers=times * period)
                return

    def _periodic_until(self, at: _At, period: int, first: int) -> int:
        """Return up to which layer each from a first one on is like that a period before, or -1 if `at` is not."""
        if first < period:
            return -1
        phase, like, layer = self._loads[at.load].phase, self._book.like, first
        while layer < self._num_layers - 1 and like(phase, layer) == like(phase, layer - period):
            layer += 1
        return layer - 1 if layer > at.layer else -1

    def _count_again(self, times: int, past: _State, state: _State) -> None:
        """Count what happened between two states so many times more."""
        self._skipped_s += times * (state.now_s - past.now_s)
        for number, busy_s in enumerate(state.busy_s):
            before_s = past.busy_s[number] if number < len(past.busy_s) else 0.0
            self.busy_s[number] += times * (busy_s - before_s)
        for lane, left_s in enumerate(state.left_s):
            if left_s < 0:
                # What it waits for comes as long after as if all had been simulated, and counts when it comes.
                self.free_s[lane] -= times * (state.still_s[lane] - past.still_s[lane])
        for key, waited_s in state.waits_s.items():
            self.waits_s[key] += times * (waited_s - past.waits_s.get(key, 0.0))

    def _relabel(self, first: int, *, layers: int = 0, passes: int = 0) -> None:
        """Let layers that have been given, and what follows, stand for later ones that are like them."""
        for index in range(first, len(self._given)):
            at = self._given[index]
            del self._index[at.serial, at.layer]
            self._given[index] = at = at._replace(layer=at.layer + layers, number=at.number + passes)
        for index in range(first, len(self._given)):
            self._index[self._given[index].serial, self._given[index].layer] = index
        if self._next is not None:
            self._next = self._next._replace(layer=self._next.layer + layers, number=self._next.number + passes)


def _count(into: list[dict[Lane, dict[TaskKind, float]]], name: SortName, kind: TaskKind, seconds: float) -> None:
    of_lane = into[name.load].setdefault(LANES[name.lane], {})
    of_lane[kind] = of_lane.get(kind, 0.0) + seconds
