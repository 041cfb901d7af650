"""Predictions: order of the fidelities, monotone in the machine, and what a job adds up to."""

from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.dtypes import DType
from hrm.estimate import Fidelity, decode_shape, prefill_shape
from hrm.hardware import load_profile
from hrm.lanes import lane_work, pass_costs
from hrm.model_config import load_model
from hrm.policy import Processor
from hrm.predict import predict
from hrm.schedule.task import Lane, Phase
from tests.machines import machine, machines, model, policies, policy, rate, workload, workloads

PROPERTY = settings(max_examples=60, deadline=None)


def total_s(predicted, fidelity):
    times = predicted.by_fidelity[fidelity]
    return times.prefill_s + times.decode_s


def faster(hardware, what, factor):
    """The machine with one of its rates multiplied."""
    place, _, kind = what.partition(".")
    if kind == "link":
        link = hardware.links[place]
        changed = replace(link, bytes_per_s=rate(link.bytes_per_s.peak * factor))
        return replace(hardware, links=hardware.links | {place: changed})
    old = hardware.levels[place]
    if kind == "memory":
        changed = replace(old, read_bytes_per_s=rate(old.read_bytes_per_s.peak * factor))
    else:
        compute = {dtype: rate(one.peak * factor) for dtype, one in old.compute_flop_per_s.items()}
        changed = replace(old, compute_flop_per_s=compute)
    return replace(hardware, levels=hardware.levels | {place: changed})


RATES = ("h2d.link", "d2h.link", "cpu.memory", "cpu.compute", "gpu.memory", "gpu.compute")


@given(machines(), policies(), workloads(), st.sampled_from(RATES), st.floats(1, 20))
@PROPERTY
def test_a_faster_machine_is_never_predicted_slower(hardware, chosen, job, what, factor):
    before = predict(chosen, model(), hardware, job)
    after = predict(chosen, model(), faster(hardware, what, factor), job)

    for fidelity in Fidelity:
        assert total_s(after, fidelity) <= total_s(before, fidelity) * (1 + 1e-9)


@given(machines(), policies(), workloads())
@PROPERTY
def test_no_ceiling_beats_its_roof(hardware, chosen, job):
    by_fidelity = predict(chosen, model(), hardware, job).by_fidelity
    roof, ceiling = by_fidelity[Fidelity.ROOF], by_fidelity[Fidelity.CEILING]

    assert roof.prefill_s <= ceiling.prefill_s
    assert roof.decode_s <= ceiling.decode_s
    assert roof.throughput_tokens_per_s >= ceiling.throughput_tokens_per_s


@given(machines(), policies(), workloads())
@PROPERTY
def test_simulated_lies_between_the_busiest_lane_and_the_sum_of_tasks(hardware, chosen, job):
    """Over the whole job: pages of the first decode layer already cross while prefill ends."""
    job = replace(job, num_sequences=None)
    spec = model()
    passes = [(Phase.PREFILL, lambda count: prefill_shape(job, count))]
    for context in range(1, job.gen_len):
        passes.append((Phase.DECODE, partial(decode_shape, context_len=job.mean_prompt_len + context)))
    busy = dict.fromkeys(Lane, 0.0)
    for phase, shape_of in passes:
        costs = pass_costs(chosen, spec, hardware, shape_of, Fidelity.SIMULATED)
        for lane, seconds in lane_work(costs, chosen, spec, phase).seconds.items():
            busy[lane] += seconds
    simulated = total_s(predict(chosen, spec, hardware, job), Fidelity.SIMULATED)

    assert max(busy.values()) * (1 - 1e-9) <= simulated <= sum(busy.values()) * (1 + 1e-9)


@given(machines(), policies(), workloads())
@PROPERTY
def test_keeping_more_experts_is_never_slower(hardware, chosen, job):
    if chosen.ffn_device is Processor.CPU:
        return
    for fidelity in Fidelity:
        times = [
            total_s(predict(replace(chosen, resident_experts=count), model(), hardware, job), fidelity)
            for count in range(5)
        ]

        assert all(more <= less * (1 + 1e-9) for less, more in pairwise(times))


@given(machines(), policies(), workloads())
@PROPERTY
def test_rates_follow_from_times(hardware, chosen, job):
    count = job.num_sequences or chosen.batch_size
    for times in predict(chosen, model(), hardware, job).by_fidelity.values():
        both = times.prefill_s + times.decode_s

        assert times.throughput_tokens_per_s * both == pytest.approx(count * job.gen_len)
        assert times.decode_throughput_tokens_per_s * times.decode_s == pytest.approx(count * (job.gen_len - 1))
        assert times.prefill_throughput_tokens_per_s * times.prefill_s == pytest.approx(count * job.mean_prompt_len)


@given(machines(), policies(), workloads())
@PROPERTY
def test_the_bottleneck_is_the_busiest_lane(hardware, chosen, job):
    for bottleneck in predict(chosen, model(), hardware, job).bottleneck.values():
        assert bottleneck.busy[bottleneck.lane] == pytest.approx(1)
        assert all(share <= 1 + 1e-9 for share in bottleneck.busy.values())


def test_a_job_of_two_batches_takes_twice_one():
    one, two = (predict(policy(), model(), machine(), workload(num_sequences=count)) for count in (6, 12))

    for fidelity in Fidelity:
        assert total_s(two, fidelity) == pytest.approx(2 * total_s(one, fidelity))


def test_a_last_smaller_batch_costs_no_more_than_a_whole_one():
    jobs = {count: predict(policy(), model(), machine(), workload(num_sequences=count)) for count in (6, 7, 12)}

    for fidelity in Fidelity:
        assert total_s(jobs[6], fidelity) < total_s(jobs[7], fidelity) < total_s(jobs[12], fidelity)


def test_one_token_each_has_no_decode():
    predicted = predict(policy(), model(), machine(), workload(gen_len=1))

    assert set(predicted.bottleneck) == {Phase.PREFILL}
    assert all(times.decode_s == 0 for times in predicted.by_fidelity.values())


@pytest.mark.parametrize("attention", list(Processor))
def test_sampled_decode_steps_stand_for_all(attention, monkeypatch):
    """Real dimensions, 16 steps: four of them, each simulated twice, against every one."""
    spec = replace(load_model("mixtral-8x7b"), num_layers=6)
    half = {"weight_dtype": DType.FLOAT16, "kv_dtype": DType.FLOAT16}
    chosen = policy(attention, batch_size=256, micro_batch_size=32, **half)

    def decode_s(samples):
        monkeypatch.setattr(import_module("hrm.predict"), "CONTEXT_SAMPLES", samples)
        predicted = predict(chosen, spec, load_profile("l4-case-study"), workload(200, 400, gen_len=17))
        return predicted.by_fidelity[Fidelity.SIMULATED].decode_s

    assert decode_s(4) == pytest.approx(decode_s(16), rel=0.02)
