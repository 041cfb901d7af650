"""Pictures of what searches found: the front of throughput against latency, and the map of which policy wins where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hrm.errors import HrmError
from hrm.estimate import Fidelity
from hrm.files import atomic_writer
from hrm.model import ModelSpec
from solver.pareto import Point
from solver.policy_map import Axis, PolicyMap, placement_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["check_picture", "draw_front", "draw_map"]

FORMATS = ("png", "svg")
WIDTH_INCHES, DOTS_PER_INCH = 9.0, 100
"""900 pixels wide: what a README shows unscaled."""
INK, FAINT = "#222222", "#666666"
PALETTE = ("#56B4E9", "#E69F00", "#6BC4A6", "#F0E442", "#D9A3C3", "#7C9FD1", "#E8906A", "#C8C8C8")
"""After Okabe and Ito, whose colours every colour blindness leaves apart; the dark ones lightened to be written on."""
WORDS_CELLS = 2
"""Cells in a row that the name of a region needs."""


def check_picture(path: str | Path, option: str) -> None:
    """Refuse a format that cannot be drawn.

    Raises
    ------
    HrmError
        When the suffix names another format.
    """
    if Path(path).suffix.lower().lstrip(".") not in FORMATS:
        raise HrmError(f"{option} {path}: drawn as .png or .svg (name the file so)")


def draw_front(points: Sequence[Point], model: ModelSpec, title: str, path: str | Path) -> None:
    """Draw a front: throughput against the time that a token takes, a colour for each placement."""
    with _figure(path, 5.6) as figure:
        axes = figure.add_axes((0.09, 0.11, 0.88, 0.79))
        axes.set(xscale="log", yscale="log", xlabel=_latency_words(points), ylabel="tokens/s of the whole job")
        axes.set_title(title, loc="left", weight="bold", size=11, color=INK)
        at = [(point.latency_s, point.throughput_tokens_per_s) for point in points]
        axes.plot(*zip(*at, strict=True), color=FAINT, linewidth=1.0, zorder=1)
        placements = [placement_of(point.policy, model) for point in points]
        colours = _colours(placements)
        for place, found in groupby(zip(placements, points, strict=True), key=lambda pair: pair[0]):
            run = [point for _, point in found]
            x, y = zip(*((point.latency_s, point.throughput_tokens_per_s) for point in run), strict=True)
            axes.scatter(x, y, s=60, color=colours[place], edgecolor=INK, linewidth=0.7, zorder=2)
            _label_ends(axes, run, place, right=x[0] ** 2 > at[0][0] * at[-1][0])
        axes.margins(x=0.14, y=0.12)
        _plain_frame(axes)


def draw_map(found: PolicyMap, model: ModelSpec, title: str, path: str | Path) -> None:
    """Draw a map: a colour for each placement, named where it has room and below; in each cell r_w of the winner."""
    names = [[placement_of(cell.policy, model) if cell else "" for cell in row] for row in found.cells]
    colours = _colours([name for row in names for name in row if name])
    with _figure(path, 7.4) as figure:
        axes = figure.add_axes((0.125, 0.22, 0.85, 0.70))
        axes.set_title(title, loc="left", weight="bold", size=11, color=INK)
        for row, column in np.ndindex(len(names), len(names[0])):
            _cell(axes, (column, row), colours.get(names[row][column]))
        covered = _name_regions(axes, names, ringed=round(_machine_at(found.y)))
        for row, column in np.ndindex(len(names), len(names[0])):
            cell = found.cells[row][column]
            if cell is not None and (row, column) not in covered:
                share = f"{cell.policy.weights_on_gpu(model):.0%}"
                axes.text(column, row, share, ha="center", va="center", size=8, color=INK)
        _map_frame(axes, found)
        _map_legend(figure, colours, found.fidelity)


@contextmanager
def _figure(path: str | Path, height_inches: float) -> Iterator[Figure]:
    """Yield a figure that appears in its file only when it is whole."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    path = Path(path)
    check_picture(path, "-o")
    suffix = path.suffix.lower().lstrip(".")
    with atomic_writer(path, "wb") as stream, rc_context({"font.size": 10, "svg.hashsalt": "hrm"}):
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=DOTS_PER_INCH)
        yield figure
        metadata: dict[str, Any] = {"Date": None} if suffix == "svg" else {}
        figure.savefig(stream, format=suffix, metadata=metadata)


def _colours(names: Sequence[str]) -> dict[str, str]:
    distinct = dict.fromkeys(names)
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(distinct)}


def _latency_words(points: Sequence[Point]) -> str:
    return "seconds per token of a sequence" if points[0].time_per_token_s else "seconds to the token"


def _label_ends(axes: Axes, run: Sequence[Point], place: str, *, right: bool) -> None:
    """Write N left of the ends of a stretch of one placement, and the placement beside its start.

    That goes above it on the right of the picture, below it on the left.
    """
    style: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "va": "center", "size": 9}
    for point in dict.fromkeys((run[0], run[-1])):
        at = point.latency_s, point.throughput_tokens_per_s
        axes.annotate(f"N = {point.policy.batch_size:,}", at, (-9, 2), **style)
    at = run[0].latency_s, run[0].throughput_tokens_per_s
    style |= {"weight": "bold", "color": INK}
    style |= {"ha": "right", "va": "bottom"} if right else {"ha": "left", "va": "top"}
    axes.annotate(place.replace(", ", "\n"), at, (-9, 12) if right else (-2, -10), **style)


def _plain_frame(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="#EBEBEB", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color=FAINT)
    axes.spines[["top", "right"]].set_visible(False)


def _cell(axes: Axes, at: tuple[int, int], colour: str | None) -> None:
    from matplotlib.patches import Rectangle

    look: dict[str, Any] = {"facecolor": colour, "edgecolor": "white"}
    if colour is None:
        look = {"facecolor": "white", "edgecolor": "#D0D0D0", "hatch": "///"}
    axes.add_patch(Rectangle((at[0] - 0.5, at[1] - 0.5), 1, 1, linewidth=0.6, **look))


def _name_regions(axes: Axes, names: list[list[str]], ringed: int) -> set[tuple[int, int]]:
    """Write each placement's name into its longest stretch of a row, rather not the ringed one's.

    Return the cells that are covered.
    """
    covered = set()
    for name in dict.fromkeys(name for row in names for name in row if name):
        row, start, length = max(
            _stretches(names, name), key=lambda one: (one[0] != ringed, one[2], -abs(one[0] - len(names) / 2))
        )
        if length < WORDS_CELLS:
            continue
        centre = start + (length - 1) / 2
        axes.text(centre, row, name.replace(", ", "\n"), ha="center", va="center", size=9, weight="bold", color=INK)
        covered |= {(row, column) for column in range(start, start + length) if abs(column - centre) < WORDS_CELLS / 2}
    return covered


def _stretches(names: list[list[str]], wanted: str) -> Iterator[tuple[int, int, int]]:
    """Yield (row, first column, length) of each stretch of a name in a row."""
    for row, line in enumerate(names):
        column = 0
        for name, cells in groupby(line):
            length = len(list(cells))
            if name == wanted:
                yield row, column, length
            column += length


def _map_frame(axes: Axes, found: PolicyMap) -> None:
    columns, rows = len(found.x.factors), len(found.y.factors)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(-0.5, rows - 0.5))
    axes.set_xticks(range(columns), [found.x.words(factor) for factor in found.x.factors], size=9)
    axes.set_yticks(range(rows), [found.y.words(factor) for factor in found.y.factors], size=9)
    axes.set_xlabel(_axis_words(found.x))
    axes.set_ylabel(_axis_words(found.y), labelpad=12)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    place = _machine_at(found.x), _machine_at(found.y)
    if all(-0.5 <= at <= last - 0.5 for at, last in zip(place, (columns, rows), strict=True)):
        style: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.6}
        axes.plot(*([at] for at in place), marker="o", markersize=34, clip_on=False, **style)


def _axis_words(axis: Axis) -> str:
    return axis.resource.replace("_", " ") + (", as a multiple" if axis.base is None else "")


def _machine_at(axis: Axis) -> float:
    """Return where factor 1 is on an axis whose cells are numbered from 0."""
    low, high = np.log(axis.factors[0]), np.log(axis.factors[-1])
    return float(-low / (high - low) * (len(axis.factors) - 1))


def _map_legend(figure: Figure, colours: dict[str, str], fidelity: Fidelity) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.1, 0.035), ncols=2, frameon=False, fontsize=9)
    words = "share of expert weights resident on the GPU; ring: the machine as it is; hatched: nothing fits"
    figure.text(0.107, 0.015, f"at {fidelity}; cells: {words}", color=FAINT, size=9)
