"""Where the numbers of a profile come from: every one has a source, and every source belongs to a number.

A source is keyed by the dotted path of what it explains, and covers what lies below that path. It begins with its kind:
`datasheet` (the vendor's document), `published` (by others, about the machine), `measured` (by this project: date and
command) or `inferred` (ours, with the reason). Kernel tables lie at `ceilings.KERNEL.LEVEL.DTYPE`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator

from hrm.ceilings import CeilingTable
from hrm.errors import SchemaError
from hrm.hardware import HardwareProfile, Measurement

__all__ = ["check_provenance"]

_SOURCE = re.compile(r"(datasheet|inferred|published) \S|measured \d{4}-\d\d-\d\d, \S")


def check_provenance(profile: HardwareProfile, where: str) -> None:
    """Refuse a profile with a number that has no source, or a source that has no number.

    Loading is lenient here, for a machine can be tried before its sources are written down; `hrm hardware validate` and
    the bundled profiles are not. Numbers left at the default of their field need no source.

    Raises
    ------
    SchemaError
        For the first problem, with the field's dotted path.
    """
    numbers = dict(_numbers(profile))
    for path, source in profile.provenance.items():
        if not _SOURCE.match(source):
            raise SchemaError(
                f"{where}: provenance.{path}: {source!r} names no source (write `datasheet DOCUMENT`, "
                "`published WHERE`, `inferred WHY` or `measured YYYY-MM-DD, COMMAND`)"
            )
        if not any(_covers(path, number) for number in numbers):
            raise SchemaError(f"{where}: provenance.{path}: no number lies there (mend the path, or remove it)")
    for number, is_stated in numbers.items():
        source = _source_of(number, profile.provenance)
        if is_stated and not source:
            raise SchemaError(f"{where}: {number}: has no source (add provenance.{number})")
        if number.endswith(".measured") and source.startswith("datasheet"):
            raise SchemaError(f"{where}: {number}: has a datasheet for its source (add provenance.{number})")


def _covers(path: str, number: str) -> bool:
    return f"{number}.".startswith(f"{path}.")


def _source_of(number: str, provenance: dict[str, str]) -> str:
    """Return the source at the number's path or its nearest ancestor, or nothing."""
    return provenance.get(max((path for path in provenance if _covers(path, number)), key=len, default=""), "")


def _numbers(profile: HardwareProfile) -> Iterator[tuple[str, bool]]:
    """Yield the path of each number, and whether it was stated: is not the default of its field."""
    tables = {f"{table.kernel}.{table.level}.{table.dtype}": table for table in profile.ceilings}
    yield from _below("ceilings", tables)
    for section in ("levels", "links", "contention", "shared", "task_s", "repeated_s", "sequence_s"):
        yield from _below(section, getattr(profile, section))


def _below(path: str, value: object, default: object = None) -> Iterator[tuple[str, bool]]:
    if isinstance(value, int | float | Measurement | CeilingTable):
        yield path, value != default
    for name, entry, at_default in _entries(value):
        yield from _below(f"{path}.{name}", entry, at_default)


def _entries(value: object) -> Iterable[tuple[str, object, object]]:
    """List what a mapping or a record holds: name, entry, default."""
    if isinstance(value, dict):
        return [(name, entry, None) for name, entry in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, Measurement | CeilingTable):
        return [(field.name, getattr(value, field.name), field.default) for field in dataclasses.fields(value)]
    return []
