"""The ledger: real tensors, growth, and what does not fit."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.memory import ledger, page_bytes, shortage, streamed_layer_bytes
from hrm.policy import Processor
from tests.machines import cpu_only, level, machine, model, policies, policy, workload, workloads

PROPERTY = settings(max_examples=100, deadline=None)


def totals(chosen, spec, job):
    demand = ledger(chosen, spec, job)
    return demand.gpu.total_bytes, demand.cpu.total_bytes


@given(policies(), workloads(), st.integers(0, 5), st.integers(0, 5))
@PROPERTY
def test_grows_with_the_batch_and_with_the_micro_batch(chosen, job, more, wider):
    larger = replace(chosen, batch_size=chosen.batch_size + more + wider)
    wide = replace(larger, micro_batch_size=chosen.micro_batch_size + wider, pages_per_layer=larger.num_pages)
    larger = replace(larger, pages_per_layer=larger.num_pages)
    same_pages = replace(chosen, pages_per_layer=larger.num_pages)

    for less, greater in ((same_pages, larger), (larger, wide)):
        for before, after in zip(totals(less, model(), job), totals(greater, model(), job), strict=True):
            assert after >= before


@given(policies(), workloads())
@PROPERTY
def test_every_expert_lies_somewhere_exactly_once(chosen, job):
    spec = model()
    demand = ledger(chosen, spec, job)
    everything = spec.num_layers * spec.num_experts * spec.expert_parameters * 4

    assert demand.gpu.expert_weights + demand.cpu.expert_weights == everything
    assert page_bytes(chosen, spec) * chosen.num_pages == pytest.approx(streamed_layer_bytes(chosen, spec))


@given(policies(), workloads())
@PROPERTY
def test_the_kv_cache_lies_where_attention_is(chosen, job):
    demand = ledger(chosen, model(), job)
    on_gpu = chosen.attention_device is Processor.GPU

    assert (demand.gpu.kv_cache > 0) == on_gpu
    assert (demand.cpu.kv_cache > 0) == (not on_gpu)


def test_kv_cache_bytes_are_those_of_tensors():
    spec, job = model(), workload(9, 9, gen_len=4)
    cache = torch.empty(2, spec.num_layers, 6, job.max_context_len, spec.num_kv_heads, spec.head_dim)

    assert ledger(policy(), spec, job).cpu.kv_cache == cache.numel() * cache.element_size()


def test_weight_bytes_are_those_of_all_parameters():
    spec = model()
    demand = ledger(policy(ffn=Processor.CPU), spec, workload())

    assert demand.cpu.dense_weights + demand.cpu.expert_weights == 4 * spec.total_parameters
    assert demand.gpu.total_bytes == 0


def test_an_expert_kept_is_not_streamed():
    spec = model()
    streamed = [streamed_layer_bytes(policy(resident_experts=count), spec) for count in range(5)]

    assert streamed == [count * spec.expert_parameters * 4 for count in (4, 3, 2, 1, 0)]


def test_shortage_names_the_device_and_the_bytes():
    demand = ledger(policy(), model(), workload())
    needed = demand.gpu.total_bytes
    enough = machine(gpu=level(1e9, 1e9, capacity_bytes=needed))
    short = shortage(demand, machine(gpu=level(1e9, 1e9, capacity_bytes=needed - 1)))

    assert shortage(demand, enough) is None
    assert short is not None
    assert (short.device, short.missing_bytes) == ("gpu", 1)
    assert "gpu memory is short by 1 B" in str(short)


def test_a_limit_on_host_memory_counts():
    demand = ledger(policy(ffn=Processor.CPU), model(), workload())
    needed = demand.cpu.total_bytes

    assert shortage(demand, cpu_only(), needed) is None
    assert "cpu memory is short by 1 B" in str(shortage(demand, cpu_only(), needed - 1))


def test_two_processors_hold_twice_as_much():
    demand = ledger(policy(), model(), workload())
    half = level(1e9, 1e9, capacity_bytes=-(-demand.gpu.total_bytes // 2))

    assert shortage(demand, machine(gpu=half)) is not None
    assert shortage(demand, machine(gpu=replace(half, count=2))) is None
