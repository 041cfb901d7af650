"""The ledger: real tensors, growth, and what does not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.dtypes import DType
from hrm.memory import demand, ledger, page_bytes, streamed_layer_bytes
from hrm.model import LatentAttention
from hrm.plan import machine_of
from hrm.policy import Processor, ScheduleName, Staging
from hrm.policy_grid import PolicyGrid
from hrm.shortage import shortage, usable_bytes
from tests.machines import (
    any_models,
    any_policies,
    any_workloads,
    cpu_only,
    level,
    machine,
    model,
    policies,
    policy,
    with_level,
    workload,
    workloads,
)
from tests.policy_grids import grids

PROPERTY = settings(max_examples=100, deadline=None)


def totals(chosen, spec, job):
    held = ledger(chosen, spec, job)
    return held.gpu.total_bytes, held.cpu.total_bytes


@given(policies(), workloads(), st.integers(0, 5), st.integers(0, 5))
@PROPERTY
def test_grows_with_the_batch_and_with_the_micro_batch(chosen, job, more, wider):
    larger = replace(chosen, batch_size=chosen.batch_size + more + wider)
    wide = replace(larger, micro_batch_size=chosen.micro_batch_size + wider, pages_per_layer=larger.num_pages(model()))
    larger = replace(larger, pages_per_layer=larger.num_pages(model()))
    same_pages = replace(chosen, pages_per_layer=larger.num_pages(model()))

    for less, greater in ((same_pages, larger), (larger, wide)):
        for before, after in zip(totals(less, model(), job), totals(greater, model(), job), strict=True):
            assert after >= before


@given(grids(), any_models(), any_workloads())
@PROPERTY
def test_a_grid_demands_what_the_ledgers_of_its_entries_hold(grid, spec, job):
    """Up to the fraction of a byte that quantised formats leave."""
    by_device = demand(grid, spec, job)
    for index in range(np.size(grid.batch_size)):
        held = ledger(grid.take(index), spec, job)
        for device, one in (("gpu", held.gpu), ("cpu", held.cpu)):
            classes = {
                name: float(np.broadcast_to(count, np.shape(grid.batch_size))[index])
                for name, count in by_device[device].items()
            }
            for name, count in classes.items():
                assert getattr(one, name) == pytest.approx(count, abs=1.0), (device, name)
            assert one.total_bytes == pytest.approx(sum(classes.values()), abs=6.0)


@given(any_policies(), any_models(), any_workloads())
@PROPERTY
def test_every_expert_lies_somewhere_exactly_once(chosen, spec, job):
    held, grid = ledger(chosen, spec, job), PolicyGrid.of(chosen)
    width = (chosen.expert_dtype or chosen.weight_dtype).bytes_per_element
    everything = spec.num_moe_layers * spec.num_experts * spec.expert_parameters * width

    on_disk = everything * chosen.disk_experts / spec.num_experts

    assert held.gpu.expert_weights + held.cpu.expert_weights + on_disk == pytest.approx(everything, abs=2)
    assert page_bytes(grid, spec) * chosen.num_pages(spec) == pytest.approx(streamed_layer_bytes(grid, spec))


@given(policies(), workloads())
@PROPERTY
def test_the_kv_cache_lies_where_attention_is(chosen, job):
    held = ledger(chosen, model(), job)
    on_gpu = chosen.attention_device is Processor.GPU

    assert (held.gpu.kv_cache > 0) == on_gpu
    assert (held.cpu.kv_cache > 0) == (not on_gpu)


@given(any_models(), workloads(), st.floats(0, 1))
@PROPERTY
def test_moving_the_cache_to_the_gpu_keeps_its_sum(spec, job, share):
    """Beside the double buffer through which the part on the host comes up, and the sequence at the division."""
    chosen = policy(Processor.GPU, schedule=ScheduleName.KV_TRANSFER, kv_on_gpu=1.0)
    whole, divided = (ledger(replace(chosen, kv_on_gpu=kv), spec, job) for kv in (1.0, share))
    tokens = job.micro_batch_prompt_tokens(chosen.micro_batch_size) + chosen.micro_batch_size * (job.gen_len - 1)
    sequence = job.max_context_len * spec.cache_width * 4 if 0 < share < 1 else 0
    buffers = 2 * ((1 - share) * tokens * spec.cache_width * 4 + sequence)
    rounding = spec.num_layers * sequence

    assert whole.cpu.kv_cache == 0
    assert divided.gpu.kv_cache + divided.cpu.kv_cache == pytest.approx(whole.gpu.kv_cache + buffers + rounding, abs=2)
    assert divided.cpu.kv_cache == pytest.approx((1 - share) * whole.gpu.kv_cache + rounding, abs=1)


@given(any_policies(), any_models(), any_workloads())
@PROPERTY
def test_keeping_an_expert_takes_its_bytes_from_the_host_and_never_more_link_bytes(chosen, spec, job):
    if chosen.main_device is Processor.CPU or chosen.resident_experts + chosen.cpu_experts == spec.num_experts:
        return
    on_disk = min(chosen.disk_experts, max(0, chosen.streamed_experts(spec) - 1))
    chosen = replace(chosen, disk_experts=on_disk)
    more = replace(chosen, resident_experts=chosen.resident_experts + 1)
    before, after = (ledger(one, spec, job) for one in (chosen, more))
    streamed = [streamed_layer_bytes(PolicyGrid.of(one), spec) for one in (chosen, more)]

    assert after.gpu.expert_weights >= before.gpu.expert_weights
    assert before.cpu.expert_weights - after.cpu.expert_weights == pytest.approx(
        after.gpu.expert_weights - before.gpu.expert_weights, abs=2
    )
    assert streamed[1] <= streamed[0]


def test_an_expert_on_disk_takes_its_bytes_from_host_memory_for_a_ring_that_stays():
    spec = model(hidden_size=64, intermediate_size=256, num_experts=8)
    held = [
        ledger(policy(Processor.CPU, Processor.CPU, disk_experts=count), spec, workload()).cpu for count in (0, 1, 8)
    ]
    expert = spec.expert_parameters * 4

    assert [one.expert_weights for one in held] == [2 * kept * expert for kept in (8, 7, 0)]
    assert [one.page_buffers for one in held] == [0, 6 * expert, 6 * expert]
    assert held[0].activations < held[1].activations == held[2].activations


def test_for_a_gpu_too_an_expert_on_disk_takes_its_bytes_from_host_memory_alone_for_a_ring():
    spec = model(hidden_size=64, intermediate_size=256, num_experts=8)
    kept, some, every = (ledger(policy(disk_experts=count), spec, workload()) for count in (0, 3, 8))
    expert = spec.expert_parameters * 4

    assert [one.cpu.expert_weights for one in (kept, some, every)] == [2 * count * expert for count in (8, 5, 0)]
    assert [one.cpu.page_buffers for one in (kept, some, every)] == [0, 6 * expert, 6 * expert]
    assert kept.gpu == some.gpu == every.gpu
    assert replace(every.cpu, expert_weights=0, page_buffers=0) == replace(kept.cpu, expert_weights=0, page_buffers=0)


def test_experts_on_disk_cross_from_the_ring_and_pass_no_staging_page():
    spec = model(hidden_size=64, intermediate_size=256, num_experts=8)
    some, every = (
        ledger(policy(disk_experts=count, staging=Staging.PAGEABLE), spec, workload()).cpu.page_buffers
        for count in (3, 8)
    )
    expert = spec.expert_parameters * 4

    assert (some, every) == ((2 + 6) * expert, 6 * expert)


def test_fuller_layers_hold_one_expert_more_each():
    spec = model(num_experts=8, num_layers=4)
    whole, some = (
        ledger(policy(Processor.CPU, Processor.CPU, disk_experts=5, fuller_layers=count), spec, workload()).cpu
        for count in (0, 3)
    )

    assert some.expert_weights - whole.expert_weights == 3 * spec.expert_parameters * 4
    assert some.page_buffers == whole.page_buffers


def test_experts_on_the_cpu_need_room_there_and_no_page_buffers():
    streamed, computed = (ledger(policy(cpu_experts=count), model(), workload()) for count in (0, 4))

    assert computed.cpu.workspace > streamed.cpu.workspace == 0
    assert computed.cpu.activations > streamed.cpu.activations
    assert computed.cpu.expert_weights == streamed.cpu.expert_weights
    assert computed.gpu.page_buffers == 0 < streamed.gpu.page_buffers


def test_a_windowed_layer_keeps_no_more_than_its_window():
    job = workload(50, 50, gen_len=11)
    plain = ledger(policy(), model(), job).cpu.kv_cache
    windowed = ledger(policy(), model(sliding_window=6, windowed_layers=(0,)), job).cpu.kv_cache

    assert windowed == pytest.approx(plain / 2 * (1 + 6 / 60))


def test_latents_are_cached_once_for_keys_and_values_of_all_heads():
    latent = LatentAttention(kv_lora_rank=6, nope_head_dim=4, rope_head_dim=2, value_head_dim=4)
    spec, job = model(latent=latent), workload(9, 9, gen_len=4)
    cache = torch.empty(spec.num_layers, 6, job.max_context_len, 6 + 2)

    assert ledger(policy(), spec, job).cpu.kv_cache == cache.numel() * cache.element_size()


def test_experts_may_have_a_format_of_their_own():
    spec = model()
    held = ledger(policy(weight_dtype=DType.BFLOAT16, expert_dtype=DType.INT8), spec, workload())

    assert held.cpu.expert_weights == spec.num_layers * 4 * spec.expert_parameters * (1 + 2 / 32)
    assert held.gpu.dense_weights == 2 * (spec.dense_parameters + spec.embedding_parameters)


def test_kv_cache_bytes_are_those_of_tensors():
    spec, job = model(), workload(9, 9, gen_len=4)
    cache = torch.empty(2, spec.num_layers, 6, job.max_context_len, spec.num_kv_heads, spec.head_dim)

    assert ledger(policy(), spec, job).cpu.kv_cache == cache.numel() * cache.element_size()


def test_weight_bytes_are_those_of_all_parameters():
    spec = model()
    held = ledger(policy(ffn=Processor.CPU), spec, workload())

    assert held.cpu.dense_weights + held.cpu.expert_weights == 4 * spec.total_parameters
    assert held.gpu.total_bytes == 0


def test_an_expert_kept_is_not_streamed():
    spec = model()
    streamed = [streamed_layer_bytes(PolicyGrid.of(policy(resident_experts=count)), spec) for count in range(5)]

    assert streamed == [count * spec.expert_parameters * 4 for count in (4, 3, 2, 1, 0)]


def test_shortage_names_the_device_and_the_bytes():
    held = ledger(policy(), model(), workload())
    needed = held.gpu.total_bytes
    enough = machine(gpu=level(1e9, 1e9, capacity_bytes=needed))
    short = shortage(held, machine(gpu=level(1e9, 1e9, capacity_bytes=needed - 1)))

    assert shortage(held, enough) is None
    assert short is not None
    assert (short.device, short.missing_bytes) == ("gpu", 1)
    assert "gpu memory is short by 1 B" in str(short)


def test_a_limit_on_host_memory_counts():
    held = ledger(policy(ffn=Processor.CPU), model(), workload())
    needed = held.cpu.total_bytes

    assert shortage(held, cpu_only(), needed) is None
    assert "cpu memory is short by 1 B" in str(shortage(held, cpu_only(), needed - 1))


def test_two_processors_hold_twice_as_much():
    held = ledger(policy(), model(), workload())
    half = level(1e9, 1e9, capacity_bytes=-(-held.gpu.total_bytes // 2))

    assert shortage(held, machine(gpu=half)) is not None
    assert shortage(held, machine(gpu=replace(half, count=2))) is None


def test_a_limit_on_host_memory_covers_interpreter_and_libraries_too():
    hardware = with_level(machine(), "cpu", runtime_bytes=300)

    assert usable_bytes(hardware, "cpu", ram_limit_bytes=1000) == 700
    assert usable_bytes(hardware, "cpu", ram_limit_bytes=100) == 0
    assert usable_bytes(hardware, "cpu") == machine().level("cpu").usable_bytes
    assert machine_of(hardware).runtime_bytes == 300
