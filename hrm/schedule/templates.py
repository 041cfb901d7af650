"""Layers of a schedule, made once for all that are alike and put into plain lists for the simulator.

Within a lane tasks run in order, so a need is met as soon as a lane has done so many tasks: it becomes a source (a
layer of this pass or of the one before), a lane, and a number of tasks.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from hrm.schedule.task import Lane, Need, Phase, Schedule, Task, TaskKey

__all__ = ["LANES", "Book", "PassKind", "Reference", "Source", "Template"]

LANES = tuple(Lane)
NUMBER = {lane: number for number, lane in enumerate(LANES)}


class PassKind(NamedTuple):
    """A pass: its phase, that of the pass before (None: only the prologue), and whether it lays nothing ahead."""

    phase: Phase
    before: Phase | None
    last: bool


class Source(NamedTuple):
    """Where a need points: a layer of the pass so many passes ago, `back` layers before the one that needs it."""

    passes_ago: int
    back: int


class Reference(NamedTuple):
    """A need: met when `lane` has done the first `tasks` tasks of a source, which goes by its place in a list."""

    source: int
    lane: int
    tasks: int


class Template(NamedTuple):
    """What a layer gives to each lane; lanes go by number.

    `counted` holds, per lane, how many tasks there are up to the last one that its own pass waits for.
    """

    tasks: list[list[Task]]
    needs: list[list[list[Reference]]]
    sources: list[Source]
    counted: list[int]


class _Layer(NamedTuple):
    """Tasks by lane; and each one's lane and place in it, by its key with the layer relative to this one.

    `looks_back` says that some task needs one of the pass before, `lays_ahead` that some are for the next pass.
    """

    tasks: list[list[Task]]
    places: dict[TaskKey, tuple[int, int]]
    looks_back: bool
    lays_ahead: bool


class Book:
    """The layers of a schedule, each made when first asked for; `exact` makes every layer, alike or not."""

    def __init__(self, schedule: Schedule, *, exact: bool) -> None:
        self._walks = schedule.walks
        self._exact = exact
        self._prologue = _by_lane(schedule.prologue, 0)
        self._ahead_from: dict[Phase, int] = {}
        self._layers: dict[Hashable, _Layer] = {}
        self._templates: dict[Hashable, Template] = {}
        self._likes: dict[tuple[Phase, int], Hashable] = {}

    def like(self, phase: Phase, layer: int) -> Hashable:
        """Return what is equal for layers that are alike."""
        key = phase, layer
        if key not in self._likes:
            self._likes[key] = layer if self._exact else self._walks[phase].like(layer)
        return self._likes[key]

    def prologue(self) -> Template:
        """Return the prologue as if it were a layer; no pass waits for it to end."""
        tasks, places, *_ = self._prologue
        here = Source(0, 0)
        met = {need: (here, places[need.key]) for lane in tasks for task in lane for need in task.needs}
        needs = [[_references(task, met, [here]) for task in lane] for lane in tasks]
        return Template(tasks, needs, [here], [0] * len(LANES))

    def name(self, kind: PassKind, layer: int) -> Hashable:
        """Return what is equal where `template` is the same: few layers tell one kind of pass from another."""
        phase = kind.phase
        looks_back = self._layer(phase, layer, last=False).looks_back
        before = kind.before if looks_back else phase
        return PassKind(phase, before, kind.last and layer >= self._lays_ahead_from(phase)), self.like(phase, layer)

    def template(self, kind: PassKind, layer: int) -> Template:
        """Return what a layer gives to the lanes in a pass."""
        name = self.name(kind, layer)
        if name not in self._templates:
            self._templates[name] = self._template(kind, layer)
        return self._templates[name]

    def _lays_ahead_from(self, phase: Phase) -> int:
        """Return the first layer that has tasks for the next pass: those behind it may come elsewhere in the last."""
        if phase not in self._ahead_from:
            layers = range(self._walks[phase].num_layers)
            ahead = (layer for layer in layers if self._layer(phase, layer, last=False).lays_ahead)
            self._ahead_from[phase] = next(ahead, len(layers))
        return self._ahead_from[phase]

    def _template(self, kind: PassKind, layer: int) -> Template:
        tasks = self._layer(kind.phase, layer, last=kind.last).tasks
        found = {need: self._find(need, kind, layer) for lane in tasks for task in lane for need in task.needs}
        met = {need: place for need, place in found.items() if place is not None}
        sources = list(dict.fromkeys(source for source, _ in met.values()))
        return Template(
            tasks=tasks,
            needs=[[_references(task, met, sources) for task in lane] for lane in tasks],
            sources=sources,
            counted=[
                max((at for at, task in enumerate(lane, 1) if not task.for_next_pass), default=0) for lane in tasks
            ],
        )

    def _layer(self, phase: Phase, layer: int, *, last: bool) -> _Layer:
        key = phase, last, self.like(phase, layer)
        if key not in self._layers:
            given = self._walks[phase].layer(layer)
            self._layers[key] = _by_lane([task for task in given if not (last and task.for_next_pass)], layer)
        return self._layers[key]

    def _find(self, need: Need, kind: PassKind, layer: int) -> tuple[Source, tuple[int, int]] | None:
        """Look for a task that is needed; None where the pass before has none, so that nothing is waited for."""
        wanted = need.key
        sought, at, part = wanted
        if not need.passes_ago:
            candidates: Iterable[int] = range(layer, -1, -1)
            phase, last = kind.phase, kind.last
        elif kind.before is None:
            place = self._prologue.places.get(wanted)
            return None if place is None else (Source(1, 0), place)
        else:
            final, near = self._walks[kind.before].num_layers - 1, at
            candidates = dict.fromkeys([near, max(near - 1, 0), min(near + 1, final), *range(final, -1, -1)])
            phase, last = kind.before, False
        for candidate in candidates:
            places = self._layer(phase, candidate, last=last).places
            place = places.get(TaskKey(sought, at - candidate, part))
            if place is not None:
                return Source(need.passes_ago, layer - candidate), place
        assert need.passes_ago, f"{need} is not given before it is needed"
        return None


def _by_lane(tasks: Sequence[Task], layer: int) -> _Layer:
    lanes: list[list[Task]] = [[] for _ in LANES]
    places = {}
    for task in tasks:
        lane = NUMBER[task.lane]
        places[TaskKey(task.kind, task.layer - layer, task.part)] = lane, len(lanes[lane])
        lanes[lane].append(task)
    return _Layer(
        tasks=lanes,
        places=places,
        looks_back=any(need.passes_ago for task in tasks for need in task.needs),
        lays_ahead=any(task.for_next_pass for task in tasks),
    )


def _references(
    task: Task, places: dict[Need, tuple[Source, tuple[int, int]]], sources: list[Source]
) -> list[Reference]:
    """List the needs of a task, less those of its own lane, which order meets."""
    met = (places[need] for need in task.needs if need in places)
    return [
        Reference(sources.index(source), lane, place + 1)
        for source, (lane, place) in met
        if LANES[lane] is not task.lane
    ]
