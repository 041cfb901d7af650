"""Norms and rotations, compiled for every path that this CPU has, against a float64 reference."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from executor import native

pytestmark = pytest.mark.skipif(
    not native.available() and "CI" not in os.environ,
    reason="no compiled kernel here (python setup.py build_ext --inplace)",
)
paths = pytest.mark.parametrize("path", native.instruction_sets())
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
sizes = st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 70))
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7}


def rows_apart(sizes: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return random rows with something between them, and the last of every two heads left out."""
    tokens, heads, width = sizes
    return torch.randn(tokens, 2 * heads, width + 3).to(dtype)[:, ::2, 1 : width + 1]


@paths
@settings(max_examples=60, deadline=None)
@given(sizes=sizes, kinds=st.tuples(dtypes, dtypes), num_threads=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_a_norm_divides_by_the_root_of_the_mean_square(path, sizes, kinds, num_threads, seed):
    torch.manual_seed(seed)
    x, weight = rows_apart(sizes, kinds[0]), torch.randn(sizes[2]).to(kinds[1])
    out = torch.empty(sizes, dtype=kinds[0])
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("HRM_NATIVE_ISA", path)
        native.rms_norm(x, weight, 1e-5, out, num_threads)

    wide = x.double()
    expected = wide * (wide.square().mean(dim=-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    torch.testing.assert_close(out.double(), expected, rtol=ROUNDING[kinds[0]], atol=1e-6)


@paths
@settings(max_examples=60, deadline=None)
@given(sizes=sizes, kinds=st.tuples(dtypes, dtypes, dtypes), num_threads=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_a_rotation_turns_each_pair_by_its_angle_and_nothing_beside(path, sizes, kinds, num_threads, seed):
    torch.manual_seed(seed)
    tokens, heads, half = sizes
    x, room = rows_apart((tokens, heads, 2 * half), kinds[0]), torch.full((tokens, heads, 2 * half + 2), 7.0)
    room = room.to(kinds[1])
    angles = torch.rand(tokens, 1, half) * 6
    cos, sin = angles.cos().to(kinds[2]), angles.sin().to(kinds[2])
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("HRM_NATIVE_ISA", path)
        native.rotate(x, cos, sin, room[..., 1:-1], num_threads)

    first, second = x.double().split(half, dim=-1)
    c, s = cos.double(), sin.double()
    expected = torch.cat([first * c - second * s, second * c + first * s], dim=-1)
    torch.testing.assert_close(room[..., 1:-1].double(), expected, rtol=ROUNDING[kinds[1]], atol=1e-6)
    assert torch.all(room[..., 0] == 7.0)
    assert torch.all(room[..., -1] == 7.0)


@paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_alone_is_the_same_row_among_others_bit_for_bit(path, dtype, monkeypatch):
    monkeypatch.setenv("HRM_NATIVE_ISA", path)
    x, weight = torch.randn(3000, 100).to(dtype), torch.randn(100).to(dtype)
    whole, alone = torch.empty_like(x), torch.empty_like(x[:1])
    native.rms_norm(x, weight, 1e-5, whole, 2)
    native.rms_norm(x[1700:1701], weight, 1e-5, alone, 1)

    assert torch.equal(alone[0], whole[1700])


@paths
@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 300), width=st.integers(1, 70), kinds=st.tuples(dtypes, dtypes), seed=st.integers(0, 99))
def test_a_sum_and_its_norm_in_one_are_the_same_in_two_bit_for_bit(path, tokens, width, kinds, seed):
    torch.manual_seed(seed)
    total, x = (torch.randn(tokens, width).to(kind) for kind in kinds)
    weight = torch.randn(width)
    expected_total, expected, out = total.clone(), torch.empty_like(total), torch.empty_like(total)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("HRM_NATIVE_ISA", path)
        native.add_rms_norm(total, x, weight, 1e-5, out, 2)
        native.add(expected_total, x, 1)
        native.rms_norm(expected_total, weight, 1e-5, expected, 1)

    assert torch.equal(total, expected_total)
    assert torch.equal(out, expected)


def test_what_contradicts_itself_is_refused():
    x, half = torch.ones(4, 2, 8), torch.ones(4, 1, 4)
    with pytest.raises(ValueError, match="norm of"):
        native.rms_norm(x, torch.ones(7), 1e-5, torch.empty_like(x), 1)
    with pytest.raises(ValueError, match="rotation of"):
        native.rotate(x, half[:3], half, torch.empty_like(x), 1)


def test_other_formats_and_scattered_rows_are_left_to_torch():
    assert native.suits_rows(torch.ones(2, 3)) == native.available()
    assert not native.suits_rows(torch.ones(2, 3, dtype=torch.float16))
    assert not native.suits_rows(torch.ones(3, 2).t())


@pytest.mark.parametrize("path", native.instruction_sets())
@pytest.mark.parametrize("total_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_rounded_once_as_by_torch(path, total_dtype, dtype, monkeypatch):
    monkeypatch.setenv("HRM_NATIVE_ISA", path)
    torch.manual_seed(0)
    total, x = torch.randn(1000, 37).to(total_dtype), torch.randn(1000, 37).to(dtype)
    expected = total.clone().add_(x)

    native.add(total, x, 2)

    assert torch.equal(total, expected)


@settings(max_examples=30, deadline=None)
@given(sizes=sizes, dtype=dtypes)
def test_rows_are_copied_wherever_they_lie(sizes, dtype):
    x, room = rows_apart(sizes, dtype), torch.zeros(*sizes[:2], sizes[2] + 3, dtype=dtype)

    native.copy_rows(x, room[..., 3:], 2)

    assert torch.equal(room[..., 3:], x)
    assert not room[..., :3].any()
