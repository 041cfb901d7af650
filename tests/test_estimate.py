"""Costs of operators and tasks: roofs below ceilings, and what each is made of."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm import operators
from hrm.ceilings import CeilingTable, Kernel
from hrm.dtypes import DType
from hrm.estimate import Fidelity, add_costs, decode_shape, operator_cost, prefill_shape, task_costs
from hrm.lanes import lane_work, pass_costs
from hrm.memory import streamed_layer_bytes
from hrm.policy import Staging
from hrm.roofline import attainable
from hrm.schedule.catalog import build_schedule
from hrm.schedule.task import Lane, Phase, TaskKind
from tests.machines import level, machine, machines, model, policies, policy, workload, workloads

PROPERTY = settings(max_examples=60, deadline=None)


def projections(seconds):
    return CeilingTable(
        kernel=Kernel.PROJECTION, level="cpu", dtype=DType.FLOAT32, sizes=(1.0,), rows=(1,), seconds=((seconds,),)
    )


@given(machines(), st.integers(1, 64), st.sampled_from(["cpu", "gpu"]))
@PROPERTY
def test_at_peaks_an_operator_runs_at_what_the_roofline_attains(hardware, tokens, place):
    operator = operators.experts(model(), tokens, DType.FLOAT32)
    cost = operator_cost(operator, hardware, place, measured=False)
    reached = attainable(operator, hardware, place)

    assert operator.flop / cost.seconds == pytest.approx(reached.flop_per_s)
    assert cost.bound is reached.bound


@given(machines(), st.integers(1, 64), st.floats(1e-12, 1.0))
@PROPERTY
def test_measured_is_never_faster_than_peaks(hardware, tokens, table_s):
    operator = operators.qkv_proj(model(), tokens, DType.FLOAT32)
    for machine_ in (hardware, replace(hardware, ceilings=(projections(table_s),))):
        peak, measured = (operator_cost(operator, machine_, "cpu", measured=flag).seconds for flag in (False, True))

        assert peak <= measured


def test_a_ceiling_table_is_believed_over_rates():
    operator = operators.qkv_proj(model(), 1, DType.FLOAT32)
    measured = replace(machine(), ceilings=(projections(1.0),))
    size = operator.size

    assert operator_cost(operator, measured, "cpu", measured=True).seconds == pytest.approx(size)
    assert operator_cost(operator, measured, "gpu", measured=True).seconds < 1e-3
    assert operator_cost(replace(operator, dtype=DType.BFLOAT16), measured, "cpu", measured=True).seconds < 1e-3


def test_each_expert_called_is_a_launch():
    operator = operators.experts(model(), 1000, DType.FLOAT32)
    quick, slow = (machine(gpu=level(1e10, 1e10, launch_s=launch_s)) for launch_s in (0.0, 0.5))
    costs = [operator_cost(operator, hardware, "gpu", measured=True).seconds for hardware in (quick, slow)]

    assert costs[1] - costs[0] == pytest.approx(4 * 0.5)


@given(machines(), policies(), st.integers(1, 50))
@PROPERTY
def test_every_task_of_a_schedule_has_a_cost(hardware, chosen, context):
    spec = model()
    schedule = build_schedule(chosen, spec)
    for fidelity in Fidelity:
        by_kind = task_costs(chosen, spec, hardware, decode_shape(2, context), fidelity).by_kind

        assert {task.kind for task in schedule.decode} <= set(by_kind)
        assert all(cost.seconds >= 0 for cost in by_kind.values())


@given(machines(), policies(), workloads())
@PROPERTY
def test_lane_work_is_the_sum_of_the_tasks_on_the_lane(hardware, chosen, job):
    """So the closed form that the search uses and the schedule that is simulated and run cannot drift apart."""
    spec = model()
    schedule = build_schedule(chosen, spec)
    shapes = {
        Phase.PREFILL: lambda count: prefill_shape(job, count),
        Phase.DECODE: lambda count: decode_shape(count, 9),
    }
    for phase, tasks in ((Phase.PREFILL, schedule.prefill), (Phase.DECODE, schedule.decode)):
        for fidelity in Fidelity:
            costs = pass_costs(chosen, spec, hardware, shapes[phase], fidelity)
            summed = dict.fromkeys(Lane, 0.0)
            for task in tasks:
                summed[task.lane] += costs.task_s(task)
            work = lane_work(costs, chosen, spec, phase).seconds

            assert {lane: seconds for lane, seconds in summed.items() if seconds} == pytest.approx(
                {lane: seconds for lane, seconds in work.items() if seconds}
            )


def test_pages_carry_the_streamed_bytes_over_the_link():
    spec, chosen = model(), policy(pages_per_layer=3)
    costs = task_costs(chosen, spec, machine(link_bytes_per_s=1e3), decode_shape(2, 4), Fidelity.ROOF)

    assert 3 * costs.by_kind[TaskKind.PAGE_COPY].seconds == pytest.approx(streamed_layer_bytes(chosen, spec) / 1e3)


def test_staging_reads_and_writes_each_byte_once():
    spec, chosen = model(), policy(staging=Staging.PAGEABLE, pages_per_layer=1)
    costs = task_costs(chosen, spec, machine(cpu=level(1e9, 1e3)), decode_shape(2, 4), Fidelity.ROOF)

    assert costs.by_kind[TaskKind.PAGE_PIN].seconds == pytest.approx(2 * streamed_layer_bytes(chosen, spec) / 1e3)


def test_prefill_sends_keys_and_values_down_and_decode_the_queries_too():
    spec, chosen, hardware = model(), policy(), machine(link_bytes_per_s=1e3)
    prefill, decode = (
        task_costs(chosen, spec, hardware, shape, Fidelity.ROOF).by_kind[TaskKind.QKV_OFFLOAD].seconds
        for shape in (prefill_shape(workload(5, 5), 2), decode_shape(2, 5))
    )

    assert prefill == pytest.approx(2 * 5 * 2 * spec.kv_size * 4 / 1e3)
    assert decode == pytest.approx(2 * (2 * spec.kv_size + spec.query_size) * 4 / 1e3)


@given(st.floats(0.1, 1.0))
@PROPERTY
def test_contention_stretches_a_lane_by_its_overlap_at_most(kept):
    spec, chosen = model(), policy()
    alone = pass_costs(chosen, spec, machine(), lambda count: decode_shape(count, 9), Fidelity.CEILING)
    shared = pass_costs(
        chosen, spec, machine(contention={"h2d": kept}), lambda count: decode_shape(count, 9), Fidelity.CEILING
    )
    before, after = (lane_work(costs, chosen, spec, Phase.DECODE).seconds for costs in (alone, shared))

    assert before[Lane.H2D] <= after[Lane.H2D] <= before[Lane.H2D] / kept * (1 + 1e-9)
    assert after[Lane.GPU] == before[Lane.GPU]


def test_added_costs_keep_what_bound_them():
    slow = operator_cost(operators.elementwise(model(), 8, DType.FLOAT32), machine(), "cpu", measured=False)
    hard = operator_cost(operators.experts(model(), 8, DType.FLOAT32), machine(), "cpu", measured=False)
    total = add_costs([slow, hard])

    assert total.seconds == pytest.approx(slow.seconds + hard.seconds)
    assert sum(total.by_bound.values()) == pytest.approx(total.seconds)
