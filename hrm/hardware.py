"""A machine as the model sees it: levels that hold data and may compute, links between them, measured ceilings.

Datasheet peak and measured rate are two fields of a `Rate`, never one corrected value. `roof` predictions use the peak;
`ceiling` predictions the measured rate, and where nothing was measured the share of the peak of `hrm.achievable`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from hrm.achievable import DeviceClass, Trait
from hrm.ceilings import CeilingTable
from hrm.dtypes import DType
from hrm.errors import FileError, SchemaError
from hrm.files import from_plain, read_yaml
from hrm.hardware_check import check_profile
from hrm.records import record
from hrm.schedule.task import Phase, TaskKind
from hrm.units import NonNegative, NonNegativeInt, Positive, PositiveInt, Share

__all__ = [
    "EmulatedSpec",
    "HardwareProfile",
    "Level",
    "Link",
    "Measurement",
    "MemoryRoof",
    "ProductRoof",
    "Rate",
    "SharedRate",
    "bundled_profiles",
    "load_profile",
]


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


@record
class MemoryRoof:
    """A rate of reading or writing memory, by `threads` threads, each going through `thread_bytes` over and over.

    Copies count two bytes per byte copied and triads three; a line that a regular store reads before it is written is
    not counted, and a non-temporal store reads none.
    """

    threads: PositiveInt
    thread_bytes: PositiveInt
    bytes_per_s: Rate


@record
class ProductRoof:
    """A rate of multiplying [rows, inner] by [inner, columns], at the best of several shapes; an addition is a FLOP."""

    threads: PositiveInt
    rows: PositiveInt
    inner: PositiveInt
    columns: PositiveInt
    flop_per_s: Rate


@record
class Level:
    """A memory, and the processor that owns it where `compute_flop_per_s` is not empty.

    `count` processors of one kind (cards, CPU sockets) share the work: capacity, bandwidth, compute and `cores` are one
    processor's, and multiply. `launch_s` is what starting one small kernel costs (None: the class's default).
    `runtime_bytes` is what interpreter and libraries hold before a plan's first byte; `usable_bytes` is without it.
    `assumed` replaces defaults of `hrm.achievable`; those of a link belong to its faster end.

    `memory_roofs` (by place, access and threads: `l2_read_x1`) and `product_roofs` (`float32_x1`) are what a profile
    measured besides; no prediction reads them.
    """

    description: str
    device_class: DeviceClass | None = None
    capacity_bytes: PositiveInt
    usable_bytes: PositiveInt
    runtime_bytes: NonNegativeInt = 0
    count: PositiveInt = 1
    cores: PositiveInt | None = None
    compute_flop_per_s: dict[DType, Rate] = field(default_factory=dict)
    read_bytes_per_s: Rate
    copy_bytes_per_s: Rate | None = None
    one_thread_read_bytes_per_s: Rate | None = None
    one_thread_copy_bytes_per_s: Rate | None = None
    launch_s: NonNegative | None = None
    assumed: dict[Trait, Positive] = field(default_factory=dict)
    memory_roofs: dict[str, MemoryRoof] = field(default_factory=dict)
    product_roofs: dict[str, ProductRoof] = field(default_factory=dict)


@record
class Link:
    """One direction between two levels: `paths` of `bytes_per_s` each that do not share a way, one if not stated.

    Several GPUs behind one host share one path, whatever the slots could do together. `other_bytes_per_s` is the link
    used otherwise: `pageable` memory, `both_ways` at once, a disk by size of request and depth (`1MiB_x4`).
    """

    source: str
    target: str
    bytes_per_s: Rate
    paths: PositiveInt = 1
    latency_s: NonNegative | None = None
    other_bytes_per_s: dict[str, Rate] = field(default_factory=dict)


@record
class SharedRate:
    """A rate that several lanes draw on together, by the bytes that each moves there per byte of its own demand.

    Host memory, for instance: the CPU's kernels take 1 byte per byte, a link copy 1, a staging copy 2 (it reads and
    writes); on an emulated device, whose memory is host memory too, its kernels as well.
    """

    bytes_per_s: Rate
    drawn_by: dict[str, NonNegative]


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

    `contention` gives, per lane, the share of its own rate that it keeps while the other lanes are busy. `shared` gives
    what lanes draw on together; without it they share host memory alone (`hrm.rates`). `task_s` gives, by placement
    (`hrm.rates.placement_of`) and kind of task, what a task takes beyond its kernels and bytes; `repeated_s`, likewise,
    what is left of that in later decode passes where they repeat what the first one called; `sequence_s`, by placement,
    phase and kind, what it takes besides for each sequence that it goes through (`hrm.pass_costs.items_of`).
    `provenance` says for each dotted field path where the number comes from (`hrm.provenance`). `system` says in
    words how the machine was set while it was measured: processor, kernel, huge pages, load, command.
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
    shared: dict[str, SharedRate] = field(default_factory=dict)
    task_s: dict[str, dict[TaskKind, NonNegative]] = field(default_factory=dict)
    repeated_s: dict[str, dict[TaskKind, NonNegative]] = field(default_factory=dict)
    sequence_s: dict[str, dict[Phase, dict[TaskKind, NonNegative]]] = field(default_factory=dict)
    system: dict[str, str] = field(default_factory=dict)
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

    >>> sorted(load_profile("l4-case-study").levels)
    ['cpu', 'gpu']

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
    check_profile(profile, str(path))
    return profile
