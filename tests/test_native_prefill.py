"""Attention within prompts, compiled and through torch, against a float64 reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from executor import native
from executor.attention import AttentionForm, prefill_attention
from tests.test_native_attention import TOLERANCE, needs_library, paths, use_path


@dataclass(frozen=True)
class Case:
    lens: tuple[int, ...]
    group: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None
    sinks: bool
    query_dtype: torch.dtype
    cache_dtype: torch.dtype


dims = st.sampled_from([8, 24, 64, 80, 128, 5])
cases = st.builds(
    Case,
    lens=st.lists(st.one_of(st.integers(0, 12), st.integers(60, 150)), min_size=1, max_size=4)
    .map(tuple)
    .filter(lambda lens: sum(lens) > 0),
    group=st.sampled_from([1, 2, 3, 4, 8]),
    num_kv_heads=st.integers(1, 3),
    head_dim=dims,
    value_dim=dims,
    window=st.sampled_from([None, 1, 7, 70]),
    sinks=st.booleans(),
    query_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    cache_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
).map(lambda case: replace(case, value_dim=min(case.value_dim, case.head_dim)))


@dataclass(frozen=True)
class Inputs:
    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    form: AttentionForm


def make_inputs(case: Case) -> Inputs:
    tokens, heads = sum(case.lens), case.group * case.num_kv_heads
    keys, values = (torch.randn(tokens * case.num_kv_heads * dim) for dim in (case.head_dim, case.value_dim))
    sinks = torch.randn(heads).to(case.query_dtype) if case.sinks else None
    return Inputs(
        query=torch.randn(tokens, heads, case.head_dim).to(case.query_dtype),
        keys=keys.to(case.cache_dtype),
        values=values.to(case.cache_dtype),
        form=AttentionForm(scale=case.head_dim**-0.5, window=case.window, sinks=sinks),
    )


def attend(case: Case, inputs: Inputs) -> torch.Tensor:
    heads = case.group * case.num_kv_heads
    out = torch.full((sum(case.lens), heads * case.value_dim), math.nan, dtype=case.query_dtype)
    prefill_attention(inputs.query, inputs.keys, inputs.values, out, case.lens, inputs.form)
    return out


def part(inputs: Inputs, case: Case, first: int, last: int) -> Inputs:
    """What belongs to tokens `first` to `last` (one past)."""
    keys, values = (
        flat.view(-1, case.num_kv_heads * dim)[first:last].flatten()
        for flat, dim in ((inputs.keys, case.head_dim), (inputs.values, case.value_dim))
    )
    return Inputs(inputs.query[first:last], keys, values, inputs.form)


def reference(case: Case, inputs: Inputs) -> torch.Tensor:
    """Of one prompt."""
    tokens, heads = len(inputs.query), case.group * case.num_kv_heads
    keys = inputs.keys.double().view(case.num_kv_heads, tokens, -1).repeat_interleave(case.group, 0)
    values = inputs.values.double().view(case.num_kv_heads, tokens, -1).repeat_interleave(case.group, 0)
    scores = inputs.query.double().transpose(0, 1) @ keys.mT * inputs.form.scale
    behind = torch.arange(tokens).unsqueeze(1) - torch.arange(tokens)
    visible = (behind >= 0) & (behind < (case.window or tokens))
    scores = scores.masked_fill(~visible, -math.inf)
    if inputs.form.sinks is not None:
        sinks = inputs.form.sinks.double().view(heads, 1, 1).expand(-1, tokens, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :tokens]
    return (weights @ values).transpose(0, 1).flatten(1)


@paths
@settings(max_examples=40, deadline=None)
@given(case=cases, seed=st.integers(0, 2**31))
def test_attention_within_prompts_matches_float64(path, case, seed):
    torch.manual_seed(seed)
    inputs = make_inputs(case)

    with pytest.MonkeyPatch.context() as monkeypatch:
        use_path(monkeypatch, path)
        out = attend(case, inputs)

    starts = [sum(case.lens[:at]) for at in range(len(case.lens) + 1)]
    prompts = [part(inputs, case, *bounds) for bounds in pairwise(starts)]
    expected = torch.cat([reference(case, prompt) for prompt in prompts if len(prompt.query)])
    # Products of bfloat16 round keys and values of float32 as well.
    tolerance = 3 * TOLERANCE[case.query_dtype]
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@needs_library
@pytest.mark.parametrize("path", native.instruction_sets())
def test_a_prompt_gets_the_same_bits_whatever_shares_its_batch_and_however_many_threads(path, monkeypatch):
    use_path(monkeypatch, path)
    torch.manual_seed(0)
    case = Case((300, 1, 77, 520), 3, 2, 64, 64, None, False, torch.bfloat16, torch.bfloat16)
    inputs, threads = make_inputs(case), torch.get_num_threads()
    whole = attend(case, inputs)
    alone = replace(case, lens=(77,))

    try:
        torch.set_num_threads(1)
        by_one = attend(case, inputs)
    finally:
        torch.set_num_threads(threads)

    assert torch.equal(by_one, whole)
    assert torch.equal(attend(alone, part(inputs, case, 301, 378)), whole[301:378])


@needs_library
@pytest.mark.parametrize("path", native.instruction_sets())
def test_what_a_query_does_not_see_does_not_touch_it(path, monkeypatch):
    """Later keys and values, and those before a window, may hold anything finite."""
    use_path(monkeypatch, path)
    torch.manual_seed(0)
    case = Case((130,), 2, 1, 16, 16, 20, False, torch.float32, torch.float32)
    inputs = make_inputs(case)
    before = attend(case, inputs)

    keys, values = (flat.view(130, 16).clone() for flat in (inputs.keys, inputs.values))
    for flat in (keys, values):
        flat[100:] = 1e20
        flat[:60] = -1e20
    after = attend(case, Inputs(inputs.query, keys.flatten(), values.flatten(), inputs.form))

    assert torch.equal(before[79:100], after[79:100])
