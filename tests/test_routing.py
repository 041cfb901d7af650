"""Distinct experts against drawn routings, and at its ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm.routing import distinct_experts
from tests.machines import model


@pytest.mark.parametrize(("num_experts", "top_k", "tokens"), [(8, 2, 1), (8, 2, 5), (16, 4, 3), (6, 1, 12), (5, 5, 2)])
def test_matches_the_mean_over_drawn_routings(num_experts, top_k, tokens):
    """4,000 draws: the mean's standard error is below 0.03 experts, and the bound is four of them."""
    rng = np.random.default_rng(7)
    hit = [len(np.unique([rng.choice(num_experts, top_k, replace=False) for _ in range(tokens)])) for _ in range(4000)]
    expected = distinct_experts(model(num_experts=num_experts, experts_per_token=top_k), tokens)

    assert np.mean(hit) == pytest.approx(expected, abs=4 * max(float(np.std(hit)), 0.01) / 4000**0.5)


@given(st.integers(1, 64), st.data())
def test_one_token_hits_its_experts_and_many_hit_all(num_experts, data):
    top_k = data.draw(st.integers(1, num_experts))
    spec = model(num_experts=num_experts, experts_per_token=top_k)

    assert distinct_experts(spec, 1) == pytest.approx(top_k)
    assert distinct_experts(spec, 1e6) == pytest.approx(num_experts)
    assert distinct_experts(spec, 3) <= distinct_experts(spec, 4) + 1e-9
