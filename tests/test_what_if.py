"""Machines with more or less of something: factors compose, tables follow what the roofs say, bad input is named."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.ceilings import CeilingTable, Kernel
from hrm.dtypes import DType
from hrm.errors import HrmError
from hrm.estimate import Fidelity
from hrm.hardware import SharedRate, bundled_profiles, load_profile
from hrm.hardware_check import check_profile
from hrm.policy_grid import PolicyGrid
from hrm.predict import predict_grid
from hrm.units import GIB
from hrm.what_if import PARTS, SIMPLE_RESOURCES, Change, Resource, amount, parse_changes, scaled
from tests.machines import any_machines, cpu_only, level, machine, model, policies, rate, with_level, workloads

FACTORS = st.floats(1.0, 8.0)
DIVISIBLE = tuple(resource for resource in Resource if resource is not Resource.GPUS)


def table(kernel, where="gpu", seconds=((1e-5, 2e-5), (1e-3, 2e-3))):
    return CeilingTable(
        kernel=kernel, level=where, dtype=DType.FLOAT32, sizes=(100.0, 1e6), rows=(1, 64), seconds=seconds
    )


@pytest.mark.parametrize("resource", Resource)
@pytest.mark.parametrize("profile", [path.stem for path in bundled_profiles()])
def test_once_as_much_changes_nothing(profile, resource):
    hardware = load_profile(profile)

    assert scaled(hardware, [Change(resource=resource, factor=1.0)]) == hardware


@pytest.mark.parametrize("resource", SIMPLE_RESOURCES)
@pytest.mark.parametrize("profile", ["l4-case-study", "gcp-n1-4xt4", "epyc-9355-2xrtx5090", "ryzen-7950x-rtx4090"])
def test_twice_as_much_is_twice_the_amount_and_a_valid_machine(profile, resource):
    hardware = load_profile(profile)
    if resource is Resource.DISK and "disk" not in hardware.levels:
        with pytest.raises(HrmError, match="has no disk"):
            amount(hardware, resource)
        return
    more = scaled(hardware, [Change(resource=resource, factor=2.0)])

    assert amount(more, resource) == pytest.approx(2 * amount(hardware, resource))
    check_profile(more, "here")


@pytest.mark.parametrize("resource", PARTS)
def test_a_group_is_its_parts(resource):
    hardware = load_profile("l4-case-study")
    apart = scaled(hardware, [Change(resource=part, factor=3.0) for part in PARTS[resource]])

    assert scaled(hardware, [Change(resource=resource, factor=3.0)]) == apart


@given(
    any_machines(), policies(), workloads(), st.sampled_from(DIVISIBLE), FACTORS, st.sampled_from(list(Fidelity)[:2])
)
@settings(max_examples=60, deadline=None)
def test_more_of_anything_is_never_slower(hardware, chosen, job, resource, factor, fidelity):
    if not hardware.has_gpu or (resource is Resource.DISK and "disk" not in hardware.levels):
        return
    more = scaled(hardware, [Change(resource=resource, factor=factor)])
    before, after = (
        float(predict_grid(PolicyGrid.of(chosen), model(), one, job, fidelity).throughput_tokens_per_s)
        for one in (hardware, more)
    )

    assert after >= before * (1 - 1e-9)


@pytest.mark.parametrize(
    ("kernel", "moved_by"),
    [
        (Kernel.PROJECTION, {Resource.GPU_COMPUTE, Resource.GPU_BANDWIDTH}),
        (Kernel.EXPERT_FFN, {Resource.GPU_COMPUTE, Resource.GPU_BANDWIDTH}),
        (Kernel.ATTENTION_DECODE, {Resource.GPU_BANDWIDTH}),
        (Kernel.ATTENTION_PREFILL, {Resource.GPU_COMPUTE}),
        (Kernel.ELEMENTWISE, {Resource.GPU_BANDWIDTH}),
    ],
)
def test_measured_tables_follow_the_roof_that_binds(kernel, moved_by):
    hardware = replace(machine(gpu=level(1e10, 1e10)), ceilings=(table(kernel),))

    for resource in (Resource.GPU_COMPUTE, Resource.GPU_BANDWIDTH, Resource.CPU_COMPUTE, Resource.GPU_MEMORY):
        (found,) = scaled(hardware, [Change(resource=resource, factor=2.0)]).ceilings
        assert (found != hardware.ceilings[0]) == (resource in moved_by)


def test_a_memory_bound_time_halves_with_twice_the_bandwidth_and_a_launch_stays():
    """Without launch one row of a projection is the reading of its weights; with a long one it is the launch."""
    for launch_s, expected in ((0.0, 0.5), (10.0, 1.0)):
        hardware = replace(machine(gpu=level(1e12, 1e9, launch_s=launch_s)), ceilings=(table(Kernel.PROJECTION),))
        (found,) = scaled(hardware, [Change(resource=Resource.GPU_BANDWIDTH, factor=2.0)]).ceilings

        assert found.seconds[1][0] / 1e-3 == pytest.approx(expected, rel=1e-3)


def test_what_lanes_share_of_host_memory_grows_with_it():
    shared = {
        "host": SharedRate(bytes_per_s=rate(1e9), drawn_by={"cpu": 1.0, "h2d": 1.0}),
        "switch": SharedRate(bytes_per_s=rate(1e9), drawn_by={"h2d": 1.0, "d2h": 1.0}),
    }
    more = scaled(replace(machine(), shared=shared), [Change(resource=Resource.CPU_BANDWIDTH, factor=2.0)])

    assert more.shared["host"].bytes_per_s == rate(2e9)
    assert more.shared["switch"] == shared["switch"]


@pytest.mark.parametrize(
    ("text", "resource", "factor"),
    [
        ("link=2x", Resource.LINK, 2.0),
        ("link=32GB/s", Resource.LINK, 2.0),
        ("link==32GB/s", Resource.LINK, 2.0),
        ("link=+8GB/s", Resource.LINK, 1.5),
        ("cpu_memory=+96GiB", Resource.CPU_MEMORY, 1.5),
        ("GPU_Memory=-12GiB", Resource.GPU_MEMORY, 0.5),
        ("dram=0.5x", Resource.CPU_BANDWIDTH, 0.5),
        ("gpu_bandwidth=0.6TB/s", Resource.GPU_BANDWIDTH, 2.0),
        ("gpu_compute=+242TFLOP/s", Resource.GPU_COMPUTE, 2.0),
        ("gpus=+1", Resource.GPUS, 2.0),
        ("cpu=2x", Resource.CPU, 2.0),
    ],
)
def test_values_are_read(text, resource, factor):
    (found,) = parse_changes(text, load_profile("l4-case-study"))

    assert found.resource is resource
    assert found.factor == pytest.approx(factor)


def test_amounts_are_of_all_cards_together():
    two = with_level(machine(gpu=level(1e10, 1e10, capacity_bytes=4 * GIB)), "gpu", count=2)

    (found,) = parse_changes("gpu_memory=+8GiB", two)

    assert scaled(two, [found]).level("gpu").capacity_bytes == 8 * GIB


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lynk=2x", "'lynk=2x': no such resource (one of link,"),
        ("link", "'link': no value that link can take (write 2x or +10GB/s)"),
        ("link=", "no value"),
        ("link=fast", "no value"),
        ("link=2", "no value"),
        ("link=0x", "no value"),
        ("link=-2x", "no value"),
        ("link=1e99x", "no value"),
        ("link=nanx", "no value"),
        ("link=+64GiB", "(write 2x or +10GB/s)"),
        ("link=-16GB/s", "no value"),
        ("cpu_memory=64GB/s", "(write 2x or +64GiB)"),
        ("cpu=+64GiB", "(write 2x or 0.5x)"),
        ("gpus=1.5x", "gpus: 1.5 cards (only whole ones work"),
        ("link=2x,", "no such resource"),
    ],
)
def test_bad_input_is_named_in_one_line(text, said):
    with pytest.raises(HrmError) as caught:
        parse_changes(text, load_profile("l4-case-study"))

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("resource", ["link", "gpus", "gpu_memory", "gpu"])
def test_a_machine_without_a_gpu_has_nothing_of_it(resource):
    with pytest.raises(HrmError, match="made up has no gpu"):
        parse_changes(f"{resource}=2x", cpu_only())
