"""Compute roofs: the rate of matrix products at the best of several shapes, and what starting a small kernel costs."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product as pairs

import torch

from hrm.dtypes import DType
from hrm.hardware import Measurement
from hrm.microbench.bench import TORCH_DTYPES, Bench, Samples
from hrm.microbench.measure import on_lane, summary
from hrm.microbench.threads import lane_cores, with_threads
from hrm.records import record
from hrm.schedule.task import Lane
from hrm.units import MIB

__all__ = [
    "ABSURD_FACTOR",
    "ProductSamples",
    "Shape",
    "best_of",
    "best_shapes",
    "launch_s",
    "product",
    "product_samples",
]

ABSURD_FACTOR = 20.0
"""A dtype whose tiny product takes this many times longer than float32's is emulated in software: never chosen."""

Shape = tuple[int, int, int]
"""Rows, inner size and columns of a product."""

_TINY: Shape = (128, 128, 128)
"""Small enough for any dtype to end; smaller ones show their fixed costs, not their rate."""
_TINY_TRIALS = 9
"""Median of so many tiny products: an early one of 20 us took 1.3, 6 and 7 ms, where both threads began on one core."""
_SIDES, _LONGEST = (256, 512, 1024, 2048, 4096), 8192
"""All shapes with these sides are tried, and a square of the longest."""
_SEARCHED = (DType.FLOAT32, DType.BFLOAT16)
_MOST_BYTES = 256 * MIB
_PROMISING, _FINALISTS, _CLOSE = 12, 4, 0.9
"""So many of the shapes that one call each puts first are called some more; those of them that stay first are measured,
where they are within this share of the best."""
_TRIALS = 6
"""Median of so many calls of a promising shape: the fastest call of a shape says little of what it sustains."""
_LAUNCHES = 200

Case = tuple[float, Callable[[], object]]
_KINDS = {**TORCH_DTYPES, DType.INT8: torch.int8}


@record
class ProductSamples:
    """Rates of a dtype's product by so many threads (0: a device's own) at one shape, per round."""

    dtype: DType
    threads: int
    shape: Shape
    absurd: bool
    flop_per_s: Samples


def product(bench: Bench, lane: Lane, dtype: DType, shape: Shape, threads: int = 0) -> Case:
    """Make a product by a weight stored [columns, inner], as weights are, into memory that is there already.

    Returns its FLOP, and the work that does it, by `threads` if given.
    """
    rows, inner, columns = shape
    kind = _KINDS[dtype]

    def make(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        left, weight = (torch.ones(size, device=device, dtype=kind) for size in ((rows, inner), (columns, inner)))
        result = torch.int32 if dtype is DType.INT8 else kind
        return left, weight.t(), torch.empty(rows, columns, device=device, dtype=result)

    left, right, result = bench.made_for(lane, make)

    def work() -> None:
        if dtype is DType.INT8:
            torch._int_mm(left, right, out=result)
        else:
            torch.mm(left, right, out=result)

    flop = 2.0 * rows * inner * columns
    return flop, with_threads(threads, bench.asked_on(lane, torch.get_num_threads), work) if threads else work


def best_shapes(bench: Bench, lane: Lane) -> tuple[ProductSamples, ...]:
    """Find, per dtype and number of threads, the shapes at which a product runs fastest.

    A dtype that is absurdly slow on a tiny product is not tried larger, for half a second would become minutes; one
    that torch cannot multiply is left out. Of a dtype that predictions seldom go by only squares are tried, unless it
    is faster than float32.
    """
    counts = sorted({1, len(lane_cores(bench))}) if lane is Lane.CPU else [0]
    if bench.quick:
        counts = counts[-1:]
    dtypes = TORCH_DTYPES if bench.quick else _KINDS
    tiny_s = {dtype: found for dtype in dtypes if (found := _tiny_s(bench, lane, dtype)) is not None}
    chosen: list[ProductSamples] = []
    searches = list(pairs(tiny_s, counts))
    for done, (dtype, threads) in enumerate(searches):
        absurd = tiny_s[dtype] > ABSURD_FACTOR * tiny_s[DType.FLOAT32]
        if not absurd:
            is_worth_it = dtype in _SEARCHED or tiny_s[dtype] < tiny_s[DType.FLOAT32]
            budget_s = bench.part_left_s / (len(searches) - done) if is_worth_it else 0.0
            chosen += [_found(dtype, threads, shape) for shape in _fastest(bench, lane, (dtype, threads), budget_s)]
        elif threads == counts[-1]:
            chosen.append(_found(dtype, threads, _TINY, absurd=True))
    return tuple(chosen)


def _found(dtype: DType, threads: int, shape: Shape, *, absurd: bool = False) -> ProductSamples:
    return ProductSamples(dtype=dtype, threads=threads, shape=shape, absurd=absurd, flop_per_s=())


def _tiny_s(bench: Bench, lane: Lane, dtype: DType) -> float | None:
    try:
        once = on_lane(bench.backend, lane, product(bench, lane, dtype, _TINY)[1])
        once()
        return statistics.median(once() for _ in range(_TINY_TRIALS))
    except (RuntimeError, AttributeError, TypeError):
        if dtype is DType.FLOAT32:
            raise
        return None


def _fastest(bench: Bench, lane: Lane, kind: tuple[DType, int], budget_s: float) -> list[Shape]:
    """Try squares as long as one takes no longer than a repeat may, then shapes of all sides in any order.

    Long inner sides suit some processors, many rows others. The search ends when all are tried, or its time is spent.
    """
    end_s = time.perf_counter() + budget_s
    tried: dict[Shape, float] = {}
    for size in (*_SIDES, _LONGEST):
        if tried and not _fits(bench, lane, (size,) * 3, tried, bench.case_s):
            break
        tried[size, size, size] = _rate(bench, lane, kind, (size, size, size))
    others: list[Shape] = [] if bench.quick else list(pairs(_SIDES, _SIDES, _SIDES))
    random.Random(0).shuffle(others)
    for shape in others:
        if time.perf_counter() > end_s:
            break
        if shape not in tried and _fits(bench, lane, shape, tried, bench.case_s / 4):
            tried[shape] = _rate(bench, lane, kind, shape)
    again = _tried_again(bench, lane, kind, _ranked(tried)[:_PROMISING])
    top = max(again.values())
    return [shape for shape in _ranked(again) if again[shape] >= _CLOSE * top][: 1 if bench.quick else _FINALISTS]


def _tried_again(bench: Bench, lane: Lane, kind: tuple[DType, int], shapes: Sequence[Shape]) -> dict[Shape, float]:
    """Try shapes some more, in turn, so that a slow spell meets all of them; return the median rates."""
    times = 1 if bench.quick else _TRIALS
    trials = [{shape: _rate(bench, lane, kind, shape) for shape in shapes} for _ in range(times)]
    return {shape: statistics.median(rates[shape] for rates in trials) for shape in shapes}


def _ranked(rates: Mapping[Shape, float]) -> list[Shape]:
    return sorted(rates, key=lambda shape: -rates[shape])


def _rate(bench: Bench, lane: Lane, kind: tuple[DType, int], shape: Shape) -> float:
    flop, work = product(bench, lane, kind[0], shape, kind[1])
    return flop / bench.seconds(lane, work)


def _fits(bench: Bench, lane: Lane, shape: Shape, tried: Mapping[Shape, float], longest_s: float) -> bool:
    """Whether a product takes no longer than it may, and no more memory than there is."""
    rows, inner, columns = shape
    too_long = 2.0 * rows * inner * columns / max(tried.values()) > longest_s
    return not too_long and _bytes(shape) <= _room_bytes(bench, lane)


def _bytes(shape: Shape) -> int:
    rows, inner, columns = shape
    return 4 * (rows * inner + inner * columns + rows * columns)


def _room_bytes(bench: Bench, lane: Lane) -> int:
    on_device = lane is Lane.GPU and bench.backend.device.type != "cpu"
    return bench.backend.memory_capacity_bytes // 8 if on_device else _MOST_BYTES


def product_samples(bench: Bench, lane: Lane, chosen: tuple[ProductSamples, ...]) -> tuple[ProductSamples, ...]:
    """Measure the chosen shapes, those of a dtype in turn; repeats last as long as they may."""
    measured = []
    dtypes = list(dict.fromkeys(one.dtype for one in chosen))
    for done, dtype in enumerate(dtypes):
        own = [one for one in chosen if one.dtype is dtype]
        cases = {(one.threads, one.shape): _repeated(bench, lane, one) for one in own}
        rates = bench.rates(lane, cases, to_come=len(dtypes) - done)
        measured += [replace(one, flop_per_s=rates[one.threads, one.shape]) for one in own]
    return tuple(measured)


def _repeated(bench: Bench, lane: Lane, one: ProductSamples) -> Case:
    flop, work = product(bench, lane, one.dtype, one.shape, one.threads)
    if one.absurd:
        return flop, work
    times = max(1, int(bench.case_s / 2 / bench.seconds(lane, work)))

    def several() -> None:
        for _ in range(times):
            work()

    return times * flop, several


def best_of(samples: tuple[ProductSamples, ...]) -> dict[tuple[DType, int], ProductSamples]:
    """Return, per dtype and number of threads, the shape with the highest median."""
    ranked = sorted(samples, key=lambda one: statistics.median(one.flop_per_s))
    return {(one.dtype, one.threads): one for one in ranked}


def launch_s(bench: Bench, lane: Lane) -> Measurement:
    """Measure seconds per kernel, over a run of kernels that have next to nothing to do."""
    tensor = bench.made_for(lane, lambda device: torch.zeros(1, device=device))

    def work() -> None:
        for _ in range(_LAUNCHES):
            tensor.add_(1.0)

    return summary([seconds / _LAUNCHES for seconds in bench.times(lane, {"launch": work})["launch"]])
