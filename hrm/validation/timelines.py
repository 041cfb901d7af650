"""The stretch of a timeline that a report shows, cut alike from what was predicted and what was measured."""

from __future__ import annotations

from dataclasses import replace

from hrm.hardware import HardwareProfile
from hrm.model import ModelSpec
from hrm.schedule.timeline import Timeline
from hrm.validation.cases import Bar, Case
from hrm.views.preview import middle_layers, preview

__all__ = ["bars", "first_passes", "predicted_bars"]

FIRST_PASSES = 3
"""Prefill, and decode until it is steady."""


def first_passes(timeline: Timeline) -> Timeline:
    """Return a timeline without what belongs to later passes."""
    tasks = tuple(one for one in timeline.tasks if one.pass_index < FIRST_PASSES)
    return replace(timeline, tasks=tasks, pass_end_s=timeline.pass_end_s[:FIRST_PASSES])


def bars(timeline: Timeline) -> tuple[Bar, ...]:
    """Return what runs during a few layers in the middle of the last pass."""
    stretch, _ = middle_layers(timeline)
    return tuple(
        Bar(lane=one.task.lane, kind=one.task.kind, part=one.task.part, start_s=one.start_s, end_s=one.end_s)
        for one in stretch.tasks
    )


def predicted_bars(case: Case, model: ModelSpec, hardware: HardwareProfile) -> tuple[Bar, ...]:
    """Return the same of a case as it is simulated."""
    return bars(first_passes(preview(case.policy, model, hardware, case.workload)))
