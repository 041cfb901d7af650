"""Rows of heads on their way between layouts: token by token as they are made, head by head as a cache holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch

from executor import native
from executor.native import Move

__all__ = ["copy_rows", "move_rows"]


def move_rows(source: torch.Tensor, target: torch.Tensor, moves: Sequence[Move], heads: int, width: int) -> None:
    """Copy rows of `width` numbers, `heads` of them for each token; both tensors are contiguous."""
    if source.dtype == target.dtype and native.suits_rows(source, target):
        native.move_rows(source, target, moves, heads, width, torch.get_num_threads())
        return
    for run in _alike(moves):
        move, (source_step, target_step) = run[0], _step(run[0], run[min(1, len(run) - 1)])
        shape = (len(run), move.tokens, heads, width)
        places = (target_step, move.target_token, move.target_head, 1)
        rows = source.as_strided(
            shape, (source_step, move.source_token, move.source_head, 1), source.storage_offset() + move.source
        )
        target.as_strided(shape, places, target.storage_offset() + move.target).copy_(rows)


def copy_rows(heads: torch.Tensor, target: torch.Tensor) -> None:
    """Copy [tokens, heads, width] to where they are to lie, whatever the distance from token to token."""
    if native.suits_rows(heads, target) and heads.dtype == target.dtype:
        native.copy_rows(heads, target, torch.get_num_threads())
    else:
        target.copy_(heads)


def _alike(moves: Sequence[Move]) -> Iterator[list[Move]]:
    """Yield runs of moves of one shape at even distances, as of prompts of one length: torch copies each at once."""
    run: list[Move] = []
    for move in moves:
        if run and not (_shape(move) == _shape(run[0]) and _even([*run[-2:], move])):
            yield run
            run = []
        run.append(move)
    if run:
        yield run


def _shape(move: Move) -> tuple[int, ...]:
    return move.source_token, move.source_head, move.target_token, move.target_head, move.tokens


def _even(moves: Sequence[Move]) -> bool:
    """Whether moves lie equally far apart, and none before the one before it."""
    steps = {_step(*pair) for pair in pairwise(moves)}
    return len(steps) == 1 and min(*steps.pop()) >= 0


def _step(move: Move, after: Move) -> tuple[int, int]:
    return after.source - move.source, after.target - move.target
