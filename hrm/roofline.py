"""The Hierarchical Roofline Model: what a level attains for an operator, and where to compute it (paper §3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

from hrm.arrays import Reals
from hrm.dtypes import DType
from hrm.errors import SchemaError
from hrm.hardware import HardwareProfile, Level, Rate
from hrm.operators import Operator
from hrm.records import record

__all__ = [
    "Attainable",
    "Bound",
    "TurningPoint",
    "TurningPoints",
    "attainable",
    "balance_point",
    "computing_rates",
    "level_bytes_per_s",
    "level_flop_per_s",
    "ridge_point",
    "turning_points",
]


class Bound(StrEnum):
    """The roof that binds."""

    COMPUTE = "compute"
    MEMORY = "memory"
    CROSS_LEVEL = "cross-level"


@record
class Attainable:
    """P_x^i in FLOP/s and the roof that binds it."""

    flop_per_s: float
    bound: Bound


def computing_rates(level: Level, dtype: DType) -> list[Rate]:
    """Return the figures at which a level's processor may compute data stored as `dtype`.

    Data can always be widened: its own format's, or failing that a 16-bit float's, and float32's. Kernels that widen
    quantised weights on a CPU use its vector units (float32's figure) and not the matrix units that some have.

    Raises
    ------
    SchemaError
        When the level has no processor, or no figure that could stand in.
    """
    rates = level.compute_flop_per_s
    on_vectors = dtype.is_quantized and level.cores is not None
    wider = () if on_vectors and DType.FLOAT32 in rates else (DType.BFLOAT16, DType.FLOAT16)
    own = [name for name in (dtype, *wider) if name in rates][:1]
    names = [DType.FLOAT32] if dtype is DType.FLOAT32 else [*own, DType.FLOAT32]
    figures = [rates[name] for name in names if name in rates]
    if not figures:
        raise SchemaError(f"{level.description}: compute_flop_per_s has no figure for {dtype} (add one)")
    return figures


def level_flop_per_s(level: Level, dtype: DType) -> float:
    """Return P_peak: the compute roof of a level's processors together for data stored as `dtype`."""
    return max(rate.roof for rate in computing_rates(level, dtype)) * level.count


def level_bytes_per_s(level: Level) -> float:
    """Return B_peak: the roof at which a level's processors together read its memory."""
    return level.read_bytes_per_s.roof * level.count


def ridge_point(level: Level, dtype: DType) -> float:
    """Return the intensity, FLOP/byte, at which a level's memory and compute roofs meet (Eq. 3).

    >>> import hrm
    >>> round(ridge_point(hrm.load_profile("l4-case-study").level("gpu"), hrm.DType.FLOAT16))
    807
    """
    return level_flop_per_s(level, dtype) / level_bytes_per_s(level)


def attainable(
    operator: Operator, hardware: HardwareProfile, level: str, *, source: str | None = None, batch_ratio: float = 1.0
) -> Attainable:
    """Return P = min(compute, memory, cross-level) for an operator that runs on `level` (Eqs. 4-8).

    With `source`, weights and KV are fetched from that level over the link; `batch_ratio` is N/mu when a fetch serves
    the whole batch and not only the micro-batch that the operator was counted for.

    >>> import hrm
    >>> from hrm.operators import experts
    >>> streamed = experts(hrm.load_model("mixtral-8x7b"), 128.0, hrm.DType.FLOAT16)
    >>> found = attainable(streamed, hrm.load_profile("l4-case-study"), "gpu", source="cpu")
    >>> f"{found.flop_per_s / 1e9:.0f} GFLOP/s, {found.bound}"
    '512 GFLOP/s, cross-level'
    """
    place = hardware.level(level)
    roofs: dict[Bound, Reals] = {
        Bound.COMPUTE: level_flop_per_s(place, operator.dtype),
        Bound.MEMORY: level_bytes_per_s(place) * operator.operational_intensity,
    }
    if source is not None and source != level:
        link = _link(hardware, source, level)
        roofs[Bound.CROSS_LEVEL] = link * operator.fetched_intensity * batch_ratio
    bound = min(roofs, key=lambda name: roofs[name])
    return Attainable(flop_per_s=float(roofs[bound]), bound=bound)


def _link(hardware: HardwareProfile, source: str, target: str) -> float:
    for link in hardware.links.values():
        if (link.source, link.target) == (source, target):
            return link.bytes_per_s.roof * link.paths
    raise SchemaError(f"{hardware.name}: links: none leads from {source} to {target} (add one)")


@record
class TurningPoint:
    """A point on the cross-level roof: its intensity over bytes fetched from the slower level, and its height."""

    operational_intensity_flop_per_byte: float
    attainable_flop_per_s: float
    batch_size: float | None = None


@record
class TurningPoints:
    """P1: below it compute where the data lies (Eq. 9). P2: beyond it a larger batch buys nothing (Eq. 10)."""

    p1: TurningPoint
    p2: TurningPoint


def turning_points(
    operator: Operator,
    hardware: HardwareProfile,
    *,
    fast: str = "gpu",
    slow: str = "cpu",
    for_batch: Callable[[float], Operator] | None = None,
) -> TurningPoints:
    """Return the turning points of an operator counted for one micro-batch.

    P1 is where computing at the slow level attains as much as fetching over the link does; above the slow level's
    ridge that is P_peak^j / B^{j,i}, below it the link would have to be faster than the slow level's memory; 0 where
    nothing computes at the slow level, a disk. P2 is
    where the kernel at this micro-batch, min(P_peak^i, B^i·I^i), meets the link. `batch_size` is the N from which on
    the bytes fetched once for the whole batch, those of `for_batch(N)`, reach the intensity; only for operators whose
    weights a batch shares.

    >>> import hrm
    >>> from hrm.operators import experts
    >>> kernel = experts(hrm.load_model("mixtral-8x7b"), 128.0, hrm.DType.FLOAT16)
    >>> turning_points(kernel, hrm.load_profile("l4-case-study")).p1.operational_intensity_flop_per_byte
    81.25
    """
    link = _link(hardware, slow, fast)
    slow_level, fast_level = hardware.level(slow), hardware.level(fast)
    computes_there = slow_level.compute_flop_per_s and level_bytes_per_s(slow_level) >= link
    first = level_flop_per_s(slow_level, operator.dtype) / link if computes_there else 0.0
    memory = float(level_bytes_per_s(fast_level) * operator.operational_intensity)
    kernel = min(level_flop_per_s(fast_level, operator.dtype), memory)
    counted = for_batch if operator.weight_bytes else None
    return TurningPoints(p1=_point(first, link, counted), p2=_point(kernel / link, link, counted))


def _point(intensity: float, link_bytes_per_s: float, for_batch: Callable[[float], Operator] | None) -> TurningPoint:
    return TurningPoint(
        operational_intensity_flop_per_byte=intensity,
        attainable_flop_per_s=intensity * link_bytes_per_s,
        batch_size=_batch_size_reaching(intensity, for_batch) if for_batch else None,
    )


def _batch_size_reaching(intensity: float, for_batch: Callable[[float], Operator]) -> float:
    """Find the smallest N, at least 1, whose fetched intensity reaches `intensity`: it grows with N without bound."""
    low, high = 1.0, 1.0
    while for_batch(high).fetched_intensity < intensity:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if for_batch(middle).fetched_intensity >= intensity else (middle, high)
    return high


def balance_point(
    operator: Operator,
    hardware: HardwareProfile,
    *,
    fast: str = "gpu",
    slow: str = "cpu",
    for_batch: Callable[[float], Operator] | None = None,
) -> TurningPoint:
    """Return the balance point (Eq. 11): B^i·I^i = B^{j,i}·I^j, the fast level's memory and the link equally busy.

    It is P2 while the kernel is bound by memory; where compute binds, its height is the compute roof's.
    """
    fast_level, link = hardware.level(fast), _link(hardware, slow, fast)
    memory = float(level_bytes_per_s(fast_level) * operator.operational_intensity)
    point = _point(memory / link, link, for_batch if operator.weight_bytes else None)
    return replace(point, attainable_flop_per_s=min(memory, level_flop_per_s(fast_level, operator.dtype)))
