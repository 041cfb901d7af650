"""The profiler: measures a machine through its backend and writes down where each number comes from."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, cast

import torch

from hrm.dtypes import DType
from hrm.hardware import EmulatedSpec, HardwareProfile, Level, Link, Measurement, Rate, SharedRate
from hrm.microbench.bench import Bench
from hrm.microbench.compute import gemm_rates, launch_s
from hrm.microbench.contention import contention, shared_host_memory
from hrm.microbench.kernels import KernelProbe, measure_tables
from hrm.microbench.links import link_rates
from hrm.microbench.machine import memory_bytes, setting
from hrm.microbench.measure import CpuWatch
from hrm.microbench.memory import device_memory_rates, host_memory_rates, num_threads
from hrm.schedule.task import Lane
from hrm.units import format_s

if TYPE_CHECKING:
    from hrm.device.backend import Backend

__all__ = ["profile_machine"]

_HOST_SHARE = 0.9
"""Share of the free host memory that a plan may use: the rest is for the system and for this process itself."""
_CUDA_SHARE = 0.9
"""Share of a real device's memory that a plan may use: the rest is for its context, workspaces and fragmentation."""


class _Notes:
    """Collects the provenance of what is measured, by dotted path."""

    def __init__(self, command: str) -> None:
        self._how = f"measured {dt.date.today().isoformat()}, {command}"
        self._where = setting()
        self.by_path: dict[str, str] = {}

    def measured(self, path: str, measurement: Measurement, detail: str = "") -> Measurement:
        share = measurement.iqr / measurement.median
        parts = [self._how, f"n={measurement.count}, iqr={share:.1%}", detail, self._where]
        self.by_path[path] = ", ".join(part for part in parts if part)
        return measurement

    def other(self, path: str, detail: str) -> None:
        self.by_path[path] = f"{self._how}, {detail}"


def profile_machine(
    backend: Backend,
    probes: Sequence[KernelProbe] = (),
    *,
    quick: bool = False,
    progress: Callable[[str], None] | None = None,
    command: str = "hrm profile",
    name: str | None = None,
) -> HardwareProfile:
    """Measure the machine behind `backend`: levels, links, kernel ceilings, contention.

    `probes` are kernels to make ceiling tables of, in what the time leaves; `command` is cited in the provenance. About
    15 s when `quick`, else up to 2 minutes.

    Raises
    ------
    DeviceError
        When the device fails; `OutOfMemoryError` where its memory is too small for the buffers.
    """
    bench = Bench(backend, quick=quick, progress=progress)
    notes = _Notes(command)
    spec: EmulatedSpec | None = getattr(backend, "spec", None)
    levels = {"cpu": _host_level(bench, notes, spec)}
    links: dict[str, Link] = {}
    shares: dict[str, float] = {}
    shared: dict[str, SharedRate] = {}
    if backend.name != "none":
        levels["gpu"] = _device_level(bench, notes, spec)
        links = _links(bench, notes, spec)
        shares = _contention(bench, notes)
        shared = {"host_memory": _shared(bench, notes)}
    tables = measure_tables(bench, probes, levels)
    for table in tables:
        path = f"ceilings.{table.kernel}.{table.level}.{table.dtype}"
        notes.other(path, f"median of at least 3 calls per shape, largest iqr {format_s(table.iqr_s)}")
    return HardwareProfile(
        name=name or (spec.name if spec else f"this-machine-{backend.name}"),
        description=f"{f'emulated device {spec.name} in ' if spec else ''}{setting()}",
        device=cast("Literal['none', 'cuda', 'emulated']", backend.name),
        emulated=spec,
        levels=levels,
        links=links,
        ceilings=tables,
        contention=shares,
        shared=shared,
        provenance=notes.by_path,
    )


def _contention(bench: Bench, notes: _Notes) -> dict[str, float]:
    bench.say("contention between the lanes")
    watch = CpuWatch()
    shares = contention(bench)
    detail = "time alone over time with the host, the device and one direction of the link busy"
    if watch.contaminated():
        # Others take the core that a lane leaves idle, so they slow only what is measured together.
        bench.say("other processes use these cores: contention comes out too strong, profile again when it is quiet")
        detail += ", disturbed by other processes"
    notes.other("contention", detail)
    return shares


def _shared(bench: Bench, notes: _Notes) -> SharedRate:
    bench.say("host memory, all lanes at once")
    rate = shared_host_memory(bench)
    assert rate.bytes_per_s.measured is not None
    lanes = ", ".join(lane for lane in rate.drawn_by if lane not in ("d2h", "pin"))
    notes.measured("shared.host_memory.bytes_per_s", rate.bytes_per_s.measured, f"drawn by {lanes} at once")
    notes.other("shared.host_memory.drawn_by", "bytes of host memory that move per byte of a lane's own work")
    return rate


def _host_level(bench: Bench, notes: _Notes, spec: EmulatedSpec | None) -> Level:
    bench.say("host memory")
    slowed = f"slowed {spec.host_slowdown:g} times by emulation" if spec and spec.host_slowdown != 1 else ""
    threads = f"{num_threads(bench, Lane.CPU)} thread(s)"
    memory = host_memory_rates(bench)
    for kind in ("read", "copy"):
        detail = ", ".join(part for part in (threads, slowed) if part)
        notes.measured(f"levels.cpu.{kind}_bytes_per_s", memory[kind], detail)
        notes.measured(f"levels.cpu.one_thread_{kind}_bytes_per_s", memory[f"{kind}_1"], slowed)
    bench.say("host compute")
    compute = _compute(bench, notes, "cpu", Lane.CPU, ", ".join(part for part in (threads, slowed) if part))
    launch = notes.measured("levels.cpu.launch_s", launch_s(bench, Lane.CPU), slowed)
    total, free = memory_bytes()
    # The emulated device's memory lies in the host's: what it may take is not free for the host.
    free -= spec.memory_capacity_bytes if spec else 0
    notes.other("levels.cpu.capacity_bytes", "as the system reports it")
    notes.other("levels.cpu.usable_bytes", f"{_HOST_SHARE:.0%} of what was free")
    return Level(
        description=f"host: {setting()}{f' ({slowed})' if slowed else ''}",
        capacity_bytes=total,
        usable_bytes=max(1, int(_HOST_SHARE * free)),
        compute_flop_per_s=compute,
        read_bytes_per_s=Rate(measured=memory["read"]),
        copy_bytes_per_s=Rate(measured=memory["copy"]),
        one_thread_read_bytes_per_s=Rate(measured=memory["read_1"]),
        one_thread_copy_bytes_per_s=Rate(measured=memory["copy_1"]),
        launch_s=launch.median,
    )


def _device_level(bench: Bench, notes: _Notes, spec: EmulatedSpec | None) -> Level:
    bench.say("device memory")
    backend = bench.backend
    detail = f"emulated: {len(spec.device_cores)} core(s) of the host" if spec else ""
    memory = device_memory_rates(bench)
    for kind, rate in memory.items():
        notes.measured(f"levels.gpu.{kind}_bytes_per_s", rate, detail)
    bench.say("device compute")
    compute = _compute(bench, notes, "gpu", Lane.GPU, detail)
    launch = notes.measured("levels.gpu.launch_s", launch_s(bench, Lane.GPU), detail)
    capacity = backend.memory_capacity_bytes
    notes.other("levels.gpu.capacity_bytes", f"posed by {spec.name}" if spec else "as the device reports it")
    notes.other("levels.gpu.usable_bytes", "all of it" if spec else f"{_CUDA_SHARE:.0%} of it")
    return Level(
        description=f"{detail}, {setting()}" if spec else torch.cuda.get_device_name(backend.device),
        capacity_bytes=capacity,
        usable_bytes=capacity if spec else int(_CUDA_SHARE * capacity),
        compute_flop_per_s=compute,
        read_bytes_per_s=Rate(measured=memory["read"]),
        copy_bytes_per_s=Rate(measured=memory["copy"]),
        launch_s=launch.median,
    )


def _compute(bench: Bench, notes: _Notes, level: str, lane: Lane, detail: str) -> dict[DType, Rate]:
    rates, absurd = gemm_rates(bench, lane)
    for dtype, rate in rates.items():
        flag = "absurdly slow, so measured tiny and never chosen" if dtype in absurd else "matrix product"
        parts = ", ".join(part for part in (flag, detail) if part)
        notes.measured(f"levels.{level}.compute_flop_per_s.{dtype}", rate, parts)
    return {dtype: Rate(measured=rate) for dtype, rate in rates.items()}


def _links(bench: Bench, notes: _Notes, spec: EmulatedSpec | None) -> dict[str, Link]:
    links = {}
    paces = {Lane.H2D: spec.h2d_bytes_per_s, Lane.D2H: spec.d2h_bytes_per_s} if spec else {}
    for lane, ends in ((Lane.H2D, ("cpu", "gpu")), (Lane.D2H, ("gpu", "cpu"))):
        bench.say(f"link {lane}")
        rates = link_rates(bench, lane)
        detail = f"emulated: the peak is the pace that {spec.name} imposes" if spec else ""
        notes.measured(f"links.{lane}.bytes_per_s", rates.bytes_per_s, detail)
        notes.other(f"links.{lane}.latency_s", "median over copies of 4, 16 and 64 KiB, less their bytes at the rate")
        links[str(lane)] = Link(
            source=ends[0],
            target=ends[1],
            bytes_per_s=Rate(peak=paces.get(lane), measured=rates.bytes_per_s),
            latency_s=rates.latency_s,
        )
    return links
