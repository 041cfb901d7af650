"""Products and experts, compiled for every path that this CPU has, against a float64 reference."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from executor import native

pytestmark = pytest.mark.skipif(
    not native.available() and "CI" not in os.environ,
    reason="no compiled kernel here (python setup.py build_ext --inplace)",
)
paths = pytest.mark.parametrize("path", native.instruction_sets())
dtypes = st.sampled_from([torch.float32, torch.bfloat16])


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def scratch(num_bytes: int) -> torch.Tensor:
    """Memory full of NaN: what the kernel reads it must have written."""
    return torch.full((num_bytes,), 255, dtype=torch.uint8)


sizes = st.tuples(
    st.one_of(st.integers(1, 20), st.sampled_from([127, 128, 129, 300])),
    st.one_of(st.integers(1, 70), st.sampled_from([576, 640, 1300, 1312])),
    st.one_of(st.integers(1, 60), st.sampled_from([97, 150])),
)


@paths
@settings(max_examples=60, deadline=None)
@given(sizes=sizes, kinds=st.tuples(dtypes, dtypes), num_threads=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_linear_is_the_product_and_writes_nothing_else(path, sizes, kinds, num_threads, seed):
    rows, inputs, outputs = sizes
    torch.manual_seed(seed)
    x, weight = random(rows, inputs, dtype=kinds[0]), random(outputs, inputs, dtype=kinds[1])
    room = torch.full((rows * outputs + 8,), 7.0, dtype=kinds[0])
    out = room[: rows * outputs].view(rows, outputs)
    memory = scratch(rows * native.packed_bytes(inputs) + 8)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("HRM_NATIVE_ISA", path)
        native.linear(x, weight, out, memory, num_threads)

    expected = x.double() @ weight.double().t()
    relative = 1e-5 if kinds[0] == torch.float32 else 2.0**-8
    torch.testing.assert_close(out.double(), expected, rtol=relative, atol=1e-5 * inputs**0.5)
    assert torch.equal(room[rows * outputs :], torch.full((8,), 7.0, dtype=kinds[0]))
    assert torch.equal(memory[-8:], torch.full((8,), 255, dtype=torch.uint8))


def mixture(job: native.Experts) -> torch.Tensor:
    x, total = job.x.double(), torch.zeros(job.x.shape, dtype=torch.float64)
    hidden = x.shape[1]
    for number, flat in enumerate(job.weights, start=job.first):
        gate, up, down = flat.double().view(3, -1)
        gate, up, down = gate.view(-1, hidden), up.view(-1, hidden), down.view(hidden, -1)
        share = (job.shares.double() * (job.chosen == number)).sum(dim=1, keepdim=True)
        total += share * ((F.silu(x @ gate.t()) * (x @ up.t())) @ down.t())
    return total


dimensions = st.tuples(
    st.one_of(st.integers(1, 30), st.sampled_from([128, 290])),
    st.sampled_from([5, 16, 32, 64, 100]),
    st.sampled_from([3, 24, 64, 130]),
)


@paths
@settings(max_examples=40, deadline=None)
@given(
    dimensions=dimensions,
    numbers=st.tuples(st.integers(1, 6), st.integers(0, 2)),
    kinds=st.tuples(dtypes, dtypes),
    rows_at_a_time=st.sampled_from([1, 7, 40, 1000]),
    seed=st.integers(0, 2**31),
)
def test_experts_add_the_shares_of_those_given(path, dimensions, numbers, kinds, rows_at_a_time, seed):
    """Experts before the first one given, and behind the last, are chosen too and add nothing."""
    (tokens, hidden, intermediate), (experts, first) = dimensions, numbers
    torch.manual_seed(seed)
    x = random(tokens, hidden, dtype=kinds[0])
    weights = [random(3 * hidden * intermediate, dtype=kinds[1]) for _ in range(experts)]
    shares, chosen = torch.rand(tokens, first + experts + 1).topk(min(2, experts))
    job = native.Experts(x, chosen, shares, weights, first)
    out = torch.ones(tokens, hidden)
    memory = scratch(tokens * native.packed_bytes(hidden) + rows_at_a_time * native.packed_bytes(intermediate))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("HRM_NATIVE_ISA", path)
        native.experts(job, out, memory, 2)

    expected = mixture(job)
    # With dot products of bfloat16, what the activation gives is rounded to bfloat16 once.
    relative = 2e-2 if path == "avx512_bf16" and kinds[0] == torch.bfloat16 else 1e-4
    torch.testing.assert_close(out.double() - 1, expected, rtol=relative, atol=relative * float(expected.abs().max()))


@paths
def test_the_number_of_threads_does_not_change_a_bit(path, monkeypatch):
    monkeypatch.setenv("HRM_NATIVE_ISA", path)
    torch.manual_seed(0)
    x, weights = random(40, 128, dtype=torch.bfloat16), [random(3 * 128 * 400, dtype=torch.bfloat16) for _ in range(9)]
    shares, chosen = torch.rand(40, 9).topk(3)
    memory = scratch(40 * native.packed_bytes(128) + 40 * native.packed_bytes(400))
    outs = [torch.zeros(40, 128) for _ in range(3)]
    for num_threads, out in zip((1, 2, 5), outs, strict=True):
        native.experts(native.Experts(x, chosen, shares, weights, 0), out, memory, num_threads)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_experts_write_over_what_was_there_where_they_do_not_add_to_it():
    x, weights = random(5, 8, dtype=torch.bfloat16), [random(3 * 8 * 16, dtype=torch.bfloat16)]
    # Nobody chooses the expert that is given but for the first token.
    job = native.Experts(x, torch.tensor([[0], [1], [1], [1], [1]]), torch.ones(5, 1), weights, 0)
    memory = scratch(5 * native.packed_bytes(8) + native.packed_bytes(16))
    added, written = torch.zeros(5, 8), torch.full((5, 8), float("nan"))
    native.experts(job, added, memory, 1)
    native.experts(job, written, memory, 2, adds=False)

    assert torch.equal(written, added)


GROUPS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33, 47, 48, 127, 128, 129, 300)


@paths
@pytest.mark.parametrize("inputs", [7, 64, 1030, 2500])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_alone_is_the_same_row_among_others_bit_for_bit(path, dtype, x_dtype, inputs, monkeypatch):
    monkeypatch.setenv("HRM_NATIVE_ISA", path)
    torch.manual_seed(0)
    x, weight = random(300, inputs, dtype=x_dtype), random(101, inputs, dtype=dtype)
    memory = scratch(300 * native.packed_bytes(inputs))

    def product(rows: slice) -> torch.Tensor:
        out = torch.empty(len(x[rows]), 101, dtype=x_dtype)
        native.linear(x[rows], weight, out, memory, 2)
        return out

    whole = product(slice(None))
    for count in GROUPS:
        for first in {0, 300 - count, (300 - count) // 3}:
            rows = slice(first, first + count)
            assert torch.equal(product(rows), whole[rows]), f"{count} rows from {first} on"


@paths
@pytest.mark.parametrize("rows_at_a_time", [1, 50, 2000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_alone_is_the_same_token_among_others_bit_for_bit(path, dtype, rows_at_a_time, monkeypatch):
    """Whatever experts the others choose, and whether an expert's rows are worked on at once or in parts."""
    monkeypatch.setenv("HRM_NATIVE_ISA", path)
    torch.manual_seed(0)
    hidden, intermediate = 96, 1064
    x, weights = random(300, hidden, dtype=dtype), [random(3 * hidden * intermediate, dtype=dtype) for _ in range(4)]
    shares, chosen = torch.rand(300, 4).topk(2)
    memory = scratch(300 * native.packed_bytes(hidden) + rows_at_a_time * native.packed_bytes(intermediate))

    def mixed(rows: slice) -> torch.Tensor:
        out = torch.zeros(len(x[rows]), hidden)
        native.experts(native.Experts(x[rows], chosen[rows], shares[rows], weights, 0), out, memory, 2)
        return out

    whole = mixed(slice(None))
    for count in GROUPS:
        rows = slice((300 - count) // 2, (300 - count) // 2 + count)
        assert torch.equal(mixed(rows), whole[rows]), f"{count} tokens"


@paths
def test_rows_of_x_may_lie_apart(path, monkeypatch):
    monkeypatch.setenv("HRM_NATIVE_ISA", path)
    x, weight = random(5, 40, dtype=torch.bfloat16)[:, 3:35], random(9, 32, dtype=torch.bfloat16)
    outs = [torch.empty(5, 9, dtype=torch.bfloat16) for _ in range(2)]
    for source, out in zip((x, x.contiguous()), outs, strict=True):
        native.linear(source, weight, out, scratch(5 * native.packed_bytes(32)), 1)
    assert torch.equal(*outs)


def test_infinite_and_large_numbers_go_through_the_activation_unharmed():
    x = torch.tensor([[1e4], [-1e4], [0.0]])
    flat = torch.tensor([1.0, 1.0, 1.0])
    out = torch.zeros(3, 1)
    job = native.Experts(x, torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1), [flat], 0)
    native.experts(job, out, scratch(6 * native.packed_bytes(1)), 1)
    torch.testing.assert_close(out, torch.tensor([[1e8], [0.0], [0.0]]), rtol=1e-6, atol=1e-3)


def test_shapes_that_do_not_fit_are_refused():
    x, weight, memory = torch.zeros(2, 8), torch.zeros(3, 8), scratch(4096)
    for bad in (
        (x, torch.zeros(3, 9), torch.zeros(2, 3), memory),
        (x, weight, torch.zeros(3, 2), memory),
        (x, weight, torch.zeros(2, 3), memory[:8]),
        (x, weight.t().contiguous().t(), torch.zeros(2, 3), memory),
        (x.half(), weight.half(), torch.zeros(2, 3).half(), memory),
    ):
        with pytest.raises(ValueError, match=r"does not give|products:"):
            native.linear(*bad, 1)
    job = native.Experts(x, torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, 1), [torch.zeros(24)], 0)
    with pytest.raises(ValueError, match="products:"):
        native.experts(job, torch.zeros(2, 8), memory, 1)


@pytest.mark.parametrize("path", native.instruction_sets())
def test_a_product_of_narrow_operands_is_not_rounded_where_float32_is_asked_for(path, monkeypatch):
    monkeypatch.setenv("HRM_NATIVE_ISA", path)
    x, weight = random(7, 100, dtype=torch.bfloat16), random(9, 100, dtype=torch.bfloat16)
    out = torch.empty(7, 9)

    native.linear(x, weight, out, torch.empty(7 * native.packed_bytes(100), dtype=torch.uint8), 1)

    torch.testing.assert_close(out.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-4)
