"""The report's pictures: predicted against measured, the roofs with the points that ran, both timelines."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from hrm.hardware import HardwareProfile, Level
from hrm.schedule.task import Lane, Phase, TaskKind
from hrm.units import format_bytes_per_s, format_flop_per_s, format_s
from hrm.validation.cases import Bar
from hrm.validation.judged_case import JudgedCase
from hrm.validation.quantities import END_TO_END
from hrm.validation.svg import INK, MARKS, PALETTE, LogAxes, element, key, picture, text
from hrm.views.gantt import STYLES
from hrm.views.roofline_scene import COLOURS

__all__ = ["error_strips", "legend", "roof_legend", "roofline", "scatter", "timelines"]

SIDE, BAND, STRIP = 400.0, 0.1, 30.0
BAND_COLOUR = "#E8F1F8"
POINT_KINDS = (TaskKind.PRE_ATTENTION, TaskKind.ATTENTION, TaskKind.POST_ATTENTION)
EXPERT_KINDS = (TaskKind.GPU_EXPERTS, TaskKind.CPU_EXPERTS)
LEAST_SHARE = 0.02
"""Of a run: kinds that took less are not drawn."""
ROW, LANE_WIDTH, WIDTH = 22.0, 40.0, 860.0


def scatter(cases: Sequence[JudgedCase], machines: Sequence[str], models: Sequence[str]) -> str:
    """Draw predicted over measured tokens/s of every case, with intervals and spreads, the diagonal and 10 % around."""
    values = [value for one in cases for value in (one.throughput.predicted, one.throughput.measured)]
    bounds = min(values) / 1.3, max(values) * 1.3
    axes = LogAxes(x_range=bounds, y_range=bounds, width=SIDE, height=SIDE)
    low, high = bounds
    corners = [
        (low, low * (1 - BAND)), (low, low * (1 + BAND)), (high, high * (1 + BAND)), (high, high * (1 - BAND)),
    ]  # fmt: skip
    points = " ".join(f"{axes.x(x):.5g},{axes.y(y):.5g}" for x, y in corners)
    clip = f'<clipPath id="scatter"><rect x="{axes.left}" y="{axes.top}" width="{SIDE}" height="{SIDE}"/></clipPath>'
    band = element("polygon", points=points, fill=BAND_COLOUR, clip_path="url(#scatter)")
    diagonal = axes.line((low, low), (high, high), stroke=INK, stroke_width=1.2)
    x, y = axes.x(high) - 14, axes.y(high) + 4
    words = text(
        "predicted = measured",
        x,
        y,
        text_anchor="end",
        fill=INK,
        transform=f"rotate(-45 {x:.5g} {y:.5g})",
        class_="words",
    )
    marks = "".join(_case_mark(axes, one, machines, models) for one in cases)
    frame = axes.frame("measured, generated tokens/s", "predicted, generated tokens/s")
    label = f"Predicted against measured tokens per second of {len(cases)} cases, with the diagonal"
    return picture(clip + frame + band + diagonal + words + marks, SIDE + 80, SIDE + 56, label)


def _case_mark(axes: LogAxes, one: JudgedCase, machines: Sequence[str], models: Sequence[str]) -> str:
    rate, whole = one.throughput, one.quantities[END_TO_END]
    colour, hollow = PALETTE[machines.index(one.case.machine) % len(PALETTE)], models.index(one.case.model) % 2
    bottom, top = axes.y_range
    ends = (rate.predicted * whole.predicted_s / seconds for seconds in (whole.high_s, whole.low_s))
    low, high = (min(max(end, bottom), top) for end in ends)
    words = f"{one.case.name}: predicted {rate.predicted:.4g}, measured {rate.measured:.4g} tokens/s ({one.error:+.1%})"
    faint = {"stroke": colour, "stroke_opacity": 0.35}
    spread = max(rate.measured - rate.spread / 2, bottom), min(rate.measured + rate.spread / 2, top)
    return (
        axes.line((rate.measured, low), (rate.measured, high), **faint)
        + axes.line((spread[0], rate.predicted), (spread[1], rate.predicted), **faint)
        + axes.mark(
            (rate.measured, rate.predicted),
            machines.index(one.case.machine),
            words,
            fill="#FFFFFF" if hollow else colour,
            stroke=colour,
            stroke_width=1.5,
        )
    )


def error_strips(cases: Sequence[JudgedCase], machines: Sequence[str], models: Sequence[str]) -> str:
    """Draw the signed error of every case, a row for each model on each machine, with the band of 10 %."""
    reach = max(1.5 * BAND, *(abs(one.error) for one in cases)) * 1.05
    rows = [(machine, model) for machine in machines for model in models]
    left, width, bottom = 178.0, 270.0, 14.0 + STRIP * len(rows)

    def x(error: float) -> float:
        return left + width * (error / reach + 1.0) / 2.0

    band = element("rect", x=x(-BAND), y=14.0, width=x(BAND) - x(-BAND), height=bottom - 14.0, fill=BAND_COLOUR)
    parts = [band, element("line", x1=x(0), x2=x(0), y1=14.0, y2=bottom, stroke=INK, stroke_width=1.2)]
    for error in (-BAND, 0.0, BAND):
        parts.append(text(f"{error:+.0%}" if error else "0", x(error), bottom + 16, text_anchor="middle", fill=INK))
    parts.append(text("predicted / measured - 1", x(0), bottom + 34, text_anchor="middle", fill=INK))
    for row, (machine, model) in enumerate(rows):
        y = 14.0 + STRIP * (row + 0.5)
        parts.append(text(f"{machine}, {model}", left - 8, y + 4, text_anchor="end", fill=INK))
        for one in cases:
            if (one.case.machine, one.case.model) == (machine, model):
                parts.append(_error_mark(one, (x(one.error), y), machines, models))
    label = f"Signed errors of {len(cases)} cases by machine and model"
    return picture("".join(parts), left + width + 10, bottom + 42, label)


def _error_mark(one: JudgedCase, at: tuple[float, float], machines: Sequence[str], models: Sequence[str]) -> str:
    index, hollow = machines.index(one.case.machine), models.index(one.case.model) % 2
    colour = PALETTE[index % len(PALETTE)]
    title = f"<title>{html.escape(one.case.name)}: {one.error:+.1%}</title>"
    return element(
        "path",
        title,
        d=MARKS[index % len(MARKS)],
        transform=f"translate({at[0]:.5g} {at[1]:.5g})",
        fill="none" if hollow else colour,
        fill_opacity=0.6,
        stroke=colour,
        stroke_width=1.3,
    )


def legend(machines: Sequence[str], models: Sequence[str]) -> str:
    """Say which mark is which machine, and which model's are hollow."""
    entries = []
    for index, name in enumerate(machines):
        colour = PALETTE[index % len(PALETTE)]
        entries.append(key(MARKS[index % len(MARKS)], name, fill=colour, stroke=colour))
    for index, name in enumerate(models):
        entries.append(key(MARKS[0], name, fill="#FFFFFF" if index % 2 else INK, stroke=INK, stroke_width=1.5))
    return f'<ul class="legend">{"".join(entries)}</ul>'


def roofline(machine: HardwareProfile, cases: Iterable[JudgedCase]) -> str:
    """Draw a machine's roofs, and for each case where its kinds of task and its streamed experts were measured."""
    points = [point for one in cases for point in _points(one)]
    if not points:
        return ""
    roofs = list(_roofs(machine))
    xs, ys = (
        [point.intensity for point in points],
        [rate for point in points for rate in (point.predicted, point.measured)],
    )
    x_range = min(xs) / 2, max(xs) * 2
    heights = [*ys, *(peak for _, _, peak in roofs if peak)]
    axes = LogAxes(x_range=x_range, y_range=(min(ys) / 2, max(heights) * 2.5), width=SIDE, height=260.0)
    drawn = "".join(_roof(axes, where, slope, peak) for where, slope, peak in roofs)
    marks = "".join(_draw_point(axes, point) for point in points)
    frame = axes.frame("FLOP per byte at the level, or over the link", "FLOP/s")
    label = f"Roofs of {machine.label} with the rates that were measured"
    return picture(frame + drawn + marks, SIDE + 80, 316, label)


def _roofs(machine: HardwareProfile) -> Iterator[tuple[str, float, float | None]]:
    """Yield where, bytes/s and, of a processor, its best FLOP/s."""
    for name, level in machine.levels.items():
        yield name, level.read_bytes_per_s.roof * level.count, _peak(level)
    if "h2d" in machine.links:
        yield "h2d", machine.links["h2d"].bytes_per_s.roof, None


def _peak(level: Level) -> float | None:
    return max((rate.roof * level.count for rate in level.compute_flop_per_s.values()), default=None)


def _roof(axes: LogAxes, where: str, slope: float, peak: float | None) -> str:
    """Draw a slope up to the processor's peak, and that on to the right."""
    (left, right), (bottom, top) = axes.x_range, axes.y_range
    style = {"stroke": COLOURS.get(where, INK), "stroke_width": 1.8}
    first = max(left, bottom / slope)
    bend = min(right, (peak or top) / slope)
    parts = []
    if bend > first:
        parts.append(axes.line((first, slope * first), (bend, slope * bend), **style))
    if peak is not None and bend < right:
        parts.append(axes.line((max(bend, left), peak), (right, peak), **style))
    return "".join(parts)


def roof_legend(machine: HardwareProfile) -> str:
    """Say which line is which roof."""
    entries = []
    for where, slope, peak in _roofs(machine):
        words = f"{where} {format_bytes_per_s(slope)}" + (f", {format_flop_per_s(peak)}" if peak else "")
        entries.append(key("M-7 0h14", words, stroke=COLOURS.get(where, INK), stroke_width=2))
    return f'<ul class="legend">{"".join(entries)}</ul>'


class Point(NamedTuple):
    """A mark under the roofs: the colour's key, FLOP/byte, FLOP/s predicted and measured, what it is, its shape."""

    where: str
    intensity: float
    predicted: float
    measured: float
    words: str
    shape: int


def _points(one: JudgedCase) -> Iterator[Point]:
    """Yield where the kinds of task with products stood, and the experts by the bytes that crossed the link."""
    least_s, found = LEAST_SHARE * one.quantities[END_TO_END].measured_s, one.quantities
    for shape, phase in enumerate(Phase):
        for kind in (*POINT_KINDS, *EXPERT_KINDS):
            task = found.get(f"{phase}.{kind}")
            if task and task.flop and task.bytes and task.measured_s >= least_s:
                rates = task.flop / task.predicted_s, task.flop / task.measured_s
                words = f"{one.case.name}, {phase} {kind}"
                yield Point(_place(one, phase, kind), task.flop / task.bytes, *rates, words, shape)
        pages, whole = found.get(f"{phase}.{TaskKind.PAGE_COPY}"), found.get(phase.value)
        work = found.get(f"{phase}.{TaskKind.POST_ATTENTION}")
        if pages and whole and work and pages.bytes and work.flop:
            rates = work.flop / whole.predicted_s, work.flop / whole.measured_s
            words = f"{one.case.name}, {phase}: what the experts made of the link"
            yield Point("h2d", work.flop / pages.bytes, *rates, words, shape)


def _place(one: JudgedCase, phase: Phase, kind: TaskKind) -> str:
    policy = one.case.policy
    decodes_on = policy.attention_device if kind is TaskKind.ATTENTION and phase is Phase.DECODE else None
    return "cpu" if kind is TaskKind.CPU_EXPERTS else str(decodes_on or policy.main_device)


def _draw_point(axes: LogAxes, point: Point) -> str:
    colour = COLOURS.get(point.where, INK)
    rates = f"{format_flop_per_s(point.measured)}, predicted {format_flop_per_s(point.predicted)}"
    x, style = point.intensity, {"fill": colour, "fill_opacity": 0.55, "stroke": "#FFFFFF", "stroke_width": 0.6}
    between = axes.line((x, point.predicted), (x, point.measured), stroke=colour, stroke_opacity=0.5)
    return between + axes.mark((x, point.measured), point.shape, f"{point.words}: {rates}", **style)


def timelines(named: Mapping[str, Sequence[Bar]]) -> str:
    """Draw stretches of timelines, predicted and measured, below each other to one scale."""
    end_s = max(bar.end_s for bars in named.values() for bar in bars)
    lanes = [lane for lane in Lane if any(bar.lane is lane for bars in named.values() for bar in bars)]
    scale = (WIDTH - LANE_WIDTH - 90) / end_s
    parts, y = [], 6.0
    for name, bars in named.items():
        own_end_s = max(bar.end_s for bar in bars)
        parts.append(text(f"{name}: {format_s(own_end_s)}", 0, y + 10, fill=INK, font_weight="bold"))
        y += 18
        for lane in lanes:
            parts.append(_lane(lane, [bar for bar in bars if bar.lane is lane], y, (scale, own_end_s)))
            y += ROW
        y += 8
    return picture("".join(parts), WIDTH, y, "Timelines of a few layers, predicted and measured")


def _lane(lane: Lane, bars: Sequence[Bar], y: float, extent: tuple[float, float]) -> str:
    scale, end_s = extent
    busy = sum(bar.end_s - bar.start_s for bar in bars) / end_s
    parts = [
        text(lane.upper(), 0, y + 14, fill=INK),
        element("rect", x=LANE_WIDTH, y=y, width=end_s * scale, height=ROW - 4, fill="#F4F4F4"),
        text(f"{busy:.0%} busy", LANE_WIDTH + end_s * scale + 6, y + 14, fill=INK),
    ]
    for bar in bars:
        colour, ink, words = STYLES[bar.kind]
        x, width = LANE_WIDTH + bar.start_s * scale, (bar.end_s - bar.start_s) * scale
        title = f"<title>{words} {bar.part}: {format_s(bar.end_s - bar.start_s)}</title>"
        edge = {"stroke": "#FFFFFF", "stroke_width": 0.6} if width > 3 else {}
        parts.append(element("rect", title, x=x, y=y, width=max(width, 0.4), height=ROW - 4, fill=colour, **edge))
        if width > 14:
            parts.append(text(str(bar.part), x + width / 2, y + 13, text_anchor="middle", fill=ink, font_size=10))
    return "".join(parts)
