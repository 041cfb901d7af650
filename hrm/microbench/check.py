"""Checking a profile against its machine: a few roofs measured again, and which of them drifted beyond their spread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hrm.dtypes import DType
from hrm.hardware import HardwareProfile, Measurement, Rate
from hrm.microbench.bench import Bench
from hrm.microbench.compute import best_of, best_shapes, product_samples
from hrm.microbench.disk import disk_samples
from hrm.microbench.links import fitted_link, link_samples
from hrm.microbench.measure import summary
from hrm.microbench.memory import device_memory_samples, host_memory_samples
from hrm.records import record
from hrm.schedule.task import Lane

if TYPE_CHECKING:
    from hrm.device.backend import Backend

__all__ = ["CheckReport", "Drift", "check_machine", "drift"]

_SHARE, _SPREADS = 0.1, 3.0
"""A roof drifted when it moved by more than this share, and by more than so many interquartile ranges."""


@record
class Drift:
    """A roof as the profile has it and as it is now, in its unit, and whether it drifted."""

    name: str
    profiled: Measurement
    now: Measurement
    ratio: float
    drifted: bool


@record
class CheckReport:
    """What became of a profile's roofs."""

    profile: str
    roofs: tuple[Drift, ...]

    @property
    def drifted(self) -> tuple[str, ...]:
        """Names of the roofs that drifted."""
        return tuple(roof.name for roof in self.roofs if roof.drifted)


def drift(name: str, profiled: Measurement, now: Measurement) -> Drift:
    """Compare a roof with what it was."""
    moved = abs(now.median - profiled.median)
    beyond = moved > _SHARE * profiled.median and moved > _SPREADS * max(profiled.iqr, now.iqr)
    return Drift(name=name, profiled=profiled, now=now, ratio=now.median / profiled.median, drifted=beyond)


def check_machine(
    backend: Backend,
    profile: HardwareProfile,
    *,
    disk: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> CheckReport:
    """Measure the headline roofs of a profile again, in about 10 s; a disk's only where its folder is given.

    Raises
    ------
    DeviceError
        When the device fails.
    """
    bench = Bench(backend, quick=True, progress=progress)
    roofs = [
        drift(name, was.measured, now)
        for name, was, now in _again(bench, profile, disk)
        if was is not None and was.measured is not None
    ]
    return CheckReport(profile=profile.name, roofs=tuple(roofs))


def _again(bench: Bench, profile: HardwareProfile, disk: Path | None) -> Iterator[tuple[str, Rate | None, Measurement]]:
    """Yield each roof's name, what the profile has of it, and what it is now."""
    cpu = profile.level("cpu")
    bench.say("host memory")
    memory = host_memory_samples(bench)
    most = max(one.threads for one in memory.values())
    for field, name in {
        "read_bytes_per_s": f"dram_read_x{most}",
        "copy_bytes_per_s": f"dram_torch_copy_x{most}",
        "one_thread_read_bytes_per_s": "dram_read_x1",
    }.items():
        yield f"levels.cpu.{field}", getattr(cpu, field), summary(memory[name].bytes_per_s)
    yield from _products(bench, profile, "cpu", Lane.CPU)
    if profile.has_gpu:
        bench.say("device memory")
        for kind, found in device_memory_samples(bench).items():
            name = f"{kind}_bytes_per_s"
            yield f"levels.gpu.{name}", getattr(profile.level("gpu"), name), summary(found)
        yield from _products(bench, profile, "gpu", Lane.GPU)
        yield from _links(bench, profile)
    if disk is not None and "disk" in profile.links:
        bench.say("disk")
        reads = disk_samples(bench, disk)
        yield "links.disk.bytes_per_s", profile.link("disk").bytes_per_s, summary(reads.bytes_per_s[reads.best_request])


def _products(
    bench: Bench, profile: HardwareProfile, level: str, lane: Lane
) -> Iterator[tuple[str, Rate | None, Measurement]]:
    bench.say(f"{level} products")
    wanted = tuple(
        one for one in best_shapes(bench, lane) if one.dtype in (DType.FLOAT32, DType.BFLOAT16) and not one.absurd
    )
    for (dtype, _), best in best_of(product_samples(bench, lane, wanted)).items():
        was = profile.level(level).compute_flop_per_s.get(dtype)
        yield f"levels.{level}.compute_flop_per_s.{dtype}", was, summary(best.flop_per_s)


def _links(bench: Bench, profile: HardwareProfile) -> Iterator[tuple[str, Rate | None, Measurement]]:
    for lane in (Lane.H2D, Lane.D2H):
        bench.say(f"link {lane}")
        found = link_samples(bench, lane, pinned=True)
        spread = summary(found.bytes_per_s)
        _, asymptote = fitted_link(found.seconds)
        scale = asymptote / spread.median
        now = Measurement(median=asymptote, iqr=spread.iqr * scale, count=spread.count, noisy=spread.noisy)
        yield f"links.{lane}.bytes_per_s", profile.link(lane).bytes_per_s, now
