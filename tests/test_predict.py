"""Predictions: order of the fidelities, monotone in the machine, grids as their entries, what a job adds up to."""

from dataclasses import replace
from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.dtypes import DType
from hrm.estimate import Fidelity
from hrm.hardware import Rate, load_profile
from hrm.lanes import LaneWork, lane_work
from hrm.model_config import load_model
from hrm.pass_costs import pass_costs
from hrm.policy import Processor, ScheduleName, Staging
from hrm.policy_grid import PolicyGrid
from hrm.predict import predict, predict_grid
from hrm.rates import Rates
from hrm.schedule.task import Lane, Phase, TaskKind
from tests.machines import (
    any_machines,
    any_models,
    any_policies,
    any_workloads,
    level,
    machine,
    machines,
    measurement,
    model,
    policies,
    policy,
    powers,
    unshared,
    with_disk,
    with_level,
    with_link,
    workload,
    workloads,
)
from tests.policy_grids import grids

PROPERTY = settings(max_examples=60, deadline=None)
BOUNDS = (Fidelity.ROOF, Fidelity.CEILING)
SIMULATED = (Fidelity.CEILING, Fidelity.SIMULATED)


def total_s(predicted, fidelity):
    times = predicted.by_fidelity[fidelity]
    return times.prefill_s + times.decode_s


def scaled(rate, factor):
    """A rate multiplied, as measured too where it was."""
    peak = None if rate.peak is None else rate.peak * factor
    return Rate(peak=peak, measured=None if rate.measured is None else measurement(rate.measured.median * factor))


def faster(hardware, what, factor):
    """The machine with one of its rates multiplied, or what starting costs divided."""
    place, _, kind = what.partition(".")
    if kind == "link":
        return with_link(hardware, place, bytes_per_s=scaled(hardware.links[place].bytes_per_s, factor))
    if kind == "latency":
        return with_link(hardware, place, latency_s=Rates(hardware=hardware, measured=True).latency_s(place) / factor)
    if kind == "launch":
        return with_level(hardware, place, launch_s=Rates(hardware=hardware, measured=True).launch_s(place) / factor)
    old = hardware.levels[place]
    if kind == "memory":
        return with_level(hardware, place, read_bytes_per_s=scaled(old.read_bytes_per_s, factor))
    compute = {dtype: scaled(one, factor) for dtype, one in old.compute_flop_per_s.items()}
    return with_level(hardware, place, compute_flop_per_s=compute)


RATES = (
    *("h2d.link", "d2h.link", "h2d.latency", "d2h.latency"),
    *("cpu.memory", "cpu.compute", "cpu.launch", "gpu.memory", "gpu.compute", "gpu.launch"),
)


@given(any_machines(), any_policies(), any_models(), any_workloads(), st.sampled_from(RATES), st.floats(1, 20))
@settings(max_examples=200, deadline=None)
def test_a_faster_machine_is_never_predicted_slower(hardware, chosen, spec, job, what, factor):
    before = predict(chosen, spec, hardware, job, fidelities=BOUNDS)
    after = predict(chosen, spec, faster(hardware, what, factor), job, fidelities=BOUNDS)

    for fidelity in BOUNDS:
        assert total_s(after, fidelity) <= total_s(before, fidelity) * (1 + 1e-9)


@given(machines(contended=False), any_policies(), any_workloads(), st.sampled_from(RATES), st.floats(1, 20))
@PROPERTY
def test_a_faster_machine_is_never_simulated_slower(hardware, chosen, job, what, factor):
    """Where lanes share nothing: else a task that is done sooner may let another get in the way."""
    alone = unshared(hardware)
    before = predict(chosen, model(), alone, job, fidelities=SIMULATED)
    after = predict(chosen, model(), faster(alone, what, factor), job, fidelities=SIMULATED)

    assert total_s(after, Fidelity.SIMULATED) <= total_s(before, Fidelity.SIMULATED) * (1 + 1e-9)


@given(any_machines(), any_policies(), any_models(), any_workloads())
@settings(max_examples=200, deadline=None)
def test_no_ceiling_beats_its_roof(hardware, chosen, spec, job):
    by_fidelity = predict(chosen, spec, hardware, job, fidelities=BOUNDS).by_fidelity
    roof, ceiling = by_fidelity[Fidelity.ROOF], by_fidelity[Fidelity.CEILING]

    assert roof.prefill_s <= ceiling.prefill_s * (1 + 1e-12)
    assert roof.decode_s <= ceiling.decode_s * (1 + 1e-12)
    assert roof.throughput_tokens_per_s >= ceiling.throughput_tokens_per_s * (1 - 1e-12)


@given(any_machines(), any_policies(), any_models(), any_workloads())
@PROPERTY
def test_contention_slows_ceilings_and_leaves_roofs_alone(hardware, chosen, spec, job):
    quiet = predict(chosen, spec, replace(hardware, contention={}), job, fidelities=BOUNDS)
    noisy = predict(chosen, spec, hardware, job, fidelities=BOUNDS)

    assert total_s(noisy, Fidelity.ROOF) == total_s(quiet, Fidelity.ROOF)
    assert total_s(noisy, Fidelity.CEILING) >= total_s(quiet, Fidelity.CEILING) * (1 - 1e-12)


@given(grids(), any_models(), any_machines(), any_workloads(), st.sampled_from(BOUNDS))
@settings(max_examples=200, deadline=None)
def test_a_grid_is_predicted_as_its_entries_are(grid, spec, hardware, job, fidelity):
    many = predict_grid(grid, spec, hardware, job, fidelity)
    for index in range(grid.batch_size.size):
        one = predict(grid.take(index), spec, hardware, job, fidelity=fidelity, fidelities=(fidelity,)).times
        for name in ("prefill_s", "decode_s", "throughput_tokens_per_s"):
            found = np.broadcast_to(getattr(many, name), grid.batch_size.shape)[index]
            assert found == pytest.approx(getattr(one, name), rel=1e-9), name


@pytest.mark.parametrize("fidelity", BOUNDS)
@pytest.mark.parametrize("model_name", ["mixtral-8x7b", "deepseek-v2-lite", "gpt-oss-20b", "llama-3.1-8b"])
def test_thousands_of_policies_are_predicted_in_one_call(model_name, fidelity):
    spec = load_model(model_name)
    batch, share = np.meshgrid(np.arange(1.0, 129.0) * 8, np.linspace(0, 1, 32))
    grid = PolicyGrid(
        template=policy(weight_dtype=DType.FLOAT16, kv_dtype=DType.FLOAT16, batch_size=1, micro_batch_size=1),
        batch_size=batch.ravel(),
        micro_batch_size=np.ceil(batch.ravel() / 4),
        resident_experts=np.floor(share.ravel() * spec.num_experts),
    )
    found = predict_grid(grid, spec, load_profile("l4-case-study"), workload(77, 418, gen_len=32), fidelity)

    for name in ("prefill_s", "decode_s", "throughput_tokens_per_s"):
        values = np.asarray(getattr(found, name))
        assert values.shape == (4096,)
        assert np.all(np.isfinite(values) & (values > 0)), name


@st.composite
def balanced_machines(draw):
    """Machines none of whose parts is so slow that nothing else matters."""
    cpu, gpu = (level(draw(powers(8, 10)), draw(powers(8, 10))) for _ in range(2))
    return with_disk(machine(cpu, gpu, link_bytes_per_s=draw(powers(7, 9))), bytes_per_s=draw(powers(7, 9)))


def passes_of(chosen, spec, hardware, job):
    """The work of each pass of a batch, at `ceiling`."""
    rates, grid = Rates(hardware=hardware, measured=True), PolicyGrid.of(chosen)
    steps = [(Phase.PREFILL, 0.0), *((Phase.DECODE, float(step)) for step in range(1, job.gen_len))]
    works: list[LaneWork] = []
    for phase, step in steps:
        works.append(lane_work(pass_costs(grid, spec, rates, job, phase, step), rates.shared))
    return works


@given(machines(contended=False), any_policies(), any_models(), workloads())
@settings(max_examples=200, deadline=None)
def test_simulated_lies_between_the_busiest_lane_and_the_sum_of_tasks(hardware, chosen, spec, job):
    """Over the whole job: pages of the first decode layer already cross while prefill ends."""
    job, alone = replace(job, num_sequences=None), unshared(hardware)
    works = passes_of(chosen, spec, alone, job)
    busy = {lane: sum(float(work.seconds.get(lane, 0.0)) for work in works) for lane in Lane}
    simulated = total_s(predict(chosen, spec, alone, job, fidelities=SIMULATED), Fidelity.SIMULATED)

    assert max(busy.values()) * (1 - 1e-9) <= simulated <= sum(busy.values()) * (1 + 1e-9)


@given(balanced_machines(), any_policies(), any_models(), workloads(max_gen_len=7))
@settings(max_examples=300, deadline=None)
def test_simulated_takes_no_less_than_one_micro_batch_on_its_way(hardware, chosen, spec, job):
    """The chain is a bound of the schedule too: decode begins when the main lane has done prefill, and goes in turn."""
    job, alone = replace(job, num_sequences=None), unshared(hardware)
    prefill, *decode = passes_of(chosen, spec, alone, job)
    decode_s = sum(float(work.chain_s) for work in decode)
    simulated = total_s(predict(chosen, spec, alone, job, fidelities=SIMULATED), Fidelity.SIMULATED)

    assert float(prefill.chain_s) * (1 - 1e-9) <= simulated
    assert (float(prefill.seconds[Lane(chosen.main_device)]) + decode_s) * (1 - 1e-9) <= simulated


def with_resident(chosen, count):
    """The policy with so many experts on the GPU, and no more on disk than are left to stream."""
    kept = replace(chosen, resident_experts=count)
    return replace(kept, disk_experts=min(chosen.disk_experts, kept.streamed_experts(model())))


@given(any_machines(), any_policies(), any_workloads())
@PROPERTY
def test_keeping_more_experts_than_stream_is_never_slower(hardware, chosen, job):
    """What is resident is not streamed; who computes the others stays."""
    if chosen.ffn_device is Processor.CPU:
        return
    times = [
        predict(with_resident(chosen, count), model(), hardware, job, fidelities=BOUNDS)
        for count in range(5 - chosen.cpu_experts)
    ]
    for fidelity in BOUNDS:
        seconds = [total_s(one, fidelity) for one in times]

        assert all(more <= less * (1 + 1e-9) for less, more in pairwise(seconds))


@given(machines(contended=False), policies(), workloads())
@PROPERTY
def test_keeping_more_experts_is_never_simulated_slower(hardware, chosen, job):
    if chosen.ffn_device is Processor.CPU:
        return
    alone = unshared(hardware)
    times = [
        total_s(
            predict(replace(chosen, resident_experts=count), model(), alone, job, fidelities=SIMULATED),
            Fidelity.SIMULATED,
        )
        for count in range(5)
    ]

    assert all(more <= less * (1 + 1e-9) for less, more in pairwise(times))


@given(any_models(), any_machines(), any_workloads())
@PROPERTY
def test_more_of_the_cache_on_the_gpu_crosses_the_link_less(spec, hardware, job):
    shares = (0.0, 0.25, 0.5, 1.0)
    template = policy(Processor.GPU, schedule=ScheduleName.KV_TRANSFER, kv_on_gpu=0.0)
    loads, times = [], []
    for share in shares:
        predicted = predict(replace(template, kv_on_gpu=share), spec, hardware, job, fidelities=BOUNDS)
        loads.append(predicted.task_s.get(Phase.DECODE, {}).get(TaskKind.KV_LOAD, 0.0))
        times.append(total_s(predicted, Fidelity.CEILING))

    assert all(more <= less * (1 + 1e-9) for less, more in pairwise(loads))
    assert all(more <= less * (1 + 1e-9) for less, more in pairwise(times))
    assert loads[-1] == 0


@given(any_machines(), any_policies(), any_models(), any_workloads())
@PROPERTY
def test_rates_follow_from_times(hardware, chosen, spec, job):
    count = job.num_sequences or chosen.batch_size
    for times in predict(chosen, spec, hardware, job).by_fidelity.values():
        both = times.prefill_s + times.decode_s

        assert times.throughput_tokens_per_s * both == pytest.approx(count * job.gen_len)
        assert times.decode_throughput_tokens_per_s * times.decode_s == pytest.approx(count * (job.gen_len - 1))
        assert times.prefill_throughput_tokens_per_s * times.prefill_s == pytest.approx(count * job.mean_prompt_len)


@given(any_machines(), any_policies(), any_models(), any_workloads())
@PROPERTY
def test_the_bottleneck_is_the_busiest_lane_or_what_is_longer_still(hardware, chosen, spec, job):
    for bottleneck in predict(chosen, spec, hardware, job, fidelities=BOUNDS).bottleneck.values():
        busiest = bottleneck.busy[bottleneck.lane]

        assert busiest == max(bottleneck.busy.values()) <= 1 + 1e-9
        assert (bottleneck.limit == "lane") == (busiest == pytest.approx(1, abs=1e-8))


def test_what_limits_a_pass_is_named():
    one = {"batch_size": 1, "micro_batch_size": 1, "resident_experts": 4}
    chain = predict(policy(**one), model(), machine(), workload())
    lane = predict(policy(), model(), machine(link_bytes_per_s=1e3), workload())
    staged = predict(policy(staging=Staging.PAGEABLE), model(), machine(link_bytes_per_s=1e9), workload())

    assert chain.bottleneck[Phase.DECODE].limit == "chain"
    assert (lane.bottleneck[Phase.DECODE].limit, lane.bottleneck[Phase.DECODE].lane) == ("lane", Lane.H2D)
    assert staged.bottleneck[Phase.DECODE].limit == "host_memory"


@given(any_machines(), any_policies(), any_models(), any_workloads())
@PROPERTY
def test_the_seconds_of_tasks_are_those_of_the_lanes(hardware, chosen, spec, job):
    """All lanes in turn are the sum of all tasks, in each phase of the job."""
    quiet = replace(hardware, contention={})
    job = replace(job, num_sequences=None, gen_len=3)
    predicted = predict(chosen, spec, quiet, job, fidelities=BOUNDS)
    prefill, *decode = passes_of(chosen, spec, quiet, job)

    assert sum(predicted.task_s[Phase.PREFILL].values()) == pytest.approx(prefill.upper_s)
    assert sum(predicted.task_s[Phase.DECODE].values()) == pytest.approx(sum(float(one.upper_s) for one in decode))


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
        monkeypatch.setattr(import_module("hrm.passes"), "CONTEXT_SAMPLES", samples)
        predicted = predict(chosen, spec, load_profile("l4-case-study"), workload(200, 400, gen_len=17))
        return predicted.by_fidelity[Fidelity.SIMULATED].decode_s

    assert decode_s(4) == pytest.approx(decode_s(16), rel=0.02)


def test_the_seconds_of_simulated_tasks_have_the_first_pages_with_prefill():
    """The link brings up a layer's pages before the first pass; the last pass brings none for the next."""
    streaming, job = policy(attention=Processor.GPU), workload(gen_len=3)
    bound, simulated = (
        predict(streaming, model(), machine(), job, fidelity=level).task_s
        for level in (Fidelity.CEILING, Fidelity.SIMULATED)
    )
    layers = model().num_layers
    before, after = ({phase: found[phase][TaskKind.PAGE_COPY] for phase in Phase} for found in (bound, simulated))

    assert after[Phase.PREFILL] == pytest.approx(before[Phase.PREFILL] * (layers + 1) / layers)
    assert after[Phase.DECODE] == pytest.approx(before[Phase.DECODE] * (2 * layers - 1) / (2 * layers))
