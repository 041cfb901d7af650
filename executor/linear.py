"""Matrix products by what the processor can do: compiled ones, else a library's, widened where that is faster.

A compiled product reads bfloat16 weights as they lie, once for all rows, and gives a row the same bits whatever other
rows share it; a library's does not, for it chooses its kernel, and with it the order of sums, by the number of rows.

Without compiled kernels, and for float16, a CPU without products of a format multiplies such matrices some ten to
hundred times slower than float32 ones: there the weights are widened piece by piece, each piece small enough to stay in
the cache between the widening and the product.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812

from executor import native
from executor.workspace import Workspace
from hrm.workspace import ROWS_AT_A_TIME, piece_rows

__all__ = ["filled_up", "is_native", "linear", "operand", "suits_compiled", "widened_product", "with_zeros"]

NARROW_ROWS = 1
"""Rows up to which a narrow product without native support beats widening. On a Zen 3 core, bfloat16 weights
3072 x 576: 0.38 against 0.52 ms at one row, 0.72 against 0.67 ms at two, 22.9 against 3.2 ms at 64: below two rows the
weights' bytes decide, above them the arithmetic."""


_PROBE_SIDE = 192
LIBRARY_ROWS = 256
"""Rows of a narrow product that a library takes at a time. For each number of rows that it meets it compiles a kernel,
in 0.5 ms, and keeps 0.6 MiB of it for good, which no ledger counts: 300 numbers by two weights are 350 MiB. So rows are
cut, and filled up to one of 44 numbers."""
FAR_FASTER = 2.0
"""How many times as fast as the compiled kernels a library's bfloat16 products must be to serve instead. With matrix
units (AMX) they are; with dot products of vectors they are 1.1 times as fast for many rows, and slower for few."""


@cache
def is_native(dtype: torch.dtype, device_type: str) -> bool:
    """Whether the processor multiplies matrices of `dtype` at least half as fast as float32 ones; probed once.

    Half, because widening costs something too. With bfloat16 instructions it is twice as fast, else ten times slower.
    """
    if dtype == torch.float32 or device_type != "cpu":
        return True
    return _on_one_thread(lambda: _probe_s(_library_product(dtype)) <= 2 * _probe_s(_library_product(torch.float32)))


@cache
def _library_is_far_faster() -> bool:
    """Whether to leave bfloat16 products to the library although there are compiled ones; probed once."""
    library, compiled = _library_product(torch.bfloat16), _compiled_product()
    return _on_one_thread(lambda: FAR_FASTER * _probe_s(library) <= _probe_s(compiled))


def _on_one_thread(decide: Callable[[], bool]) -> bool:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return decide()
    finally:
        torch.set_num_threads(threads)


def _library_product(dtype: torch.dtype) -> Callable[[], object]:
    left, right = (torch.ones(_PROBE_SIDE, _PROBE_SIDE, dtype=dtype) for _ in range(2))
    return lambda: torch.mm(left, right)


def _compiled_product() -> Callable[[], object]:
    x, weight, out = (torch.ones(_PROBE_SIDE, _PROBE_SIDE, dtype=torch.bfloat16) for _ in range(3))
    memory = torch.empty(_PROBE_SIDE * native.packed_bytes(_PROBE_SIDE), dtype=torch.uint8)
    return lambda: native.linear(x, weight, out, memory, 1)


def _probe_s(product: Callable[[], object]) -> float:
    """Time a product on this thread alone, by the processor's time: whatever else runs must not decide."""
    fastest_s = float("inf")
    for _ in range(4):
        begun_s = time.thread_time()
        product()
        fastest_s = min(fastest_s, time.thread_time() - begun_s)
    return fastest_s


def suits_compiled(weight: torch.Tensor) -> bool:
    """Whether the compiled kernels multiply with such a weight: the one place where that is decided.

    They do for bfloat16 weights in host memory. Experts of 1024 x 3584 on one core (`benchmarks/expert_ffn.py`): on a
    Zen 5 with bfloat16 dot products 30, 107, 310 and 440 GFLOP/s at 1, 4, 16 and 128 rows, where the library reaches
    15, 61, 166 and 387; on a Zen 3 without 13, 41, 55 and 79, where it reaches 9 to 10.
    """
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or not native.available():
        return False
    return not _library_is_far_faster()


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
        return _by_library(x, weight, workspace, out)
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


def filled_up(rows: int, x: torch.Tensor, weight: torch.Tensor) -> int:
    """Say how many rows like those of x a product with `weight` is best given where `rows` count; the others are lost.

    It is more than `rows` where a library multiplies, for the numbers of rows that it meets must be few.
    """
    if x.dtype != weight.dtype or not _is_compiled_for_rows(weight) or suits_compiled(weight):
        return rows
    return _few_numbers(rows) if is_native(weight.dtype, weight.device.type) else rows


def _is_compiled_for_rows(weight: torch.Tensor) -> bool:
    """Whether a library that multiplies with such a weight compiles a kernel for each number of rows."""
    return weight.dtype != torch.float32 and weight.device.type == "cpu"


def _few_numbers(rows: int) -> int:
    """Round rows up to an even number beyond 8, a multiple of 4 beyond 16, and of 8 beyond 32.

    >>> [_few_numbers(rows) for rows in (0, 1, 7, 9, 17, 33, 250)]
    [0, 1, 7, 10, 20, 40, 256]
    """
    step = min(8, 1 << max(0, (rows - 1).bit_length() - 3))
    return -(-rows // step) * step


def _by_library(x: torch.Tensor, weight: torch.Tensor, workspace: Workspace, out: torch.Tensor) -> torch.Tensor:
    if not _is_compiled_for_rows(weight):
        return torch.mm(x, weight.t(), out=out)
    for part, result in zip(torch.split(x, LIBRARY_ROWS), torch.split(out, LIBRARY_ROWS), strict=True):
        if len(part) == _few_numbers(len(part)):
            torch.mm(part, weight.t(), out=result)
            continue
        with workspace.frame():
            filled = with_zeros(part, _few_numbers(len(part)), workspace)
            product = workspace.take((len(filled), out.shape[1]), out.dtype)
            result.copy_(torch.mm(filled, weight.t(), out=product)[: len(part)])
    return out


def with_zeros(x: torch.Tensor, rows: int, workspace: Workspace) -> torch.Tensor:
    """Return x with rows of zeros behind its own, `rows` in all: itself where it has so many, else in the workspace."""
    if len(x) == rows:
        return x
    filled = workspace.take((rows, x.shape[1]), x.dtype)
    filled[: len(x)].copy_(x)
    filled[len(x) :].zero_()
    return filled


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
