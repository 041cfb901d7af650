"""What a profile must obey beyond the types of its fields: its levels, links, lanes and tables fit together."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from hrm.achievable import ABSOLUTE
from hrm.errors import SchemaError
from hrm.schedule.task import Lane

if TYPE_CHECKING:
    from hrm.ceilings import CeilingTable
    from hrm.hardware import HardwareProfile, Level, Link, Rate, SharedRate

__all__ = ["check_profile"]

_BANDWIDTHS = (
    "read_bytes_per_s",
    "copy_bytes_per_s",
    "one_thread_read_bytes_per_s",
    "one_thread_copy_bytes_per_s",
)
_LINK_ENDS = {"h2d": ("cpu", "gpu"), "d2h": ("gpu", "cpu"), "disk": ("disk", "cpu")}
_LINKS_OF_LEVEL = {"gpu": ("h2d", "d2h"), "disk": ("disk",)}


def check_profile(profile: HardwareProfile, where: str) -> None:
    """Refuse a profile whose parts contradict each other; `where` names its file in the error.

    Raises
    ------
    SchemaError
        For the first contradiction, with the field's dotted path.
    """
    if "cpu" not in profile.levels:
        raise SchemaError(f"{where}: levels.cpu: required level is missing (add the host's memory)")
    for name, level in profile.levels.items():
        _check_level(name, level, f"{where}: levels.{name}")
    for name, links in _LINKS_OF_LEVEL.items():
        if name in profile.levels and not set(links) <= set(profile.links):
            raise SchemaError(
                f"{where}: links: a machine with a {name} needs the link{'s' * (len(links) > 1)} "
                f"{' and '.join(links)} (add {'them' if len(links) > 1 else 'it'})"
            )
    for name, link in profile.links.items():
        _check_link(name, link, profile, f"{where}: links.{name}")
    for index, table in enumerate(profile.ceilings):
        _check_table(table, profile, f"{where}: ceilings.{index}")
    for name, shared in profile.shared.items():
        _check_shared(shared, f"{where}: shared.{name}")
    _check_lanes(profile.contention, f"{where}: contention")


def _check_level(name: str, level: Level, where: str) -> None:
    if level.usable_bytes > level.capacity_bytes:
        raise SchemaError(
            f"{where}.usable_bytes: {level.usable_bytes} exceeds capacity_bytes {level.capacity_bytes} (lower it)"
        )
    if name in ("cpu", "gpu", "disk") and level.device_class and name not in level.device_class.split("-"):
        raise SchemaError(f"{where}.device_class: {level.device_class} is no class of a {name} (choose another)")
    for trait, value in level.assumed.items():
        if trait not in ABSOLUTE and value > 1:
            raise SchemaError(f"{where}.assumed.{trait}: {value} is no share (write a number up to 1)")
    for dtype, rate in level.compute_flop_per_s.items():
        _check_rate(rate, f"{where}.compute_flop_per_s.{dtype}")
    for field_name in _BANDWIDTHS:
        _check_rate(getattr(level, field_name), f"{where}.{field_name}")
    _check_roofs(level, where)


def _check_roofs(level: Level, where: str) -> None:
    for name, memory in level.memory_roofs.items():
        _check_rate(memory.bytes_per_s, f"{where}.memory_roofs.{name}.bytes_per_s")
    for name, product in level.product_roofs.items():
        _check_rate(product.flop_per_s, f"{where}.product_roofs.{name}.flop_per_s")


def _check_link(name: str, link: Link, profile: HardwareProfile, where: str) -> None:
    for end in (link.source, link.target):
        if end not in profile.levels:
            raise SchemaError(f"{where}: {end!r} is no level (levels: {sorted(profile.levels)})")
    wanted = _LINK_ENDS.get(name, (link.source, link.target))
    if (link.source, link.target) != wanted:
        raise SchemaError(
            f"{where}: leads from {link.source} to {link.target} (turn it round: {name} leads from {wanted[0]} to "
            f"{wanted[1]})"
        )
    processors = max(profile.levels[end].count for end in (link.source, link.target))
    if link.paths > processors:
        raise SchemaError(f"{where}.paths: {link.paths} exceeds the count of either end, {processors} (lower it)")
    _check_rate(link.bytes_per_s, f"{where}.bytes_per_s")
    for use, rate in link.other_bytes_per_s.items():
        _check_rate(rate, f"{where}.other_bytes_per_s.{use}")


def _check_table(table: CeilingTable, profile: HardwareProfile, where: str) -> None:
    if table.level not in profile.levels:
        raise SchemaError(f"{where}.level: {table.level!r} is no level (levels: {sorted(profile.levels)})")
    for axis in ("sizes", "rows"):
        values = getattr(table, axis)
        if not values or any(low >= high for low, high in pairwise(values)):
            raise SchemaError(f"{where}.{axis}: must ascend and not be empty (sort it)")
    if len(table.seconds) != len(table.sizes) or any(len(line) != len(table.rows) for line in table.seconds):
        raise SchemaError(
            f"{where}.seconds: must be {len(table.sizes)} lines of {len(table.rows)} numbers, as sizes and rows say"
        )


def _check_shared(shared: SharedRate, where: str) -> None:
    if not shared.drawn_by:
        raise SchemaError(f"{where}.drawn_by: is empty (name the lanes that draw on it: {_LANES})")
    _check_lanes(shared.drawn_by, f"{where}.drawn_by")
    _check_rate(shared.bytes_per_s, f"{where}.bytes_per_s")


_LANES = ", ".join(Lane)


def _check_lanes(names: Iterable[str], where: str) -> None:
    for name in names:
        if name not in list(Lane):
            raise SchemaError(f"{where}.{name}: is no lane (lanes: {_LANES})")


def _check_rate(rate: Rate | None, where: str) -> None:
    if rate is not None and rate.peak is None and rate.measured is None:
        raise SchemaError(f"{where}: needs `peak`, `measured` or both (add one)")
