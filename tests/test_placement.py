"""Placing operators: the same formulas, one row per place."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.ceilings import CeilingTable, Kernel
from hrm.dtypes import DType
from hrm.hardware import Link, load_profile
from hrm.model import LatentAttention
from hrm.model_config import load_model
from hrm.roofline import Bound, level_flop_per_s
from hrm.schedule.task import Phase
from hrm.views import roofline_scene as scene
from hrm.views.ladder import computing_levels, fastest_level, upward_links
from hrm.views.layer_operators import Shape
from hrm.views.placement import place_operators
from tests.machines import cpu_only, level, machine, machines, model, rate

CASE_STUDY: dict[str, Any] = {
    "batch_size": 2400,
    "micro_batch_size": 128,
    "context_len": 512,
    "weight_dtype": DType.FLOAT16,
    "kv_dtype": DType.FLOAT16,
}


def shape_of(**changes):
    values: dict[str, Any] = {
        "phase": Phase.DECODE,
        "batch_size": 24,
        "micro_batch_size": 4,
        "context_len": 16,
        "weight_dtype": DType.FLOAT32,
        "kv_dtype": DType.FLOAT32,
    }
    return Shape(**values | changes)


def place(hardware, spec=None, **changes):
    return place_operators(spec or model(), hardware, shape_of(**changes))


def with_disk(hardware, bytes_per_s=1e7):
    """Add a level below the host's memory, which holds data and computes nothing."""
    disk = replace(level(1.0, bytes_per_s), compute_flop_per_s={})
    link = Link(source="disk", target="cpu", bytes_per_s=rate(bytes_per_s))
    return replace(hardware, levels=hardware.levels | {"disk": disk}, links=hardware.links | {"disk": link})


def rows(view):
    return {(placed.name, placed.device, placed.source): placed for placed in view.operators}


@pytest.fixture(scope="module")
def case_study():
    """Place the case study of arXiv 2411.11217, section 3.3: Mixtral 8x7B in float16 on an L4, mu = 128."""
    return place(load_profile("l4-case-study"), load_model("mixtral-8x7b"), **CASE_STUDY | {"context_len": 4096})


def test_case_study_turning_points(case_study):
    """P1 at 81.25 FLOP/byte; P2 at about 600 and N of about 2,400, which is the balance point."""
    p1, p2 = case_study.turning_points.p1, case_study.turning_points.p2
    fetched = rows(case_study)["experts", "gpu", "cpu"]

    assert p1.operational_intensity_flop_per_byte == 81.25
    assert p1.attainable_flop_per_s == 1.3e12
    assert p2.operational_intensity_flop_per_byte == pytest.approx(600, rel=0.01)
    assert p2.batch_size == pytest.approx(2400, rel=0.01)
    assert case_study.balance_point == p2
    assert fetched.operational_intensity_flop_per_byte["h2d"] == pytest.approx(600)
    assert fetched.attainable_flop_per_s == pytest.approx(9.6e12, rel=0.01)


def test_case_study_kernel_ceiling(case_study):
    """At mu = 128 the experts' kernel attains about 9.6 TFLOP/s by the roofs, and no more in practice."""
    kernels = {(kernel.operator, kernel.device): kernel for kernel in case_study.kernel_ceilings}
    experts = kernels["experts", "gpu"]

    assert experts.attainable_flop_per_s == pytest.approx(9.6e12, rel=0.01)
    assert experts.bound is Bound.MEMORY
    assert experts.ceiling_flop_per_s <= experts.attainable_flop_per_s
    assert not experts.measured


def test_case_study_attention_is_left_of_p1_in_both_formats(case_study):
    """About 4 FLOP per byte of KV cache in float16, 14.2 in int4 with a scale per 32: compute on the CPU."""
    lines = {line.dtype: line for line in case_study.lines if line.operator == "attention"}

    assert lines.keys() == {DType.FLOAT16, DType.INT4}
    assert lines[DType.FLOAT16].operational_intensity_flop_per_byte == pytest.approx(4, rel=0.001)
    assert lines[DType.INT4].operational_intensity_flop_per_byte == pytest.approx(14.2, rel=0.005)
    for line in lines.values():
        assert line.operational_intensity_flop_per_byte < 81.25
        assert line.attainable_flop_per_s["cpu"] > line.attainable_flop_per_s["gpu"]


def test_case_study_experts_do_a_quarter_of_n_flop_per_byte(case_study):
    """Once every expert is hit: 2 of 8 experts a token, 2 FLOP per weight of 2 bytes."""
    lines = {line.batch_size: line for line in case_study.lines if line.operator == "experts"}

    assert {64, 256, 1024, 2400} <= lines.keys()
    for batch_size, line in lines.items():
        if batch_size >= 64:
            assert line.operational_intensity_flop_per_byte == pytest.approx(batch_size / 4, rel=1e-6)
            assert line.attainable_flop_per_s["gpu"] == pytest.approx(min(16e9 * batch_size / 4, 9.5857e12), rel=1e-4)


@given(machines(), st.sampled_from(Phase), st.integers(1, 16), st.integers(1, 8), st.booleans())
@settings(max_examples=60, deadline=None)
def test_attainable_is_the_least_of_the_roofs(hardware, phase, micro_batch_size, ratio, disk):
    hardware = with_disk(hardware) if disk else hardware
    view = place(hardware, phase=phase, batch_size=micro_batch_size * ratio, micro_batch_size=micro_batch_size)
    rates = {name: roofs.bytes_per_s for name, roofs in (view.levels | view.links).items()}
    for placed in view.operators:
        bytes_per_s = [rates[where] * value for where, value in placed.operational_intensity_flop_per_byte.items()]
        compute = view.levels[placed.device].flop_per_s_by_dtype[placed.dtype]

        assert placed.attainable_flop_per_s == pytest.approx(min(*bytes_per_s, compute))
        for where, count in placed.bytes.items():
            assert placed.flop == pytest.approx(count * placed.operational_intensity_flop_per_byte[where])


@given(machines(), st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_left_of_p1_computing_there_beats_fetching(hardware, batch_size):
    """P1 is where the two meet; activations, which the paper does not count, may move them by their share."""
    view = place(hardware, batch_size=batch_size, micro_batch_size=batch_size)
    for line in (line for line in view.lines if line.operator == "experts"):
        p1, at = view.turning_points.p1.operational_intensity_flop_per_byte, line.attainable_flop_per_s
        if line.operational_intensity_flop_per_byte > p1 and line.bound["gpu"] is Bound.CROSS_LEVEL:
            assert at["gpu"] >= at["cpu"] * (1 - 1e-9)


def test_a_fetched_weight_serves_the_whole_batch_and_kv_one_sequence():
    view = rows(place(machine(), batch_size=4000, micro_batch_size=100))

    assert view["qkv_proj", "gpu", "cpu"].bytes["h2d"] * 40 == pytest.approx(4 * 16 * 32)
    assert view["attention", "gpu", "cpu"].bytes["h2d"] == pytest.approx(100 * 2 * 17 * 8 * 4)


def test_prefill_has_nothing_to_fetch_for_attention():
    view = place(machine(), phase=Phase.PREFILL)
    (line,) = [line for line in view.lines if line.operator == "attention"]

    assert ("attention", "gpu", "cpu") not in rows(view)
    assert ("experts", "gpu", "cpu") in rows(view)
    assert line.level == "gpu"
    assert line.attainable_flop_per_s.keys() == {"cpu", "gpu"}


def test_causal_attention_in_a_window_has_fewer_pairs():
    windowed = model(sliding_window=4, windowed_layers=(0,))
    view = rows(place(machine(), windowed, phase=Phase.PREFILL, batch_size=4))
    pairs = sum(min(position + 1, 4) for position in range(16))

    assert view["attention_window_4", "gpu", None].flop == 4 * pairs * 4 * 16
    assert view["attention", "gpu", None].flop == 4 * (16 * 17 / 2) * 4 * 16
    assert ("attention_window_4", "gpu", None) not in rows(place(machine(), windowed, context_len=4))


def test_one_level_has_neither_links_nor_points():
    view = place(cpu_only())

    assert {(placed.device, placed.source) for placed in view.operators} == {("cpu", None)}
    assert view.turning_points is view.balance_point is None
    assert view.turning_points_by_operator == view.links == {}
    assert {line.level for line in view.lines} == {"cpu"}


def test_a_disk_feeds_the_host_and_has_a_p2_of_its_own():
    view = place(with_disk(machine()))
    disk = view.links["disk"]

    assert view.levels["disk"].flop_per_s is None
    assert ("experts", "cpu", "disk") in rows(view)
    assert ("experts", "gpu", "disk") not in rows(view)
    assert disk.turning_points.p1.operational_intensity_flop_per_byte == 0
    assert disk.turning_points.p2.attainable_flop_per_s == pytest.approx(
        rows(view)["experts", "cpu", None].attainable_flop_per_s
    )
    assert view.turning_points == view.links["h2d"].turning_points
    assert view.links["d2h"].turning_points is None


def test_without_a_gpu_the_disk_is_what_weights_are_fetched_from():
    hardware = with_disk(cpu_only())
    view = place(hardware)

    assert view.turning_points == view.links["disk"].turning_points
    assert {line.level for line in view.lines} == {"disk"}
    assert fastest_level(hardware) == "cpu"
    assert computing_levels(hardware) == ("cpu",)


def test_the_ladder_starts_at_the_top_and_leaves_out_the_way_down():
    assert list(upward_links(with_disk(machine()))) == ["h2d", "disk"]


def test_several_gpus_and_paths_add_up():
    one, gpu = machine(), machine().levels["gpu"]
    paths = {name: replace(link, paths=2) for name, link in one.links.items()}
    two = replace(one, levels=one.levels | {"gpu": replace(gpu, count=2)}, links=paths)
    single, double = place(one), place(two)

    assert double.levels["gpu"].processors == 2
    assert double.levels["gpu"].flop_per_s == 2 * single.levels["gpu"].flop_per_s
    assert double.links["h2d"].bytes_per_s == 2 * single.links["h2d"].bytes_per_s
    assert double.turning_points.p1.operational_intensity_flop_per_byte == pytest.approx(
        single.turning_points.p1.operational_intensity_flop_per_byte / 2
    )


def test_only_operators_that_the_model_has_are_placed():
    names = {placed.name for placed in place(machine(), model(num_experts=1, experts_per_token=1)).operators}
    latent = LatentAttention(kv_lora_rank=8, nope_head_dim=4, rope_head_dim=2, value_head_dim=4)
    rich = model(latent=latent, dense_layers=(0,), dense_intermediate_size=40, shared_intermediate_size=24)

    assert names == {"attention", "qkv_proj", "o_proj", "experts", "lm_head"}
    assert {placed.name for placed in place(machine(), rich).operators} == names | {
        "router",
        "shared_experts",
        "dense_ffn",
    }


def test_experts_may_have_a_format_of_their_own():
    view = rows(place(machine(), expert_dtype=DType.INT4))

    assert view["experts", "gpu", None].dtype is DType.INT4
    assert view["qkv_proj", "gpu", None].dtype is DType.FLOAT32
    assert view["experts", "gpu", "cpu"].bytes["h2d"] < rows(place(machine()))["experts", "gpu", "cpu"].bytes["h2d"]


def test_compute_roofs_are_given_for_every_format_drawn():
    view = place(machine(), expert_dtype=DType.INT8, kv_dtype=DType.FLOAT16)
    formats = {placed.dtype for placed in view.operators} | {line.dtype for line in view.lines}

    assert view.levels["gpu"].flop_per_s_by_dtype.keys() == formats
    for dtype, flop_per_s in view.levels["gpu"].flop_per_s_by_dtype.items():
        assert flop_per_s == level_flop_per_s(machine().level("gpu"), dtype)


def test_a_measured_kernel_is_the_ceiling_at_its_shape():
    """One call a quarter of an hour long: 6·h1·h2 FLOP for each of the rows."""
    table = CeilingTable(
        kernel=Kernel.EXPERT_FFN, level="gpu", dtype=DType.FLOAT32, sizes=(16 * 24,), rows=(2,), seconds=((900.0,),)
    )
    certain = model(num_experts=2, experts_per_token=2)
    view = place(replace(machine(), ceilings=(table,)), certain, micro_batch_size=2)
    kernels = {(kernel.operator, kernel.device): kernel for kernel in view.kernel_ceilings}

    assert kernels["experts", "gpu"].measured
    assert kernels["experts", "gpu"].ceiling_flop_per_s == pytest.approx(6 * 16 * 24 * 2 / 900.0)
    assert not kernels["experts", "cpu"].measured
    assert [drawn.name for drawn in scene.kernels(view, scene.FFN)] == ["μ = 2", "measured, μ = 2"]


def test_a_slow_link_binds_what_is_fetched_only():
    for placed in place(machine(link_bytes_per_s=1.0)).operators:
        assert (placed.bound is Bound.CROSS_LEVEL) == (placed.source == "cpu")


@pytest.mark.parametrize("batch_size", [1, 3, 900, 100_000])
def test_lines_include_the_batch_asked_for_first_and_keep_apart(batch_size):
    view = place(machine(), batch_size=batch_size, micro_batch_size=1)
    lines = [line for line in view.lines if line.operator == "experts"]
    places = sorted(line.operational_intensity_flop_per_byte for line in lines)

    assert lines[0].batch_size == batch_size
    assert all(high / low > 1.5 for low, high in pairwise(places))
