"""Drawing a machine's roofs, the turning points and the operators, as the paper's case study does (its Figs. 3-5)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrm.errors import HrmError
from hrm.files import atomic_writer
from hrm.placement import LINK, PlacedOperator, RooflineView
from hrm.roofline import TurningPoint
from hrm.units import format_bytes_per_s, format_flop_per_s

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_roofline"]

FORMATS = ("png", "svg")
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 9.0, 6.0, 100
"""900 pixels wide: what a README shows unscaled."""
FRAME = (0.075, 0.195, 0.905, 0.715)
"""Left, bottom, width and height of the axes within the picture: fixed, so that words can follow the roofs' slope."""

# Okabe and Ito's palette (vermillion, blue, bluish green), distinguishable under every common colour blindness.
CPU, GPU, CROSSING, INK, FAINT = "#D55E00", "#0072B2", "#009E73", "#222222", "#777777"
COLOURS = {"cpu": CPU, "gpu": GPU, LINK: CROSSING}
PLACEMENTS = {
    "cpu": "computed on the CPU",
    "gpu": "on the GPU, data there",
    LINK: "on the GPU, data fetched over the link",
}
MARKERS = {"attention": "o", "experts": "s", "router": "D"}
LEAST_DECADES, NEAR_DECADES = 2.0, 0.5
"""Least height of the picture; distance of P1 and P2 below which their words would meet."""
ROOM_FOR_WORDS = 6
"""How far the picture goes on to the right of P2, whose words stand there."""
PROJECTION_MARKER = "^"
"""The projections and the head differ too little to be told apart: one marker, one entry in the legend."""


def draw_roofline(view: RooflineView, path: str | Path) -> None:
    """Draw a view into a PNG or SVG file, which appears only when it is whole.

    Raises
    ------
    HrmError
        When the suffix names another format.
    FileError
        When the folder does not exist.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    path = Path(path)
    suffix = path.suffix.lower().lstrip(".")
    if suffix not in FORMATS:
        raise HrmError(f"-o {path}: pictures are drawn as .png or .svg, not {path.suffix or 'without a suffix'!r}")
    with atomic_writer(path, "wb") as stream, rc_context({"font.size": 10, "svg.hashsalt": "hrm"}):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DOTS_PER_INCH)
        _Drawing(view, figure.add_axes(FRAME)).draw()
        metadata: dict[str, Any] = {"Date": None} if suffix == "svg" else {}
        figure.savefig(stream, format=suffix, metadata=metadata)


class _Drawing:
    """One view on one pair of logarithmic axes."""

    def __init__(self, view: RooflineView, axes: Axes) -> None:
        self.view = view
        self.axes = axes
        self.left, self.right = _span(_intensities(view), margin=2.5)
        self.bottom, self.top = _span(_heights(view), margin=2.2)
        self.bottom = min(self.bottom, self.top / 10**LEAST_DECADES)

    def draw(self) -> None:
        """Draw roofs, turning points and operators, each with its words beside it."""
        self._frame()
        for name, level in self.view.levels.items():
            self._roof(name, level.bytes_per_s, level.flop_per_s)
        if LINK in self.view.links:
            self._link_roof()
        self._turning_points()
        for placed in self.view.operators:
            self._operator(placed)
        self._legend()

    def _frame(self) -> None:
        view, axes = self.view, self.axes
        axes.set(xscale="log", yscale="log", xlim=(self.left, self.right), ylim=(self.bottom, self.top))
        axes.set_xlabel("operational intensity, FLOP per byte at the level the colour names")
        axes.set_ylabel("FLOP/s")
        axes.grid(which="major", color="#E6E6E6", linewidth=0.7)
        axes.tick_params(which="both", color=FAINT)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"{view.model} on {view.hardware}, {view.phase}", loc="left", pad=22, weight="bold", color=INK)
        conditions = (
            f"N = {view.batch_size}, μ = {view.micro_batch_size}, context {view.context_len} tokens, "
            f"{view.weight_dtype} weights, {view.kv_dtype} KV cache"
        )
        self._words(conditions, (0, 1), (0, 8), FAINT, xycoords="axes fraction")

    def _words(self, text: str, at: tuple[float, float], shift: tuple[float, float], colour: str, **style: Any) -> None:
        """Write beside a point, haloed so that lines behind the words do not hurt."""
        from matplotlib.patheffects import withStroke

        halo = [withStroke(linewidth=3, foreground="white")]
        self.axes.annotate(
            text, at, xytext=shift, textcoords="offset points", color=colour, path_effects=halo, zorder=4, **style
        )

    def _roof(self, name: str, bytes_per_s: float, flop_per_s: float) -> None:
        colour = COLOURS.get(name, INK)
        ridge = flop_per_s / bytes_per_s
        x = [self.left, ridge, self.right]
        self.axes.plot(x, [self.left * bytes_per_s, flop_per_s, flop_per_s], color=colour, linewidth=2)
        self._along(bytes_per_s, f"{name.upper()} memory {format_bytes_per_s(bytes_per_s)}", colour)
        words = f"{name.upper()} compute {format_flop_per_s(flop_per_s)}"
        shift, side = ((-4, -5), "top") if name == "cpu" else ((-4, 5), "bottom")
        self._words(words, (self.right, flop_per_s), shift, colour, ha="right", va=side)

    def _link_roof(self) -> None:
        rate = self.view.links[LINK]
        peak = max((level.flop_per_s for level in self.view.levels.values()), default=self.top)
        end = min(self.right, peak / rate)
        self.axes.plot([self.left, end], [self.left * rate, end * rate], color=CROSSING, linewidth=2, linestyle="--")
        self._along(rate, f"CPU to GPU link {format_bytes_per_s(rate)}", CROSSING)

    def _along(self, slope: float, text: str, colour: str) -> None:
        """Write along a memory roof, just above it, from where it enters the picture."""
        start = max(self.left, self.bottom / slope) * 1.1
        decade_x = FRAME[2] * WIDTH_INCHES / math.log10(self.right / self.left)
        decade_y = FRAME[3] * HEIGHT_INCHES / math.log10(self.top / self.bottom)
        angle = math.atan2(decade_y, decade_x)
        up = (-6 * math.sin(angle), 6 * math.cos(angle))
        style = {"rotation": math.degrees(angle), "rotation_mode": "anchor"}
        self._words(text, (start, start * slope), up, colour, **style)

    def _turning_points(self) -> None:
        turns = self.view.turning_points
        if turns is None:
            return
        self._kernel(turns.p2.operational_intensity_flop_per_byte, turns.p2.attainable_flop_per_s)
        self._point("P1", turns.p1)
        self._point("P2 = balance point" if self._balanced() else "P2", turns.p2, crowded=self._crowded())

    def _balanced(self) -> bool:
        """Whether P2 is the balance point; it is, unless compute binds and memory and link are never equally busy."""
        turns, balance = self.view.turning_points, self.view.balance_point
        if turns is None or balance is None:
            return False
        ours, other = turns.p2.operational_intensity_flop_per_byte, balance.operational_intensity_flop_per_byte
        return math.isclose(ours, other, rel_tol=0.02)

    def _crowded(self) -> bool:
        """Whether P2 is so near P1 that its words must go to the other side."""
        turns = self.view.turning_points
        if turns is None or not turns.p1.attainable_flop_per_s:
            return False
        return abs(math.log10(turns.p2.attainable_flop_per_s / turns.p1.attainable_flop_per_s)) < NEAR_DECADES

    def _kernel(self, end: float, flop_per_s: float) -> None:
        """Mark what the GPU attains at this micro-batch, from its memory roof to the link's: the height of P2."""
        gpu = self.view.levels["gpu"]
        start = flop_per_s / gpu.bytes_per_s
        if flop_per_s >= gpu.flop_per_s or end < 10 * start or self._crowded():
            return
        self.axes.plot([start, end], [flop_per_s, flop_per_s], color=GPU, linewidth=1.2, linestyle=":")
        words = f"experts, μ = {self.view.micro_batch_size}: {format_flop_per_s(flop_per_s)}"
        self._words(words, (end, flop_per_s), (-14, 5), GPU, ha="right")

    def _point(self, name: str, point: TurningPoint, *, crowded: bool = False) -> None:
        """Ring a point and write its name and numbers to its lower right, or upper left where that is crowded."""
        x, y = point.operational_intensity_flop_per_byte, point.attainable_flop_per_s
        if x <= 0:
            return
        words = f"{name}\n{_short(x)} FLOP/byte" + (f"\nN = {point.batch_size:,.0f}" if point.batch_size else "")
        self.axes.plot([x], [y], marker="o", markersize=15, fillstyle="none", color=INK, markeredgewidth=1.5, zorder=5)
        self.axes.plot([x, x], [self.bottom, y], color=FAINT, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        shift, ha, va = ((-9, 12), "right", "bottom") if crowded else ((9, -11), "left", "top")
        backing = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
        self._words(words, (x, y), shift, INK, ha=ha, va=va, linespacing=1.25, bbox=backing)

    def _operator(self, placed: PlacedOperator) -> None:
        where = LINK if placed.source else placed.device
        self.axes.plot(
            [placed.operational_intensity_flop_per_byte[where]],
            [placed.attainable_flop_per_s],
            marker=MARKERS.get(placed.name, PROJECTION_MARKER),
            markersize=8,
            color=COLOURS[where],
            markeredgecolor="white",
            markeredgewidth=0.8,
            zorder=6,
        )

    def _legend(self) -> None:
        from matplotlib.lines import Line2D

        def entry(marker: str, colour: str, label: str) -> Line2D:
            return Line2D([], [], marker=marker, color=colour, linestyle="none", markersize=8, label=label)

        by_marker: dict[str, list[str]] = {}
        for name in dict.fromkeys(placed.name for placed in self.view.operators):
            by_marker.setdefault(MARKERS.get(name, PROJECTION_MARKER), []).append(name)
        used = {LINK if placed.source else placed.device for placed in self.view.operators}
        rows = (
            [entry("o", COLOURS[where], PLACEMENTS[where]) for where in PLACEMENTS if where in used],
            [entry(marker, FAINT, ", ".join(names)) for marker, names in by_marker.items()],
        )
        for row, handles in enumerate(rows):
            self.axes.figure.legend(
                handles=handles,
                loc="lower left",
                bbox_to_anchor=(FRAME[0] - 0.02, 0.055 - 0.05 * row),
                ncols=len(handles),
                frameon=False,
                handletextpad=0.2,
                columnspacing=1.6,
            )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _intensities(view: RooflineView) -> Iterable[float]:
    for placed in view.operators:
        yield from placed.operational_intensity_flop_per_byte.values()
    for level in view.levels.values():
        yield level.ridge_point_flop_per_byte
    if view.turning_points is not None:
        for point in (view.turning_points.p1, view.turning_points.p2):
            yield point.operational_intensity_flop_per_byte
        yield view.turning_points.p2.operational_intensity_flop_per_byte * ROOM_FOR_WORDS


def _heights(view: RooflineView) -> Iterable[float]:
    for placed in view.operators:
        yield placed.attainable_flop_per_s
    for level in view.levels.values():
        yield level.flop_per_s


def _span(values: Iterable[float], *, margin: float) -> tuple[float, float]:
    shown = [value for value in values if value > 0 and math.isfinite(value)]
    return min(shown) / margin, max(shown) * margin
