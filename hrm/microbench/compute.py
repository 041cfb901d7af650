"""Compute roofs: the rate of a large matrix product per dtype, and what starting a small kernel costs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import linear

from hrm.dtypes import DType
from hrm.hardware import Measurement
from hrm.microbench.bench import TORCH_DTYPES, Bench
from hrm.microbench.measure import summary
from hrm.schedule.task import Lane

__all__ = ["ABSURD_FACTOR", "gemm_rates", "launch_s", "product"]

ABSURD_FACTOR = 20.0
"""A dtype whose tiny product takes this many times longer than float32's is emulated in software: never chosen."""

_TINY = 64
_PILOT_ROWS = 32
_LAUNCHES = 200

Case = tuple[float, Callable[[], object]]


def gemm_rates(bench: Bench, lane: Lane) -> tuple[dict[DType, Measurement], frozenset[DType]]:
    """Measure FLOP/s of `linear(x, weight)`, weight stored [out, in], per dtype; also tell which dtypes are absurd.

    Each dtype is first tried on a tiny product: one that is absurdly slow there is reported at that size and not tried
    larger, for half a second would become minutes.
    """
    tiny = {dtype: product(bench, lane, dtype, _TINY, _TINY) for dtype in TORCH_DTYPES}
    tiny_s = {dtype: bench.seconds(lane, work) for dtype, (_, work) in tiny.items()}
    absurd = frozenset(dtype for dtype in tiny if tiny_s[dtype] > ABSURD_FACTOR * tiny_s[DType.FLOAT32])
    cases = {dtype: tiny[dtype] if dtype in absurd else _large(bench, lane, dtype) for dtype in TORCH_DTYPES}
    return bench.rates(lane, cases), absurd


def _large(bench: Bench, lane: Lane, dtype: DType) -> Case:
    """Choose a product that takes as long as a repeat may, going by one with few rows."""
    size = 8192 if lane is Lane.GPU and bench.backend.device.type != "cpu" else 1024
    pilot_s = bench.seconds(lane, product(bench, lane, dtype, size, _PILOT_ROWS)[1])
    rows = int(min(size, max(_PILOT_ROWS, _PILOT_ROWS * bench.case_s / pilot_s)))
    return product(bench, lane, dtype, size, rows)


def product(bench: Bench, lane: Lane, dtype: DType, size: int, rows: int) -> Case:
    """Make a product of `rows` x `size` by a square weight: its FLOP, and the work that does it."""

    def make(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        weight = torch.randn(size, size, device=device).to(TORCH_DTYPES[dtype])
        return torch.randn(rows, size, device=device).to(TORCH_DTYPES[dtype]), weight

    operand, weight = bench.made_for(lane, make)
    return 2.0 * rows * size * size, lambda: linear(operand, weight)


def launch_s(bench: Bench, lane: Lane) -> Measurement:
    """Measure seconds per kernel, over a run of kernels that have next to nothing to do."""
    tensor = bench.made_for(lane, lambda device: torch.zeros(1, device=device))

    def work() -> None:
        for _ in range(_LAUNCHES):
            tensor.add_(1.0)

    return summary([seconds / _LAUNCHES for seconds in bench.times(lane, {"launch": work})["launch"]])
