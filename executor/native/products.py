"""Products with weight matrices compiled for the CPU, and on them a mixture's experts; there must be a library.

Weights are read from memory as they lie, once per 128 rows, and widened in registers. Sums are float32. In which order
numbers are added follows from the matrix's shape alone, so that a row's result is the same to the last bit whatever
other rows share the product, and however many threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from executor.native.library import call

if TYPE_CHECKING:
    import torch

__all__ = ["Experts", "experts", "linear", "packed_bytes"]

_LINE_BYTES = 64
_UNIT = 32


class _Linear(ctypes.Structure):
    """Mirrors `HrmLinear` in products.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weights", "out", "memory")),
        *((name, ctypes.c_int64) for name in ("rows", "inputs", "outputs", "x_stride")),
        *((name, ctypes.c_int32) for name in ("x_is_bfloat16", "weights_are_bfloat16", "out_is_bfloat16")),
    )


class _Experts(ctypes.Structure):
    """Mirrors `HrmExperts` in products.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "chosen", "shares", "experts", "out", "memory")),
        *((name, ctypes.c_int64) for name in ("tokens", "per_token", "first_expert", "num_experts")),
        *((name, ctypes.c_int64) for name in ("hidden", "intermediate", "rows_at_a_time")),
        *((name, ctypes.c_int32) for name in ("x_is_bfloat16", "weights_are_bfloat16", "adds")),
    )


class Experts(NamedTuple):
    """What experts of a layer are asked: x [tokens, hidden], and each token's experts with their shares.

    `chosen` (int64) and `shares` (float32) are [tokens, experts_per_token]. `weights` are those of experts number
    `first` and following, each flat: gate [ff, hidden], up [ff, hidden] and down [hidden, ff]; what was chosen beside
    them adds nothing.
    """

    x: torch.Tensor
    chosen: torch.Tensor
    shares: torch.Tensor
    weights: Sequence[torch.Tensor]
    first: int


def packed_bytes(inputs: int) -> int:
    """Return the room of a row of `inputs` numbers in the order in which the kernel reads them."""
    return -(-inputs // _UNIT) * _UNIT * 4 + _LINE_BYTES


def linear(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, memory: torch.Tensor, num_threads: int) -> None:
    """Write x [rows, inputs] times weight [outputs, inputs] transposed into `out`: float32, or of the dtype of `x`.

    `memory` holds `packed_bytes(inputs)` for each row. All tensors are contiguous (rows of `x` may lie apart) and in
    host memory, `x` and `weight` float32 or bfloat16.

    Raises
    ------
    ValueError
        When shapes, dtypes or layouts contradict this description.
    """
    (rows, inputs), outputs = x.shape, weight.shape[0]
    kinds = (str(x.dtype), "torch.float32")
    if weight.shape[1] != inputs or out.shape != (rows, outputs) or str(out.dtype) not in kinds:
        raise ValueError(f"{tuple(x.shape)} times {tuple(weight.shape)} transposed does not give {tuple(out.shape)}")
    _check(memory.nbytes >= rows * packed_bytes(inputs) and x.stride(1) == 1, x[:1], weight, out)
    job = _Linear(
        x=x.data_ptr(),
        weights=weight.data_ptr(),
        out=out.data_ptr(),
        memory=memory.data_ptr(),
        rows=rows,
        inputs=inputs,
        outputs=outputs,
        x_stride=x.stride(0),
        x_is_bfloat16=x.dtype.itemsize == 2,
        weights_are_bfloat16=weight.dtype.itemsize == 2,
        out_is_bfloat16=out.dtype.itemsize == 2,
    )
    call("linear", num_threads, job)


def experts(job: Experts, out: torch.Tensor, memory: torch.Tensor, num_threads: int, *, adds: bool = True) -> None:
    """Add to out [tokens, hidden], float32, what the experts give for each token: shares of down(silu(gate x) * up x).

    Without `adds` what `out` held before does not count.

    `memory` holds `packed_bytes(hidden)` for each token and `packed_bytes(ff)` for as many rows as are worked on at a
    time, one at least. Tensors as `linear` wants them.

    Raises
    ------
    ValueError
        When shapes, dtypes or layouts contradict this description.
    """
    tokens, hidden = job.x.shape
    first = job.weights[0]
    intermediate = first.numel() // (3 * hidden)
    room = (memory.nbytes - tokens * packed_bytes(hidden)) // packed_bytes(intermediate)
    fits = room > 0 and job.chosen.shape == job.shares.shape and len(job.chosen) == tokens and out.shape == job.x.shape
    kinds = (str(job.chosen.dtype), str(job.shares.dtype), str(out.dtype)) == ("torch.int64", *["torch.float32"] * 2)
    _check(fits and kinds, job.x, first, out, job.chosen, job.shares)
    if any(weight.numel() != 3 * hidden * intermediate for weight in job.weights):
        raise ValueError(f"experts: expected {3 * hidden * intermediate} weights each")
    pointers = (ctypes.c_void_p * len(job.weights))(*(weight.data_ptr() for weight in job.weights))
    asked = _Experts(
        x=job.x.data_ptr(),
        chosen=job.chosen.data_ptr(),
        shares=job.shares.data_ptr(),
        experts=ctypes.addressof(pointers),
        out=out.data_ptr(),
        memory=memory.data_ptr(),
        tokens=tokens,
        per_token=job.chosen.shape[1],
        first_expert=job.first,
        num_experts=len(job.weights),
        hidden=hidden,
        intermediate=intermediate,
        rows_at_a_time=room,
        x_is_bfloat16=job.x.dtype.itemsize == 2,
        weights_are_bfloat16=first.dtype.itemsize == 2,
        adds=adds,
    )
    asked.kept = pointers  # as long as the job
    call("experts", num_threads, asked)


def _check(fits: bool, x: torch.Tensor, weight: torch.Tensor, *others: torch.Tensor) -> None:
    if not fits:
        raise ValueError("products: shapes, dtypes or memory do not fit together")
    if any(str(tensor.dtype) not in ("torch.float32", "torch.bfloat16") for tensor in (x, weight)):
        raise ValueError(f"products: expected float32 or bfloat16, got {x.dtype} times {weight.dtype}")
    if not all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in (x, weight, *others)):
        raise ValueError("products: expected contiguous tensors in host memory")
