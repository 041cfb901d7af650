"""Small pictures as inline SVG: logarithmic axes, marks with words to hover over, bars."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator

from hrm.records import record

__all__ = ["INK", "MARKS", "PALETTE", "LogAxes", "element", "key", "picture", "text"]

# Okabe and Ito's palette, every colour dark enough to stand on white; shapes tell apart what colours do not.
PALETTE = ("#0072B2", "#C14A00", "#008562", "#A3478A", "#444444", "#8A6D00")
INK, FAINT, GRID = "#222222", "#666666", "#E6E6E6"
MARKS = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5l5 8.5h-10z",
    "M0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
)


def element(name: str, content: str = "", /, **attributes: object) -> str:
    """Write an element; underscores in attributes' names are hyphens, `content` is markup already."""
    listed = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_short(value))}"' for key, value in attributes.items()
    )
    return f"<{name}{listed}>{content}</{name}>" if content else f"<{name}{listed}/>"


def _short(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def text(words: str, x: float, y: float, **attributes: object) -> str:
    """Write words at a place."""
    return element("text", html.escape(words), x=x, y=y, **attributes)


def key(mark: str, words: str, **attributes: object) -> str:
    """Write an entry of a legend: a mark around its own middle, and what it stands for."""
    drawn = element("path", d=mark, transform="translate(7 7)", **attributes)
    return f'<li><svg viewBox="0 0 14 14" aria-hidden="true">{drawn}</svg>{html.escape(words)}</li>'


def picture(content: str, width: float, height: float, label: str) -> str:
    """Wrap a picture; `label` says what it shows to whom does not see it."""
    view = f"0 0 {width:g} {height:g}"
    return element("svg", content, viewBox=view, role="img", aria_label=label, xmlns="http://www.w3.org/2000/svg")


@record
class LogAxes:
    """Two logarithmic axes in a frame: ranges of values, and the frame's place and size in the picture."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float = 62.0
    top: float = 14.0
    width: float = 400.0
    height: float = 300.0

    def x(self, value: float) -> float:
        """Place a value across."""
        return self.left + self.width * _share(value, self.x_range)

    def y(self, value: float) -> float:
        """Place a value upwards."""
        return self.top + self.height * (1.0 - _share(value, self.y_range))

    def frame(self, x_label: str, y_label: str) -> str:
        """Draw grid, ticks and labels."""
        bottom, right = self.top + self.height, self.left + self.width
        parts = []
        for value in _ticks(self.x_range):
            at = self.x(value)
            parts += [
                element("line", x1=at, x2=at, y1=self.top, y2=bottom, stroke=GRID),
                text(_number(value), at, bottom + 16, text_anchor="middle", fill=FAINT),
            ]
        for value in _ticks(self.y_range):
            at = self.y(value)
            parts += [
                element("line", x1=self.left, x2=right, y1=at, y2=at, stroke=GRID),
                text(_number(value), self.left - 6, at + 4, text_anchor="end", fill=FAINT),
            ]
        middle = self.top + self.height / 2
        parts += [
            text(x_label, self.left + self.width / 2, bottom + 34, text_anchor="middle", fill=INK),
            text(y_label, 13, middle, text_anchor="middle", fill=INK, transform=f"rotate(-90 13 {middle:g})"),
        ]
        return "".join(parts)

    def line(self, start: tuple[float, float], end: tuple[float, float], **attributes: object) -> str:
        """Draw a line between two points of the axes."""
        (x1, y1), (x2, y2) = ((self.x(x), self.y(y)) for x, y in (start, end))
        return element("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)

    def mark(self, point: tuple[float, float], shape: int, words: str, **attributes: object) -> str:
        """Draw a mark that says something when it is pointed at."""
        place = f"translate({self.x(point[0]):.5g} {self.y(point[1]):.5g})"
        title = f"<title>{html.escape(words)}</title>"
        return element("path", title, d=MARKS[shape % len(MARKS)], transform=place, **attributes)


def _share(value: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return math.log(value / low) / math.log(high / low)


def _ticks(bounds: tuple[float, float]) -> Iterator[float]:
    """Yield round values: powers of ten, and 2 and 5 times those where the range is short."""
    low, high = bounds
    steps = (1, 2, 5) if high / low < 300 else (1,)
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        yield from (step * 10.0**power for step in steps if low <= step * 10.0**power <= high)


def _number(value: float) -> str:
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {name}"
    return f"{value:g}"
