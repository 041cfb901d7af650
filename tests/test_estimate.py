"""Costs of tasks: what each is made of, by policy, layer and phase."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm import operators
from hrm.dtypes import DType
from hrm.estimate import PassShape, head_cost, splits_experts, task_costs
from hrm.memory import streamed_layer_bytes
from hrm.policy import Processor, ScheduleName, Staging
from hrm.policy_grid import PolicyGrid
from hrm.rates import Rates
from hrm.schedule.catalog import build_schedule
from hrm.schedule.task import Phase, TaskKind
from tests.machines import (
    any_machines,
    any_models,
    any_policies,
    any_workloads,
    level,
    machine,
    model,
    policy,
    with_level,
    workload,
)

PROPERTY = settings(max_examples=80, deadline=None)


def roof(hardware):
    return Rates(hardware=hardware, measured=False)


def ceiling(hardware):
    return Rates(hardware=hardware, measured=True)


def decoding(sequences=2, step=2.0, job=None):
    return PassShape(phase=Phase.DECODE, sequences=sequences, step=step, workload=job or workload())


def prefilling(sequences=2, job=None):
    return PassShape(phase=Phase.PREFILL, sequences=sequences, workload=job or workload())


def costs_at_roof(chosen, hardware, shape=None, spec=None):
    """Task costs in the first layer."""
    spec = spec or model()
    return task_costs(PolicyGrid.of(chosen), spec, roof(hardware), shape or decoding(), spec.layer_kind(0))


@given(any_machines(), any_policies(), any_models(), any_workloads(), st.booleans())
@PROPERTY
def test_every_task_of_a_schedule_has_a_cost(hardware, chosen, spec, job, measured):
    schedule, rates = build_schedule(chosen, spec), Rates(hardware=hardware, measured=measured)
    shapes = {Phase.PREFILL: prefilling(job=job), Phase.DECODE: decoding(job=job)}
    for phase, tasks in ((Phase.PREFILL, schedule.prefill), (Phase.DECODE, schedule.decode)):
        by_layer = {
            layer: task_costs(PolicyGrid.of(chosen), spec, rates, shapes[phase], layer) for layer in spec.layer_kinds
        }

        for task in tasks:
            assert task.kind is TaskKind.HEAD or task.kind in by_layer[spec.layer_kind(task.layer)]
        assert all(cost.seconds >= 0 for costs in by_layer.values() for cost in costs.values())


@given(any_machines(), any_policies(), any_models(), any_workloads(), st.booleans())
@PROPERTY
def test_work_moved_between_devices_is_neither_lost_nor_done_twice(hardware, chosen, spec, job, prefill):
    """Weights and products of the experts: both halves together are those of all of them."""
    grid, rates = PolicyGrid.of(chosen), roof(hardware)
    layer = spec.layer_kind(0)
    if not (layer.moe and splits_experts(grid, spec)):
        return
    shape = prefilling(job=job) if prefill else decoding(job=job)
    halves = task_costs(grid, spec, rates, shape, layer)
    whole = operators.experts(spec, shape.tokens, chosen.expert_dtype or chosen.weight_dtype, shape.workload.routing)

    assert halves[TaskKind.CPU_EXPERTS].bytes + halves[TaskKind.GPU_EXPERTS].bytes == pytest.approx(whole.bytes)
    assert halves[TaskKind.EXPERT_OFFLOAD].bytes == halves[TaskKind.EXPERT_UPLOAD].bytes > 0


def test_pages_carry_the_streamed_bytes_over_the_link():
    spec, chosen = model(), policy(pages_per_layer=3)
    costs = costs_at_roof(chosen, machine(link_bytes_per_s=1e3))
    streamed = streamed_layer_bytes(PolicyGrid.of(chosen), spec)

    assert 3 * costs[TaskKind.PAGE_COPY].seconds == pytest.approx(streamed / 1e3)
    assert 3 * costs[TaskKind.PAGE_COPY].bytes == pytest.approx(streamed)


def test_staging_reads_and_writes_each_byte_once():
    spec, chosen = model(), policy(staging=Staging.PAGEABLE, pages_per_layer=1)
    costs = costs_at_roof(chosen, machine(cpu=level(1e9, 1e3)))
    streamed = streamed_layer_bytes(PolicyGrid.of(chosen), spec)

    assert costs[TaskKind.PAGE_PIN].seconds == pytest.approx(2 * streamed / 1e3)


def test_a_dense_layer_has_no_pages_and_no_split():
    spec = model(dense_layers=(0,), dense_intermediate_size=24)
    chosen = policy(cpu_experts=2, staging=Staging.PAGEABLE)
    costs = costs_at_roof(chosen, machine(), spec=spec)

    assert set(costs) == {
        TaskKind.PRE_ATTENTION,
        TaskKind.QKV_OFFLOAD,
        TaskKind.ATTENTION,
        TaskKind.HIDDEN_UPLOAD,
        TaskKind.POST_ATTENTION,
    }


def test_prefill_sends_keys_and_values_down_and_decode_the_queries_too():
    spec, hardware = model(), machine(link_bytes_per_s=1e3)
    prefill, decode = (
        costs_at_roof(policy(), hardware, shape)[TaskKind.QKV_OFFLOAD].seconds
        for shape in (prefilling(job=workload(5, 5)), decoding())
    )

    assert prefill == pytest.approx(2 * 5 * 2 * spec.kv_size * 4 / 1e3)
    assert decode == pytest.approx(2 * (2 * spec.kv_size + spec.query_size) * 4 / 1e3)


@pytest.mark.parametrize("kv_on_gpu", [0.0, 0.25, 1.0])
def test_the_cache_on_the_host_comes_up_and_what_is_new_goes_down(kv_on_gpu):
    spec, hardware = model(), machine(link_bytes_per_s=1e3)
    chosen = policy(Processor.GPU, schedule=ScheduleName.KV_TRANSFER, kv_on_gpu=kv_on_gpu)
    costs = costs_at_roof(chosen, hardware, decoding(step=3.0, job=workload(12, 12)))
    token_bytes = 2 * spec.kv_size * 4 * (1 - kv_on_gpu)

    assert costs[TaskKind.KV_LOAD].bytes == pytest.approx(2 * 15 * token_bytes)
    assert costs[TaskKind.QKV_OFFLOAD].bytes == pytest.approx(2 * token_bytes)


def test_what_does_not_cross_has_no_latency():
    hardware = machine(latency_s=0.5)
    resident = task_costs(
        PolicyGrid.of(policy(resident_experts=4)), model(), ceiling(hardware), decoding(), model().layer_kind(0)
    )

    assert resident[TaskKind.PAGE_COPY].seconds == 0
    assert resident[TaskKind.HIDDEN_UPLOAD].latency_s == 0.5


def test_a_windowed_layer_attends_to_no_more_than_its_window():
    spec = model(sliding_window=5, windowed_layers=(0,))
    wide, narrow = (
        task_costs(PolicyGrid.of(policy()), spec, roof(machine()), decoding(job=workload(50, 50)), spec.layer_kind(at))
        for at in (1, 0)
    )
    five = operators.attention_decode(spec, 2, 5, DType.FLOAT32)

    assert narrow[TaskKind.ATTENTION].bytes == five.bytes < wide[TaskKind.ATTENTION].bytes


def test_several_gpus_sum_up_hidden_states_twice_a_layer_over_a_link_of_their_own():
    one = machine(gpu=level(1e10, 1e10))
    two = with_level(one, "gpu", count=2)
    post = {
        name: costs_at_roof(policy(), hardware)[TaskKind.POST_ATTENTION] for name, hardware in (("1", one), ("2", two))
    }
    peer = replace(
        two.links["h2d"], source="gpu", target="gpu", bytes_per_s=replace(one.links["h2d"].bytes_per_s, peak=1e15)
    )
    near = costs_at_roof(policy(), replace(two, links={**two.links, "peer": peer}))[TaskKind.POST_ATTENTION]

    assert post["2"].bytes == post["1"].bytes, "what crosses a link is not traffic of the GPUs' memory"
    assert post["2"].seconds > near.seconds
    assert near.seconds == pytest.approx(post["1"].seconds / 2, rel=1e-3)


def test_the_head_makes_logits_of_one_position_of_each_sequence():
    cost = head_cost(PolicyGrid.of(policy()), model(), roof(machine()), 3)

    assert cost.bytes == operators.lm_head(model(), 3, DType.FLOAT32).bytes
