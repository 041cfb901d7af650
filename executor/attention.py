"""Grouped-query attention: causal over whole prompts in prefill, of one query token per sequence in decode."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F  # noqa: N812

from executor import native
from executor.native import fallback
from executor.wave import runs
from hrm.records import record

__all__ = ["TOKENS_AT_A_TIME", "AttentionForm", "append_kv", "decode_attention", "prefill_attention"]

TOKENS_AT_A_TIME = 1024
"""Tokens of short prompts for one call of torch at most: what it makes is in no ledger, and must stay small."""

_SINK_COLUMNS = 8
"""Elements that heads are widened by for a sink: kernels want widths that are multiples of this."""


@record
class AttentionForm:
    """What a layer's attention is besides its shapes: the scale of its logits, its window, a sink per query head."""

    scale: float
    window: int | None = None
    sinks: torch.Tensor | None = None


def prefill_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    out: torch.Tensor,
    lens: Sequence[int],
    form: AttentionForm,
) -> None:
    """Attend causally within each of some prompts side by side: the compiled kernel on the CPU, torch elsewhere.

    Parameters
    ----------
    query : torch.Tensor
        [tokens, num_query_heads, head_dim].
    keys, values : torch.Tensor
        Of each prompt one behind the other, [num_kv_heads, its tokens, head_dim], as one flat tensor; values may be
        narrower.
    out : torch.Tensor
        [tokens, num_query_heads * width of the values]; written.
    lens : Sequence[int]
        Tokens of each prompt.
    form : AttentionForm
        How to attend.
    """
    tokens, num_query_heads, head_dim = query.shape
    num_kv_heads = keys.numel() // (tokens * head_dim)
    if native.suits_rows(query, keys):
        sinks = None if form.sinks is None else form.sinks.float()
        prompts, threads = native.Prompts(query, keys, values, lens, num_kv_heads), torch.get_num_threads()
        native.prefill_attention(prompts, out, scale=form.scale, window=form.window, sinks=sinks, num_threads=threads)
        return
    starts, width = list(accumulate(lens, initial=0)), out.shape[1] // num_query_heads
    for first, last in runs(lens, TOKENS_AT_A_TIME):
        rows, shape = slice(starts[first], starts[last]), (last - first, num_kv_heads, lens[first])
        own = slice(rows.start * num_kv_heads, rows.stop * num_kv_heads)
        _attend_prompts(
            query[rows].view(shape[0], lens[first], num_query_heads, head_dim),
            keys.view(-1, head_dim)[own].view(*shape, head_dim),
            values.view(-1, width)[own].view(*shape, width),
            out[rows].view(shape[0], lens[first], -1),
            form,
        )


def _attend_prompts(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, out: torch.Tensor, form: AttentionForm
) -> None:
    """Attend within prompts of one length, [prompts, tokens, ...] or keys and values [prompts, heads, tokens, ...].

    Query heads that share a KV head are a batch of their own over the same keys, so that nothing is repeated. With a
    window that the prompts outgrow, queries go by blocks of it, each over the keys that it can see.
    """
    prompts, tokens, num_query_heads, head_dim = query.shape
    num_kv_heads, width = values.shape[1], values.shape[3]
    # The CPU has no fast float16 product: compute in float32 there.
    slow = query.dtype == torch.float16 and query.device.type == "cpu"
    dtype = torch.float32 if slow else query.dtype
    shape = (prompts, tokens, num_kv_heads, num_query_heads // num_kv_heads)
    grouped = query.to(dtype).view(*shape, head_dim).permute(0, 2, 3, 1, 4).flatten(0, 1)
    keys, values = keys.to(dtype).flatten(0, 1), values.to(dtype).flatten(0, 1)
    if form.sinks is not None:
        grouped = _with_sink_logits(grouped, form.sinks.repeat(prompts), form.scale)
    step = tokens if form.window is None else min(form.window, tokens)
    for begin in range(0, tokens, step):
        end, first = min(begin + step, tokens), max(begin - step + 1, 0)
        seen, worth = keys[:, first:end], values[:, first:end]
        if form.sinks is not None:
            seen, worth = _with_sink_key(seen), F.pad(worth, (0, 0, 1, 0))
        attended = _attend(grouped[:, :, begin:end], seen, worth, form.scale, (begin, first))[..., :width]
        by_prompt = attended.view(prompts, num_kv_heads, *attended.shape[1:]).permute(0, 3, 1, 2, 4)
        out.view(*shape, width)[:, begin:end].copy_(by_prompt)


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, start: tuple[int, int]
) -> torch.Tensor:
    """Attend from query [kv heads, group, rows, width] to keys [kv heads, tokens, width], causally.

    `start` is the position of the first row, and that of the first key behind a sink, if there is one. Behind the
    first position a row sees as many keys as there are from the first one to itself less its own place among the rows.
    """
    rows, tokens = query.shape[2], keys.shape[1]
    sinks = tokens - (start[0] + rows - start[1])
    # Kernels want values as wide as keys.
    values = F.pad(values, (0, keys.shape[2] - values.shape[2]))
    keys, values = (part.unsqueeze(1).expand(-1, query.shape[1], -1, -1) for part in (keys, values))
    if start[0] == 0:
        # A row for the sink makes the causal mask a square.
        attended = F.scaled_dot_product_attention(
            F.pad(query, (0, 0, sinks, 0)), keys, values, is_causal=True, scale=scale
        )
        return attended[:, :, sinks:]
    behind = torch.arange(tokens - sinks, device=query.device) - torch.arange(rows, device=query.device).unsqueeze(1)
    visible = (behind >= 0) & (behind <= start[0] - start[1])
    mask = F.pad(visible, (sinks, 0), value=True)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)


def _with_sink_logits(query: torch.Tensor, sinks: torch.Tensor, scale: float) -> torch.Tensor:
    """Widen query [kv heads, group, tokens, head_dim] by what the key of `_with_sink_key` turns into the sinks."""
    widened = F.pad(query, (0, _SINK_COLUMNS))
    widened[..., query.shape[-1]] = (sinks / scale).to(query.dtype).view(*query.shape[:2], 1)
    return widened


def _with_sink_key(keys: torch.Tensor) -> torch.Tensor:
    """Put a key before keys [kv heads, tokens, head_dim] that none of their elements touches."""
    widened = F.pad(keys, (0, _SINK_COLUMNS, 1, 0))
    widened[:, 0, keys.shape[-1]] = 1
    return widened


def decode_attention(  # noqa: PLR0913 (the buffers of one kernel call, kept flat)
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layout: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    num_kv_heads: int,
    out: torch.Tensor,
    sinks: torch.Tensor | None = None,
) -> None:
    """Attend one query token per sequence over its cache: the compiled kernel on the CPU, torch elsewhere.

    `layout` is offsets, capacities and lengths as `executor.native.decode_attention` describes them; it lies in host
    memory. The CPU kernel uses as many threads as torch may use in the calling thread. Where `out` is narrower than the
    query, it takes the first part of each head's output.
    """
    if query.device.type != "cpu" or sinks is not None:
        fallback.decode_attention(query, keys, values, layout, num_kv_heads, out, sinks)
        return
    whole = out if out.shape == query.shape else torch.empty_like(query)
    native.decode_attention(query, keys, values, *layout, num_kv_heads, whole, torch.get_num_threads())
    if whole is not out:
        out.copy_(whole[..., : out.shape[-1]])


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
