"""Drawing a view of the roofs: attention above, the experts below, as in the paper's case study (Figs. 4 and 5)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrm.errors import HrmError
from hrm.files import atomic_writer
from hrm.views import roofline_scene as scene
from hrm.views.placement import MAIN_OPERATOR, RooflineView
from hrm.views.roofline_scene import ATTENTION, FFN
from hrm.views.roofline_words import AXES_INCHES, Words, changing_words, roof_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_roofline"]

FORMATS = ("png", "svg")
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 9.0, 11.2, 100
"""900 pixels wide: what a README shows unscaled."""
CORNERS_INCHES = {ATTENTION: (0.7, 6.1), FFN: (0.7, 1.25)}
"""Lower left corner of each pair of axes."""

INK, FAINT = "#222222", "#666666"
DASHES = {"memory": "-", "compute": "-", "format": ":", "link": "--"}
OTHER_MARKER = "^"
"""Projections, shared experts and the head differ too little to be told apart: one marker, one entry in the legend."""
MARKERS = {ATTENTION: "o", MAIN_OPERATOR: "s"}


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
        raise HrmError(f"-o {path}: drawn as .png, .svg or .html, not {path.suffix or 'without a suffix'!r}")
    with atomic_writer(path, "wb") as stream, rc_context({"font.size": 10, "svg.hashsalt": "hrm"}):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DOTS_PER_INCH)
        _head(figure, view)
        for panel, (left, bottom) in CORNERS_INCHES.items():
            width, height = AXES_INCHES
            frame = left / WIDTH_INCHES, bottom / HEIGHT_INCHES, width / WIDTH_INCHES, height / HEIGHT_INCHES
            _Panel(view, panel, figure.add_axes(frame)).draw()
        _legend(figure, view)
        metadata: dict[str, Any] = {"Date": None} if suffix == "svg" else {}
        figure.savefig(stream, format=suffix, metadata=metadata)


def _head(figure: Figure, view: RooflineView) -> None:
    left = CORNERS_INCHES[ATTENTION][0] / WIDTH_INCHES
    figure.text(left, 0.976, scene.title(view), weight="bold", size=12, color=INK)
    sizes = f"N = {view.shape.batch_size:,}, μ = {view.shape.micro_batch_size:,}, {scene.conditions(view)}"
    figure.text(left, 0.957, sizes, color=FAINT)


def _legend(figure: Figure, view: RooflineView) -> None:
    from matplotlib.lines import Line2D

    def entry(marker: str, colour: str, label: str) -> Line2D:
        return Line2D([], [], marker=marker, color=colour, linestyle="none", markersize=8, label=label)

    by_marker: dict[str, list[str]] = {}
    for name in dict.fromkeys(placed.name for placed in view.operators):
        by_marker.setdefault(_marker(name), []).append(name)
    where = {scene.colour_key(placed): scene.placement_words(placed) for placed in view.operators}
    rows = (
        [entry("o", scene.colour(key), words) for key, words in where.items()],
        [entry(marker, FAINT, ", ".join(names)) for marker, names in by_marker.items()],
    )
    for row, handles in enumerate(rows):
        figure.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0.055, 0.032 - 0.025 * row),
            ncols=len(handles),
            frameon=False,
            handletextpad=0.2,
            columnspacing=1.4,
        )


def _marker(name: str) -> str:
    return MARKERS[ATTENTION] if scene.panel_of(name) == ATTENTION else MARKERS.get(name, OTHER_MARKER)


class _Panel:
    """One half of a view on one pair of logarithmic axes."""

    def __init__(self, view: RooflineView, panel: str, axes: Axes) -> None:
        self.view, self.panel, self.axes = view, panel, axes
        self.span = scene.span([view])

    def draw(self) -> None:
        """Draw roofs, lines, turning points and operators, and the words."""
        self._frame()
        for roof in scene.roofs(self.view, self.span, self.panel):
            x, y = zip(*roof.points, strict=True)
            self.axes.plot(
                x, y, color=_colour(roof.where), linestyle=DASHES[roof.kind], linewidth=1.8, solid_capstyle="round"
            )
        for kernel in scene.kernels(self.view, self.panel):
            ends, height = [kernel.start, kernel.end], [kernel.flop_per_s] * 2
            self.axes.plot(ends, height, color=_colour(kernel.where), linestyle=":", linewidth=1.4)
        self._lines()
        for mark in scene.marks(self.view, self.panel):
            at = mark.at.operational_intensity_flop_per_byte, mark.at.attainable_flop_per_s
            self._marker(*at, marker="o", markersize=14, fillstyle="none", color=INK, markeredgewidth=1.5)
        self._operators()
        roofs = roof_words(self.view, self.span, self.panel)
        for words in (*roofs, *changing_words(self.view, self.span, self.panel, roofs)):
            self._write(words)

    def _frame(self) -> None:
        axes, span = self.axes, self.span
        axes.set(xscale="log", yscale="log", xlim=(span.left, span.right), ylim=(span.bottom, span.top))
        axes.set_ylabel(scene.RATE_AXIS)
        if self.panel == FFN:
            axes.set_xlabel(scene.INTENSITY_AXIS)
        axes.grid(which="major", color="#EBEBEB", linewidth=0.7)
        axes.tick_params(which="both", color=FAINT)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(scene.heading(self.view, self.panel), loc="left", pad=60, size=10, weight="bold", color=INK)

    def _write(self, words: Words) -> None:
        """Write words, haloed so that lines behind them do not hurt."""
        from matplotlib.patheffects import withStroke

        x, y = _share(words.at_inches)
        if words.leader_inches is not None:
            width, height = words.size_inches
            middle = _share((words.at_inches[0] + width / 2, words.at_inches[1] + height / 2))
            ends = zip(_share(words.leader_inches), middle, strict=True)
            self.axes.plot(*ends, color=FAINT, linewidth=0.7, transform=self.axes.transAxes, zorder=3)
        backing = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
        self.axes.text(
            x,
            y,
            words.text,
            bbox=None if words.angle_deg else backing,
            transform=self.axes.transAxes,
            color=_colour(words.where),
            va="bottom",
            rotation=words.angle_deg,
            rotation_mode="anchor",
            linespacing=1.15,
            path_effects=[withStroke(linewidth=3, foreground="white")],
            zorder=4,
        )

    def _marker(self, x: float, y: float, **style: Any) -> None:
        self.axes.plot([x], [y], **({"zorder": 5} | style))

    def _lines(self) -> None:
        for line in scene.lines_of(self.view, self.panel):
            x = line.operational_intensity_flop_per_byte
            colour, width = (INK, 1.1) if scene.is_asked(line, self.view) else (FAINT, 0.6)
            self.axes.plot([x, x], [self.span.bottom, self.span.top], color=colour, linewidth=width, zorder=1)
            for where, height in scene.line_points(line, self.view):
                self._marker(x, height, marker=".", markersize=8, color=_colour(where))

    def _operators(self) -> None:
        for placed in scene.operators_of(self.view, self.panel):
            key = scene.colour_key(placed)
            self._marker(
                placed.operational_intensity_flop_per_byte[key],
                placed.attainable_flop_per_s,
                marker=_marker(placed.name),
                markersize=7,
                color=_colour(key),
                markeredgecolor="white",
                markeredgewidth=0.8,
                zorder=6,
            )


def _share(inches: tuple[float, float]) -> tuple[float, float]:
    """Return a place as a share of the axes."""
    return inches[0] / AXES_INCHES[0], inches[1] / AXES_INCHES[1]


def _colour(where: str) -> str:
    return {"ink": INK, "faint": FAINT}.get(where) or scene.colour(where)
