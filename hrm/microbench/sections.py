"""The sections of a profile, measured through the journal: what was there before a kill is not measured again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from hrm.ceilings import CeilingTable, Kernel
from hrm.hardware import EmulatedSpec, Level, Link, Measurement, SharedRate
from hrm.microbench.bench import Bench, Samples
from hrm.microbench.compute import ProductSamples, best_shapes, launch_s, product_samples
from hrm.microbench.contention import contention, shared_host_memory
from hrm.microbench.disk import DiskSamples, disk_samples
from hrm.microbench.journal import Journal
from hrm.microbench.kernels import KernelProbe, measure_table, table_jobs, waking_up
from hrm.microbench.levels import (
    HostSamples,
    device_level,
    link,
)
from hrm.microbench.links import LinkSamples, both_ways_samples, link_samples
from hrm.microbench.measure import CpuWatch
from hrm.microbench.memory import MemorySamples, cache_samples, device_memory_samples, host_memory_samples
from hrm.microbench.notes import Notes
from hrm.microbench.overheads import HOST_KERNELS, TaskRun
from hrm.microbench.shares import SMALL_JOB, kept_back_s, share_s
from hrm.records import record
from hrm.schedule.task import Lane
from hrm.units import format_s

if TYPE_CHECKING:
    from hrm.device.backend import Backend

T = TypeVar("T")
SmallRuns = Callable[["Backend", float], tuple[TaskRun, ...]]

__all__ = ["Sections", "SmallRuns"]

_WEIGHT_16_BIT = 2.0
"""A table in a 16-bit format has so many times the time of one in float32: models are published in those."""


@record
class _Contention:
    shares: dict[str, float]
    disturbed: bool


class Sections:
    """A profile on its way: measures sections through the journal."""

    def __init__(self, bench: Bench, journal: Journal) -> None:
        self.bench = bench
        self.journal = journal
        self.spec: EmulatedSpec | None = getattr(bench.backend, "spec", None)

    def section(self, name: str, kind: type[T], measure: Callable[[], T]) -> T:
        """Say what is measured, and measure it if the journal does not have it."""
        self.bench.say(name)
        self.bench.take_log()
        self.bench.begin_part(share_s(name, quick=self.bench.quick))
        return self.journal.section(name, kind, measure, self.bench.take_log)

    def host(self, visit: int) -> HostSamples:
        """Look at the host's memory, caches and products for the first or the second time."""
        bench, again = self.bench, " again" if visit > 1 else ""
        memory = self.section(f"host memory{again}", _MEMORY, lambda: host_memory_samples(bench))
        caches = {} if bench.quick else self.section(f"host caches{again}", _MEMORY, lambda: cache_samples(bench))
        shapes = self.section("host product shapes", _PRODUCTS, lambda: best_shapes(bench, Lane.CPU))
        products = self.section(f"host products{again}", _PRODUCTS, lambda: product_samples(bench, Lane.CPU, shapes))
        launch = self.section("host launch", Measurement, lambda: launch_s(bench, Lane.CPU))
        return HostSamples(memory=memory, caches=caches, products=products, launch_s=launch)

    def disk(self, folder: Path, visit: int) -> DiskSamples:
        """Read the disk for the first or the second time: what lies below a virtual disk may have changed."""
        again = " again" if visit > 1 else ""
        return self.section(f"disk{again}", DiskSamples, lambda: disk_samples(self.bench, folder))

    def device(self, notes: Notes) -> Level:
        """Measure the device's memory, products and launches."""
        bench = self.bench
        memory = self.section("device memory", _RATES, lambda: device_memory_samples(bench))
        shapes = self.section("device product shapes", _PRODUCTS, lambda: best_shapes(bench, Lane.GPU))
        products = self.section("device products", _PRODUCTS, lambda: product_samples(bench, Lane.GPU, shapes))
        launch = self.section("device launch", Measurement, lambda: launch_s(bench, Lane.GPU))
        return device_level(notes, bench.backend, memory, products, launch)

    def links(self, notes: Notes) -> dict[str, Link]:
        """Measure both directions; an emulated link treats all host memory alike, so pageable is left out there."""
        bench = self.bench
        ways = {"pinned": True} if self.spec else {"pinned": True, "pageable": False}
        both = self.section("links, both ways at once", dict[str, Samples], lambda: _named(both_ways_samples(bench)))
        links = {}
        for lane in (Lane.H2D, Lane.D2H):
            samples = {
                way: self.section(f"link {lane}, {way}", LinkSamples, _link_measure(bench, lane, pinned))
                for way, pinned in ways.items()
            }
            links[str(lane)] = link(notes, self.spec, lane, samples, both[str(lane)])
        return links

    def contention(self, notes: Notes) -> dict[str, float]:
        """Measure what each lane keeps of its rate beside busy ones."""
        found = self.section("contention between the lanes", _Contention, lambda: _contention(self.bench))
        detail = "time alone over time with the host, the device and one direction of the link busy"
        notes.other("contention", f"{detail}, disturbed by other processes" if found.disturbed else detail)
        return found.shares

    def shared(self, notes: Notes) -> SharedRate:
        """Measure what all lanes draw from host memory together."""
        rate = self.section("host memory, all lanes at once", SharedRate, lambda: shared_host_memory(self.bench))
        assert rate.bytes_per_s.measured is not None
        lanes = ", ".join(lane for lane in rate.drawn_by if lane not in ("d2h", "pin"))
        notes.measured("shared.host_memory.bytes_per_s", rate.bytes_per_s.measured, f"drawn by {lanes} at once")
        notes.other("shared.host_memory.drawn_by", "bytes of host memory that move per byte of a lane's own work")
        return rate

    def waking_up(self, probes: Sequence[KernelProbe]) -> dict[Kernel, float]:
        """Measure what tasks of a slowed host take longer for the sleep before them, by the kernel that they run."""
        if self.spec is None or self.spec.host_slowdown <= 1.0:
            return {}
        first: dict[Kernel, KernelProbe] = {}
        for probe in probes:
            if probe.kernel in HOST_KERNELS and "cpu" in probe.levels:
                first.setdefault(probe.kernel, probe)
        return {
            kernel: self.section(f"waking up, {kernel}", Measurement, partial(waking_up, self.bench, probe)).median
            for kernel, probe in first.items()
        }

    def small_runs(self, make: SmallRuns) -> tuple[TaskRun, ...]:
        """Run the small jobs."""
        bench = self.bench
        return self.section(SMALL_JOB, _TASK_RUNS, lambda: make(bench.backend, share_s(SMALL_JOB, quick=bench.quick)))

    def tables(
        self,
        notes: Notes,
        probes: Sequence[KernelProbe],
        levels: Iterable[str],
        later: Iterable[str],
        kernels_s: float | None,
    ) -> tuple[CeilingTable, ...]:
        """Measure the kernels' tables in the time of their own, else in what is left less what `later` parts get."""
        jobs, bench = table_jobs(probes, levels), self.bench
        end_s = kept_back_s(later, quick=bench.quick) if kernels_s is None else bench.left_s - kernels_s
        coarse = bench.quick and kernels_s is None
        tables = []
        for done, (probe, level) in enumerate(jobs):
            weights = [_WEIGHT_16_BIT if one.dtype.bytes_per_element <= 2 else 1.0 for one, _ in jobs[done:]]
            budget_s = max(0.0, bench.left_s - end_s) * weights[0] / sum(weights)
            name = f"kernel {probe.kernel} in {probe.dtype} on {level}"
            measure = partial(measure_table, bench, probe, level, budget_s=budget_s, coarse=coarse)
            table = self.section(name, CeilingTable, measure)
            path = f"ceilings.{probe.kernel}.{level}.{probe.dtype}"
            notes.other(path, f"median of at least 3 calls per shape, largest iqr {format_s(table.iqr_s)}")
            tables.append(table)
        return tuple(tables)


_MEMORY = cast("type[dict[str, MemorySamples]]", dict[str, MemorySamples])
_TASK_RUNS = tuple[TaskRun, ...]
_RATES = cast("type[dict[str, Samples]]", dict[str, Samples])
_PRODUCTS = tuple[ProductSamples, ...]


def _named(samples: dict[Lane, Samples]) -> dict[str, Samples]:
    return {str(lane): found for lane, found in samples.items()}


def _link_measure(bench: Bench, lane: Lane, pinned: bool) -> Callable[[], LinkSamples]:
    return lambda: link_samples(bench, lane, pinned=pinned)


def _contention(bench: Bench) -> _Contention:
    watch = CpuWatch()
    shares = contention(bench)
    disturbed = watch.contaminated()
    if disturbed:
        # Others take the core that a lane leaves idle, so they slow only what is measured together.
        bench.say("other processes use these cores: contention comes out too strong, profile again when it is quiet")
    return _Contention(shares=shares, disturbed=disturbed)
