"""Kernel ceilings: what a kernel really took at measured shapes, and the time read off between them."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from hrm.arrays import Reals
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
    attention_decode   cache of one sequence: context x cache width            sequences
    attention_prefill  cache of one prompt: prompt x cache width               prompts
    elementwise        activations of one token: h1                            tokens
    =================  ======================================================  ==============================

    The cache width is 2 x n_kv x d, K and V, or that of the latents. A call computes several experts: a table has what
    each further one adds to it.
    """

    PROJECTION = "projection"
    EXPERT_FFN = "expert_ffn"
    ATTENTION_DECODE = "attention_decode"
    ATTENTION_PREFILL = "attention_prefill"
    ELEMENTWISE = "elementwise"

    @property
    def size_exponent(self) -> float:
        """How FLOP grow with `size`: in proportion, but every token of a prompt attends to those before it."""
        return 2.0 if self is Kernel.ATTENTION_PREFILL else 1.0


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

    def time_s(self, size: Reals, rows: Reals) -> Reals:
        """Read off the seconds of one call at shapes between the measured ones.

        Linear in rows: what they share is paid once, and each adds its own. In logarithms over sizes, with a power of
        which time may grow. More work is never faster, and a disturbance only adds time: the table is read as if each
        time were the least among those of no smaller shapes. Beyond the largest size or row count the rate stays that
        of the edge (time grows with the FLOP: in proportion, but as the square of a prompt's length); below the
        smallest the time stays that of the edge (a launch costs what it costs).
        """
        curve = _curve(self)
        log_size = np.log(np.maximum(size, _LEAST))
        past_size = np.exp(self.kernel.size_exponent * np.maximum(log_size - curve.log_sizes[-1], 0.0))
        past_rows = np.maximum(rows / curve.rows[-1], 1.0)
        return cast(Reals, curve.s_at(log_size, rows) * past_size * past_rows)


class _Curve(NamedTuple):
    """A table made ready for reading: sizes and times in logarithms, times monotone, the last line and column twice."""

    log_sizes: NDArray[np.float64]
    rows: NDArray[np.float64]
    log_s: NDArray[np.float64]

    def s_at(self, log_size: Reals, rows: Reals) -> Reals:
        """Interpolate between the points; beyond them keep to the edge."""
        table = self.log_s
        i, down = _locate(log_size, self.log_sizes)
        if not isinstance(log_size, np.ndarray):  # One line serves all row counts: the usual case, and twice as fast.
            line = np.exp(table[i] + down * (table[i + 1] - table[i]))
            return cast(Reals, np.interp(rows, self.rows, line[:-1]))
        j, across = _locate(rows, self.rows)
        fewer = np.exp(table[i, j] + down * (table[i + 1, j] - table[i, j]))
        more = np.exp(table[i, j + 1] + down * (table[i + 1, j + 1] - table[i, j + 1]))
        return cast(Reals, fewer + across * (more - fewer))


def _locate(at: Reals, points: NDArray[np.float64]) -> tuple[NDArray[np.intp] | np.intp, Reals]:
    """Return the index of the point before `at`, and the share of the way to the next."""
    position = np.interp(at, points, np.arange(len(points)))
    before = position.astype(np.intp)
    return before, position - before


@lru_cache(maxsize=256)
def _curve(table: CeilingTable) -> _Curve:
    from_largest = np.array(table.seconds)[::-1, ::-1]
    monotone = np.minimum.accumulate(np.minimum.accumulate(from_largest, axis=0), axis=1)[::-1, ::-1]
    return _Curve(np.log(table.sizes), np.array(table.rows, dtype=float), np.pad(np.log(monotone), (0, 1), mode="edge"))


_LEAST = 1e-300
"""Stands for a size or a row count of nothing, whose logarithm would not be a number."""
