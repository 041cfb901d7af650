"""Grouped-query attention: causal over whole prompts in prefill, of one query token per sequence in decode."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from executor import native
from executor.native import fallback

__all__ = ["append_kv", "decode_attention", "prefill_attention"]


def prefill_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, out: torch.Tensor) -> None:
    """Attend causally within one prompt.

    Query heads that share a KV head are a batch of their own over the same keys, so that nothing is repeated.

    Parameters
    ----------
    query : torch.Tensor
        [tokens, num_query_heads, head_dim].
    keys, values : torch.Tensor
        [num_kv_heads, tokens, head_dim].
    out : torch.Tensor
        [tokens, num_query_heads * head_dim]; written.
    """
    tokens, num_query_heads, head_dim = query.shape
    num_kv_heads = keys.shape[0]
    # The CPU has no fast float16 product: compute in float32 there.
    slow = query.dtype == torch.float16 and query.device.type == "cpu"
    dtype = torch.float32 if slow else query.dtype
    grouped = query.to(dtype).view(tokens, num_kv_heads, num_query_heads // num_kv_heads, head_dim)
    shape = (*grouped.shape[1:3], tokens, head_dim)
    attended = F.scaled_dot_product_attention(
        grouped.permute(1, 2, 0, 3),
        keys.to(dtype).unsqueeze(1).expand(shape),
        values.to(dtype).unsqueeze(1).expand(shape),
        is_causal=True,
    )
    out.view(grouped.shape).copy_(attended.permute(2, 0, 1, 3))


def decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layout: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    num_kv_heads: int,
    out: torch.Tensor,
) -> None:
    """Attend one query token per sequence over its cache: the compiled kernel on the CPU, torch elsewhere.

    `layout` is offsets, capacities and lengths as `executor.native.decode_attention` describes them; it lies in host
    memory. The CPU kernel uses as many threads as torch may use in the calling thread.
    """
    if query.device.type != "cpu":
        fallback.decode_attention(query, keys, values, layout, num_kv_heads, out)
        return
    native.decode_attention(query, keys, values, *layout, num_kv_heads, out, torch.get_num_threads())


def append_kv(
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layout: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Write one new token per sequence behind its valid ones (see `executor.native.append_kv`)."""
    if new_keys.device.type != "cpu":
        fallback.append_kv(new_keys, new_values, keys, values, layout)
        return
    native.append_kv(new_keys, new_values, keys, values, *layout)
