"""Attention within whole prompts compiled for the CPU; there must be a library.

Prompts of any lengths lie side by side and are one call. Sums are float32; a row's result depends neither on other
prompts nor on the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from executor.native.library import chosen_path, library
from hrm.errors import OutOfMemoryError

if TYPE_CHECKING:
    import torch

__all__ = ["Prompts", "prefill_attention"]


class _Prefill(ctypes.Structure):
    """Mirrors `HrmPrefill` in prefill.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "keys", "values", "out", "starts", "sinks")),
        *((name, ctypes.c_int64) for name in ("prompts", "num_query_heads", "num_kv_heads", "head_dim", "value_dim")),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("query_is_bfloat16", "cache_is_bfloat16")),
    )


class Prompts(NamedTuple):
    """Queries [tokens, num_query_heads, head_dim] of prompts side by side, and what they attend to.

    `keys` and `values` have one behind the other, of each prompt, [num_kv_heads, its tokens, head_dim]; values may be
    of another width. `lengths` are the prompts' tokens.
    """

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    lengths: Sequence[int]
    num_kv_heads: int


def prefill_attention(
    prompts: Prompts,
    out: torch.Tensor,
    *,
    scale: float,
    window: int | None,
    sinks: torch.Tensor | None,
    num_threads: int,
) -> None:
    """Attend causally within each prompt, over `window` tokens at most; `out` is [tokens, num_query_heads * width].

    `sinks` (float32, [num_query_heads]) are logits that take their share of each softmax. All tensors are contiguous,
    in host memory, and float32 or bfloat16; keys and values are of one dtype, `out` of that of the query.

    Raises
    ------
    ValueError
        When shapes, dtypes or layouts contradict this description.
    OutOfMemoryError
        When there is none for the scratch space.
    """
    query, keys, values, lengths, num_kv_heads = prompts
    tokens, num_query_heads, head_dim = query.shape
    width = out.numel() // max(tokens * num_query_heads, 1)
    rows = tokens * num_kv_heads
    _check(
        num_query_heads % num_kv_heads == 0 and sum(lengths) == tokens,
        (keys.numel(), values.numel()) == (rows * head_dim, rows * width),
        out.shape == (tokens, num_query_heads * width),
        sinks is None or (sinks.numel() == num_query_heads and str(sinks.dtype) == "torch.float32"),
        keys.dtype == values.dtype and query.dtype == out.dtype,
        all(str(part.dtype) in ("torch.float32", "torch.bfloat16") for part in (query, keys)),
        all(part.is_contiguous() and part.device.type == "cpu" for part in (query, keys, values, out)),
    )
    starts = (ctypes.c_int64 * (len(lengths) + 1))(*accumulate(lengths, initial=0))
    job = _Prefill(
        query=query.data_ptr(),
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        out=out.data_ptr(),
        starts=ctypes.addressof(starts),
        sinks=None if sinks is None else sinks.data_ptr(),
        prompts=len(lengths),
        num_query_heads=num_query_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        value_dim=width,
        window=window or tokens,
        scale=scale,
        query_is_bfloat16=query.dtype.itemsize == 2,
        cache_is_bfloat16=keys.dtype.itemsize == 2,
    )
    compiled = library()
    assert compiled is not None
    if not compiled.hrm_prefill_attention(ctypes.byref(job), chosen_path(), num_threads):
        raise OutOfMemoryError("prefill attention: no memory for the kernel's scratch space (use fewer threads)")


def _check(*holds: bool) -> None:
    if not all(holds):
        raise ValueError("prefill attention: shapes, dtypes or layouts do not fit together")
