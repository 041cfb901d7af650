"""Traces and pictures of timelines: valid by the trace-event format, with every gap labelled."""

import json
from dataclasses import replace
from numbers import Real

import pytest

from hrm.errors import HrmError
from hrm.files import write_yaml
from hrm.hardware import EmulatedSpec
from hrm.policy import ScheduleName
from hrm.schedule.catalog import build_schedule
from hrm.schedule.sharing import Work
from hrm.schedule.simulator import PassLoad
from hrm.schedule.task import Lane, Phase, TaskKind
from hrm.schedule.timeline import simulate_timeline
from hrm.views.gantt import STYLES, draw_gantt
from hrm.views.preview import middle_layers, preview
from hrm.views.trace import measured_timeline, trace_events, write_trace
from tests.engines import prompts_for
from tests.engines import tiny_model as tiny_checkpoint
from tests.machines import machine, workload
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


@pytest.mark.parametrize("name", ScheduleName)
def test_a_preview_is_prefill_and_a_few_decode_passes(name):
    policy, model = tiny_policy(name), tiny_model()
    seen = preview(policy, model, machine(), workload(gen_len=9))
    schedule = build_schedule(policy, model)

    assert len(seen.pass_end_s) == 1 + 3
    given = [*schedule.prologue, *(task for _, tasks in schedule.passes(1 + 3) for task in tasks)]
    assert sorted(one.task.key for one in seen.tasks) == sorted(task.key for task in given)


@pytest.mark.parametrize(("gen_len", "words"), [(1, "prefill, layers"), (4, "decode, layers")])
def test_a_picture_shows_two_whole_layers_in_the_middle_of_the_last_pass(gen_len, words):
    model, policy = tiny_model(num_layers=7), tiny_policy()
    seen = preview(policy, model, machine(), workload(gen_len=gen_len))
    stretch, said = middle_layers(seen)

    posts = [one.task for one in stretch.tasks if one.task.kind is TaskKind.POST_ATTENTION]
    assert said == f"{words} 3 to 4 of 7"
    assert [(task.layer, task.part) for task in posts] == [(layer, part) for layer in (2, 3) for part in range(4)]
    assert {one.pass_index for one in stretch.tasks} <= {gen_len - 1}


def test_a_picture_of_very_many_micro_batches_shows_the_first_of_them():
    seen = preview(tiny_policy(batch_size=60), tiny_model(num_layers=7), machine(), workload())
    stretch, said = middle_layers(seen)

    assert said == "decode, 24 micro-batches of 60, layer 3 of 7"
    assert sum(one.task.kind is TaskKind.POST_ATTENTION for one in stretch.tasks) == 24


def processes(path):
    """The names of a trace's processes, and the lanes of each."""
    events = json.loads(path.read_text())["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    lanes: dict[str, set[str]] = {name: set() for name in names.values()}
    for event in events:
        if event["name"] == "thread_name":
            lanes[names[event["pid"]]].add(event["args"]["name"])
    return lanes


ON_L4 = ["predict", "--model", "mixtral-8x7b", "--hardware", "S2", "--batch-size", "64", "--micro-batch-size", "16"]


def test_predict_writes_a_trace_and_a_picture(hrm, tmp_path):
    trace, picture = tmp_path / "trace.json", tmp_path / "gantt.png"
    code, _, _ = hrm(*ON_L4, "--weight-dtype", "float16", "--trace", trace, "--gantt", picture)

    assert code == 0
    assert processes(trace) == {"predicted": {"gpu", "cpu", "h2d", "d2h"}}
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gantt", "picture.pdf"], "pictures are drawn as"),
        (["--trace", "no-such-folder/trace.json"], "does not exist"),
        (["--trace", "trace.json", "--schedule", "all"], "one schedule"),
    ],
)
def test_predict_refuses_what_it_cannot_draw(hrm, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = hrm(*ON_L4, *arguments)

    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def job(hrm, tmp_path):
    """A plan for an emulated device, its machine's profile, and the arguments that run it."""
    spec = EmulatedSpec(name="tiny", memory_capacity_bytes=2**26, h2d_bytes_per_s=2e9, d2h_bytes_per_s=2e9)
    profile, plan, prompts, checkpoint = (tmp_path / name for name in ("m.yaml", "p.yaml", "prompts.jsonl", "model"))
    write_yaml(profile, replace(machine(), device="emulated", emulated=spec))
    model = tiny_checkpoint("mixtral", seed=1)
    model.save_pretrained(checkpoint)
    asked = prompts_for(model)
    prompts.write_text("".join(json.dumps({"id": one.id, "tokens": one.tokens}) + "\n" for one in asked))
    sizes = ["--batch-size", "4", "--micro-batch-size", "2", "--weight-dtype", "float32", "--kv-dtype", "float32"]
    lengths = ["--prompt-len", "6", "--max-prompt-len", "11", "--gen-len", "5", "--num-sequences", "7"]
    code, _, err = hrm("predict", "--model", checkpoint, "--hardware", profile, *sizes, *lengths, "-o", plan)
    assert code == 0, err
    return profile, plan, ["run", plan, "--checkpoint", checkpoint, "--prompts", prompts, "-o", tmp_path / "out.jsonl"]


def test_a_run_is_traced_beside_its_prediction(hrm, job, tmp_path):
    profile, _, run = job
    trace = tmp_path / "trace.json"

    assert hrm(*run, "--trace", trace)[0] == 0
    lanes = {"gpu", "cpu", "h2d", "d2h"}
    assert processes(trace) == {"measured": lanes}
    assert hrm(*run, "--trace", trace, "--hardware", profile)[0] == 0
    assert processes(trace) == {"predicted": lanes, "measured": lanes}


def test_the_prediction_beside_a_run_is_for_the_machine_of_its_plan(hrm, job, tmp_path):
    _, plan, run = job

    code, _, err = hrm(*run, "--trace", tmp_path / "trace.json", "--hardware", "S2")
    assert code == 2
    assert "the plan is for made up" in err
    code, _, err = hrm("predict", "--plan", plan, "--trace", tmp_path / "trace.json")
    assert code == 2
    assert "--hardware: needed" in err
    assert not (tmp_path / "trace.json").exists()
