"""Explanations: bounds, prices, what-ifs, baselines and the front, on small machines and the paper's case study."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hrm.dtypes import DType
from hrm.errors import InfeasibleError
from hrm.estimate import Fidelity
from hrm.hardware import load_profile
from hrm.model_config import load_model
from hrm.predict import predict
from hrm.roofline import Bound
from hrm.schedule.task import Phase
from hrm.units import GIB
from hrm.what_if import Change, Resource
from hrm.workload import Workload
from solver.baselines import baselines
from solver.explain import STEP, explain, phase_bounds, prices
from solver.optimum import Found, optimum
from solver.problem import Problem
from solver.what_if import what_if
from tests.machines import cpu_only, machine, machines, model, policy, with_disk, with_level, workload

INCREASED = (Resource.LINK, Resource.CPU, Resource.GPU, Resource.GPU_MEMORY, Resource.CPU_BANDWIDTH)


def problem(hardware=None, job=None, **changes):
    return Problem(
        model=model(),
        hardware=hardware or machine(),
        workload=job or workload(num_sequences=6),
        weight_dtype=DType.FLOAT32,
        kv_dtype=DType.FLOAT32,
        **changes,
    )


def sized(hardware, gpu_bytes, cpu_bytes):
    for name, size in (("gpu", gpu_bytes), ("cpu", cpu_bytes)):
        hardware = with_level(hardware, name, capacity_bytes=size, usable_bytes=size)
    return hardware


@st.composite
def problems(draw):
    """Problems whose memory is short enough to matter."""
    hardware = sized(draw(machines()), draw(st.integers(40_000, 200_000)), draw(st.integers(60_000, 200_000)))
    return problem(hardware, workload(6, 9, gen_len=3, num_sequences=draw(st.integers(1, 8))))


def best_of(asked):
    """The optimum of a problem that has one."""
    best = optimum(asked)
    assert best is not None
    return best


def case_study(**changes):
    job = {"mean_prompt_len": 77.0, "max_prompt_len": 418, "gen_len": 128, "num_sequences": 4096}
    return Problem(
        model=load_model("mixtral-8x7b"),
        hardware=load_profile("l4-case-study"),
        workload=Workload(**job | changes),
        weight_dtype=DType.FLOAT16,
        kv_dtype=DType.FLOAT16,
    )


@given(problems())
@settings(max_examples=15, deadline=None)
def test_prices_are_not_negative_and_adapting_never_loses(asked):
    assume(optimum(asked) is not None)
    best = best_of(asked)
    for price in prices(asked, best):
        assert price.kept_tokens_per_s >= 0.0
        assert price.solved_tokens_per_s >= price.kept_tokens_per_s * (1 - 1e-9)


@given(problems(), st.sampled_from(INCREASED))
@settings(max_examples=20, deadline=None)
def test_doubling_a_resource_loses_nothing(asked, resource):
    assume(optimum(asked) is not None)
    best = best_of(asked)

    effect = what_if(asked, best, [Change(resource=resource, factor=2.0)])

    assert effect.kept_gain_tokens_per_s >= -1e-9 * best.throughput_tokens_per_s
    assert effect.solved_gain_tokens_per_s >= effect.kept_gain_tokens_per_s * (1 - 1e-9)


def test_a_priced_resource_gains_when_doubled_too():
    """The sign of the shadow price is that of a large change."""
    asked = case_study()
    best = best_of(asked)

    for price in prices(asked, best):
        doubled = what_if(asked, best, [Change(resource=price.resource, factor=2.0)])
        assert (doubled.solved_gain_tokens_per_s > 0) or price.solved_tokens_per_s == 0.0


def test_nothing_changed_is_worth_nothing():
    asked = case_study()
    best = best_of(asked)
    effect = what_if(asked, best, [Change(resource=Resource.LINK, factor=1.0)])

    assert effect.kept_gain_tokens_per_s == 0.0
    assert effect.solved_gain_tokens_per_s == 0.0


def test_less_memory_than_a_policy_needs_does_not_fit_but_another_policy_may():
    asked = case_study()
    best = best_of(asked)
    effect = what_if(asked, best, [Change(resource=Resource.GPU_MEMORY, factor=0.8)])

    assert effect.kept is None
    assert effect.solved is not None
    assert effect.solved_gain_tokens_per_s < 0
    assert what_if(asked, best, [Change(resource=Resource.CPU_MEMORY, factor=1e-3)]).solved is None


def test_the_roof_that_binds_decode_is_the_one_that_pays():
    """The case study's decode waits for the link: a price on it, none on the host's memory rate or compute."""
    asked = case_study()
    explained = explain(asked, best_of(asked).policy)
    decode = explained.phases[1]
    price = {one.resource: one for one in explained.prices}

    assert (decode.phase, decode.binding, decode.roof) == (Phase.DECODE, "h2d", Bound.CROSS_LEVEL)
    assert price[Resource.LINK].kept_tokens_per_s > 0
    assert price[Resource.CPU_BANDWIDTH].solved_tokens_per_s == pytest.approx(0.0, abs=1e-6)
    assert price[Resource.CPU_COMPUTE].solved_tokens_per_s == pytest.approx(0.0, abs=1e-6)


def test_memory_is_worth_nothing_to_a_fixed_policy_and_something_to_a_new_one():
    asked = case_study()
    price = {one.resource: one for one in explain(asked, best_of(asked).policy).prices}

    for resource in (Resource.CPU_MEMORY, Resource.GPU_MEMORY):
        assert price[resource].kept_tokens_per_s == 0.0
        assert price[resource].solved_tokens_per_s > 0.0


def test_gpu_memory_is_priced_over_at_least_a_whole_expert_of_each_layer():
    asked = case_study()
    price = {one.resource: one for one in prices(asked, best_of(asked))}
    expert_bytes = asked.model.num_layers * asked.model.expert_parameters * 2

    assert price[Resource.GPU_MEMORY].increment * GIB >= expert_bytes
    assert price[Resource.LINK].increment == pytest.approx(STEP * 16)


@given(problems())
@settings(max_examples=15, deadline=None)
def test_bounds_are_shares_of_the_pass_that_a_prediction_takes(asked):
    assume(optimum(asked) is not None)
    best = best_of(asked)
    chosen = best.policy
    found_bounds = phase_bounds(asked, chosen)
    one_wave = replace(asked.workload, num_sequences=chosen.batch_size)
    times = predict(chosen, asked.model, asked.hardware, one_wave, fidelities=(Fidelity.CEILING,)).times

    assert [one.phase for one in found_bounds] == [Phase.PREFILL, Phase.DECODE]
    assert found_bounds[0].pass_s == pytest.approx(times.prefill_s)
    for one in found_bounds:
        assert max(one.shares.values()) == pytest.approx(1.0)
        assert one.shares[one.binding] == pytest.approx(1.0)


def test_growth_names_the_memory_that_is_short_or_the_job():
    asked = case_study()
    expert = explain(asked, best_of(asked).policy).growths[-1]
    small_job = problem(job=workload(num_sequences=3))
    unbound = explain(small_job, policy(batch_size=3, micro_batch_size=3)).growths

    assert expert.step == "one more expert of each layer on the GPU"
    assert expert.stopped_by.startswith("gpu memory is short by")
    assert unbound[0].stopped_by == "the job has no more"
    assert unbound[-1].stopped_by == "nothing: it fits"


def test_a_plan_that_does_not_fit_is_not_explained():
    with pytest.raises(InfeasibleError, match=r"does not fit made up: cpu memory is short by .*--hardware"):
        explain(problem(sized(machine(), 10**6, 20_000)), policy())


def test_a_machine_without_a_gpu_is_explained_by_what_it_has():
    asked = problem(cpu_only())
    best = best_of(asked)

    assert {one.resource for one in prices(asked, best)} == {
        Resource.CPU_MEMORY,
        Resource.CPU_BANDWIDTH,
        Resource.CPU_COMPUTE,
    }
    assert [one.name for one in baselines(asked, best)] == ["all on the CPU"]


def test_what_is_known_counts_where_it_fits():
    asked = problem()
    known = best_of(asked).policy
    again = optimum(asked, also=(known, policy(batch_size=6, micro_batch_size=1)))

    assert isinstance(again, Found)
    assert again.throughput_tokens_per_s >= best_of(asked).throughput_tokens_per_s
    assert optimum(problem(sized(machine(), 1000, 1000)), also=(known,)) is None


def test_a_faster_disk_is_worth_something_where_it_binds():
    slow = with_disk(cpu_only(), bytes_per_s=1e6)
    small = with_level(slow, "cpu", capacity_bytes=140_000, usable_bytes=140_000)
    short = replace(problem(small, workload(num_sequences=2)), model=replace(model(), num_experts=16))
    best = best_of(short)
    priced = {price.resource: price for price in prices(short, best)}
    twice = what_if(short, best, [Change(resource=Resource.DISK, factor=2.0)])

    assert best.policy.disk_experts
    assert phase_bounds(short, best.policy)[-1].binding == "disk"
    assert priced[Resource.DISK].unit == "GB/s"
    assert priced[Resource.DISK].kept_tokens_per_s > 0
    assert twice.kept is not None
    assert twice.kept.throughput_tokens_per_s > 1.5 * best.throughput_tokens_per_s


def test_a_disk_that_is_not_read_has_no_price():
    asked = problem(with_disk(cpu_only()))

    assert not best_of(asked).policy.disk_experts
    assert Resource.DISK not in {price.resource for price in prices(asked, best_of(asked))}
