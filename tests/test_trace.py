"""Traces and pictures of timelines: valid by the trace-event format, with every gap labelled."""

import json
from numbers import Real

import pytest

from hrm.errors import HrmError
from hrm.gantt import STYLES, draw_gantt
from hrm.policy import ScheduleName
from hrm.schedule.catalog import build_schedule
from hrm.schedule.sharing import Work
from hrm.schedule.simulator import PassLoad
from hrm.schedule.task import Lane, Phase, TaskKind
from hrm.schedule.timeline import simulate_timeline
from hrm.trace import measured_timeline, trace_events, write_trace
from tests.schedules import GPU_SCHEDULES, tiny_model, tiny_policy

SECONDS = {TaskKind.PAGE_COPY: 3.0, TaskKind.ATTENTION: 2.0}
GEN_LEN = 3


def schedule_and_timeline(name=ScheduleName.CGOPIPE):
    schedule = build_schedule(tiny_policy(name), tiny_model())

    def work_of(task):
        return Work(SECONDS.get(task.kind, 1.0))

    loads = [PassLoad(phase=Phase.PREFILL, work_of=work_of), PassLoad(phase=Phase.DECODE, work_of=work_of, count=2)]
    return schedule, simulate_timeline(schedule, loads)


def spans(timeline):
    """What the executor reports of a run: the prologue counts as pass 0, and its clock starts anywhere."""
    return [(max(t.pass_index, 0), t.task.key, t.start_s + 7.0, t.end_s + 7.0) for t in timeline.tasks]


@pytest.mark.parametrize("name", GPU_SCHEDULES)
def test_a_trace_is_valid_by_the_trace_event_format(name, tmp_path):
    schedule, predicted = schedule_and_timeline(name)
    measured = measured_timeline(schedule, GEN_LEN, spans(predicted))
    write_trace(tmp_path / "trace.json", {"predicted": predicted, "measured": measured})
    trace = json.loads((tmp_path / "trace.json").read_text())

    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            assert set(event["args"]) == {"sort_index" if event["name"].endswith("index") else "name"}
        else:
            assert event["ph"] == "X"
            assert isinstance(event["cat"], str)
            assert all(isinstance(event[field], Real) and event[field] >= 0 for field in ("ts", "dur"))
    names = [event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"]
    assert names == ["predicted", "measured"]


def test_tasks_and_labelled_gaps_fill_a_lane_without_overlap():
    _, timeline = schedule_and_timeline()
    events = [event for event in trace_events({"predicted": timeline})["traceEvents"] if event["ph"] == "X"]
    for thread in {event["tid"] for event in events}:
        end = 0.0
        for event in sorted((one for one in events if one["tid"] == thread), key=lambda one: one["ts"]):
            assert event["ts"] == pytest.approx(end)
            end = event["ts"] + event["dur"]
    waits = [event["name"] for event in events if event["cat"] == "wait"]
    assert "waits for attention 0.0" in waits
    assert not any("its turn" in name for name in waits)


@pytest.mark.parametrize("name", GPU_SCHEDULES)
def test_a_run_that_went_as_predicted_waited_for_the_same(name):
    """Times and waits come back from what an executor records; where two needs are met at once either will do."""
    schedule, predicted = schedule_and_timeline(name)
    measured = measured_timeline(schedule, GEN_LEN, spans(predicted))
    ends = {(t.pass_index, t.task.key): t.end_s for t in predicted.tasks}
    by_key = {(t.pass_index, t.task.key): t for t in measured.tasks}

    assert measured.pass_end_s == pytest.approx(predicted.pass_end_s)
    assert len(by_key) == len(predicted.tasks)
    for timed in predicted.tasks:
        found = by_key[timed.pass_index, timed.task.key]
        assert (found.start_s, found.end_s) == pytest.approx((timed.start_s, timed.end_s))
        assert found.waited_s == pytest.approx(timed.waited_s)
        if timed.waited_for is not None:
            assert found.waited_for is not None
            needs = [(found.pass_index - need.passes_ago, need.key) for need in found.task.needs]
            assert max(ends.get(need, 0.0) for need in needs) == pytest.approx(found.start_s)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_drawn_in_either_format(suffix, tmp_path):
    _, timeline = schedule_and_timeline()
    path = tmp_path / f"gantt.{suffix}"
    draw_gantt(timeline.between(5.0, 30.0), path, "title", "subtitle")

    assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm")


def test_a_picture_of_nothing_or_in_another_format_is_refused(tmp_path):
    _, timeline = schedule_and_timeline()

    with pytest.raises(HrmError, match="pictures are drawn as"):
        draw_gantt(timeline, tmp_path / "gantt.pdf", "title")
    with pytest.raises(HrmError, match="nothing runs"):
        draw_gantt(timeline.between(1e6, 1e7), tmp_path / "gantt.png", "title")


def test_every_kind_of_task_has_a_colour_of_its_own():
    assert set(STYLES) == set(TaskKind)
    assert len({colour for colour, _, _ in STYLES.values()}) == len(STYLES)


def test_a_stretch_of_a_timeline_is_cut_off_at_its_ends():
    _, timeline = schedule_and_timeline()
    whole = timeline.between(0.0, timeline.pass_end_s[-1] * 2)
    cut = timeline.between(4.0, 9.0)

    assert [t.task.key for t in whole.tasks] == [t.task.key for t in timeline.tasks]
    assert min(timed.start_s for timed in cut.tasks) >= 0
    assert max(timed.end_s for timed in cut.tasks) <= 5.0
    assert cut.busy_s(Lane.H2D) <= 5.0
