"""What a judgement says of runs that are known: the truth, and one task or all waiting slower than predicted."""

import math
from dataclasses import replace

import pytest

from hrm.compare import KindTime, Measured
from hrm.policy import ScheduleName
from hrm.schedule.task import Lane, Phase, TaskKind
from hrm.validation.cases import Case, Origin, Run, draws, fitted
from hrm.validation.judgement import judge
from hrm.validation.quantities import END_TO_END, expected, lane_kinds
from hrm.validation.targets import targets
from hrm.workload import Workload
from tests.machines import machine, model, policy

MACHINE, MODEL = machine(), model()
WORKLOAD = Workload.from_prompt_lens((8, 8, 8, 8), 5)


def case(name="one", job="job", **changes):
    return Case(
        name=name,
        machine="m",
        model="n",
        job=job,
        origin=Origin.BEST,
        policy=replace(policy(), **changes),
        workload=WORKLOAD,
    )


def as_predicted(of, slower=1.0, kind=None, kind_slower=1.0):
    """Return a run that is as predicted, but for a factor on everything, or on the decode tasks of a kind."""
    found = expected(of.policy, MODEL, MACHINE, WORKLOAD)
    seconds = {name: value * slower for name, value in found.seconds.items()}
    if kind is not None:
        lane, name = found.work[f"decode.{kind}"].lane, f"decode.{kind}"
        longer_s = seconds[name] * (kind_slower - 1.0)
        for changed in (name, f"decode.{lane}", "decode"):
            seconds[changed] += longer_s
    whole_s = seconds["prefill"] + seconds["decode"]
    parts = {
        phase: {n.partition(".")[2]: v for n, v in seconds.items() if n.startswith(f"{phase}.")} for phase in Phase
    }
    return Measured(
        num_sequences=4,
        prompt_tokens=32,
        generated_tokens=20,
        prefill_s=seconds["prefill"],
        decode_s=seconds["decode"],
        throughput_tokens_per_s=20 / whole_s,
        decode_throughput_tokens_per_s=16 / seconds["decode"],
        prefill_throughput_tokens_per_s=32 / seconds["prefill"],
        peak_bytes={"gpu": 0, "cpu": 0},
        busy={
            phase: {Lane(n): v / seconds[phase] for n, v in parts[phase].items() if n in set(Lane)} for phase in Phase
        },
        task_s={
            phase: {TaskKind(n): KindTime(seconds=v, count=1) for n, v in parts[phase].items() if n in set(TaskKind)}
            for phase in Phase
        },
    )


def judged(*pairs):
    """Judge cases by their runs."""
    runs = [
        Run(case=of.name, round=index, took_s=1.0, measured=measured)
        for of, several in pairs
        for index, measured in enumerate(several)
    ]
    return judge([of for of, _ in pairs], runs, {"m": MACHINE}, {"n": MODEL})


def test_the_truth_has_no_error_and_no_regret():
    one, other = case("one"), case("other", micro_batch_size=1)
    found = judged((one, [as_predicted(one)] * 2), (other, [as_predicted(other)]))

    assert found.errors[END_TO_END].mape == pytest.approx(0.0, abs=1e-12)
    assert all(error.mape < 1e-9 for error in found.errors.values())
    assert [decision.regret for decision in found.decisions] == [0.0]
    assert found.tau == 1.0
    assert all(held.share == 1.0 for held in found.coverage.values())


def test_the_median_of_the_runs_counts_and_their_range_is_the_spread():
    one = case()
    (found,) = judged((one, [as_predicted(one, slower=factor) for factor in (1.0, 1.25, 1.1)])).cases

    assert found.error == pytest.approx(1 / 1.1 - 1)
    whole = found.quantities[END_TO_END]
    assert whole.spread_s == pytest.approx(0.25 * whole.predicted_s)


def test_a_slow_kind_of_task_is_named_with_its_lane():
    one = case()
    (found,) = judged((one, [as_predicted(one, kind=TaskKind.PAGE_COPY, kind_slower=3.0)])).cases

    where = found.attribution
    assert (where.phase, where.lane, where.kind) == (Phase.DECODE, Lane.H2D, TaskKind.PAGE_COPY)
    assert where.working_s == pytest.approx(where.off_s)
    assert where.waiting_s == pytest.approx(0.0, abs=1e-9)


def test_waiting_is_told_from_working():
    one = case()
    run = as_predicted(one)
    stalled = replace(
        run,
        decode_s=2 * run.decode_s,
        busy=run.busy | {Phase.DECODE: {lane: share / 2 for lane, share in run.busy[Phase.DECODE].items()}},
    )
    (found,) = judged((one, [stalled])).cases

    assert found.attribution.working_s == pytest.approx(0.0, abs=1e-9)
    assert found.attribution.waiting_s == pytest.approx(run.decode_s)
    assert "waited" in str(found.attribution)


def test_runs_that_failed_are_told_and_do_not_count():
    one = case()
    runs = [
        Run(case="one", round=0, took_s=1.0, failed="no memory"),
        Run(case="one", round=1, took_s=1.0, measured=as_predicted(one)),
    ]
    found = judge([one], runs, {"m": MACHINE}, {"n": MODEL})

    assert found.failed == {"one": "no memory"}
    assert found.cases[0].runs == 1
    with pytest.raises(ValueError, match="no run"):
        judge([one], runs[:1], {"m": MACHINE}, {"n": MODEL})


def test_disturbed_runs_count_only_where_there_is_no_other():
    one = case()
    slow = Run(case="one", round=0, took_s=1.0, measured=as_predicted(one, slower=2.0), disturbed=True)
    good = Run(case="one", round=1, took_s=1.0, measured=as_predicted(one))

    both = judge([one], [slow, good], {"m": MACHINE}, {"n": MODEL}).cases[0]
    alone = judge([one], [slow], {"m": MACHINE}, {"n": MODEL}).cases[0]

    assert both.runs == 1
    assert both.error == pytest.approx(0.0, abs=1e-12)
    assert alone.error == pytest.approx(-0.5)


def test_the_aims_are_missed_by_few_cases_and_bad_predictions():
    one = case()
    met = {aim.name: aim.met for aim in targets(judged((one, [as_predicted(one, slower=1.5)])))}

    assert met["cases"] is False
    assert met["error end to end (MAPE)"] is False


def test_every_kind_of_task_has_a_lane_and_work_that_fits_its_rate():
    of = case()
    found = expected(of.policy, MODEL, MACHINE, WORKLOAD)

    assert {f"decode.{kind}" for lane in Lane for kind in lane_kinds(found.work, Phase.DECODE, lane)} == {
        name for name in found.work if name.startswith("decode.")
    }
    post = found.work["decode.post_attention"]
    assert (
        post.flop / found.seconds["decode.post_attention"]
        <= MACHINE.levels["gpu"].compute_flop_per_s[of.policy.weight_dtype].roof
    )


def test_flop_do_not_depend_on_how_a_wave_is_cut():
    cut, whole = (expected(case(micro_batch_size=size).policy, MODEL, MACHINE, WORKLOAD).work for size in (1, 4))

    for name, work in whole.items():
        assert cut[name].flop == pytest.approx(work.flop)


def test_draws_meet_every_stratum_once():
    """What makes a Latin hypercube: projected on any axis, one point in each of as many strata as points."""
    endless = draws(7, seed=3)
    points = [next(endless) for _ in range(7)]

    for axis in ("batch", "placement", "gen_len"):
        assert sorted(math.floor(7 * getattr(point, axis)) for point in points) == list(range(7))


def test_drawn_policies_fit_and_can_be_run():
    from hrm.memory import ledger
    from hrm.shortage import shortage

    endless = draws(20, seed=0)
    for placement in (policy(), policy(schedule=ScheduleName.UNPAGED)):
        for draw in (next(endless) for _ in range(20)):
            found = fitted(placement, draw, MODEL, MACHINE, WORKLOAD)
            assert found is not None
            found.check(MODEL)
            assert shortage(ledger(found, MODEL, WORKLOAD), MACHINE) is None
