"""Drawing a timeline: lanes as rows, tasks as bars, and the share of the time in which each lane is busy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrm.errors import HrmError
from hrm.files import atomic_writer
from hrm.schedule.task import Lane, TaskKind
from hrm.schedule.timeline import TimedTask, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_picture", "draw_gantt"]

FORMATS = ("png", "svg")
WIDTH_INCHES, ROW_INCHES, FRAME_INCHES, DOTS_PER_INCH = 9.0, 0.42, 1.35, 100
"""900 pixels wide: what a README shows unscaled."""
LEFT, RIGHT = 0.075, 0.925
"""Where the axes begin and end, as shares of the width: lanes' names to the left, busy shares to the right."""
LEAST_SHARE = 0.012
"""Bars narrower than this share of the picture carry no number."""

INK, FAINT = "#222222", "#777777"
# Okabe and Ito's palette, distinguishable under every common colour blindness; dark colours carry white numbers.
STYLES = {
    TaskKind.PRE_ATTENTION: ("#56B4E9", INK, "pre-attention"),
    TaskKind.ATTENTION: ("#D55E00", "white", "attention"),
    TaskKind.POST_ATTENTION: ("#0072B2", "white", "post-attention"),
    TaskKind.GPU_EXPERTS: ("#003F63", "white", "experts on the GPU"),
    TaskKind.CPU_EXPERTS: ("#8C3D00", "white", "experts on the CPU"),
    TaskKind.HEAD: ("#222222", "white", "head"),
    TaskKind.PAGE_COPY: ("#009E73", "white", "weights"),
    TaskKind.PAGE_PIN: ("#7FCEB9", INK, "weights to pinned memory"),
    TaskKind.DISK_READ: ("#00664B", "white", "experts from disk"),
    TaskKind.KEPT_EXPERTS: ("#6B2E00", "white", "experts in memory"),
    TaskKind.DISK_EXPERTS: ("#A0522D", "white", "experts read from disk"),
    TaskKind.KV_LOAD: ("#E69F00", INK, "KV cache"),
    TaskKind.QKV_OFFLOAD: ("#F0E442", INK, "queries, keys, values"),
    TaskKind.HIDDEN_UPLOAD: ("#CC79A7", INK, "attention output"),
    TaskKind.EXPERT_OFFLOAD: ("#C9C9C9", INK, "hidden states to the CPU"),
    TaskKind.EXPERT_UPLOAD: ("#999999", INK, "experts' output"),
}


def check_picture(path: Path) -> str:
    """Return the format that a picture's suffix asks for.

    Raises
    ------
    HrmError
        When it is none that is drawn.
    """
    suffix = path.suffix.lower().lstrip(".")
    if suffix not in FORMATS:
        raise HrmError(f"--gantt {path}: pictures are drawn as .png or .svg, not {path.suffix or 'without a suffix'!r}")
    return suffix


def draw_gantt(timeline: Timeline, path: str | Path, title: str, subtitle: str = "") -> None:
    """Draw a timeline (`Timeline.between` cuts one out) into a PNG or SVG file, which appears only when it is whole.

    A bar's number is its micro-batch, or its page.

    Raises
    ------
    HrmError
        When the suffix names another format, or nothing runs in the timeline.
    FileError
        When the folder does not exist.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    path = Path(path)
    suffix = check_picture(path)
    if not timeline.tasks:
        raise HrmError(f"--gantt {path}: nothing runs in this stretch of time (choose another)")
    lanes = [lane for lane in Lane if timeline.of_lane(lane)]
    height = FRAME_INCHES + ROW_INCHES * len(lanes)
    with atomic_writer(path, "wb") as stream, rc_context({"font.size": 9, "svg.hashsalt": "hrm"}):
        figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DOTS_PER_INCH)
        frame = (LEFT, 0.78 / height, RIGHT - LEFT, ROW_INCHES * len(lanes) / height)
        _draw(figure.add_axes(frame), timeline, lanes)
        figure.text(0.01, 1 - 0.19 / height, title, weight="bold", color=INK, size=11, va="center")
        figure.text(0.01, 1 - 0.39 / height, subtitle, color=FAINT, va="center")
        metadata: dict[str, Any] = {"Date": None} if suffix == "svg" else {}
        figure.savefig(stream, format=suffix, metadata=metadata)


def _draw(axes: Axes, timeline: Timeline, lanes: list[Lane]) -> None:
    end_s = max(timed.end_s for timed in timeline.tasks)
    scale, unit = (1e3, "ms") if end_s < 1 else (1.0, "s")
    axes.set(xlim=(0, end_s * scale), ylim=(len(lanes) - 0.45, -0.55))
    axes.set_xlabel(unit, labelpad=-2, color=FAINT, loc="right")
    axes.set_yticks(range(len(lanes)), [lane.upper() for lane in lanes], weight="bold")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.tick_params(axis="x", color=FAINT, labelcolor=FAINT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    for row, lane in enumerate(lanes):
        axes.axhspan(row - 0.38, row + 0.38, color="#F4F4F4", zorder=0)
        for timed in timeline.of_lane(lane):
            _bar(axes, timed, row, (scale, end_s))
        share = timeline.busy_s(lane) / end_s
        axes.text(
            1.008, row, f"{_percent(share)} busy", transform=axes.get_yaxis_transform(), va="center", color=INK, size=8
        )
    _legend(axes, {timed.task.kind for timed in timeline.tasks})


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "< 1%"


def _bar(axes: Axes, timed: TimedTask, row: int, extent: tuple[float, float]) -> None:
    scale, end_s = extent
    colour, ink, _ = STYLES[timed.task.kind]
    width_s = timed.end_s - timed.start_s
    wide = width_s > LEAST_SHARE * end_s
    edge = "white" if wide else colour  # so that no bar is too thin to be seen
    axes.barh(
        row, width_s * scale, left=timed.start_s * scale, height=0.76, color=colour, edgecolor=edge, linewidth=0.6
    )
    if wide:
        centre = (timed.start_s + width_s / 2) * scale
        axes.text(centre, row, str(timed.task.part), ha="center", va="center", color=ink, size=7)


def _legend(axes: Axes, kinds: set[TaskKind]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=words) for kind, (colour, _, words) in STYLES.items() if kind in kinds]
    axes.figure.legend(
        handles=handles, loc="lower left", ncols=6, frameon=False, fontsize=8, handlelength=1.2, columnspacing=1.2
    )
