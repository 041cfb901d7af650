"""A machine with more or less of something: what a prediction says of it is what buying it is worth.

A change is a factor on all that the machine has of a resource, peaks and measurements alike; shares of
`hrm.achievable`, launches and latencies stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple

from hrm.ceilings import CeilingTable, Kernel
from hrm.dtypes import DType
from hrm.errors import HrmError
from hrm.hardware import HardwareProfile, Level, Measurement, Rate
from hrm.rates import Rates
from hrm.records import record
from hrm.units import Positive, format_bytes, format_bytes_per_s, format_flop_per_s

__all__ = ["PARTS", "SIMPLE_RESOURCES", "Change", "Resource", "amount", "format_amount", "parse_changes", "scaled"]


class Resource(StrEnum):
    """What a machine can have more or less of."""

    LINK = "link"
    """Rate of the links between host and GPU, both directions."""
    CPU_MEMORY = "cpu_memory"
    GPU_MEMORY = "gpu_memory"
    CPU_BANDWIDTH = "cpu_bandwidth"
    """Rate of host memory, and of what lanes share of it."""
    GPU_BANDWIDTH = "gpu_bandwidth"
    CPU_COMPUTE = "cpu_compute"
    GPU_COMPUTE = "gpu_compute"
    DISK = "disk"
    """Rate at which experts are read from disk."""
    GPUS = "gpus"
    """Cards of the same kind, behind the same link to the host."""
    CPU = "cpu"
    """Memory, its rate and compute of the host together."""
    GPU = "gpu"
    """Memory, its rate and compute of each card together."""


PARTS = {
    Resource.CPU: (Resource.CPU_MEMORY, Resource.CPU_BANDWIDTH, Resource.CPU_COMPUTE),
    Resource.GPU: (Resource.GPU_MEMORY, Resource.GPU_BANDWIDTH, Resource.GPU_COMPUTE),
}
"""What the resources that stand for several change together."""
SIMPLE_RESOURCES = tuple(resource for resource in Resource if resource not in PARTS)
_ALIASES = {"dram": Resource.CPU_BANDWIDTH}
_NEEDS_GPU = frozenset(Resource) - {Resource.DISK, Resource.CPU, *PARTS[Resource.CPU]}
_LINKS_OF = {Resource.LINK: ("h2d", "d2h"), Resource.DISK: ("disk",)}
_MEASURED_KERNEL_LIMIT = {
    Kernel.ATTENTION_DECODE: "memory",
    Kernel.ATTENTION_PREFILL: "compute",
    Kernel.ELEMENTWISE: "memory",
}
"""What limits kernels whose table does not say how much they compute per element."""
_MATRICES = {Kernel.PROJECTION: 1.0, Kernel.EXPERT_FFN: 3.0}


@record
class Change:
    """A resource made `factor` times what it is."""

    resource: Resource
    factor: Positive

    def __str__(self) -> str:
        """Say it as it is written on the command line."""
        return f"{self.resource}={self.factor:.4g}x"


def scaled(hardware: HardwareProfile, changes: Iterable[Change]) -> HardwareProfile:
    """Return the machine with each change made in turn; a factor of 1 changes nothing.

    Bandwidth and compute move the kernels' measured tables too: each time keeps its ratio to what the roofs and the
    launch allow at its shape. Decode attention and element-wise work count as bound by memory there, attention over
    prompts by compute. What one thread copies is a core's own rate and stays. Cards share the links to the host as
    before.

    Raises
    ------
    HrmError
        When the machine has nothing of a resource, or would have part of a card.
    """
    for change in changes:
        if change.factor == 1.0:
            continue
        for resource in PARTS.get(change.resource, (change.resource,)):
            hardware = _with(hardware, resource, change.factor)
    return hardware


def amount(hardware: HardwareProfile, resource: Resource) -> float:
    """Return what a machine has of a simple resource, all cards, sockets and paths together, in SI units.

    Of a rate, the roof; of compute, that of the fastest floating-point format of 16 or 32 bits.

    Raises
    ------
    HrmError
        When the machine has nothing of it.
    """
    if resource in _NEEDS_GPU and not hardware.has_gpu:
        raise HrmError(f"{resource}: {hardware.name} has no gpu (change something else)")
    if resource is Resource.DISK and "disk" not in hardware.levels:
        raise HrmError(f"{resource}: {hardware.name} has no disk (measure one with hrm profile --disk FOLDER)")
    if resource in _LINKS_OF:
        link = hardware.link(_LINKS_OF[resource][0])
        return link.bytes_per_s.roof * link.paths
    level = hardware.level("gpu" if resource in _NEEDS_GPU else "cpu")
    if resource is Resource.GPUS:
        return float(level.count)
    if resource in (Resource.CPU_MEMORY, Resource.GPU_MEMORY):
        return float(level.capacity_bytes * level.count)
    if resource in (Resource.CPU_BANDWIDTH, Resource.GPU_BANDWIDTH):
        return level.read_bytes_per_s.roof * level.count
    return _compute_roof(level) * level.count


def format_amount(resource: Resource, value: float) -> str:
    """Write an amount of a simple resource as it is printed."""
    return _MEASURES[resource].show(value)


def parse_changes(text: str, hardware: HardwareProfile) -> tuple[Change, ...]:
    """Read changes such as `link=2x,cpu_memory=+64GiB,gpu_bandwidth=900GB/s,gpus=+1` for a machine.

    A value is a factor (`2x`), something more or less (`+64GiB`, `-10GB/s`), or the new amount (`32GB/s`).

    Raises
    ------
    HrmError
        When a resource or a value is not understood, or nothing would be left of it.
    """
    return tuple(_change(part.strip(), hardware) for part in text.split(","))


_VALUE = re.compile(r"=?\s*(?P<sign>[+-]?)(?P<number>[0-9.]+(?:e[+-]?[0-9]+)?)\s*(?P<unit>[a-z/]*)", re.IGNORECASE)
_STEPS = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}
_SIZES = {f"{name}b": step for name, step in _STEPS.items()} | {
    f"{name}ib": 1024.0**power for power, name in enumerate(("k", "m", "g", "t"), start=1)
}


class _Measure(NamedTuple):
    """How amounts of a resource are written: units and what each is worth, an example, and how they are printed."""

    units: dict[str, float]
    example: str
    show: Callable[[float], str]


_BYTES = _Measure(_SIZES, "+64GiB", format_bytes)
_BYTES_PER_S = _Measure({f"{unit}/s": step for unit, step in _SIZES.items()}, "+10GB/s", format_bytes_per_s)
_FLOP_PER_S = _Measure({f"{name}flop/s": step for name, step in _STEPS.items()}, "+1TFLOP/s", format_flop_per_s)
_MEASURES = {
    Resource.LINK: _BYTES_PER_S,
    Resource.DISK: _BYTES_PER_S,
    Resource.CPU_MEMORY: _BYTES,
    Resource.GPU_MEMORY: _BYTES,
    Resource.CPU_BANDWIDTH: _BYTES_PER_S,
    Resource.GPU_BANDWIDTH: _BYTES_PER_S,
    Resource.CPU_COMPUTE: _FLOP_PER_S,
    Resource.GPU_COMPUTE: _FLOP_PER_S,
    Resource.GPUS: _Measure({"": 1.0}, "+1", "{:g}".format),
}
_FACTORS_ONLY = _Measure({}, "0.5x", "{:g}".format)


def _change(text: str, hardware: HardwareProfile) -> Change:
    name, _, value = text.partition("=")
    name = name.strip().lower()
    try:
        resource = _ALIASES.get(name) or Resource(name)
    except ValueError:
        raise HrmError(f"{text!r}: no such resource (one of {', '.join((*Resource, *_ALIASES))})") from None
    factor = _factor(value, resource, hardware)
    if factor is None:
        example = _MEASURES.get(resource, _FACTORS_ONLY).example
        raise HrmError(f"{text!r}: no value that {resource} can take (write 2x or {example})")
    scaled(hardware, [Change(resource=resource, factor=factor)])
    return Change(resource=resource, factor=factor)


def _factor(value: str, resource: Resource, hardware: HardwareProfile) -> float | None:
    """Return what a value makes of a resource, as a factor; None where it is not understood or leaves nothing."""
    found = _VALUE.fullmatch(value.strip())
    if found is None:
        return None
    try:
        number = float(found["number"])
    except ValueError:
        return None
    sign, unit = found["sign"], found["unit"].lower()
    if unit == "x":
        factor = number if not sign else 0.0
    else:
        step = _MEASURES.get(resource, _FACTORS_ONLY).units.get(unit)
        if step is None:
            return None
        now = amount(hardware, resource)
        factor = number * step / now if not sign else 1.0 + float(f"{sign}1") * number * step / now
    return factor if 1e-6 <= factor <= 1e6 else None


def _with(hardware: HardwareProfile, resource: Resource, factor: float) -> HardwareProfile:
    amount(hardware, resource)
    if resource in _LINKS_OF:
        links = {
            name: replace(link, bytes_per_s=_times(link.bytes_per_s, factor)) if name in _LINKS_OF[resource] else link
            for name, link in hardware.links.items()
        }
        hardware = replace(hardware, links=links)
        return hardware if resource is Resource.LINK else _with_disk(hardware, factor)
    name = "gpu" if resource in _NEEDS_GPU else "cpu"
    level = _level_with(hardware.level(name), resource, factor)
    changed = replace(hardware, levels=hardware.levels | {name: level})
    if resource is Resource.CPU_BANDWIDTH:
        shared = {
            name: replace(one, bytes_per_s=_times(one.bytes_per_s, factor)) if one.drawn_by.get("cpu") else one
            for name, one in hardware.shared.items()
        }
        changed = replace(changed, shared=shared)
    tables = tuple(_moved(table, hardware, changed) if table.level == name else table for table in hardware.ceilings)
    return replace(changed, ceilings=tables)


def _with_disk(hardware: HardwareProfile, factor: float) -> HardwareProfile:
    """Return a machine whose disk itself, beside the way to it, is so much faster."""
    disk = hardware.level("disk")
    faster = replace(disk, read_bytes_per_s=_times(disk.read_bytes_per_s, factor))
    return replace(hardware, levels=hardware.levels | {"disk": faster})


def _level_with(level: Level, resource: Resource, factor: float) -> Level:
    if resource is Resource.GPUS:
        count = round(level.count * factor)
        if count < 1 or abs(count - level.count * factor) > 1e-6:
            raise HrmError(f"gpus: {level.count * factor:.4g} cards (only whole ones work; write 2x or +1)")
        return replace(level, count=count)
    if resource in (Resource.CPU_MEMORY, Resource.GPU_MEMORY):
        capacity, usable = (max(1, int(count * factor)) for count in (level.capacity_bytes, level.usable_bytes))
        return replace(level, capacity_bytes=capacity, usable_bytes=usable)
    if resource in (Resource.CPU_BANDWIDTH, Resource.GPU_BANDWIDTH):
        copied = level.copy_bytes_per_s
        return replace(
            level,
            read_bytes_per_s=_times(level.read_bytes_per_s, factor),
            copy_bytes_per_s=None if copied is None else _times(copied, factor),
        )
    compute = {dtype: _times(rate, factor) for dtype, rate in level.compute_flop_per_s.items()}
    return replace(level, compute_flop_per_s=compute)


def _times(rate: Rate, factor: float) -> Rate:
    found = rate.measured
    measured: Measurement | None = None
    if found is not None:
        measured = replace(found, median=found.median * factor, iqr=found.iqr * factor)
    return Rate(peak=None if rate.peak is None else rate.peak * factor, measured=measured)


def _compute_roof(level: Level) -> float:
    rates = level.compute_flop_per_s
    floating = [rates[dtype].roof for dtype in (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32) if dtype in rates]
    return max(floating or [rate.roof for rate in rates.values()])


def _moved(table: CeilingTable, before: HardwareProfile, after: HardwareProfile) -> CeilingTable:
    """Return a table with each time changed as what the model says of its shape."""
    ratios = [
        [_modelled_s(table, after, size, rows) / _modelled_s(table, before, size, rows) for rows in table.rows]
        for size in table.sizes
    ]
    seconds = tuple(
        tuple(time * ratio for time, ratio in zip(times, line, strict=True))
        for times, line in zip(table.seconds, ratios, strict=True)
    )
    return replace(table, seconds=seconds, iqr_s=table.iqr_s * max(map(max, ratios)))


def _modelled_s(table: CeilingTable, hardware: HardwareProfile, size: float, rows: float) -> float:
    """Return what the roofs and a launch allow at a shape: the longer of compute and weights' (or cache's) bytes."""
    rates, kernel = Rates(hardware=hardware, measured=True), table.kernel
    limit = _MEASURED_KERNEL_LIMIT.get(kernel)
    matrices = _MATRICES.get(kernel, 1.0)
    flop = 2.0 * matrices * size**kernel.size_exponent * rows
    moved = matrices * size * table.dtype.bytes_per_element * (rows if limit else 1.0)
    compute_s = 0.0 if limit == "memory" else flop / rates.flop_per_s(table.level, table.dtype, kernel)
    memory_s = 0.0 if limit == "compute" else moved / rates.read_bytes_per_s(table.level, kernel)
    return max(compute_s, memory_s) + rates.launch_s(table.level)
