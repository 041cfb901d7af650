"""Kernel ceilings: what a kernel really took at measured shapes, and the time read off between them."""

from __future__ import annotations

import bisect
import math
from enum import StrEnum

from hrm.dtypes import DType
from hrm.records import record
from hrm.units import NonNegative, Positive, PositiveInt

__all__ = ["CeilingTable", "Kernel"]


class Kernel(StrEnum):
    """The kernels of the executor whose rate is measured; what `size` and `rows` of a table mean for each.

    =================  ======================================================  ==============================
    kernel             size: elements of the operand that stays                rows: how many share it
    =================  ======================================================  ==============================
    projection         weight matrix: inputs x outputs                         tokens
    expert_ffn         one of an expert's three matrices: h1 x h2              tokens routed to the expert
    attention_decode   K and V of one sequence: 2 x context x n_kv x d         sequences
    attention_prefill  K and V of one prompt: 2 x prompt x n_kv x d            prompts
    elementwise        activations of one token: h1                            tokens
    =================  ======================================================  ==============================
    """

    PROJECTION = "projection"
    EXPERT_FFN = "expert_ffn"
    ATTENTION_DECODE = "attention_decode"
    ATTENTION_PREFILL = "attention_prefill"
    ELEMENTWISE = "elementwise"


@record
class CeilingTable:
    """Median seconds of one call of a kernel on a level's processor, over ascending `sizes` and `rows`.

    `seconds[i][j]` belongs to `sizes[i]` and `rows[j]`; `iqr_s` is the largest interquartile range in the table.
    """

    kernel: Kernel
    level: str
    dtype: DType
    sizes: tuple[Positive, ...]
    rows: tuple[PositiveInt, ...]
    seconds: tuple[tuple[Positive, ...], ...]
    iqr_s: NonNegative = 0.0

    def time_s(self, size: float, rows: float) -> float:
        """Read off the seconds of one call, bilinear in logarithms.

        Beyond the largest size or row count the rate stays that of the edge (time grows in proportion); below the
        smallest the time stays that of the edge (a launch costs what it costs).
        """
        by_size = tuple(_interpolate(self.rows, line, rows) for line in self.seconds)
        return _interpolate(self.sizes, by_size, size)


def _interpolate(points: tuple[float, ...] | tuple[int, ...], values: tuple[float, ...], at: float) -> float:
    if at <= points[0]:
        return values[0]
    if at >= points[-1]:
        return values[-1] * at / points[-1]
    right = bisect.bisect_right(points, at)
    low, high = points[right - 1], points[right]
    share = math.log(at / low) / math.log(high / low)
    first, second = values[right - 1], max(values[right - 1], values[right])
    return float(first * (second / first) ** share)
