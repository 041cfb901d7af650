"""Where the words of a picture stand, so that none covers another, a marker or a roof; whoever draws it, in inches.

Inches are counted from the lower left corner of a pair of axes of `AXES_INCHES`, at 10 point letters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hrm.records import record
from hrm.units import format_flop_per_s
from hrm.views import roofline_scene as scene
from hrm.views.placement import RooflineView
from hrm.views.roofline_scene import Roof, Span

__all__ = ["AXES_INCHES", "INK", "LINE_INCHES", "Words", "changing_words", "roof_words"]

AXES_INCHES = (7.0, 3.4)
LETTER_INCHES, LINE_INCHES = 0.073, 0.165
"""Mean width of a letter and height of a line; letters of other typefaces are narrower."""
INK, FAINT = "ink", "faint"
LINE_ANGLE = 40.0
"""Words of vertical lines stand above the axes, slanted, degrees."""

WEIGHTS = {"line": 0.1, "roof": 1.0, "marker": 4.0, "words": 6.0}
"""How much each kind of thing hurts when words cover a point of it. Vertical lines may be interrupted."""
OUTSIDE, PER_INCH = 1e3, 8.0
"""What it costs to leave the axes, and to stand an inch further from the point."""
DISTANCES = (0.12, 0.2, 0.3, 0.45, 0.65, 0.9, 1.2)
DIRECTIONS = tuple(
    (math.cos(math.radians(angle)), math.sin(math.radians(angle)))
    for angle in (-45, -20, -70, 20, 45, 70, 90, 110, 135, 160, 180, 200, 225, 250, 270, 0)
)
"""Right and up; tried in this order, the lower right first. The first of the best is taken."""
CLEARANCE = 0.02
SLOPING = ("memory", "link")
INDENTS, BELOW = tuple(0.08 + 0.12 * step for step in range(25)), 0.5
"""Where along a sloping roof its words may begin, in inches; what it costs to stand below."""
ALONG = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)
"""Where on its height the words of a kernel may stand."""
LEADER_FROM = 0.25
"""Words further than this from their point are joined to it by a thin line."""


@record
class Words:
    """Text, perhaps of several lines, whose box has its lower left corner at a place and is turned about it."""

    text: str
    at_inches: tuple[float, float]
    angle_deg: float = 0.0
    where: str
    leader_inches: tuple[float, float] | None = None
    """The point meant, where the words stand so far from it that a thin line must join them."""

    @property
    def size_inches(self) -> tuple[float, float]:
        """Width and height."""
        lines = self.text.split("\n")
        return LETTER_INCHES * max(map(len, lines)), LINE_INCHES * len(lines)


@record
class _Obstacles:
    """Points that words should not cover, in inches, and how much each hurts: shapes (n, 2) and (n,)."""

    points: NDArray[np.float64]
    weights: NDArray[np.float64]

    def and_words(self, words: Words) -> _Obstacles:
        """Add what words cover."""
        (width, height), angle = words.size_inches, math.radians(words.angle_deg)
        x, y = (axis.ravel() for axis in np.meshgrid(np.arange(0, width, 0.06), np.arange(0.02, height, 0.06)))
        turned = np.stack((x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)), 1)
        return self.and_points(turned + np.array(words.at_inches), "words")

    def and_points(self, points: NDArray[np.float64], kind: str) -> _Obstacles:
        """Add points of one kind."""
        weights = np.full(len(points), WEIGHTS[kind])
        return _Obstacles(points=np.concatenate((self.points, points)), weights=np.concatenate((self.weights, weights)))


def to_inches(axes: Span, intensity: float, flop_per_s: float) -> tuple[float, float]:
    """Return where a point lies on the logarithmic axes."""
    width, height = AXES_INCHES
    x = math.log10(intensity / axes.left) / math.log10(axes.right / axes.left)
    y = math.log10(flop_per_s / axes.bottom) / math.log10(axes.top / axes.bottom)
    return x * width, y * height


def roof_words(view: RooflineView, axes: Span, panel: str) -> tuple[Words, ...]:
    """Return the roofs' words: along the memories and links, and right of the axes those of compute."""
    roofs = sorted(scene.roofs(view, axes, panel), key=lambda roof: -roof.points[1][1])
    sloping, level = ([roof for roof in roofs if (roof.kind in SLOPING) is slopes] for slopes in (True, False))
    return (*_along(sloping, axes, _obstacles(view, axes, panel)), *_beside(level, axes))


def _along(roofs: list[Roof], axes: Span, obstacles: _Obstacles) -> Iterator[Words]:
    """Write along each sloping roof, above it or below, as far left as there is room."""
    for roof in roofs:
        start, end = (to_inches(axes, *point) for point in roof.points)
        slope = (end[1] - start[1]) / (end[0] - start[0])
        angle = math.atan(slope)
        words = Words(
            text=f"{roof.label} {roof.value}", at_inches=start, angle_deg=math.degrees(angle), where=roof.where
        )
        corners, cost = [], []
        for rise in (0.03, -0.03 - LINE_INCHES):
            for indent in INDENTS:
                x = start[0] + indent * math.cos(angle)
                corners.append((x - rise * math.sin(angle), start[1] + (x - start[0]) * slope + rise * math.cos(angle)))
                cost.append(indent + (BELOW if rise < 0 else 0.0))
        placed = replace(words, at_inches=corners[_best(corners, words, np.array(cost), obstacles)])
        obstacles = obstacles.and_words(placed)
        yield placed


def _beside(roofs: list[Roof], axes: Span) -> Iterator[Words]:
    """Write to the right of the axes at each height, spread where two are close."""
    free = math.inf
    for roof in roofs:
        x, y = to_inches(axes, *roof.points[1])
        bottom = min(y - LINE_INCHES, free - 2 * LINE_INCHES)
        free = bottom
        yield Words(text=f"{roof.label}\n{roof.value}", at_inches=(x + 0.07, bottom), where=roof.where)


def changing_words(view: RooflineView, axes: Span, panel: str, roofs: tuple[Words, ...]) -> tuple[Words, ...]:
    """Return the words that move with N and mu, beside those of the roofs: of the lines, the kernels and the points."""
    lines = tuple(
        Words(
            text=scene.line_words(line),
            at_inches=(to_inches(axes, line.operational_intensity_flop_per_byte, axes.top)[0], AXES_INCHES[1] + 0.05),
            angle_deg=LINE_ANGLE,
            where=INK if scene.is_asked(line, view) else FAINT,
        )
        for line in scene.lines_of(view, panel)
    )
    obstacles, placed = _obstacles(view, axes, panel), []
    for words in roofs:
        obstacles = obstacles.and_words(words)
    for kernel in scene.kernels(view, panel):
        text = f"{kernel.name}: {format_flop_per_s(kernel.flop_per_s)}"
        ends = [to_inches(axes, x, kernel.flop_per_s) for x in (kernel.start, kernel.end)]
        words = _place_along(Words(text=text, at_inches=ends[0], where=kernel.where), ends[1], obstacles)
        obstacles = obstacles.and_words(words)
        placed.append(words)
    for mark in sorted(scene.marks(view, panel), key=lambda mark: -mark.at.operational_intensity_flop_per_byte):
        at = mark.at.operational_intensity_flop_per_byte, mark.at.attainable_flop_per_s
        words = _place(Words(text=mark.words, at_inches=to_inches(axes, *at), where=INK), obstacles)
        obstacles = obstacles.and_words(words)
        placed.append(words)
    return (*lines, *placed)


def _obstacles(view: RooflineView, axes: Span, panel: str) -> _Obstacles:
    found = _Obstacles(points=np.empty((0, 2)), weights=np.empty(0))
    for roof in scene.roofs(view, axes, panel):
        found = found.and_points(_between(*(to_inches(axes, *point) for point in roof.points)), "roof")
    for kernel in scene.kernels(view, panel):
        ends = (to_inches(axes, x, kernel.flop_per_s) for x in (kernel.start, kernel.end))
        found = found.and_points(_between(*ends), "roof")
    for line in scene.lines_of(view, panel):
        x, _ = to_inches(axes, line.operational_intensity_flop_per_byte, axes.top)
        found = found.and_points(_between((x, 0.0), (x, AXES_INCHES[1])), "line")
    markers = [to_inches(axes, *point) for point in scene.marked_points(view, panel)]
    return found.and_points(np.array(markers), "marker")


def _between(start: tuple[float, float], end: tuple[float, float]) -> NDArray[np.float64]:
    count = max(2, int(math.dist(start, end) / 0.04))
    return np.linspace(start, end, count)


def _place_along(words: Words, end: tuple[float, float], obstacles: _Obstacles) -> Words:
    """Move words that stand at the start of a level line above or below some part of it, or else beside its middle."""
    (x, y), (width, height) = words.at_inches, words.size_inches
    corners = [(x + (end[0] - x) * along - width / 2, y + rise) for rise in (0.04, -0.04 - height) for along in ALONG]
    return _place(replace(words, at_inches=((x + end[0]) / 2, y)), obstacles, corners)


def _place(words: Words, obstacles: _Obstacles, better: list[tuple[float, float]] | None = None) -> Words:
    """Move words that stand on their point beside it, the nearer the better, or to one of the better corners."""
    (x, y), (width, height) = words.at_inches, words.size_inches
    around = [
        (x + distance * right - width * _behind(right), y + distance * up - height * _behind(up))
        for distance in DISTANCES
        for right, up in DIRECTIONS
    ]
    corners = (better or []) + around
    distances = np.concatenate((np.zeros(len(corners) - len(around)), np.repeat(DISTANCES, len(DIRECTIONS))))
    best = _best(corners, words, PER_INCH * distances, obstacles)
    leader = words.at_inches if distances[best] > LEADER_FROM else None
    return replace(words, at_inches=corners[best], leader_inches=leader)


def _best(corners: list[tuple[float, float]], words: Words, cost: NDArray[np.float64], obstacles: _Obstacles) -> int:
    """Return which corner costs least, with what the box there covers; the first of equals."""
    angle, size = math.radians(words.angle_deg), np.array(words.size_inches)
    # Turned back by the words' angle their boxes are upright, and so is the test.
    back = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points, low = obstacles.points @ back, np.array(corners) @ back - CLEARANCE
    high = low + size + 2 * CLEARANCE
    inside = np.ones((len(corners), len(points)), dtype=bool)
    for axis in (0, 1):
        at = points[:, axis]
        inside &= (at > low[:, axis, None]) & (at < high[:, axis, None])
    far = np.array(corners) + size @ back.T
    outside = np.any((np.array(corners) < 0) | (far > AXES_INCHES), axis=1)
    return int(np.argmin(inside @ obstacles.weights + OUTSIDE * outside + cost))


def _behind(step: float) -> float:
    """Return the share of a box that lies on the near side of where a step from its point leads."""
    return 0.5 if abs(step) < 0.3 else float(step < 0)
