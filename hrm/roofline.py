"""The Hierarchical Roofline Model: what a level attains for an operator, and where to compute it (paper §3)."""

from __future__ import annotations

from enum import StrEnum

from hrm.dtypes import DType
from hrm.errors import SchemaError
from hrm.hardware import HardwareProfile, Level
from hrm.operators import Operator
from hrm.records import record

__all__ = [
    "Attainable",
    "Bound",
    "TurningPoint",
    "TurningPoints",
    "attainable",
    "balance_intensity",
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


def level_flop_per_s(level: Level, dtype: DType, *, measured: bool = False) -> float:
    """Return the compute rate of a level's processors together for data stored as `dtype`: P_peak, or as measured.

    Data can always be widened, so a narrow format computes no slower than float32; without a figure of its own it
    takes that of the other 16-bit float.

    Raises
    ------
    SchemaError
        When the level has no processor, or no figure that could stand in.
    """
    rates = level.compute_flop_per_s
    own = [name for name in (dtype, DType.BFLOAT16, DType.FLOAT16) if name in rates][:1]
    usable = [DType.FLOAT32] if dtype is DType.FLOAT32 else [*own, DType.FLOAT32]
    figures = [rates[name].ceiling if measured else rates[name].roof for name in usable if name in rates]
    if not figures:
        raise SchemaError(f"{level.description}: compute_flop_per_s has no figure for {dtype} (add one)")
    return max(figures) * level.count


def level_bytes_per_s(level: Level) -> float:
    """Return B_peak of a level: reading, all its processors together."""
    return level.read_bytes_per_s.roof * level.count


def ridge_point(level: Level, dtype: DType) -> float:
    """Return the intensity, FLOP/byte, at which a level's memory and compute roofs meet (Eq. 3)."""
    return level_flop_per_s(level, dtype) / level_bytes_per_s(level)


def attainable(
    operator: Operator, hardware: HardwareProfile, level: str, *, source: str | None = None, batch_ratio: float = 1.0
) -> Attainable:
    """Return P = min(compute, memory, cross-level) for an operator that runs on `level` (Eqs. 4-8).

    With `source`, weights and KV are fetched from that level over the link; `batch_ratio` is N/mu when a fetch serves
    the whole batch and not only the micro-batch that the operator was counted for.
    """
    place = hardware.level(level)
    roofs = {
        Bound.COMPUTE: level_flop_per_s(place, operator.dtype),
        Bound.MEMORY: level_bytes_per_s(place) * operator.operational_intensity,
    }
    if source is not None and source != level:
        link = _link(hardware, source, level)
        roofs[Bound.CROSS_LEVEL] = link * operator.fetched_intensity * batch_ratio
    bound = min(roofs, key=lambda name: roofs[name])
    return Attainable(flop_per_s=roofs[bound], bound=bound)


def _link(hardware: HardwareProfile, source: str, target: str) -> float:
    for link in hardware.links.values():
        if (link.source, link.target) == (source, target):
            return link.bytes_per_s.roof
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
    operator: Operator, hardware: HardwareProfile, *, fast: str = "gpu", slow: str = "cpu", micro_batch_size: float
) -> TurningPoints:
    """Return the turning points of an operator counted for one micro-batch.

    P1 is where computing at the slow level attains as much as fetching over the link does; above the slow level's
    ridge that is P_peak^j / B^{j,i}, below it the link would have to be faster than the slow level's memory. P2 is
    where the kernel at this micro-batch, min(P_peak^i, B^i·I^i), meets the link. `batch_size` is the N at which the
    operator's fetched bytes, shared by the whole batch, reach the intensity; only for operators that share weights.
    """
    link = _link(hardware, slow, fast)
    slow_level, fast_level = hardware.level(slow), hardware.level(fast)
    first = level_flop_per_s(slow_level, operator.dtype) / link
    if level_bytes_per_s(slow_level) < link:
        first = 0.0
    kernel = min(
        level_flop_per_s(fast_level, operator.dtype), level_bytes_per_s(fast_level) * operator.operational_intensity
    )
    second = kernel / link
    shares_weights = operator.weight_bytes > 0
    per_sequence = operator.fetched_intensity / micro_batch_size
    return TurningPoints(
        p1=_point(first, link, per_sequence if shares_weights else None),
        p2=_point(second, link, per_sequence if shares_weights else None),
    )


def _point(intensity: float, link_bytes_per_s: float, per_sequence: float | None) -> TurningPoint:
    return TurningPoint(
        operational_intensity_flop_per_byte=intensity,
        attainable_flop_per_s=intensity * link_bytes_per_s,
        batch_size=intensity / per_sequence if per_sequence else None,
    )


def balance_intensity(operator: Operator, hardware: HardwareProfile, *, fast: str = "gpu", slow: str = "cpu") -> float:
    """Return the balance point (Eq. 11): the I^j at which B^i·I^i = B^{j,i}·I^j, memory and link equally busy."""
    fast_level = hardware.level(fast)
    return level_bytes_per_s(fast_level) * operator.operational_intensity / _link(hardware, slow, fast)
