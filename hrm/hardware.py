"""A machine as the model sees it: levels that hold data and may compute, links between them, measured ceilings.

Datasheet peak and measured rate are two fields of a `Rate`, never one corrected value. `roof` predictions use the peak;
`ceiling` predictions the measured rate, and where nothing was measured the peak times the achievable share below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from hrm.ceilings import CeilingTable
from hrm.dtypes import DType
from hrm.errors import FileError, SchemaError
from hrm.files import from_plain, read_yaml
from hrm.records import record
from hrm.units import NonNegative, Positive, PositiveInt, Share

__all__ = [
    "EmulatedSpec",
    "HardwareProfile",
    "Level",
    "Link",
    "Measurement",
    "Rate",
    "bundled_profiles",
    "load_profile",
]

ACHIEVABLE_SHARE = 0.8
"""Share of a datasheet peak that a good kernel reaches, where nothing was measured. STREAM on servers reaches about 0.8
of the theoretical DRAM rate (McCalpin, STREAM benchmark), pinned PCIe copies and dense GEMM about as much."""


@record
class Measurement:
    """A measured quantity: median of `count` repeats with its interquartile range, in the unit of the field."""

    median: Positive
    iqr: NonNegative
    count: PositiveInt
    noisy: bool = False


@record
class Rate:
    """A rate as the datasheet gives it (`peak`) and as it was measured; at least one of the two is there."""

    peak: Positive | None = None
    measured: Measurement | None = None

    @property
    def roof(self) -> float:
        """The upper bound: the larger of datasheet peak and measured median, so that no measurement beats its roof."""
        return max(self.peak or 0.0, self.measured.median if self.measured else 0.0)

    @property
    def ceiling(self) -> float:
        """What can be achieved: the measured median, else `ACHIEVABLE_SHARE` of the peak."""
        return self.measured.median if self.measured else self.roof * ACHIEVABLE_SHARE


@record
class Level:
    """A memory, and the processor that owns it where `compute_flop_per_s` is not empty.

    `count` processors of one kind share the work: capacity, bandwidth and compute are those of one, and multiply.
    `launch_s` is what starting one small kernel costs.
    """

    description: str
    capacity_bytes: PositiveInt
    usable_bytes: PositiveInt
    count: PositiveInt = 1
    compute_flop_per_s: dict[DType, Rate] = field(default_factory=dict)
    read_bytes_per_s: Rate
    copy_bytes_per_s: Rate | None = None
    one_thread_read_bytes_per_s: Rate | None = None
    one_thread_copy_bytes_per_s: Rate | None = None
    launch_s: NonNegative = 0.0


@record
class Link:
    """One direction of a path between two levels; `bytes_per_s` is per level, not per processor."""

    source: str
    target: str
    bytes_per_s: Rate
    latency_s: NonNegative = 0.0


@record
class EmulatedSpec:
    """The pace imposed on an emulated device (`hrm.device.emulated`); its compute and its copies are real."""

    name: str
    description: str = ""
    memory_capacity_bytes: PositiveInt
    h2d_bytes_per_s: Positive
    d2h_bytes_per_s: Positive
    host_slowdown: Annotated[float, Ge(1)] = 1.0
    device_cores: tuple[int, ...] = (1,)
    host_cores: tuple[int, ...] = (0,)


@record
class HardwareProfile:
    """A machine: its levels by name (`gpu`, `cpu`, `disk`), its links (`h2d`, `d2h`, `disk`), ceilings and provenance.

    `contention` gives, per lane, the share of its own rate that it keeps while the other lanes are busy.
    `provenance` says for each dotted field path where the number comes from: `datasheet …`, `measured …`, `inferred …`.
    """

    schema_version: Literal[1] = 1
    name: str
    description: str = ""
    aliases: tuple[str, ...] = ()
    device: Literal["none", "cuda", "emulated", "unspecified"] = "unspecified"
    emulated: EmulatedSpec | None = None
    levels: dict[str, Level]
    links: dict[str, Link] = field(default_factory=dict)
    ceilings: tuple[CeilingTable, ...] = ()
    contention: dict[str, Share] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)

    def level(self, name: str) -> Level:
        """Return the level called `name`.

        Raises
        ------
        SchemaError
            When this machine has no such level.
        """
        try:
            return self.levels[name]
        except KeyError:
            raise SchemaError(f"{self.name}: levels.{name}: missing (this machine has {sorted(self.levels)})") from None

    def link(self, name: str) -> Link:
        """Return the link called `name`.

        Raises
        ------
        SchemaError
            When this machine has no such link.
        """
        try:
            return self.links[name]
        except KeyError:
            raise SchemaError(f"{self.name}: links.{name}: missing (this machine has {sorted(self.links)})") from None

    @property
    def label(self) -> str:
        """The name, with the word that belongs to every number of an emulated device."""
        return f"{self.name} (emulated)" if self.emulated else self.name

    @property
    def has_gpu(self) -> bool:
        """Whether the machine has a level called `gpu`."""
        return "gpu" in self.levels


def _profiles_folder() -> Path:
    here = Path(__file__).resolve().parent
    installed = here / "hardware_profiles"
    return installed if installed.is_dir() else here.parent / "hardware_profiles"


def bundled_profiles() -> Iterator[Path]:
    """Yield the paths of the profiles that ship with the project, sorted by name."""
    yield from sorted(_profiles_folder().glob("*.yaml"))


def load_profile(name_or_path: str | Path) -> HardwareProfile:
    """Load a hardware profile by bundled name, by alias, or by path.

    Raises
    ------
    FileError
        When nothing answers to the name, or the file breaks the schema (then a `SchemaError`).
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return _load(path)
    bundled = _profiles_folder() / f"{name_or_path}.yaml"
    if bundled.is_file():
        return _load(bundled)
    for candidate in bundled_profiles():
        if str(name_or_path) in read_yaml(candidate).get("aliases", ()):
            return _load(candidate)
    known = ", ".join(candidate.stem for candidate in bundled_profiles())
    raise FileError(f"--hardware {name_or_path}: no bundled profile and no such file (bundled: {known})")


def _load(path: Path) -> HardwareProfile:
    profile = from_plain(HardwareProfile, read_yaml(path), where=str(path))
    _check(profile, str(path))
    return profile


def _check(profile: HardwareProfile, where: str) -> None:
    if "cpu" not in profile.levels:
        raise SchemaError(f"{where}: levels.cpu: required level is missing (add the host's memory)")
    for name, level in profile.levels.items():
        _check_level(level, f"{where}: levels.{name}")
    for name, link in profile.links.items():
        _check_link(name, link, profile, f"{where}: links.{name}")
    for index, table in enumerate(profile.ceilings):
        _check_table(table, f"{where}: ceilings.{index}")
    if profile.has_gpu and not {"h2d", "d2h"} <= set(profile.links):
        raise SchemaError(f"{where}: links: a machine with a gpu needs the links h2d and d2h (add them)")


def _check_level(level: Level, where: str) -> None:
    if level.usable_bytes > level.capacity_bytes:
        raise SchemaError(
            f"{where}.usable_bytes: {level.usable_bytes} exceeds capacity_bytes {level.capacity_bytes} (lower it)"
        )
    rates = {f"compute_flop_per_s.{dtype}": rate for dtype, rate in level.compute_flop_per_s.items()}
    bandwidths = {field_name: getattr(level, field_name) for field_name in _BANDWIDTHS}
    _check_rates(rates | {name: rate for name, rate in bandwidths.items() if rate is not None}, where)


def _check_link(name: str, link: Link, profile: HardwareProfile, where: str) -> None:
    for end in (link.source, link.target):
        if end not in profile.levels:
            raise SchemaError(f"{where}: {end!r} is no level (levels: {sorted(profile.levels)})")
    if (link.source, link.target) != _LINK_ENDS.get(name, (link.source, link.target)):
        raise SchemaError(f"{where}: leads from {link.source} to {link.target} (turn it round)")
    _check_rates({"bytes_per_s": link.bytes_per_s}, where)


_BANDWIDTHS = (
    "read_bytes_per_s",
    "copy_bytes_per_s",
    "one_thread_read_bytes_per_s",
    "one_thread_copy_bytes_per_s",
)
_LINK_ENDS = {"h2d": ("cpu", "gpu"), "d2h": ("gpu", "cpu")}


def _check_table(table: CeilingTable, where: str) -> None:
    for axis in ("sizes", "rows"):
        values = getattr(table, axis)
        if not values or any(low >= high for low, high in pairwise(values)):
            raise SchemaError(f"{where}.{axis}: must ascend and not be empty (sort it)")
    if len(table.seconds) != len(table.sizes) or any(len(line) != len(table.rows) for line in table.seconds):
        raise SchemaError(
            f"{where}.seconds: must be {len(table.sizes)} lines of {len(table.rows)} numbers, as sizes and rows say"
        )


def _check_rates(rates: dict[str, Rate], where: str) -> None:
    for field_name, rate in rates.items():
        if rate.peak is None and rate.measured is None:
            raise SchemaError(f"{where}.{field_name}: needs `peak`, `measured` or both (add one)")
