"""Levels and links of a profile, put together from what was measured, with the provenance of each number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hrm.device.backend import Backend
from hrm.dtypes import DType
from hrm.hardware import EmulatedSpec, Level, Link, Measurement, MemoryRoof, ProductRoof, Rate, SharedRate
from hrm.microbench.accelerator import free_memory_bytes
from hrm.microbench.bench import Samples
from hrm.microbench.compute import ProductSamples, best_of
from hrm.microbench.disk import DiskSamples
from hrm.microbench.links import LinkSamples, fitted_link
from hrm.microbench.machine import memory_bytes, runtime_bytes, setting
from hrm.microbench.measure import summary
from hrm.microbench.memory import MemorySamples
from hrm.microbench.notes import Notes, joined
from hrm.records import record
from hrm.schedule.task import Lane
from hrm.units import format_bytes

__all__ = ["HostSamples", "device_level", "disk_level", "disk_link", "host_level", "link"]

_HOST_SHARE = 0.9
"""Share of the free host memory that a plan may use: the rest is for the system and for this process itself."""
_DEVICE_SHARE = 0.9
"""Share of a real device's free memory that a plan may use: the rest is for workspaces and fragmentation."""
_HEADLINE = {"read": "dram_read", "copy": "dram_torch_copy"}
_ACCESS_NOTES = {
    "read": "each byte counted once, four streams per thread",
    "torch_copy": "through torch as staging runs it, bytes read and written counted, kind of store is torch's choice",
    "copy_nt": "non-temporal stores, bytes read and written counted",
    "copy": "regular stores, bytes read and written counted, lines read before writing (write allocate) not",
    "triad_nt": "a = b + 3 c in float64, non-temporal stores, three bytes counted for each of a",
    "triad": "a = b + 3 c in float64, regular stores, three bytes counted for each of a, write allocate not",
}


@record
class HostSamples:
    """What was measured of the host's processor and memory."""

    memory: dict[str, MemorySamples]
    caches: dict[str, MemorySamples]
    products: tuple[ProductSamples, ...]
    launch_s: Measurement


def host_level(notes: Notes, spec: EmulatedSpec | None, host: HostSamples) -> Level:
    """Put the host's level together."""
    slowed = f"slowed {spec.host_slowdown:g} times by emulation" if spec and spec.host_slowdown != 1 else ""
    most = max(one.threads for one in host.memory.values())
    headline = {
        f"{prefix}{access}_bytes_per_s": f"{name}_x{threads}"
        for access, name in _HEADLINE.items()
        for prefix, threads in (("", most), ("one_thread_", 1))
    }
    rates: dict[str, Any] = {}
    for field, name in headline.items():
        detail = joined(f"{host.memory[name].threads} thread(s)", _access_note(name), slowed)
        rates[field] = notes.rate(f"levels.cpu.{field}", host.memory[name].bytes_per_s, detail)
    others = {name: found for name, found in host.memory.items() if name not in headline.values()} | host.caches
    compute, products = _products(notes, "cpu", host.products, slowed)
    launch = notes.measured("levels.cpu.launch_s", host.launch_s, slowed)
    total, free = memory_bytes()
    # The emulated device's memory lies in the host's: what it may take is not free for the host.
    free -= spec.memory_capacity_bytes if spec else 0
    notes.other("levels.cpu.cores", "those that compute: one per thread")
    notes.other("levels.cpu.capacity_bytes", "as the system reports it")
    notes.other("levels.cpu.usable_bytes", f"{_HOST_SHARE:.0%} of what was free")
    notes.other("levels.cpu.runtime_bytes", "resident memory of the process that measured, its kernels warmed up")
    return Level(
        description=f"host: {setting()}{f' ({slowed})' if slowed else ''}",
        capacity_bytes=total,
        usable_bytes=max(1, int(_HOST_SHARE * free)),
        runtime_bytes=runtime_bytes(),
        cores=most,
        compute_flop_per_s=compute,
        launch_s=launch.median,
        memory_roofs=_memory_roofs(notes, others, slowed),
        product_roofs=products,
        **rates,
    )


def _access_note(name: str) -> str:
    return next(note for access, note in _ACCESS_NOTES.items() if f"_{access}_" in name)


def _memory_roofs(notes: Notes, found: Mapping[str, MemorySamples], slowed: str) -> dict[str, MemoryRoof]:
    roofs = {}
    for name, one in found.items():
        path = f"levels.cpu.memory_roofs.{name}"
        size = f"{format_bytes(one.thread_bytes)} for each of {one.threads} thread(s)"
        rate = notes.rate(path, one.bytes_per_s, joined(_access_note(name), size, slowed))
        roofs[name] = MemoryRoof(threads=one.threads, thread_bytes=one.thread_bytes, bytes_per_s=rate)
    return roofs


def _products(
    notes: Notes, level: str, samples: tuple[ProductSamples, ...], detail: str
) -> tuple[dict[DType, Rate], dict[str, ProductRoof]]:
    """Sort products into those that predictions go by, floating point by all threads, and the rest."""
    compute, others = {}, {}
    most = max(one.threads for one in samples)
    for (dtype, threads), best in best_of(samples).items():
        shape = " x ".join(str(side) for side in best.shape)
        flag = "absurdly slow, so measured tiny and never chosen" if best.absurd else f"best product, {shape}"
        by = f"{threads} thread(s)" if threads else ""
        if threads == most and dtype is not DType.INT8:
            path = f"levels.{level}.compute_flop_per_s.{dtype}"
            compute[dtype] = notes.rate(path, best.flop_per_s, joined(flag, by, detail))
            continue
        name = f"{dtype}_x{threads}" if threads else str(dtype)
        rate = notes.rate(f"levels.{level}.product_roofs.{name}", best.flop_per_s, joined(flag, by, detail))
        rows, inner, columns = best.shape
        others[name] = ProductRoof(threads=threads or 1, rows=rows, inner=inner, columns=columns, flop_per_s=rate)
    return dict(sorted(compute.items())), others


def device_level(
    notes: Notes,
    backend: Backend,
    memory: Mapping[str, Samples],
    products: tuple[ProductSamples, ...],
    launch: Measurement,
) -> Level:
    """Put the device's level together."""
    spec: EmulatedSpec | None = getattr(backend, "spec", None)
    detail = f"emulated: {len(spec.device_cores)} core(s) of the host" if spec else ""
    rates = {kind: notes.rate(f"levels.gpu.{kind}_bytes_per_s", found, detail) for kind, found in memory.items()}
    compute, others = _products(notes, "gpu", products, detail)
    notes.measured("levels.gpu.launch_s", launch, detail)
    capacity = backend.memory_capacity_bytes
    free = None if spec else free_memory_bytes(backend.device)
    notes.other("levels.gpu.capacity_bytes", f"posed by {spec.name}" if spec else "as the device reports it")
    share = f"{_DEVICE_SHARE:.0%} of {'it' if free is None else 'what was free after measuring'}"
    notes.other("levels.gpu.usable_bytes", "all of it" if spec else share)
    return Level(
        description=f"{detail}, {setting()}" if spec else torch.cuda.get_device_name(backend.device),
        capacity_bytes=capacity,
        usable_bytes=capacity if spec else int(_DEVICE_SHARE * (capacity if free is None else free)),
        compute_flop_per_s=compute,
        read_bytes_per_s=rates["read"],
        copy_bytes_per_s=rates["copy"],
        launch_s=launch.median,
        product_roofs=others,
    )


def link(
    notes: Notes, spec: EmulatedSpec | None, lane: Lane, samples: Mapping[str, LinkSamples], both_ways: Samples
) -> Link:
    """Put one direction together: rate and latency fitted to the copies of page-locked memory; the other uses besides.

    An imposed pace is a law, so a fit that comes out above it by its error is cut there.
    """
    pace = {Lane.H2D: spec.h2d_bytes_per_s, Lane.D2H: spec.d2h_bytes_per_s}[lane] if spec else None
    latency_s, asymptote = fitted_link(samples["pinned"].seconds)
    asymptote = min(asymptote, pace) if pace else asymptote
    spread = summary(samples["pinned"].bytes_per_s)
    scale = asymptote / spread.median
    rate = Measurement(median=asymptote, iqr=spread.iqr * scale, count=spread.count, noisy=spread.noisy)
    sizes = sorted(samples["pinned"].seconds)
    fit = f"latency + bytes / rate fitted to copies of {format_bytes(sizes[0])} to {format_bytes(sizes[-1])}"
    emulated = f"emulated: the peak is the pace that {spec.name} imposes" if spec else ""
    notes.measured(f"links.{lane}.bytes_per_s", rate, joined(f"page-locked, {fit}, spread of the largest", emulated))
    notes.other(f"links.{lane}.latency_s", fit)
    path = f"links.{lane}.other_bytes_per_s"
    others = {"both_ways": notes.rate(f"{path}.both_ways", both_ways, joined("both directions at once", emulated))}
    if "pageable" in samples:
        detail = f"pageable memory, copies of {format_bytes(max(samples['pageable'].seconds))}"
        others["pageable"] = notes.rate(f"{path}.pageable", samples["pageable"].bytes_per_s, detail)
    ends = ("cpu", "gpu") if lane is Lane.H2D else ("gpu", "cpu")
    return Link(
        source=ends[0],
        target=ends[1],
        bytes_per_s=Rate(peak=pace, measured=rate),
        latency_s=latency_s,
        other_bytes_per_s=others,
    )


def disk_level(notes: Notes, disk: DiskSamples) -> Level:
    """Put the disk's level together: its rate is that of its best request."""
    notes.other("levels.disk.capacity_bytes", "as the file system reports it")
    notes.other("levels.disk.usable_bytes", "what was free")
    return Level(
        description=f"the disk under the given folder, {disk.file_system}",
        capacity_bytes=disk.capacity_bytes,
        usable_bytes=disk.free_bytes,
        read_bytes_per_s=_best_request(notes, "levels.disk.read_bytes_per_s", disk),
    )


def disk_link(notes: Notes, disk: DiskSamples) -> Link:
    """Put the way from disk to host memory together, with the rate of every request."""
    others = {
        name: notes.rate(f"links.disk.other_bytes_per_s.{name}", found, "direct reads, this request and depth")
        for name, found in disk.bytes_per_s.items()
    }
    latency = notes.measured("links.disk.latency_s", summary(disk.latency_s), "direct reads of 4 KiB somewhere")
    return Link(
        source="disk",
        target="cpu",
        bytes_per_s=_best_request(notes, "links.disk.bytes_per_s", disk),
        latency_s=latency.median,
        other_bytes_per_s=others,
    )


def disk_share(notes: Notes, disk: DiskSamples) -> float:
    """Return the share of its rate that a disk keeps beside a busy CPU."""
    notes.other("contention.disk", f"its time alone over its time beside a CPU that reads memory, n={len(disk.kept)}")
    return summary(disk.kept).median


def disk_and_host(notes: Notes, disk: DiskSamples) -> SharedRate:
    """Return the rate at which the disk brings bytes into host memory and the CPU reads others there, together."""
    detail = "the CPU reads memory while the disk reads into it, bytes of both"
    rate = notes.rate("shared.host_memory.bytes_per_s", disk.together_bytes_per_s, detail)
    notes.other("shared.host_memory.drawn_by", "bytes of host memory that move per byte of a lane's own work")
    return SharedRate(bytes_per_s=rate, drawn_by={"cpu": 1.0, "disk": 1.0})


def _best_request(notes: Notes, path: str, disk: DiskSamples) -> Rate:
    """Its rate at the depth that the executor reads with."""
    name, size = disk.best_request, format_bytes(disk.file_bytes)
    detail = f"sequential direct reads of {size}, best request {name}, page cache bypassed"
    return notes.rate(path, disk.bytes_per_s[name], detail)
