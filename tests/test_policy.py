"""Policies: what contradicts itself is refused by the field at fault, and grids count as their entries do."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.errors import PolicyError
from hrm.policy import Processor, ScheduleName
from hrm.policy_grid import PolicyGrid
from tests.machines import any_models, any_policies, model, policy
from tests.policy_grids import grids

PROPERTY = settings(max_examples=150, deadline=None)
CPU, GPU = Processor.CPU, Processor.GPU


@given(any_policies(), any_models())
@PROPERTY
def test_every_expert_is_resident_computed_on_the_cpu_or_streamed(chosen, spec):
    parts = chosen.resident_experts, chosen.experts_on_cpu(spec), chosen.streamed_experts(spec)

    chosen.check(spec)
    assert sum(parts) == spec.num_experts
    assert min(parts) >= 0
    assert chosen.weights_on_gpu(spec) == chosen.resident_experts / spec.num_experts


@given(any_policies())
@PROPERTY
def test_micro_batches_divide_the_batch(chosen):
    bounds = [chosen.micro_batch_bounds(index) for index in range(chosen.num_micro_batches)]
    sizes = [end - first for first, end in bounds]

    assert [first for first, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    assert bounds[-1][1] == chosen.batch_size
    assert all(size == chosen.micro_batch_size for size in sizes[:-1])
    assert 0 < sizes[-1] <= chosen.micro_batch_size
    assert PolicyGrid.of(chosen).last_micro_batch_size == sizes[-1]


@given(any_policies(), any_models())
@PROPERTY
def test_the_grid_of_one_policy_is_that_policy(chosen, spec):
    grid = PolicyGrid.of(chosen)

    assert grid.take(0) == chosen
    assert grid.num_micro_batches == chosen.num_micro_batches
    assert grid.num_pages(model()) == chosen.num_pages(model())
    assert grid.experts_on_cpu(spec) == chosen.experts_on_cpu(spec)
    assert grid.streamed_experts(spec) == chosen.streamed_experts(spec)


@given(grids(), any_models())
@PROPERTY
def test_a_grid_counts_as_its_entries_do(grid, spec):
    for index in range(grid.batch_size.size):
        one = grid.take(index)
        one.check(spec)
        counted = {
            "num_micro_batches": (grid.num_micro_batches, one.num_micro_batches),
            "num_pages": (grid.num_pages(spec), one.num_pages(spec)),
            "experts_on_cpu": (grid.experts_on_cpu(spec), one.experts_on_cpu(spec)),
            "streamed_experts": (grid.streamed_experts(spec), one.streamed_experts(spec)),
        }
        for name, (many, expected) in counted.items():
            assert np.broadcast_to(many, grid.batch_size.shape)[index] == expected, name


def test_one_page_for_each_micro_batch_unless_said_otherwise_and_one_where_nothing_is_paged():
    assert policy().num_pages(model()) == policy().num_micro_batches == 3
    assert policy(pages_per_layer=7).num_pages(model()) == 7
    assert policy(schedule=ScheduleName.UNPAGED, pages_per_layer=7).num_pages(model()) == 1


def test_everything_else_runs_on_the_gpu_if_anything_does():
    assert policy(CPU, CPU).main_device is CPU
    for attention, ffn in ((CPU, GPU), (GPU, CPU), (GPU, GPU)):
        assert policy(attention, ffn, schedule=ScheduleName.CGOPIPE).main_device is GPU


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (policy(micro_batch_size=7), "micro_batch_size 7 exceeds batch_size 6"),
        (policy(resident_experts=5), "resident_experts 5: must be at most 4"),
        (policy(CPU, CPU, resident_experts=1), "resident_experts 1: must be at most 0"),
        (policy(resident_experts=3, cpu_experts=2), "cpu_experts 2: must be at most 1"),
        (policy(CPU, CPU, cpu_experts=1), "cpu_experts 1: must be at most 0"),
        (policy(GPU, CPU, cpu_experts=1, schedule=ScheduleName.CGOPIPE), "cpu_experts 1: must be at most 0"),
        (policy(CPU, CPU, schedule=ScheduleName.CGOPIPE), "schedule cgopipe: attention cpu and experts cpu run host"),
        (policy(schedule=ScheduleName.HOST), "schedule host"),
        (policy(GPU, schedule=ScheduleName.SERIAL), "schedule serial: needs attention_device cpu"),
        (policy(CPU, schedule=ScheduleName.KV_TRANSFER), "schedule kv-transfer: needs attention_device gpu"),
        (policy(CPU, schedule=ScheduleName.LAYERWISE), "schedule layerwise: needs attention_device gpu"),
        (policy(kv_on_gpu=0.5), "kv_on_gpu 0.5: must be 0.0 with attention_device cpu"),
        (policy(CPU, CPU, disk_experts=3, fuller_layers=2), "fuller_layers 2: must be at most 1"),
        (policy(CPU, CPU, disk_experts=1, fuller_layers=1), "fuller_layers 1: must be at most 0"),
        (policy(GPU, kv_on_gpu=0.5), "kv_on_gpu 0.5: must be 1.0 with attention_device gpu"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_policy_that_contradicts_itself_is_refused(chosen, said):
    with pytest.raises(PolicyError) as caught:
        chosen.check(model())

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.floats(0, 1))
@PROPERTY
def test_only_one_schedule_divides_the_cache(share):
    chosen = policy(GPU, schedule=ScheduleName.KV_TRANSFER, kv_on_gpu=share)

    chosen.check(model())
    if share < 1:
        with pytest.raises(PolicyError, match="only kv-transfer divides the cache"):
            replace(chosen, schedule=ScheduleName.CGOPIPE).check(model())
