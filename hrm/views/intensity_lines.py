"""An operator's vertical lines under the roofs: attention by the format of its KV cache, the experts by N."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from hrm.dtypes import DType
from hrm.hardware import HardwareProfile
from hrm.model import ModelSpec
from hrm.records import record
from hrm.roofline import Bound, attainable
from hrm.schedule.task import Phase
from hrm.views.ladder import computing_levels, fastest_level, upward_links
from hrm.views.layer_operators import Counter, Shape, attention_counters

__all__ = ["IntensityLine", "attention_lines", "batch_lines", "batch_ratio"]

LADDER = tuple(4**power for power in range(10))
"""The N at which lines stand, as far as the picture goes."""
LEAST_GAP_DECADES = 0.2
"""Lines nearer to each other than this say the same; the one for the N asked for stays."""


@record
class IntensityLine:
    """An operator at one N and one format, at its FLOP per byte that lies at `level`.

    `attainable_flop_per_s` and `bound` go by the level that computes: `level` itself, on the whole batch at once, or
    the next faster one, which fetches.
    """

    operator: str
    dtype: DType
    batch_size: int
    level: str
    operational_intensity_flop_per_byte: float
    attainable_flop_per_s: dict[str, float]
    bound: dict[str, Bound]


def attention_lines(model: ModelSpec, hardware: HardwareProfile, shape: Shape) -> Iterator[IntensityLine]:
    """Yield attention over the whole context for each KV format: that of the shape, the model's own, and int4.

    In prefill, which reads no cache, for the format of the activations alone.
    """
    formats = (shape.kv_dtype, model.dtype, DType.INT4) if shape.phase is Phase.DECODE else (shape.kv_dtype,)
    widths: set[float] = set()
    for dtype in formats:
        if dtype.bytes_per_element not in widths:
            widths.add(dtype.bytes_per_element)
            counters = attention_counters(model, replace(shape, kv_dtype=dtype))
            name, counter = next(iter(counters.items()))
            yield _line(name, counter, hardware, shape, shape.batch_size)


def batch_lines(
    name: str, counter: Counter, hardware: HardwareProfile, shape: Shape, *, up_to: float
) -> Iterator[IntensityLine]:
    """Yield an operator at the N of the shape, and at powers of 4 up to a size, where they stand far enough apart."""
    places: list[float] = []
    for batch_size in (shape.batch_size, *(rung for rung in LADDER if rung <= up_to)):
        line = _line(name, counter, hardware, shape, batch_size)
        place = math.log10(line.operational_intensity_flop_per_byte)
        if all(abs(place - other) >= LEAST_GAP_DECADES for other in places):
            places.append(place)
            yield line


def batch_ratio(counter: Counter, batch_size: int, micro_batch_size: int) -> float:
    """Return how many micro-batches one fetch serves.

    N/mu for weights that all sequences share, once every expert is hit; 1 for a sequence's own KV cache.
    """
    return float(counter(batch_size).fetched_intensity / counter(micro_batch_size).fetched_intensity)


def _line(name: str, counter: Counter, hardware: HardwareProfile, shape: Shape, batch_size: int) -> IntensityLine:
    operator = counter(batch_size)
    level, intensity = fastest_level(hardware), operator.operational_intensity
    reached = {at: attainable(operator, hardware, at) for at in computing_levels(hardware)}
    link = next(iter(upward_links(hardware).values()), None)
    if link is not None and shape.fetches(operator):
        level, intensity = link.source, operator.fetched_intensity
        micro_batch_size = min(batch_size, shape.micro_batch_size)
        ratio = batch_ratio(counter, batch_size, micro_batch_size)
        kernel = counter(micro_batch_size)
        fetched = attainable(kernel, hardware, link.target, source=level, batch_ratio=ratio)
        reached = {at: found for at, found in reached.items() if at == level} | {link.target: fetched}
    return IntensityLine(
        operator=name,
        dtype=operator.dtype,
        batch_size=batch_size,
        level=level,
        operational_intensity_flop_per_byte=float(intensity),
        attainable_flop_per_s={at: float(found.flop_per_s) for at, found in reached.items()},
        bound={at: found.bound for at, found in reached.items()},
    )
