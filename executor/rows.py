"""Rows of heads on their way between layouts: token by token as they are made, head by head as a cache holds them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from executor import native

__all__ = ["move_rows"]


def move_rows(source: torch.Tensor, target: torch.Tensor, moves: Sequence[native.Move], heads: int, width: int) -> None:
    """Copy rows of `width` numbers, `heads` of them for each token; both tensors are contiguous."""
    if source.dtype == target.dtype and native.suits_rows(source, target):
        native.move_rows(source, target, moves, heads, width, torch.get_num_threads())
        return
    source, target = source.flatten(), target.flatten()
    for move in moves:
        shape = (move.tokens, heads, width)
        rows = source.as_strided(shape, (move.source_token, move.source_head, 1), source.storage_offset() + move.source)
        places = (move.target_token, move.target_head, 1)
        target.as_strided(shape, places, target.storage_offset() + move.target).copy_(rows)
