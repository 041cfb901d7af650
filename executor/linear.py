"""Matrix products by what the processor can do: compiled ones, else a library's, widened where that is faster.

A CPU without bfloat16 dot products multiplies bfloat16 matrices some ten times slower than float32 ones, and float16
ones some hundred times slower. The compiled kernels widen weights to float32 as they read them. Without them, and for
float16, the weights are widened piece by piece, each piece small enough to stay in the cache between the widening and
the product.

A compiled product gives a row the same bits whatever other rows share it; a library's does not, for it chooses its
kernel, and with it the order of the sums, by the number of rows.
"""

from __future__ import annotations

import time
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812

from executor import native
from executor.workspace import Workspace
from hrm.workspace import ROWS_AT_A_TIME, piece_rows

__all__ = ["is_native", "linear", "operand", "suits_compiled", "widened_product"]

NARROW_ROWS = 1
"""Rows up to which a narrow product without native support beats widening. On a Zen 3 core, bfloat16 weights
3072 x 576: 0.38 against 0.52 ms at one row, 0.72 against 0.67 ms at two, 22.9 against 3.2 ms at 64: below two rows the
weights' bytes decide, above them the arithmetic."""


@cache
def is_native(dtype: torch.dtype, device_type: str) -> bool:
    """Whether the processor multiplies matrices of `dtype` at least half as fast as float32 ones; probed once.

    Half, because widening costs something too. With bfloat16 instructions it is twice as fast, else ten times slower.
    """
    if dtype == torch.float32 or device_type != "cpu":
        return True
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _probe_s(dtype) <= 2 * _probe_s(torch.float32)
    finally:
        torch.set_num_threads(threads)


def _probe_s(dtype: torch.dtype) -> float:
    """Time a product on this thread alone, by the processor's time: whatever else runs must not decide."""
    left, right = (torch.ones(192, 192, dtype=dtype) for _ in range(2))
    fastest_s = float("inf")
    for _ in range(4):
        begun_s = time.thread_time()
        torch.mm(left, right)
        fastest_s = min(fastest_s, time.thread_time() - begun_s)
    return fastest_s


def suits_compiled(weight: torch.Tensor) -> bool:
    """Whether the compiled kernels multiply with such a weight: the one place where that is decided.

    They do for bfloat16 weights on CPUs without native support. One Zen 3 core, experts of 1024 x 3584: 13, 41, 55 and
    79 GFLOP/s at 1, 4, 16 and 128 rows (`benchmarks/expert_ffn.py`), where a library reaches 9 to 10 in bfloat16,
    and 75 to 90 in float32 before any widening. With native support, and for many rows in float32, the library is the
    faster one.
    """
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or not native.available():
        return False
    return not is_native(weight.dtype, "cpu")


def operand(x: torch.Tensor, weight: torch.Tensor, workspace: Workspace) -> torch.Tensor:
    """Return `x` in the format in which products with `weight` are computed: itself, or widened to float32."""
    if is_native(weight.dtype, weight.device.type):
        return x
    return _widened(x, workspace)


def _widened(x: torch.Tensor, workspace: Workspace) -> torch.Tensor:
    if x.dtype == torch.float32:
        return x
    return workspace.take(x.shape, torch.float32).copy_(x)


def linear(
    x: torch.Tensor, weight: torch.Tensor, workspace: Workspace, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return x [rows, inputs] times weight [outputs, inputs] transposed, in the dtype of `x`.

    `x` has the dtype of `weight`, or is the float32 that `operand` made of it. Without `out` the result lies in the
    workspace.
    """
    if out is None:
        out = workspace.take((x.shape[0], weight.shape[0]), x.dtype)
    if suits_compiled(weight):
        return _compiled(x, weight, workspace, out)
    if x.dtype == weight.dtype and is_native(weight.dtype, weight.device.type):
        return torch.mm(x, weight.t(), out=out)
    if x.shape[0] <= NARROW_ROWS and weight.dtype == torch.bfloat16:
        return out.copy_(F.linear(x.to(weight.dtype), weight))
    for first in range(0, x.shape[0], ROWS_AT_A_TIME):
        rows = slice(first, first + ROWS_AT_A_TIME)
        with workspace.frame():
            widened_product(x[rows], weight, workspace, out[rows])
    return out


def _compiled(x: torch.Tensor, weight: torch.Tensor, workspace: Workspace, out: torch.Tensor) -> torch.Tensor:
    rows_bytes = min(x.shape[0], ROWS_AT_A_TIME) * native.packed_bytes(x.shape[1])
    for part, result in zip(torch.split(x, ROWS_AT_A_TIME), torch.split(out, ROWS_AT_A_TIME), strict=True):
        with workspace.frame():
            memory = workspace.take((rows_bytes,), torch.uint8)
            native.linear(part, weight, result, memory, torch.get_num_threads())
    return out


def widened_product(x: torch.Tensor, weight: torch.Tensor, workspace: Workspace, out: torch.Tensor) -> None:
    """Write the product that `linear` returns, computed in float32 whatever the processor does best, to `out`."""
    wide = _widened(x, workspace)
    product = out if out.dtype == torch.float32 else workspace.take(out.shape, torch.float32)
    outputs, inputs = weight.shape
    step = piece_rows(outputs, inputs)
    piece = workspace.take((step, inputs), torch.float32)
    for first in range(0, outputs, step):
        last = min(first + step, outputs)
        piece[: last - first].copy_(weight[first:last])
        torch.mm(wide, piece[: last - first].t(), out=product[:, first:last])
    if product is not out:
        out.copy_(product)
