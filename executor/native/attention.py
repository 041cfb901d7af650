"""Decode attention compiled for the CPU, through torch where no compiled library was installed or for float16."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from executor.native.library import available, call

if TYPE_CHECKING:
    import torch

__all__ = ["append_kv", "decode_attention"]

_REFUSALS = {
    1: "the CPU lacks the instructions of the chosen path",
    2: "a length is negative or beyond its capacity",
    3: "a sequence's block lies outside the buffer of keys and values",
    4: "no memory for the kernel's scratch space",
}


class _Attention(ctypes.Structure):
    """Mirrors `HrmAttention` in attention.cpp, field by field."""

    _fields_ = (
        ("query", ctypes.c_void_p),
        ("new_keys", ctypes.c_void_p),
        ("new_values", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("capacities", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("num_query_heads", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("buffer_elements", ctypes.c_int64),
        ("query_is_bfloat16", ctypes.c_int32),
        ("cache_is_bfloat16", ctypes.c_int32),
    )


def decode_attention(  # noqa: PLR0913 (the buffers of one kernel call, kept flat for ctypes)
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    offsets: torch.Tensor,
    capacities: torch.Tensor,
    lengths: torch.Tensor,
    num_kv_heads: int,
    out: torch.Tensor,
    num_threads: int,
) -> None:
    """Attend one query token per sequence over its cached keys and values; softmax(q k / sqrt(d)) v.

    Query head h uses KV head `h // (num_query_heads // num_kv_heads)`. Sums are float32 whatever the dtypes.

    Parameters
    ----------
    query : torch.Tensor
        [batch, num_query_heads, head_dim], float32 or bfloat16 (float16, here or in the cache, runs through torch).
    keys, values : torch.Tensor
        Flat buffers, float32 or bfloat16: sequence i owns a contiguous [num_kv_heads, capacities[i], head_dim] from
        element offsets[i] of each.
    offsets, capacities, lengths : torch.Tensor
        int64, one per sequence: elements, tokens, valid tokens. What lies beyond `lengths` is never read.
    num_kv_heads : int
        Divides the number of query heads.
    out : torch.Tensor
        As `query`; written. A sequence of length 0 gets zeros.
    num_threads : int
        Threads at most, the caller's included; the torch path uses torch's own number instead.

    Raises
    ------
    ValueError
        When shapes, dtypes, layouts or lengths contradict this description.
    """
    job = _job(query, keys, values, (offsets, capacities, lengths), num_kv_heads)
    if out.shape != query.shape or out.dtype != query.dtype or not out.is_contiguous():
        raise ValueError(f"out: expected a contiguous tensor like the query, got {out.dtype} {tuple(out.shape)}")
    if not available() or _has_float16(query, keys):
        from executor.native import fallback

        fallback.decode_attention(query, keys, values, (offsets, capacities, lengths), num_kv_heads, out)
        return
    job.out = out.data_ptr()
    _raise_refusal(call("decode_attention", num_threads, job))


def append_kv(  # noqa: PLR0913
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    offsets: torch.Tensor,
    capacities: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """Write one new token per sequence behind its `lengths[i]` valid ones, in the cache's dtype; lengths stay as given.

    Parameters
    ----------
    new_keys, new_values : torch.Tensor
        [batch, num_kv_heads, head_dim].
    keys, values, offsets, capacities, lengths : torch.Tensor
        The cache, as `decode_attention` describes it.

    Raises
    ------
    ValueError
        When shapes, dtypes or layouts do not fit, or a sequence has no room left.
    """
    job = _job(new_keys, keys, values, (offsets, capacities, lengths), new_keys.shape[1])
    if new_values.shape != new_keys.shape or new_values.dtype != new_keys.dtype or not new_values.is_contiguous():
        raise ValueError(f"new values: expected a contiguous tensor like the new keys, got {tuple(new_values.shape)}")
    if not available() or _has_float16(new_keys, keys):
        from executor.native import fallback

        fallback.append_kv(new_keys, new_values, keys, values, (offsets, capacities, lengths))
        return
    job.new_keys, job.new_values = new_keys.data_ptr(), new_values.data_ptr()
    _raise_refusal(call("append_kv", 1, job))


def _job(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layout: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    num_kv_heads: int,
) -> _Attention:
    """Check what the library takes on trust, and describe it; the tensors must outlive the call."""
    batch, num_query_heads, head_dim = query.shape
    _check_memory(query, keys, values)
    for per_sequence in layout:
        if per_sequence.shape != (batch,) or str(per_sequence.dtype) != "torch.int64":
            raise ValueError(f"offsets, capacities, lengths: expected int64 [{batch}], got {per_sequence.dtype}")
        if not per_sequence.is_contiguous():
            raise ValueError("offsets, capacities, lengths: expected contiguous tensors")
    if num_kv_heads < 1 or num_query_heads % num_kv_heads:
        raise ValueError(f"KV heads: {num_kv_heads} does not divide {num_query_heads} query heads")
    offsets, capacities, lengths = layout
    return _Attention(
        query=query.data_ptr(),
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        offsets=offsets.data_ptr(),
        capacities=capacities.data_ptr(),
        lengths=lengths.data_ptr(),
        batch=batch,
        num_query_heads=num_query_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        buffer_elements=keys.numel(),
        query_is_bfloat16=query.dtype.itemsize == 2,
        cache_is_bfloat16=keys.dtype.itemsize == 2,
    )


def _check_memory(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    for name, tensor in (("query", query), ("keys", keys), ("values", values)):
        if str(tensor.dtype) not in ("torch.float32", "torch.bfloat16", "torch.float16"):
            raise ValueError(f"{name}: expected float32, bfloat16 or float16, got {tensor.dtype}")
        if not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise ValueError(f"{name}: expected a contiguous tensor in host memory")
    if keys.shape != values.shape or keys.dtype != values.dtype or keys.dim() != 1:
        raise ValueError(f"keys and values: expected equal flat buffers, got {keys.shape} and {values.shape}")


def _has_float16(query: torch.Tensor, keys: torch.Tensor) -> bool:
    return "torch.float16" in (str(query.dtype), str(keys.dtype))


def _raise_refusal(code: int | None) -> None:
    if code:
        raise ValueError(_REFUSALS[code])
