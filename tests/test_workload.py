"""Workloads: lengths known one by one agree with lengths described, and with sums over prompts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm.errors import HrmError
from hrm.files import from_plain, to_plain
from hrm.routing import Routing, RoutingLaw
from hrm.workload import DEFAULT_GEN_LEN, DEFAULT_PROMPT_LEN, Workload
from tests.machines import workload

LENS = st.lists(st.integers(1, 400), min_size=1, max_size=12)
WINDOWS = st.none() | st.integers(1, 500)


def causal_pairs(length, window):
    """Sum the mask: query i sees keys up to itself, and no further back than the window."""
    query, key = np.arange(length)[:, None], np.arange(length)
    return int(np.sum((key <= query) & (key > query - (window or length))))


@given(LENS, st.integers(1, 20))
def test_real_lengths_give_their_own_mean_maximum_and_square(lens, gen_len):
    job = Workload.from_prompt_lens(tuple(lens), gen_len)

    assert job.num_sequences == len(lens)
    assert job.mean_prompt_len == pytest.approx(sum(lens) / len(lens))
    assert job.max_prompt_len == max(lens)
    assert job.mean_square_prompt_len == pytest.approx(sum(length**2 for length in lens) / len(lens))
    assert job.prompt_lens == tuple(sorted(lens))


@given(LENS, WINDOWS)
def test_pairs_of_real_lengths_are_those_of_the_summed_masks(lens, window):
    job = Workload.from_prompt_lens(tuple(lens), 1)

    assert job.mean_causal_pairs(window) == pytest.approx(np.mean([causal_pairs(length, window) for length in lens]))


@given(LENS, WINDOWS, st.integers(0, 600))
def test_contexts_of_real_lengths_are_their_mean_under_the_window(lens, window, step):
    job = Workload.from_prompt_lens(tuple(lens), 1)
    expected = np.mean([min(length + step, window or 10**9) for length in lens])

    assert job.mean_context(step, window) == pytest.approx(expected)


@pytest.mark.parametrize(("mean", "longest"), [(77, 418), (50, 100), (95, 100), (3, 2000)])
def test_described_lengths_follow_a_cut_exponential_law(mean, longest):
    """The quantiles of a million prompts that follow the law have the mean, and the means of everything else."""
    job = workload(mean, longest)
    share = (np.arange(1_000_000) + 0.5) / 1_000_000
    low, high = mean / 2, 1e6 * mean
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        short = np.mean(np.minimum(-middle * np.log(share), longest)) < mean
        low, high = (middle, high) if short else (low, middle)
    lens = np.minimum(-high * np.log(share), longest)

    assert job.mean_square_prompt_len == pytest.approx(np.mean(lens**2), rel=1e-4)
    for window in (longest // 5, longest, 2 * longest):
        inside = np.minimum(lens, window)
        pairs = inside * (inside + 1) / 2 + (lens - inside) * window
        assert job.mean_causal_pairs(window) == pytest.approx(np.mean(pairs), rel=1e-4)
        assert job.mean_context(10, window) == pytest.approx(np.mean(np.minimum(lens + 10, window)), rel=1e-4)


@given(LENS)
def test_a_mean_square_lies_between_square_of_mean_and_mean_times_maximum(lens):
    real = Workload.from_prompt_lens(tuple(lens), 1)
    described = workload(real.mean_prompt_len, real.max_prompt_len)

    for job in (real, described):
        assert job.mean_prompt_len**2 <= job.mean_square_prompt_len * (1 + 1e-9)
        assert job.mean_square_prompt_len <= job.mean_prompt_len * job.max_prompt_len * (1 + 1e-9)


@given(st.integers(1, 400), st.floats(0, 1e-3))
def test_a_mean_just_below_the_maximum_is_almost_equal_lengths(longest, missing):
    """The law's digits must not be lost where its decay length goes to infinity: to first order 4/3 of `missing`."""
    job = workload(longest * (1 - missing), longest)

    assert job.mean_square_prompt_len == pytest.approx(longest**2 * (1 - 4 / 3 * missing), rel=missing**2 + 1e-7)
    assert job.mean_context(0) == pytest.approx(job.mean_prompt_len)


@given(LENS, WINDOWS, WINDOWS, st.integers(0, 300))
def test_a_wider_window_never_means_less(lens, narrow, wide, step):
    if narrow is None or (wide is not None and wide < narrow):
        narrow, wide = wide, narrow
    real = Workload.from_prompt_lens(tuple(lens), 1)

    for job in (real, replace(real, padded=True), workload(real.mean_prompt_len, real.max_prompt_len)):
        assert job.mean_causal_pairs(narrow) <= job.mean_causal_pairs(wide) * (1 + 1e-9)
        assert job.mean_context(step, narrow) <= job.mean_context(step, wide) * (1 + 1e-9)


@given(LENS, WINDOWS, st.integers(0, 300))
def test_padded_prompts_cost_as_if_all_were_the_longest(lens, window, step):
    real = Workload.from_prompt_lens(tuple(lens), 3)
    longest = Workload.from_prompt_lens((max(lens),) * len(lens), 3)

    for job in (replace(real, padded=True), replace(workload(real.mean_prompt_len, max(lens), 3), padded=True)):
        assert job.computed_prompt_len == longest.computed_prompt_len == max(lens)
        assert job.mean_square_prompt_len == longest.mean_square_prompt_len
        assert job.mean_causal_pairs(window) == pytest.approx(longest.mean_causal_pairs(window))
        assert job.mean_context(step, window) == pytest.approx(longest.mean_context(step, window))
        assert job.prompt_tokens(len(lens)) == job.micro_batch_prompt_tokens(len(lens)) == len(lens) * max(lens)


@given(LENS)
def test_prompt_tokens_bound_what_a_batch_holds(lens):
    job = Workload.from_prompt_lens(tuple(lens), 1)

    assert job.prompt_tokens(len(lens)) >= sum(lens)
    assert job.prompt_tokens(1) >= max(lens)


def test_equal_prompts_are_counted_exactly():
    job = workload(8, 8, gen_len=5)

    assert job.prompt_tokens(3) == 24
    assert job.mean_square_prompt_len == 64
    assert job.mean_causal_pairs() == 36
    assert job.mean_causal_pairs(3) == 6 + 5 * 3
    assert job.max_context_len == 12


def test_a_workload_is_saved_with_its_padding_and_routing():
    job = replace(workload(), padded=True, routing=Routing(law=RoutingLaw.SKEWED, exponent=0.5))

    assert from_plain(Workload, to_plain(job), where="a plan") == job


def test_the_default_lengths_make_a_workload():
    assert workload(DEFAULT_PROMPT_LEN, DEFAULT_PROMPT_LEN, DEFAULT_GEN_LEN).max_context_len == 639


def test_a_maximum_below_the_mean_is_refused():
    with pytest.raises(HrmError, match=r"--max-prompt-len 5: smaller than the mean prompt length 9 \(raise it\)"):
        workload(9, 5)
