"""Norms, rotations and sums of rows compiled for the CPU; there must be a library.

What torch does in six passes over memory, and for rows that lie apart element by element, is one pass here. Arithmetic
is float32, and a row's result does not depend on the others.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from executor.native.library import available, call

if TYPE_CHECKING:
    import torch

__all__ = ["Move", "add", "add_rms_norm", "copy_rows", "move_rows", "rms_norm", "rotate", "suits_rows"]


class _Rows(ctypes.Structure):
    """Mirrors `HrmRows` in elementwise.cpp, field by field."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("token_stride", "head_stride", "is_bfloat16")),
    )


class _Norm(ctypes.Structure):
    """Mirrors `HrmNorm` in elementwise.cpp, field by field."""

    _fields_ = (
        ("x", _Rows),
        ("out", _Rows),
        ("weight", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("tokens", "heads", "width")),
        ("eps", ctypes.c_float),
        ("weight_is_bfloat16", ctypes.c_int32),
    )


class _Sum(ctypes.Structure):
    """Mirrors `HrmSum` in elementwise.cpp, field by field."""

    _fields_ = (
        ("total", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("total_is_bfloat16", ctypes.c_int32),
        ("x_is_bfloat16", ctypes.c_int32),
    )


class _Rotation(ctypes.Structure):
    """Mirrors `HrmRotation` in elementwise.cpp, field by field."""

    _fields_ = (
        ("x", _Rows),
        ("out", _Rows),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("tokens", "heads", "half")),
        ("tables_are_bfloat16", ctypes.c_int32),
    )


class _Copy(ctypes.Structure):
    """Mirrors `HrmCopy` in elementwise.cpp, field by field."""

    _fields_ = (("x", _Rows), ("out", _Rows), *((name, ctypes.c_int64) for name in ("tokens", "heads", "width")))


class Move(NamedTuple):
    """Rows that go together: of `tokens` tokens each head's. Places of the first row and distances, in elements."""

    source: int
    source_token: int
    source_head: int
    target: int
    target_token: int
    target_head: int
    tokens: int


class _Moves(ctypes.Structure):
    """Mirrors `HrmMoves` in elementwise.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "out", "moves")),
        *(
            (name, ctypes.c_int64)
            for name in ("count", "heads", "width", "x_elements", "out_elements", "element_bytes")
        ),
    )


def suits_rows(*tensors: torch.Tensor) -> bool:
    """Whether the compiled kernels work on such tensors: float32 or bfloat16 in host memory, each row contiguous."""
    return available() and all(
        tensor.device.type == "cpu"
        and str(tensor.dtype) in ("torch.float32", "torch.bfloat16")
        and tensor.stride(-1) == 1
        for tensor in tensors
    )


def add(total: torch.Tensor, x: torch.Tensor, num_threads: int) -> None:
    """Add `x` to `total`, of one shape, each contiguous and of its own dtype; the sum is rounded once.

    Raises
    ------
    ValueError
        When shapes or layouts contradict this description.
    """
    job = _sum(total, x)
    call("add", num_threads, job)


def add_rms_norm(
    total: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor, num_threads: int
) -> None:
    """Do as `add` and then `rms_norm` of `total` [tokens, width] into `out`: to the bit what these two do.

    Raises
    ------
    ValueError
        When shapes, dtypes or layouts contradict their descriptions.
    """
    sum_job, job = _sum(total, x), _norm(total, weight, eps, out)
    call("add_norm", num_threads, sum_job, job)


def _sum(total: torch.Tensor, x: torch.Tensor) -> _Sum:
    if total.shape != x.shape or not (total.is_contiguous() and x.is_contiguous()):
        raise ValueError(f"sum of {tuple(total.shape)} and {tuple(x.shape)}: expected contiguous tensors of one shape")
    return _Sum(
        total=total.data_ptr(),
        x=x.data_ptr(),
        count=x.numel(),
        total_is_bfloat16=total.dtype.itemsize == 2,
        x_is_bfloat16=x.dtype.itemsize == 2,
    )


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor, num_threads: int) -> None:
    """Write x / rms(x) * weight into `out`: [tokens, width] or [tokens, heads, width], of the dtype of `x`.

    The norm is rounded to that dtype before the weight is applied, as published models do. All as `suits_rows` asks.

    Raises
    ------
    ValueError
        When shapes or dtypes contradict this description.
    """
    job = _norm(x, weight, eps, out)
    call("rms_norm", num_threads, job)


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> _Norm:
    if out.shape != x.shape or out.dtype != x.dtype or weight.shape != x.shape[-1:] or x.dim() not in (2, 3):
        raise ValueError(f"norm of {tuple(x.shape)} by {tuple(weight.shape)} does not give {tuple(out.shape)}")
    return _Norm(
        x=_rows(x),
        out=_rows(out),
        weight=weight.data_ptr(),
        tokens=x.shape[0],
        heads=x.shape[1] if x.dim() == 3 else 1,
        width=x.shape[-1],
        eps=eps,
        weight_is_bfloat16=weight.dtype.itemsize == 2,
    )


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, num_threads: int) -> None:
    """Rotate x [tokens, heads, width] into `out`, of any dtype: element i is paired with i + width / 2.

    `cos` and `sin` are [tokens, 1, width / 2], contiguous and of one dtype. All as `suits_rows` asks.

    Raises
    ------
    ValueError
        When shapes, dtypes or layouts contradict this description.
    """
    tokens, heads, width = x.shape
    tables_fit = all(table.shape == (tokens, 1, width // 2) and table.is_contiguous() for table in (cos, sin))
    if out.shape != x.shape or width % 2 or not tables_fit or cos.dtype != sin.dtype:
        raise ValueError(f"rotation of {tuple(x.shape)} by {tuple(cos.shape)} does not give {tuple(out.shape)}")
    job = _Rotation(
        x=_rows(x),
        out=_rows(out),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        tokens=tokens,
        heads=heads,
        half=width // 2,
        tables_are_bfloat16=cos.dtype.itemsize == 2,
    )
    call("rotate", num_threads, job)


def copy_rows(x: torch.Tensor, out: torch.Tensor, num_threads: int) -> None:
    """Copy x [tokens, heads, width] into `out`, of its dtype. All as `suits_rows` asks.

    Raises
    ------
    ValueError
        When shapes or dtypes contradict this description.
    """
    if x.dim() != 3 or out.shape != x.shape or out.dtype != x.dtype:
        raise ValueError(f"copy of {x.dtype} {tuple(x.shape)} does not give {out.dtype} {tuple(out.shape)}")
    tokens, heads, width = x.shape
    call("copy_rows", num_threads, _Copy(x=_rows(x), out=_rows(out), tokens=tokens, heads=heads, width=width))


def move_rows(
    x: torch.Tensor, out: torch.Tensor, moves: Sequence[Move], heads: int, width: int, num_threads: int
) -> None:
    """Copy rows of `width` numbers from x into `out`, both contiguous and of one dtype, `heads` of them for each token.

    Raises
    ------
    ValueError
        When dtypes or layouts contradict this description, or a move leaves a tensor.
    """
    numbers = (ctypes.c_int64 * (len(moves) * len(Move._fields)))(*(number for move in moves for number in move))
    job = _Moves(
        x=x.data_ptr(),
        out=out.data_ptr(),
        moves=ctypes.addressof(numbers),
        count=len(moves),
        heads=heads,
        width=width,
        x_elements=x.numel(),
        out_elements=out.numel(),
        element_bytes=x.dtype.itemsize,
    )
    job.kept = numbers  # as long as the job
    fits = x.dtype == out.dtype and x.is_contiguous() and out.is_contiguous() and heads > 0 and width > 0
    if not fits or call("move_rows", num_threads, job):
        raise ValueError(f"rows from {x.dtype} {tuple(x.shape)} to {out.dtype} {tuple(out.shape)}: one lies outside")


def _rows(tensor: torch.Tensor) -> _Rows:
    return _Rows(
        data=tensor.data_ptr(),
        token_stride=tensor.stride(0),
        head_stride=tensor.stride(1) if tensor.dim() == 3 else 0,
        is_bfloat16=tensor.dtype.itemsize == 2,
    )
