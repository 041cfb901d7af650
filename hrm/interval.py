"""How sure a prediction is: the interval that four of five outcomes should fall into.

Every number of a profile that is not exact is moved to the ends of its own interval, one at a time; the moves of the
prediction, in logarithms, add up in squares as those of independent errors do. Measured numbers bring their spread,
defaults of `hrm.achievable` the range that their evidence leaves. What the model itself leaves out comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from hrm.achievable import Trait, default
from hrm.ceilings import CeilingTable
from hrm.hardware import HardwareProfile, Level, Measurement, Rate
from hrm.rates import class_of
from hrm.records import record

__all__ = [
    "MODEL_ERROR",
    "PHASE_ERRORS",
    "TO_80_PERCENT",
    "Interval",
    "Uncertainty",
    "interval_around",
    "intervals_around",
    "uncertainties",
    "with_assumed",
]

TO_80_PERCENT = 1.2816
"""Half the width of a normal law's middle 80 %, over its standard deviation."""
MODEL_ERROR = 0.064
"""What the model itself leaves out when a machine's numbers are known, as a standard deviation of
ln(predicted / measured). From development runs of `hrm validate` of 2026-11-30 (seeds 13, 14 and 20, 132 cases on four
machines of a noisy virtual one, mean error 5 %), none of whose cases is among those that coverage is reported of: of
what their errors had beyond the profile's own spread the 80 % quantile was 0.082, as of a normal law with this
deviation."""
PHASE_ERRORS = {"prefill": 0.099, "decode": 0.078}
"""The same of a phase and its parts, where the 80 % quantiles were 0.126 and 0.099."""
_WHOLE = "whole"
IQR_TO_80_PERCENT = TO_80_PERCENT / 1.3490
"""Half the width of a normal law's middle 80 %, over its interquartile range."""


@record
class Interval:
    """The range of a predicted quantity that should hold four of five outcomes."""

    low: float
    high: float


@record
class Uncertainty:
    """A number that is not exact: where it stands, and the machine with it at either end of its interval."""

    name: str
    low: HardwareProfile
    high: HardwareProfile


def interval_around(
    predicted: float, hardware: HardwareProfile, predicted_on: Callable[[HardwareProfile], float]
) -> Interval:
    """Return the interval around a positive predicted quantity; `predicted_on` predicts it for another machine."""
    return intervals_around({_WHOLE: predicted}, hardware, lambda machine: {_WHOLE: predicted_on(machine)})[_WHOLE]


def intervals_around(
    predicted: Mapping[str, float],
    hardware: HardwareProfile,
    predicted_on: Callable[[HardwareProfile], Mapping[str, float]],
) -> dict[str, Interval]:
    """Return the interval around each of several positive quantities that are predicted together.

    Names are those of `hrm.validation.quantities`: a phase's parts begin with it.
    """
    variances = {name: (TO_80_PERCENT * _model_error(name)) ** 2 for name in predicted}
    for one in uncertainties(hardware):
        low, high = predicted_on(one.low), predicted_on(one.high)
        for name in variances:
            variances[name] += (math.log(high[name] / low[name]) / 2.0) ** 2
    factors = {name: math.exp(math.sqrt(variance)) for name, variance in variances.items()}
    return {name: Interval(low=value / factors[name], high=value * factors[name]) for name, value in predicted.items()}


def _model_error(name: str) -> float:
    return PHASE_ERRORS.get(name.partition(".")[0], MODEL_ERROR)


def uncertainties(hardware: HardwareProfile) -> Iterator[Uncertainty]:
    """Yield the numbers of a machine that are not exact."""
    for name, level in hardware.levels.items():
        for trait in Trait:
            yield from _of_trait(hardware, name, level, trait)
        yield from _of_rates(hardware, name, level)
    for name, link in hardware.links.items():
        for ends in _ends(link.bytes_per_s):
            low, high = (
                replace(hardware, links=hardware.links | {name: replace(link, bytes_per_s=rate)}) for rate in ends
            )
            yield Uncertainty(name=f"links.{name}", low=low, high=high)
    for index, table in enumerate(hardware.ceilings):
        if table.iqr_s:
            low, high = (_with_table(hardware, index, table, sign) for sign in (-1, 1))
            yield Uncertainty(name=f"ceilings.{index}", low=low, high=high)


def with_assumed(hardware: HardwareProfile, name: str, trait: Trait, value: float) -> HardwareProfile:
    """Return the machine with a trait of a level assumed at a value."""
    level = hardware.level(name)
    assumed = replace(level, assumed=level.assumed | {trait: value})
    return replace(hardware, levels=hardware.levels | {name: assumed})


def _of_trait(hardware: HardwareProfile, name: str, level: Level, trait: Trait) -> Iterator[Uncertainty]:
    if trait in level.assumed:
        return
    try:
        known = default(trait, class_of(name, level))
    except KeyError:
        return
    low, high = (with_assumed(hardware, name, trait, value) for value in (known.low, known.high))
    yield Uncertainty(name=f"levels.{name}.{trait}", low=low, high=high)


def _of_rates(hardware: HardwareProfile, name: str, level: Level) -> Iterator[Uncertainty]:
    for low_rate, high_rate in _ends(level.read_bytes_per_s):
        low, high = (replace(level, read_bytes_per_s=rate) for rate in (low_rate, high_rate))
        yield _moved(hardware, name, low, high, "read_bytes_per_s")
    for dtype, rate in level.compute_flop_per_s.items():
        for low_rate, high_rate in _ends(rate):
            low, high = (
                replace(level, compute_flop_per_s=level.compute_flop_per_s | {dtype: end})
                for end in (low_rate, high_rate)
            )
            yield _moved(hardware, name, low, high, f"compute_flop_per_s.{dtype}")


def _moved(hardware: HardwareProfile, name: str, low: Level, high: Level, field: str) -> Uncertainty:
    return Uncertainty(
        name=f"levels.{name}.{field}",
        low=replace(hardware, levels=hardware.levels | {name: low}),
        high=replace(hardware, levels=hardware.levels | {name: high}),
    )


def _ends(rate: Rate) -> Iterator[tuple[Rate, Rate]]:
    """Yield a measured rate at both ends of its interval; nothing for one without spread."""
    measured = rate.measured
    if measured is None or not measured.iqr:
        return
    half = min(IQR_TO_80_PERCENT * measured.iqr, 0.9 * measured.median)
    low, high = (replace(rate, measured=_at(measured, sign * half)) for sign in (-1, 1))
    yield low, high


def _at(measured: Measurement, offset: float) -> Measurement:
    return replace(measured, median=measured.median + offset)


def _with_table(hardware: HardwareProfile, index: int, table: CeilingTable, sign: int) -> HardwareProfile:
    """Return the machine with all times of a table moved by its largest spread, relative to its longest time."""
    longest = max(max(line) for line in table.seconds)
    factor = 1.0 + sign * min(IQR_TO_80_PERCENT * table.iqr_s / longest, 0.9)
    moved = replace(table, seconds=tuple(tuple(time * factor for time in line) for line in table.seconds))
    return replace(hardware, ceilings=(*hardware.ceilings[:index], moved, *hardware.ceilings[index + 1 :]))
