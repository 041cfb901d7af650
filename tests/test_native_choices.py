"""The compiled choices of experts and tokens, on every path that this CPU has, against torch."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from executor import native
from executor.routing import route
from hrm.variants import Router

pytestmark = pytest.mark.skipif(
    not native.available() and "CI" not in os.environ,
    reason="no compiled kernel here (python setup.py build_ext --inplace)",
)
paths = pytest.mark.parametrize("path", native.instruction_sets())
NAN, INF = float("nan"), float("inf")


def largest(x: torch.Tensor, num_threads: int = 2) -> list[int]:
    out = torch.empty(len(x), dtype=torch.int64)
    native.largest(x, out, num_threads)
    return out.tolist()


@paths
@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 5), width=st.integers(1, 1300), num_threads=st.integers(1, 3), seed=st.integers(0, 2**31))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_of_the_largest_is_found(path, dtype, rows, width, num_threads, seed):
    # Few values, so that many are equal.
    x = torch.randint(-9, 9, (rows, width + 3), generator=torch.Generator().manual_seed(seed)).to(dtype)[:, :width]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("HRM_NATIVE_ISA", path)
        found = largest(x, num_threads)

    assert found == [row.index(max(row)) for row in x.tolist()]


@paths
def test_nothing_is_larger_than_nan_and_the_first_of_them_counts(path, monkeypatch):
    monkeypatch.setenv("HRM_NATIVE_ISA", path)
    x = torch.zeros(4, 2000)
    x[0, [1500, 1700]] = NAN
    x[1, [0, 1999]] = torch.tensor([INF, NAN])
    x[2] = -INF
    x[3, 600] = INF

    assert largest(x) == x.max(dim=-1).indices.tolist() == [1500, 1999, 0, 600]


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 200), experts=st.integers(1, 70), renormalized=st.booleans(), seed=st.integers(0, 2**31))
def test_a_router_chooses_as_it_does_through_torch(tokens, experts, renormalized, seed):
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed)) * 3
    rule, per_token = Router(renormalized=renormalized, scale=2.5), min(experts, 8)
    shares, chosen = route(logits, per_token, rule)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("HRM_NATIVE", "0")
        expected_shares, expected = route(logits, per_token, rule)

    assert torch.equal(chosen, expected)
    torch.testing.assert_close(shares, expected_shares, rtol=1e-5, atol=0)


def test_of_equal_experts_the_first_are_chosen():
    shares, chosen = route(torch.zeros(3, 5), 2)

    assert chosen.tolist() == [[0, 1]] * 3
    assert shares.tolist() == [[0.5, 0.5]] * 3


def test_what_contradicts_itself_is_refused():
    x, numbers = torch.ones(2, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="largest"):
        native.largest(x, numbers[:1], 1)
    with pytest.raises(ValueError, match="route"):
        native.route(x, x[:, :2], x[:, :2], renormalized=True, scale=1.0, num_threads=1)
