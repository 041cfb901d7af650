"""What a picture of a view holds, whoever draws it: the span of the axes, the roofs as lines, the words beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from hrm.records import record
from hrm.roofline import TurningPoint
from hrm.schedule.task import Phase
from hrm.units import format_bytes_per_s, format_flop_per_s
from hrm.views.intensity_lines import IntensityLine
from hrm.views.placement import MAIN_OPERATOR, LevelRoofs, PlacedOperator, RooflineView

__all__ = [
    "ATTENTION",
    "FFN",
    "INTENSITY_AXIS",
    "PANELS",
    "RATE_AXIS",
    "Kernel",
    "Mark",
    "Roof",
    "Span",
    "colour",
    "colour_key",
    "conditions",
    "heading",
    "is_asked",
    "kernels",
    "line_points",
    "line_words",
    "lines_of",
    "marked_points",
    "marks",
    "operators_of",
    "panel_of",
    "placement_words",
    "roofs",
    "span",
    "title",
    "top_level",
]

ATTENTION, FFN = PANELS = ("attention", "ffn")
INTENSITY_AXIS, RATE_AXIS = "operational intensity, FLOP per byte at the level or link that the colour names", "FLOP/s"
# Okabe and Ito's vermillion, blue, bluish green and reddish purple, which every colour blindness leaves apart; all but
# the blue darkened, to be read as words on white.
COLOURS = {"cpu": "#C14A00", "gpu": "#0072B2", "h2d": "#008562", "disk": "#A3478A"}
OTHER_COLOUR = "#444444"
MARGIN, LEAST_DECADES = 2.5, 2.0
"""How far the axes go beyond what they show, as a factor, and their least height."""
SAME = 0.02
"""Relative difference below which two points or roofs are drawn as one."""


@record
class Span:
    """The ranges of the logarithmic axes: FLOP/byte from left to right, FLOP/s from bottom to top."""

    left: float
    right: float
    bottom: float
    top: float


@record
class Roof:
    """A straight line in the picture; `where` names the level or link, `kind` is memory, compute, format or link."""

    where: str
    kind: str
    label: str
    value: str
    points: tuple[tuple[float, float], tuple[float, float]]


@record
class Kernel:
    """The height a kernel reaches at the micro-batch: from its own intensity to where the link delivers as much."""

    name: str
    where: str
    start: float
    end: float
    flop_per_s: float


@record
class Mark:
    """A turning point with its words."""

    name: str
    at: TurningPoint
    words: str


def title(view: RooflineView) -> str:
    """Name the model, the machine and the phase."""
    return f"{view.model} on {view.hardware}, {view.shape.phase}"


def conditions(view: RooflineView) -> str:
    """Say what is the same for all N and mu."""
    shape = view.shape
    experts = f", {shape.expert_dtype} experts" if shape.expert_dtype not in (None, shape.weight_dtype) else ""
    return f"context {shape.context_len} tokens, {shape.weight_dtype} weights{experts}, {shape.kv_dtype} KV cache"


def heading(view: RooflineView, panel: str) -> str:
    """Say what a panel shows."""
    if panel == FFN:
        return "FFN: all sequences share its weights, so N decides"
    if view.shape.phase is Phase.PREFILL:
        return "Attention: a prompt makes the keys and values it attends to, so nothing is fetched"
    return "Attention: every sequence has a KV cache of its own, so its format decides, not N"


def panel_of(operator: str) -> str:
    """Say in which of the two panels an operator is drawn."""
    return ATTENTION if operator.startswith("attention") else FFN


def _flop_per_byte(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def line_words(line: IntensityLine) -> str:
    """Say what a vertical line stands for."""
    if panel_of(line.operator) == ATTENTION:
        return f"{line.dtype}, {line.operational_intensity_flop_per_byte:.3g}"
    return f"N = {line.batch_size:,}"


def placement_words(placed: PlacedOperator) -> str:
    """Say where an operator is computed, and where its data lies if elsewhere."""
    source = f", data from the {_level(placed.source)}" if placed.source else ""
    return f"on the {_level(placed.device)}{source}"


def colour(where: str) -> str:
    """Return the colour of a level or link."""
    return COLOURS.get(where, OTHER_COLOUR)


def colour_key(placed: PlacedOperator) -> str:
    """Return the level or link at whose bytes an operator's intensity is shown: the link, where it fetches."""
    return next(reversed(placed.operational_intensity_flop_per_byte))


def line_points(line: IntensityLine, view: RooflineView) -> Iterator[tuple[str, float]]:
    """Yield the level or link whose colour a point of a line has, and its height: computed there, or fetched."""
    links = {link.target: name for name, link in view.links.items() if link.source == line.level}
    for device, height in line.attainable_flop_per_s.items():
        yield (device if device == line.level or device not in links else links[device]), height


def is_asked(line: IntensityLine, view: RooflineView) -> bool:
    """Say whether a line is for the very N and format that the view is for."""
    return line == next(lines_of(view, panel_of(line.operator)))


def lines_of(view: RooflineView, panel: str) -> Iterator[IntensityLine]:
    """Yield the lines of a panel, the one for the N and format asked for first."""
    return (line for line in view.lines if panel_of(line.operator) == panel)


def operators_of(view: RooflineView, panel: str) -> Iterator[PlacedOperator]:
    """Yield the placed operators of a panel."""
    return (placed for placed in view.operators if panel_of(placed.name) == panel)


def kernels(view: RooflineView, panel: str) -> Iterator[Kernel]:
    """Yield the heights that the experts' kernel reaches on the fastest level: by the roofs, and as measured."""
    turns = view.turning_points
    if panel != FFN or turns is None:
        return
    end = turns.p2.operational_intensity_flop_per_byte
    for found in view.kernel_ceilings:
        if found.operator != MAIN_OPERATOR or found.device != top_level(view):
            continue
        heights = {"μ": found.attainable_flop_per_s, "measured, μ": found.ceiling_flop_per_s}
        for name, height in heights.items() if found.measured else [("μ", found.attainable_flop_per_s)]:
            yield Kernel(
                name=f"{name} = {view.shape.micro_batch_size}",
                where=found.device,
                start=found.operational_intensity_flop_per_byte,
                end=end,
                flop_per_s=height,
            )


def marked_points(view: RooflineView, panel: str) -> Iterator[tuple[float, float]]:
    """Yield every point of a panel that has a marker: intensity and height."""
    for placed in operators_of(view, panel):
        yield placed.operational_intensity_flop_per_byte[colour_key(placed)], placed.attainable_flop_per_s
    for line in lines_of(view, panel):
        for _, height in line_points(line, view):
            yield line.operational_intensity_flop_per_byte, height
    for mark in marks(view, panel):
        yield mark.at.operational_intensity_flop_per_byte, mark.at.attainable_flop_per_s


def top_level(view: RooflineView) -> str:
    """Return the fastest level."""
    return "gpu" if "gpu" in view.levels else "cpu"


def span(views: Sequence[RooflineView]) -> Span:
    """Return axes wide enough for everything in the views."""
    left, right = _range(value for view in views for value in _intensities(view))
    bottom, top = _range(value for view in views for value in _heights(view))
    return Span(left=left, right=right, bottom=min(bottom, top / 10**LEAST_DECADES), top=top)


def roofs(view: RooflineView, axes: Span, panel: str) -> Iterator[Roof]:
    """Yield the memory and compute roofs of each level that computes, and the roof of each link that leads up.

    Compute in the panel's own format; where other formats drawn there are computed at another rate, also in those.
    """
    formats = [line.dtype for line in lines_of(view, panel)] + [placed.dtype for placed in operators_of(view, panel)]
    own, *others = dict.fromkeys(formats)
    for name, level in view.levels.items():
        peaks = level.flop_per_s_by_dtype
        if not peaks:
            continue
        here = f"{level.processors} x {_level(name)}" if level.processors > 1 else _level(name)
        reach = max(peaks[dtype] for dtype in (own, *others))
        yield _rising(name, "memory", f"{here} memory", level.bytes_per_s, reach, axes)
        yield _level_roof(name, "compute", f"{here} compute", peaks[own], level, axes)
        shown = [peaks[own]]
        for dtype in others:
            if not any(math.isclose(peaks[dtype], height, rel_tol=SAME) for height in shown):
                shown.append(peaks[dtype])
                yield _level_roof(name, "format", f"{here}, {dtype}", peaks[dtype], level, axes)
    for name, link in view.links.items():
        if link.turning_points is not None:
            words = f"{_level(link.source)} to {_level(link.target)} link"
            reach = view.levels[link.target].flop_per_s_by_dtype.get(own, axes.top)
            roof = _rising(name, "link", words, link.bytes_per_s, reach, axes)
            if roof.points[0] < roof.points[1]:
                yield roof


def _rising(where: str, kind: str, label: str, bytes_per_s: float, reach: float, axes: Span) -> Roof:
    start, end = max(axes.left, axes.bottom / bytes_per_s), min(axes.right, reach / bytes_per_s)
    points = (start, start * bytes_per_s), (end, end * bytes_per_s)
    return Roof(where=where, kind=kind, label=label, value=format_bytes_per_s(bytes_per_s), points=points)


def _level_roof(where: str, kind: str, label: str, flop_per_s: float, level: LevelRoofs, axes: Span) -> Roof:
    points = (flop_per_s / level.bytes_per_s, flop_per_s), (axes.right, flop_per_s)
    return Roof(where=where, kind=kind, label=label, value=format_flop_per_s(flop_per_s), points=points)


def marks(view: RooflineView, panel: str) -> Iterator[Mark]:
    """Yield the turning points of a panel: P1 of each link, and for the experts P2, said to be the balance point."""
    for link in view.links.values():
        turns, balance = link.turning_points, link.balance_point
        if panel == ATTENTION and link.target == top_level(view):
            by_operator = view.turning_points_by_operator
            turns = next((by_operator[name] for name in by_operator if panel_of(name) == ATTENTION), None)
        if turns is None or balance is None:
            continue
        which = "" if link.target == top_level(view) else f", {_level(link.source)} to {_level(link.target)}"
        if turns.p1.operational_intensity_flop_per_byte > 0:
            yield _mark(f"P1{which}", turns.p1)
        if panel == FFN:
            ours, other = turns.p2.operational_intensity_flop_per_byte, balance.operational_intensity_flop_per_byte
            same = math.isclose(ours, other, rel_tol=SAME)
            yield _mark(f"P2{which} = balance point" if same else f"P2{which}", turns.p2)
            if not same and not which:
                yield _mark(f"balance point{which}", balance)


def _mark(name: str, point: TurningPoint) -> Mark:
    batch = f"\nN = {point.batch_size:,.0f}" if point.batch_size else ""
    words = f"{name}\n{_flop_per_byte(point.operational_intensity_flop_per_byte)} FLOP/byte{batch}"
    return Mark(name=name, at=point, words=words)


def _level(name: str) -> str:
    return name.upper() if name in ("cpu", "gpu") else name


def _intensities(view: RooflineView) -> Iterator[float]:
    for placed in view.operators:
        yield from placed.operational_intensity_flop_per_byte.values()
    for line in view.lines:
        yield line.operational_intensity_flop_per_byte
    for level in view.levels.values():
        yield from (flop_per_s / level.bytes_per_s for flop_per_s in level.flop_per_s_by_dtype.values())
    for mark in (*marks(view, ATTENTION), *marks(view, FFN)):
        yield mark.at.operational_intensity_flop_per_byte


def _heights(view: RooflineView) -> Iterator[float]:
    for placed in view.operators:
        yield placed.attainable_flop_per_s
    for line in view.lines:
        yield from line.attainable_flop_per_s.values()
    for level in view.levels.values():
        yield from level.flop_per_s_by_dtype.values()


def _range(values: Iterable[float]) -> tuple[float, float]:
    shown = [value for value in values if value > 0 and math.isfinite(value)]
    return min(shown) / MARGIN, max(shown) * MARGIN
