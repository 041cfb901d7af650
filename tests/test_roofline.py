"""The hierarchical roofline: the paper's case study with its numbers, and what holds for every machine."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm import operators
from hrm.dtypes import DType
from hrm.errors import SchemaError
from hrm.hardware import load_profile
from hrm.model_config import load_model
from hrm.roofline import Bound, attainable, balance_point, level_flop_per_s, ridge_point, turning_points
from tests.machines import cpu_only, level, machine, machines, model, rate

MU = 128
PAPER = 0.01
"""The paper gives its figures to two digits."""


def experts(batch_size):
    return operators.experts(load_model("mixtral-8x7b"), batch_size, DType.FLOAT16)


def case_study():
    return load_profile("l4-case-study")


def test_case_study_p1():
    """arXiv 2411.11217, section 3.3: 1.3 TFLOP/s over 16 GB/s; at N / 4 FLOP/byte that is a batch of 325."""
    p1 = turning_points(experts(MU), case_study(), for_batch=experts).p1

    assert p1.operational_intensity_flop_per_byte == 81.25
    assert p1.attainable_flop_per_s == 1.3e12
    assert p1.batch_size == pytest.approx(325)


def test_case_study_p2():
    """arXiv 2411.11217, section 3.3: 9.6 TFLOP/s at mu = 128, which the link feeds from N = 2,400."""
    p2 = turning_points(experts(MU), case_study(), for_batch=experts).p2

    assert p2.attainable_flop_per_s == pytest.approx(9.6e12, rel=PAPER)
    assert p2.operational_intensity_flop_per_byte == pytest.approx(600, rel=PAPER)
    assert p2.batch_size == pytest.approx(2400, rel=PAPER)


def test_case_study_balance_point_is_p2():
    hardware = case_study()
    balance = balance_point(experts(MU), hardware, for_batch=experts)

    assert balance == turning_points(experts(MU), hardware, for_batch=experts).p2


@pytest.mark.parametrize("kv_dtype", [DType.FLOAT16, DType.INT4])
def test_case_study_attention_belongs_on_the_cpu(kv_dtype):
    operator = operators.attention_decode(load_model("mixtral-8x7b"), MU, 512, kv_dtype)
    hardware = case_study()

    fetched = attainable(operator, hardware, "gpu", source="cpu")

    assert fetched.bound is Bound.CROSS_LEVEL
    assert attainable(operator, hardware, "cpu").flop_per_s > fetched.flop_per_s


def test_case_study_ridge_points():
    levels = case_study().levels

    assert ridge_point(levels["cpu"], DType.FLOAT16) == pytest.approx(13)
    assert ridge_point(levels["gpu"], DType.FLOAT16) == pytest.approx(806.67, rel=1e-4)


@given(machines(), st.integers(1, 64), st.floats(1, 1000))
@settings(max_examples=100, deadline=None)
def test_attainable_is_the_lowest_roof_and_names_it(hardware, tokens, batch_ratio):
    operator = operators.qkv_proj(model(), tokens, DType.FLOAT32)
    gpu, link = hardware.levels["gpu"], hardware.links["h2d"]
    roofs = {
        Bound.COMPUTE: gpu.compute_flop_per_s[DType.FLOAT32].roof,
        Bound.MEMORY: gpu.read_bytes_per_s.roof * operator.flop / operator.bytes,
        Bound.CROSS_LEVEL: link.bytes_per_s.roof * batch_ratio * operator.flop / operator.weight_bytes,
    }
    reached = attainable(operator, hardware, "gpu", source="cpu", batch_ratio=batch_ratio)
    resident = attainable(operator, hardware, "gpu")

    assert reached.flop_per_s == pytest.approx(min(roofs.values()))
    assert reached.flop_per_s == pytest.approx(roofs[reached.bound])
    assert resident.flop_per_s >= reached.flop_per_s


@given(machines(), st.integers(1, 64))
@settings(max_examples=100, deadline=None)
def test_p1_decides_where_to_compute(hardware, mu):
    """Left of P1 computing where the weights lie attains more; right of it fetching does, until the kernel binds."""
    spec = model()
    operator = operators.experts(spec, mu, DType.FLOAT32)
    points = turning_points(operator, hardware, for_batch=lambda count: operators.experts(spec, count, DType.FLOAT32))
    link = hardware.links["h2d"].bytes_per_s.roof
    cpu = hardware.levels["cpu"]

    def on_cpu(intensity):
        return min(cpu.compute_flop_per_s[DType.FLOAT32].roof, cpu.read_bytes_per_s.roof * intensity)

    p1 = points.p1.operational_intensity_flop_per_byte
    if p1 > 0:
        assert on_cpu(0.9 * p1) >= link * 0.9 * p1 * (1 - 1e-9)
    assert on_cpu(1.1 * p1) <= link * 1.1 * p1 * (1 + 1e-9)
    assert points.p2.attainable_flop_per_s == pytest.approx(attainable(operator, hardware, "gpu").flop_per_s)


@given(machines(), st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_a_larger_batch_than_that_of_p2_buys_nothing(hardware, mu):
    """Also where a micro-batch hits few experts and the batch hits all: then a fetch is not shared by N/mu."""
    spec = model(num_experts=6, experts_per_token=1)

    def counted(count):
        return operators.experts(spec, count, DType.FLOAT32)

    def fetching(count):
        ratio = counted(count).fetched_intensity / counted(mu).fetched_intensity
        return attainable(counted(mu), hardware, "gpu", source="cpu", batch_ratio=ratio).flop_per_s

    p2 = turning_points(counted(mu), hardware, for_batch=counted).p2
    kernel = attainable(counted(mu), hardware, "gpu").flop_per_s

    assert p2.batch_size is not None
    assert p2.batch_size >= 1
    assert fetching(p2.batch_size) == pytest.approx(kernel)
    if p2.batch_size > 1.01:
        assert fetching(0.99 * p2.batch_size) < kernel


def test_processors_of_a_level_multiply():
    one = level(1e9, 1e9)
    two = replace(one, count=2)

    assert level_flop_per_s(two, DType.FLOAT32) == 2 * level_flop_per_s(one, DType.FLOAT32)
    assert ridge_point(two, DType.FLOAT32) == ridge_point(one, DType.FLOAT32)


def test_narrow_formats_compute_no_slower_than_float32():
    for dtype in DType:
        assert level_flop_per_s(level(1e9, 1e9), dtype) == 1e9


@pytest.mark.parametrize(
    ("dtype", "cores", "expected"),
    [
        (DType.FLOAT32, None, 1e9),
        (DType.BFLOAT16, None, 8e9),
        (DType.FLOAT16, None, 8e9),
        (DType.INT8, None, 16e9),
        (DType.INT4, None, 8e9),
        (DType.INT4, 8, 1e9),
        (DType.INT8, 8, 16e9),
        (DType.BFLOAT16, 8, 8e9),
    ],
    ids=str,
)
def test_data_is_computed_in_its_own_format_or_a_wider_one(dtype, cores, expected):
    """Cores widen what is quantised in their vector units; float32 is never narrowed."""
    peaks = {DType.FLOAT32: rate(1e9), DType.BFLOAT16: rate(8e9), DType.INT8: rate(16e9)}

    assert level_flop_per_s(replace(level(1e9, 1e9), cores=cores, compute_flop_per_s=peaks), dtype) == expected


def test_a_level_without_a_processor_is_named():
    store = replace(level(1e9, 1e9), compute_flop_per_s={})

    with pytest.raises(SchemaError, match="compute_flop_per_s has no figure for float32"):
        attainable(operators.o_proj(model(), 1, DType.FLOAT32), cpu_only(store), "cpu")


def test_a_missing_link_is_named():
    hardware = replace(machine(), links={})

    with pytest.raises(SchemaError, match="none leads from cpu to gpu"):
        turning_points(operators.o_proj(model(), 1, DType.FLOAT32), hardware)
