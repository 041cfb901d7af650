"""Workloads: lengths known one by one agree with lengths described."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm.errors import HrmError
from hrm.workload import Workload
from tests.machines import workload

LENS = st.lists(st.integers(1, 400), min_size=1, max_size=12)


@given(LENS, st.integers(1, 20))
def test_real_lengths_give_their_own_mean_maximum_and_square(lens, gen_len):
    job = Workload.from_prompt_lens(tuple(lens), gen_len)

    assert job.num_sequences == len(lens)
    assert job.mean_prompt_len == pytest.approx(sum(lens) / len(lens))
    assert job.max_prompt_len == max(lens)
    assert job.mean_square_prompt_len == pytest.approx(sum(length**2 for length in lens) / len(lens))
    assert job.prompt_lens == tuple(sorted(lens))


@given(LENS)
def test_a_mean_square_lies_between_square_of_mean_and_mean_times_maximum(lens):
    real = Workload.from_prompt_lens(tuple(lens), 1)
    described = workload(real.mean_prompt_len, real.max_prompt_len)

    for job in (real, described):
        assert job.mean_prompt_len**2 <= job.mean_square_prompt_len * (1 + 1e-9)
        assert job.mean_square_prompt_len <= job.mean_prompt_len * job.max_prompt_len * (1 + 1e-9)


@given(LENS)
def test_prompt_tokens_bound_what_a_batch_holds(lens):
    job = Workload.from_prompt_lens(tuple(lens), 1)

    assert job.prompt_tokens(len(lens)) >= sum(lens)
    assert job.prompt_tokens(1) >= max(lens)


def test_equal_prompts_are_counted_exactly():
    job = workload(8, 8, gen_len=5)

    assert job.prompt_tokens(3) == 24
    assert job.mean_square_prompt_len == 64
    assert job.max_context_len == 12


def test_a_maximum_below_the_mean_is_refused():
    with pytest.raises(HrmError, match=r"--max-prompt-len 5: smaller than the mean prompt length 9 \(raise it\)"):
        workload(9, 5)
