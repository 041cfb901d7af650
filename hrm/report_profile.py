"""What the user sees of a profile: its roofs with their spread, and what became of them since."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hrm.report import show_lines, show_table
from hrm.units import format_bytes, format_bytes_per_s, format_flop_per_s, format_s

if TYPE_CHECKING:
    from hrm.hardware import HardwareProfile, Level, Rate
    from hrm.microbench.check import CheckReport

__all__ = ["show_drift", "show_profile"]


def _rate(rate: Rate, show: Callable[[float], str]) -> str:
    peak = f"peak {show(rate.peak)}" if rate.peak else ""
    found = rate.measured
    if found is None:
        return peak
    spread = f" ±{found.iqr / found.median / 2:.0%}{' noisy' if found.noisy else ''}"
    return ", ".join(part for part in (f"{show(found.median)}{spread} (n={found.count})", peak) if part)


def show_profile(profile: HardwareProfile) -> None:
    """Print a profile's roofs."""
    rows = []
    for name, level in profile.levels.items():
        where = f"{name}{f' x{level.count}' if level.count > 1 else ''}"
        rows += [{"where": where, "what": what, "value": value} for what, value in _of_level(level)]
    rows += _link_rows(profile)
    for table in profile.ceilings:
        best = min(seconds / rows_ for line in table.seconds for seconds, rows_ in zip(line, table.rows, strict=True))
        what = f"{table.kernel} {table.dtype}"
        shapes = f"{len(table.sizes)}x{len(table.rows)} shapes, from {format_s(best)} a row"
        rows.append({"where": table.level, "what": what, "value": shapes})
    show_table(f"{profile.label}: {profile.description}", rows)


def _of_level(level: Level) -> Iterator[tuple[str, str]]:
    yield "capacity", f"{format_bytes(level.usable_bytes)} of {format_bytes(level.capacity_bytes)} usable"
    if level.device_class is not None:
        cores = f", {level.cores} cores" if level.cores else ""
        yield "class", f"{level.device_class}{cores}"
    for dtype, rate in level.compute_flop_per_s.items():
        yield dtype, _rate(rate, format_flop_per_s)
    bandwidths = {
        "read": level.read_bytes_per_s,
        "copy": level.copy_bytes_per_s,
        "read, one thread": level.one_thread_read_bytes_per_s,
        "copy, one thread": level.one_thread_copy_bytes_per_s,
    }
    for what, bandwidth in bandwidths.items():
        if bandwidth is not None:
            yield what, _rate(bandwidth, format_bytes_per_s)
    for name, memory in level.memory_roofs.items():
        yield name, _rate(memory.bytes_per_s, format_bytes_per_s)
    for name, product in level.product_roofs.items():
        yield f"product {name}", _rate(product.flop_per_s, format_flop_per_s)


def _link_rows(profile: HardwareProfile) -> list[dict[str, str]]:
    rows = []
    for name, link in profile.links.items():
        what = f"{link.source} to {link.target}"
        where = f"{name}{f' x{link.paths}' if link.paths > 1 else ''}"
        rows.append({"where": where, "what": what, "value": _rate(link.bytes_per_s, format_bytes_per_s)})
        for use, rate in link.other_bytes_per_s.items():
            rows.append({"where": where, "what": use, "value": _rate(rate, format_bytes_per_s)})
    for name, shared in profile.shared.items():
        what = f"shared by {', '.join(shared.drawn_by)}"
        rows.append({"where": name, "what": what, "value": _rate(shared.bytes_per_s, format_bytes_per_s)})
    return rows


def show_drift(report: CheckReport) -> None:
    """Print a profile's roofs as they were and as they are now."""
    rows = []
    for roof in report.roofs:
        show = format_flop_per_s if "flop" in roof.name else format_bytes_per_s
        was, now = (f"{show(one.median)} ±{one.iqr / one.median / 2:.0%}" for one in (roof.profiled, roof.now))
        verdict = "drifted" if roof.drifted else "as it was"
        rows.append({"roof": roof.name, "profiled": was, "now": now, "ratio": f"{roof.ratio:.2f}", "": verdict})
    show_table(f"{report.profile}, checked", rows)
    if report.drifted:
        show_lines(["drifted beyond a tenth and beyond three interquartile ranges: profile again when it is quiet"])
