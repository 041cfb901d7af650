"""Choices compiled for the CPU: a router's experts, and the likeliest token; there must be a library."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from executor.native.library import call

if TYPE_CHECKING:
    import torch

__all__ = ["largest", "route"]


class _Route(ctypes.Structure):
    """Mirrors `HrmRoute` in choices.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("logits", "chosen", "shares")),
        *((name, ctypes.c_int64) for name in ("tokens", "experts", "per_token")),
        ("scale", ctypes.c_float),
        ("renormalized", ctypes.c_int32),
    )


class _Largest(ctypes.Structure):
    """Mirrors `HrmLargest` in choices.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "out")),
        *((name, ctypes.c_int64) for name in ("rows", "width", "stride")),
        ("is_bfloat16", ctypes.c_int32),
    )


def route(
    logits: torch.Tensor,
    shares: torch.Tensor,
    chosen: torch.Tensor,
    *,
    renormalized: bool,
    scale: float,
    num_threads: int,
) -> None:
    """Write each token's likeliest experts and their shares by softmax: both [tokens, experts_per_token].

    `logits` [tokens, experts] and `shares` are float32, `chosen` int64; all contiguous and in host memory. Of equal
    experts the first is chosen. `renormalized` shares of a token add up to `scale`.

    Raises
    ------
    ValueError
        When shapes, dtypes or layouts contradict this description.
    """
    (tokens, experts), per_token = logits.shape, chosen.shape[1]
    kinds = tuple(str(tensor.dtype) for tensor in (logits, shares, chosen))
    fits = chosen.shape == shares.shape == (tokens, per_token) and 0 < per_token <= experts
    if not fits or kinds != ("torch.float32", "torch.float32", "torch.int64"):
        raise ValueError(f"route: {tuple(logits.shape)} does not give {tuple(shares.shape)} and {tuple(chosen.shape)}")
    _check(logits, shares, chosen)
    job = _Route(
        logits=logits.data_ptr(),
        chosen=chosen.data_ptr(),
        shares=shares.data_ptr(),
        tokens=tokens,
        experts=experts,
        per_token=per_token,
        scale=scale,
        renormalized=renormalized,
    )
    call("route", num_threads, job)


def largest(x: torch.Tensor, out: torch.Tensor, num_threads: int) -> None:
    """Write the place of the largest number of each row of x [rows, width] into `out` [rows], int64.

    Of equal ones it is the first; NaN is larger than any number. `x` is float32 or bfloat16, each row contiguous.

    Raises
    ------
    ValueError
        When shapes, dtypes or layouts contradict this description.
    """
    rows, width = x.shape
    if out.shape != (rows,) or str(out.dtype) != "torch.int64" or not width or x.stride(1) != 1:
        raise ValueError(f"largest: {tuple(x.shape)} does not give {tuple(out.shape)}")
    _check(x[:1], out)
    job = _Largest(
        x=x.data_ptr(),
        out=out.data_ptr(),
        rows=rows,
        width=width,
        stride=x.stride(0),
        is_bfloat16=x.dtype.itemsize == 2,
    )
    call("largest", num_threads, job)


def _check(*tensors: torch.Tensor) -> None:
    if not all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in tensors):
        raise ValueError("choices: expected contiguous tensors in host memory")
