"""Predicted beside measured: what a report holds, and when runs count as predicted."""

import json
from dataclasses import replace

import pytest

from hrm.compare import KindTime, Measured, compare_runs, load_run_report, report_run
from hrm.dtypes import DType
from hrm.errors import SchemaError
from hrm.estimate import Fidelity
from hrm.files import to_plain, write_json
from hrm.plan import PlanStatus
from hrm.schedule.task import Lane, Phase, TaskKind
from solver.grid import make_plan
from solver.problem import Problem
from tests.machines import machine, model, policy, workload


def plan():
    problem = Problem(
        model=model(), hardware=machine(), workload=workload(), weight_dtype=DType.FLOAT32, kv_dtype=DType.FLOAT32
    )
    return make_plan(problem, policy(), PlanStatus.GIVEN, Fidelity.CEILING)


def measured(made, slower=1.0):
    """What a run would have measured that took `slower` times as long as predicted."""
    times = made.prediction.times
    return Measured(
        num_sequences=4,
        prompt_tokens=32,
        generated_tokens=16,
        prefill_s=times.prefill_s * slower,
        decode_s=times.decode_s * slower,
        throughput_tokens_per_s=times.throughput_tokens_per_s / slower,
        decode_throughput_tokens_per_s=times.decode_throughput_tokens_per_s / slower,
        prefill_throughput_tokens_per_s=times.prefill_throughput_tokens_per_s / slower,
        peak_bytes={"gpu": 1, "cpu": 2},
        busy={Phase.PREFILL: {Lane.GPU: 1.0}, Phase.DECODE: {Lane.GPU: 0.5}},
        task_s={Phase.DECODE: {TaskKind.POST_ATTENTION: KindTime(seconds=1.0, count=2)}},
    )


def test_ratio_is_measured_over_predicted():
    made = plan()

    report = report_run(made, measured(made, slower=2.0))

    assert report.ratio["decode_s"] == pytest.approx(2.0)
    assert report.ratio["decode_throughput_tokens_per_s"] == pytest.approx(0.5)


def test_predicted_has_the_keys_of_measured():
    made = plan()

    report = report_run(made, measured(made))

    shared = {"prefill_s", "decode_s", "throughput_tokens_per_s", "decode_throughput_tokens_per_s", "peak_bytes"}
    assert shared <= set(report.predicted) & set(to_plain(report.measured))
    assert report.predicted["task_s"]["decode"]["post_attention"] > 0


def test_task_seconds_add_up_to_the_lanes():
    """The kinds of a phase together are all lanes in turn: at least the phase, which overlaps them."""
    prediction = plan().prediction

    assert sum(prediction.task_s[Phase.PREFILL].values()) >= prediction.times.prefill_s
    assert sum(prediction.task_s[Phase.DECODE].values()) >= prediction.times.decode_s


@pytest.mark.parametrize(("slower", "within"), [(1.0, True), (1.2, True), (0.9, True), (1.5, False), (0.5, False)])
def test_runs_are_within_tolerance_when_the_worst_is(slower, within):
    made = plan()
    runs = [report_run(made, measured(made)), report_run(made, measured(made, slower=slower))]

    comparison = compare_runs(runs, tolerance=0.25)

    assert comparison.within_tolerance is within
    assert comparison.worst_error == pytest.approx(abs(1 / slower - 1))


def test_a_run_of_another_job_is_noted():
    made = plan()
    gen_len = made.workload.gen_len
    same = replace(measured(made), num_sequences=6, prompt_tokens=72, generated_tokens=6 * gen_len)

    assert report_run(made, same).notes == ()
    (short,) = report_run(made, replace(same, generated_tokens=3 * gen_len)).notes
    assert f"answers of {gen_len} tokens" in short
    assert any("6 sequences and 2 ran" in note for note in report_run(made, replace(same, num_sequences=2)).notes)


def test_a_report_survives_its_file(tmp_path):
    made = plan()
    report = report_run(made, measured(made))
    write_json(tmp_path / "run.json", report)

    assert to_plain(load_run_report(tmp_path / "run.json")) == to_plain(report)


def test_a_report_without_its_measurements_is_refused(tmp_path):
    made = plan()
    document = to_plain(report_run(made, measured(made)))
    del document["measured"]
    path = tmp_path / "run.json"
    path.write_text(json.dumps(document))

    with pytest.raises(SchemaError, match="measured"):
        load_run_report(path)
