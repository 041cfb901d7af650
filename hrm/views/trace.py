"""Timelines as Chrome trace-event JSON, for ui.perfetto.dev or chrome://tracing: lanes as threads, runs side by side.

Format: "Trace Event Format", Google, 2016: complete events (`ph` X) with microseconds, metadata events (`ph` M).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hrm.files import atomic_writer
from hrm.schedule.task import Lane, Schedule, Task, TaskKey
from hrm.schedule.timeline import TimedTask, Timeline

__all__ = ["measured_timeline", "trace_events", "write_trace"]

MICRO = 1e6
RanTask = tuple[int, TaskKey, float, float]
"""Pass (the prologue counts as pass 0), key, start and end in seconds of any clock."""


def trace_events(timelines: Mapping[str, Timeline]) -> dict[str, Any]:
    """Return the trace of some timelines by name (`predicted`, `measured`), each as a process."""
    events: list[dict[str, Any]] = []
    for process, (name, timeline) in enumerate(timelines.items(), start=1):
        events.append(_metadata("process_name", process, 0, name=name))
        for thread, lane in enumerate(Lane, start=1):
            if timeline.of_lane(lane):
                events.append(_metadata("thread_name", process, thread, name=lane.value))
                events.append(_metadata("thread_sort_index", process, thread, sort_index=thread))
                events.extend(_lane_events(timeline.of_lane(lane), process, thread))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def write_trace(path: str | Path, timelines: Mapping[str, Timeline]) -> None:
    """Write the trace of some timelines by name; the file appears only when it is whole.

    Raises
    ------
    FileError
        When the folder does not exist.
    """
    with atomic_writer(Path(path), "w") as stream:
        json.dump(trace_events(timelines), stream)


def measured_timeline(schedule: Schedule, gen_len: int, ran: Iterable[RanTask]) -> Timeline:
    """Turn the tasks of one wave that have run into a timeline from 0 on; what they waited for is told by the schedule.

    A lane's gap ends with the last of a task's needs; where all had been met before, the lane waited for none of them
    (it was being given the task).
    """
    given = {(-1, task.key): task for task in schedule.prologue}
    for index, (_, tasks) in enumerate(schedule.passes(gen_len)):
        given |= {(index, task.key): task for task in tasks}
    ordered = sorted(ran, key=lambda one: one[2])
    begun_s = ordered[0][2] if ordered else 0.0
    ends: dict[tuple[int, TaskKey], float] = {}
    free: dict[Lane, float] = {}
    timed = []
    for pass_index, key, start_s, end_s in ordered:
        laid_before = pass_index == 0 and (-1, key) in given and (-1, key) not in ends
        name = (-1 if laid_before else pass_index, key)
        task = given[name]
        start_s, end_s = start_s - begun_s, end_s - begun_s
        waited_s = max(start_s - free.get(task.lane, 0.0), 0.0)
        cause = _last_need(task, name[0], ends, start_s - waited_s)
        timed.append(
            TimedTask(
                pass_index=name[0],
                task=task,
                start_s=start_s,
                end_s=end_s,
                waited_s=waited_s,
                waited_for=given[cause] if cause else None,
            )
        )
        free[task.lane] = ends[name] = end_s
    return Timeline(tasks=tuple(timed), pass_end_s=_pass_ends(timed))


def _last_need(
    task: Task, pass_index: int, ends: Mapping[tuple[int, TaskKey], float], since_s: float
) -> tuple[int, TaskKey] | None:
    """Return the need of a task that was met last, if that was after `since_s`."""
    needs = [(pass_index - need.passes_ago, need.key) for need in task.needs]
    return max((need for need in needs if ends.get(need, since_s) > since_s), key=lambda need: ends[need], default=None)


def _pass_ends(timed: list[TimedTask]) -> tuple[float, ...]:
    ends: dict[int, float] = {}
    for one in timed:
        if one.pass_index >= 0 and not one.task.for_next_pass:
            ends[one.pass_index] = max(ends.get(one.pass_index, 0.0), one.end_s)
    return tuple(ends[index] for index in sorted(ends))


def _metadata(event: str, process: int, thread: int, **args: object) -> dict[str, Any]:
    return {"name": event, "ph": "M", "pid": process, "tid": thread, "args": args}


def _lane_events(tasks: Iterable[TimedTask], process: int, thread: int) -> Iterator[dict[str, Any]]:
    for timed in tasks:
        task = timed.task
        if timed.waited_s > 0:
            waits = _name(timed.waited_for) if timed.waited_for else "its turn"
            yield _complete(
                f"waits for {waits}", "wait", (timed.start_s - timed.waited_s, timed.start_s), (process, thread)
            )
        args = {"layer": task.layer, "part": task.part, "pass": timed.pass_index, "for_next_pass": task.for_next_pass}
        event = _complete(_name(task), task.kind.value, (timed.start_s, timed.end_s), (process, thread))
        yield event | {"args": args}


def _name(task: Task) -> str:
    return f"{task.kind.value} {task.layer}.{task.part}"


def _complete(name: str, category: str, span: tuple[float, float], where: tuple[int, int]) -> dict[str, Any]:
    start_s, end_s = span
    process, thread = where
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": start_s * MICRO,
        "dur": (end_s - start_s) * MICRO,
        "pid": process,
        "tid": thread,
    }
