"""A view of the roofs as one self-contained page, with sliders for N and mu over a grid that is computed beforehand.

Every number and the place of every word is computed here; the page's script looks up a cell and puts it on the axes.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from hrm.files import atomic_writer
from hrm.hardware import HardwareProfile
from hrm.model import ModelSpec
from hrm.views import roofline_scene as scene
from hrm.views.layer_operators import Shape
from hrm.views.placement import RooflineView, place_operators
from hrm.views.roofline_scene import PANELS, Span
from hrm.views.roofline_words import AXES_INCHES, LINE_INCHES, Words, changing_words, roof_words

__all__ = ["write_roofline_page"]

BATCH_SIZES = tuple(2**power for power in range(15))
MICRO_BATCH_SIZES = tuple(4**power for power in range(6))
"""What the sliders offer besides the sizes asked for."""
DIGITS = 5


def write_roofline_page(model: ModelSpec, hardware: HardwareProfile, shape: Shape, path: str | Path) -> None:
    """Write the page; it appears only when it is whole, and shows the N and mu of `shape` first.

    Raises
    ------
    FileError
        When the folder does not exist.
    """
    with atomic_writer(path) as stream:
        data = _page_data(model, hardware, shape)
        # A model may be called anything, also "</script>".
        embedded = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        template = files("hrm.views").joinpath("roofline_page.html").read_text(encoding="utf-8")
        stream.write(template.replace("@TITLE@", html.escape(data["title"])).replace("@DATA@", embedded))


def _page_data(model: ModelSpec, hardware: HardwareProfile, shape: Shape) -> dict[str, Any]:
    batches, micro = sorted({*BATCH_SIZES, shape.batch_size}), sorted({*MICRO_BATCH_SIZES, shape.micro_batch_size})
    views = [
        [place_operators(model, hardware, replace(shape, batch_size=n, micro_batch_size=min(n, u))) for u in micro]
        for n in batches
    ]
    asked = views[batches.index(shape.batch_size)][micro.index(shape.micro_batch_size)]
    axes = scene.span([view for row in views for view in row])
    roofs = [roof_words(asked, axes, panel) for panel in PANELS]
    return {
        "title": scene.title(asked),
        "conditions": scene.conditions(asked),
        "axes": [axes.left, axes.right, axes.bottom, axes.top],
        "axes_inches": AXES_INCHES,
        "line_inches": LINE_INCHES,
        "labels": [scene.INTENSITY_AXIS, scene.RATE_AXIS],
        "headings": [scene.heading(asked, panel) for panel in PANELS],
        "colours": {where: scene.colour(where) for where in (*asked.levels, *asked.links)},
        "roofs": [_roof_rows(asked, axes, panel) for panel in PANELS],
        "roof_words": [[_plain(words) for words in fixed] for fixed in roofs],
        "batch_sizes": batches,
        "micro_batch_sizes": micro,
        "start": [batches.index(shape.batch_size), micro.index(shape.micro_batch_size)],
        "cells": [[_cell(view, axes, roofs) for view in row] for row in views],
    }


def _cell(view: RooflineView, axes: Span, roofs: list[tuple[Words, ...]]) -> dict[str, Any]:
    return {
        "micro_batch_size": view.shape.micro_batch_size,
        "operators": [_operator_rows(view, panel) for panel in PANELS],
        "lines": [list(_line_rows(view, panel)) for panel in PANELS],
        "kernels": [_kernel_rows(view, panel) for panel in PANELS],
        "marks": [_mark_rows(view, panel) for panel in PANELS],
        "words": [
            [_plain(words) for words in changing_words(view, axes, panel, fixed)]
            for panel, fixed in zip(PANELS, roofs, strict=True)
        ],
    }


def _roof_rows(view: RooflineView, axes: Span, panel: str) -> list[list[Any]]:
    """Return colour, kind, words and both ends of each roof."""
    return [
        [roof.where, roof.kind, f"{roof.label} {roof.value}", roof.points] for roof in scene.roofs(view, axes, panel)
    ]


def _operator_rows(view: RooflineView, panel: str) -> list[list[Any]]:
    """Return name, place, colour, FLOP/byte, FLOP/s and bound of each placed operator."""
    return [
        [
            placed.name,
            scene.placement_words(placed),
            scene.colour_key(placed),
            _short(placed.operational_intensity_flop_per_byte[scene.colour_key(placed)]),
            _short(placed.attainable_flop_per_s),
            placed.bound,
        ]
        for placed in scene.operators_of(view, panel)
    ]


def _line_rows(view: RooflineView, panel: str) -> Iterator[list[Any]]:
    """Yield words, whether it is the one asked for, FLOP/byte, and its points: colour and FLOP/s."""
    for line in scene.lines_of(view, panel):
        points = [[where, _short(height)] for where, height in scene.line_points(line, view)]
        asked = int(scene.is_asked(line, view))
        yield [scene.line_words(line), asked, _short(line.operational_intensity_flop_per_byte), points]


def _kernel_rows(view: RooflineView, panel: str) -> list[list[Any]]:
    """Return name, colour, FLOP/byte of both ends, and FLOP/s."""
    return [
        [kernel.name, kernel.where, _short(kernel.start), _short(kernel.end), _short(kernel.flop_per_s)]
        for kernel in scene.kernels(view, panel)
    ]


def _mark_rows(view: RooflineView, panel: str) -> list[list[Any]]:
    """Return name, FLOP/byte, FLOP/s and the N where it applies."""
    return [
        [
            mark.name,
            _short(mark.at.operational_intensity_flop_per_byte),
            _short(mark.at.attainable_flop_per_s),
            None if mark.at.batch_size is None else _short(mark.at.batch_size),
        ]
        for mark in scene.marks(view, panel)
    ]


def _plain(words: Words) -> list[Any]:
    """Return text, place, angle, colour, width, and the point that a line leads to, in inches and degrees."""
    leader = None if words.leader_inches is None else [round(at, 3) for at in words.leader_inches]
    x, y = (round(at, 3) for at in words.at_inches)
    return [words.text, x, y, round(words.angle_deg, 2), words.where, round(words.size_inches[0], 3), leader]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
