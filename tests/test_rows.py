"""Rows on their way between layouts: the compiled copies are torch's, and none leaves its tensor."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from executor import native
from executor.kv_cache import KVCache
from executor.native import Move
from executor.rows import move_rows
from hrm.model import ModelSpec

pytestmark = pytest.mark.skipif(
    not native.available() and "CI" not in os.environ,
    reason="no compiled kernel here (python setup.py build_ext --inplace)",
)
lens_of_prompts = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def moves_of(lens: list[int], heads: int, width: int) -> list[Move]:
    """From token by token to head by head, prompts in turned order in the target."""
    sizes = [tokens * heads * width for tokens in lens]
    return [
        Move(sum(sizes[:at]), heads * width, width, sum(sizes[at + 1 :]), width, tokens * width, tokens)
        for at, tokens in enumerate(lens)
        if tokens
    ]


@settings(max_examples=40, deadline=None)
@given(
    lens=lens_of_prompts,
    heads=st.integers(1, 3),
    width=st.integers(1, 20),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_compiled_moves_are_those_of_torch(lens, heads, width, dtype):
    source = torch.randn(sum(lens), heads, width).to(getattr(torch, dtype))
    compiled, through_torch = (torch.zeros(source.numel(), dtype=source.dtype) for _ in range(2))
    moves = moves_of(lens, heads, width)

    native.move_rows(source, compiled, moves, heads, width, 2)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("HRM_NATIVE", "0")
        move_rows(source, through_torch, moves, heads, width)

    assert torch.equal(compiled, through_torch)
    by_prompt = [part.transpose(0, 1).flatten() for part in torch.split(source, lens)]
    assert torch.equal(compiled, torch.cat(by_prompt[::-1]))


def test_prompts_of_one_length_are_copied_at_once_through_torch(monkeypatch):
    monkeypatch.setenv("HRM_NATIVE", "0")
    copies, copy = list[tuple[int, ...]](), torch.Tensor.copy_

    def counted(*rows):
        copies.append(tuple(rows[0].shape))
        return copy(*rows)

    monkeypatch.setattr(torch.Tensor, "copy_", counted)
    source, target = torch.randn(14, 2, 4), torch.zeros(14 * 8)

    move_rows(source, target, [move._replace(target=move.source) for move in moves_of([3, 3, 3, 5], 2, 4)], 2, 4)

    assert copies == [(3, 3, 2, 4), (1, 5, 2, 4)]


def test_formats_are_converted_through_torch():
    source, target = torch.randn(3, 2, 4), torch.zeros(24, dtype=torch.bfloat16)

    move_rows(source, target, moves_of([3], 2, 4), 2, 4)

    assert torch.equal(target.view(2, 3, 4), source.to(torch.bfloat16).transpose(0, 1))


@pytest.mark.parametrize("field", ["source", "source_token", "target", "target_head", "tokens"])
def test_a_move_that_leaves_its_tensor_is_refused_and_nothing_is_moved(field):
    source, target = torch.ones(5, 2, 4), torch.zeros(40)
    move = moves_of([5], 2, 4)[0]

    with pytest.raises(ValueError, match="lies outside"):
        native.move_rows(source, target, [move, move._replace(**{field: getattr(move, field) + 1})], 2, 4, 1)
    with pytest.raises(ValueError, match="lies outside"):
        native.move_rows(source, target, [move._replace(target=-1)], 2, 4, 1)

    assert not target.any()


@settings(max_examples=40, deadline=None)
@given(
    lens=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    window=st.none() | st.integers(1, 8),
    first=st.integers(0, 2),
)
def test_a_stored_prompt_lies_where_decode_would_have_put_its_tokens(lens, window, first):
    model = ModelSpec(
        name="tiny",
        family="mixtral",
        num_layers=1,
        hidden_size=8,
        intermediate_size=8,
        num_query_heads=2,
        num_kv_heads=2,
        head_dim=4,
        num_experts=2,
        experts_per_token=1,
        vocab_size=7,
        max_position_embeddings=64,
        sliding_window=window,
        windowed_layers=() if window is None else (0,),
    )
    capacities = [3] * first + [tokens + 2 for tokens in lens]
    cache = KVCache(model, capacities, torch.float32, lambda shape, kind: torch.zeros(tuple(shape), dtype=kind))
    prompts = [torch.randn(2, tokens, 4) for tokens in lens]

    cache.store_prompts(0, first, lens, [torch.cat([prompt.flatten() for prompt in prompts])] * 2)

    for sequence, prompt in enumerate(prompts, start=first):
        for own in cache.rows(0, sequence, capacities[sequence]):
            expected = torch.zeros_like(own)
            for token in range(prompt.shape[1]):
                expected[:, token % own.shape[1]] = prompt[:, token]
            assert torch.equal(own, expected)
