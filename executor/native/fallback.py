"""The same two operations through torch, one sequence at a time: for installations without the compiled library."""

from __future__ import annotations

import math

import torch

__all__ = ["append_kv", "decode_attention"]

Layout = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def decode_attention(  # noqa: PLR0913 (the buffers of one kernel call, kept flat)
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layout: Layout,
    num_kv_heads: int,
    out: torch.Tensor,
    sinks: torch.Tensor | None = None,
) -> None:
    """As `executor.native.decode_attention`; `layout` is offsets, capacities and lengths. Arithmetic is float32.

    `sinks` [num_query_heads] are logits beside those of the keys, without a value. `out` may be narrower than the
    query: it takes the first part of each head's output.
    """
    batch, num_query_heads, head_dim = query.shape
    grouped = query.view(batch, num_kv_heads, num_query_heads // num_kv_heads, head_dim).float() / math.sqrt(head_dim)
    grouped_out = out.view(*grouped.shape[:3], -1)
    beside = torch.empty((num_kv_heads, num_query_heads // num_kv_heads, 0), device=query.device)
    if sinks is not None:
        beside = sinks.float().view(*beside.shape[:2], 1)
    blocks = _blocks(layout, num_kv_heads, head_dim, keys.numel(), new_tokens=0)
    for i, (start, capacity, length) in enumerate(blocks):
        shape = (num_kv_heads, capacity, head_dim)
        owned = slice(start, start + math.prod(shape))
        k = keys[owned].view(shape)[:, :length].float()
        v = values[owned].view(shape)[:, :length, : out.shape[-1]].float()
        weights = torch.softmax(torch.cat((grouped[i] @ k.mT, beside), dim=-1), dim=-1)
        grouped_out[i] = weights[..., :length] @ v


def append_kv(
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layout: Layout,
) -> None:
    """As `executor.native.append_kv`; `layout` is offsets, capacities and lengths."""
    _, num_kv_heads, head_dim = new_keys.shape
    blocks = _blocks(layout, num_kv_heads, head_dim, keys.numel(), new_tokens=1)
    for i, (start, capacity, length) in enumerate(blocks):
        shape = (num_kv_heads, capacity, head_dim)
        owned = slice(start, start + math.prod(shape))
        keys[owned].view(shape)[:, length] = new_keys[i]
        values[owned].view(shape)[:, length] = new_values[i]


def _blocks(
    layout: Layout, num_kv_heads: int, head_dim: int, buffer_elements: int, *, new_tokens: int
) -> list[tuple[int, int, int]]:
    """Offset, capacity and length of every sequence, after the checks that the compiled library makes."""
    offsets, capacities, lengths = (numbers.tolist() for numbers in layout)
    blocks = list(zip(offsets, capacities, lengths, strict=True))
    for start, capacity, length in blocks:
        if length < 0 or length + new_tokens > capacity:
            raise ValueError("a length is negative or beyond its capacity")
        if start < 0 or start + num_kv_heads * capacity * head_dim > buffer_elements:
            raise ValueError("a sequence's block lies outside the buffer of keys and values")
    return blocks
