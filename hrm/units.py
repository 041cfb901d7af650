"""Units: SI inside, GiB, GB/s and TFLOP/s only when printed. The types say what a file may hold."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le

__all__ = [
    "GB",
    "GIB",
    "MIB",
    "NonNegative",
    "NonNegativeInt",
    "Positive",
    "PositiveInt",
    "Share",
    "format_bytes",
    "format_bytes_per_s",
    "format_flop_per_s",
    "format_s",
]

MIB = 2**20
GIB = 2**30
GB = 1e9

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]

Share = Annotated[float, Ge(0), Le(1)]


def _scaled(value: float, step: float, names: tuple[str, ...]) -> str:
    index = 0
    while abs(value) >= step and index < len(names) - 1:
        value /= step
        index += 1
    digits = 0 if value == int(value) and abs(value) < 1000 else (2 if abs(value) < 10 else 1)
    return f"{value:.{digits}f} {names[index]}"


def format_bytes(value: float) -> str:
    """Format a capacity in binary units.

    >>> format_bytes(25769803776)
    '24 GiB'
    """
    return _scaled(float(value), 1024.0, ("B", "KiB", "MiB", "GiB", "TiB"))


def format_bytes_per_s(value: float) -> str:
    """Format a bandwidth in decimal units.

    >>> format_bytes_per_s(1.6e10)
    '16 GB/s'
    """
    return _scaled(float(value), 1000.0, ("B/s", "kB/s", "MB/s", "GB/s", "TB/s"))


def format_flop_per_s(value: float) -> str:
    """Format a compute rate in decimal units.

    >>> format_flop_per_s(2.42e14)
    '242 TFLOP/s'
    """
    return _scaled(float(value), 1000.0, ("FLOP/s", "kFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s"))


def format_s(value: float) -> str:
    """Format a duration with three significant digits.

    >>> format_s(0.00141)
    '1.41 ms'
    """
    for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= scale:
            return f"{value / scale:.3g} {name}"
    return f"{value / 1e-9:.3g} ns" if value > 0 else "0 s"
