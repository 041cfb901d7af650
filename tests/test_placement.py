"""Placing operators: the same formulas, one row per place."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.dtypes import DType
from hrm.hardware import load_profile
from hrm.model_config import load_model
from hrm.placement import place_operators
from hrm.roofline import Bound
from hrm.schedule.task import Phase
from tests.machines import cpu_only, machine, machines, model


def place(hardware, spec=None, phase=Phase.DECODE, batch_size=24, micro_batch_size=4, dtype=DType.FLOAT32):
    return place_operators(
        spec or model(),
        hardware,
        phase,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        context_len=16,
        weight_dtype=dtype,
        kv_dtype=dtype,
    )


def rows(view):
    return {(placed.name, placed.device, placed.source): placed for placed in view.operators}


def test_case_study_end_to_end():
    """arXiv 2411.11217, section 3.3, as `hrm roofline` shows it."""
    view = place(load_profile("l4-case-study"), load_model("mixtral-8x7b"), Phase.DECODE, 2400, 128, DType.FLOAT16)
    fetched = rows(view)["experts", "gpu", "cpu"]

    assert view.turning_points.p1.operational_intensity_flop_per_byte == 81.25
    assert view.turning_points.p2.batch_size == pytest.approx(2400, rel=0.01)
    assert view.balance_point == view.turning_points.p2
    assert fetched.operational_intensity_flop_per_byte["h2d"] == pytest.approx(600)
    assert fetched.attainable_flop_per_s == pytest.approx(9.6e12, rel=0.01)


@given(machines(), st.sampled_from(Phase), st.integers(1, 16), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_attainable_never_beats_a_roof(hardware, phase, micro_batch_size, ratio):
    view = place(hardware, phase=phase, batch_size=micro_batch_size * ratio, micro_batch_size=micro_batch_size)
    for placed in view.operators:
        rates = {name: level.bytes_per_s for name, level in view.levels.items()} | view.links
        roofs = [rates[where] * value for where, value in placed.operational_intensity_flop_per_byte.items()]
        roofs.append(view.levels[placed.device].flop_per_s)

        assert placed.attainable_flop_per_s == pytest.approx(min(roofs))
        assert placed.flop == pytest.approx(
            placed.bytes[placed.device] * placed.operational_intensity_flop_per_byte[placed.device]
        )


def test_a_fetched_weight_serves_the_whole_batch_and_kv_one_sequence():
    view = rows(place(machine(), batch_size=4000, micro_batch_size=100))

    assert view["qkv_proj", "gpu", "cpu"].bytes["h2d"] * 40 == pytest.approx(4 * 16 * 32)
    assert view["attention", "gpu", "cpu"].bytes["h2d"] == pytest.approx(100 * 2 * 17 * 8 * 4)


def test_prefill_has_nothing_to_fetch_for_attention():
    places = rows(place(machine(), phase=Phase.PREFILL))

    assert ("attention", "gpu", "cpu") not in places
    assert ("experts", "gpu", "cpu") in places


def test_without_a_gpu_everything_is_on_the_cpu():
    view = place(cpu_only())

    assert {(placed.device, placed.source) for placed in view.operators} == {("cpu", None)}
    assert view.turning_points is view.balance_point is None
    assert view.turning_points_by_operator == {}


def test_a_dense_model_has_no_router():
    dense = place(machine(), model(num_experts=1, experts_per_token=1))

    assert "router" not in {placed.name for placed in dense.operators}
    assert "router" in {placed.name for placed in place(machine()).operators}


def test_a_slow_link_binds_what_is_fetched_only():
    for placed in place(machine(link_bytes_per_s=1.0)).operators:
        assert (placed.bound is Bound.CROSS_LEVEL) == (placed.source == "cpu")
