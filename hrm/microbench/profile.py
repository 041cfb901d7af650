"""The profiler: measures a machine through its backend, section by section, and writes down where each number is from.

What noise disturbs most, the host's memory and products, is measured twice, at the beginning and at the end: a machine
that changed meanwhile shows in the spread.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from hrm.ceilings import CeilingTable, Kernel
from hrm.hardware import HardwareProfile, Level, Link, SharedRate
from hrm.microbench.accelerator import accelerator_facts
from hrm.microbench.bench import Bench
from hrm.microbench.disk import DiskSamples, check_disk
from hrm.microbench.journal import Journal, partial_path
from hrm.microbench.kernels import KernelProbe
from hrm.microbench.levels import (
    HostSamples,
    disk_and_host,
    disk_level,
    disk_link,
    disk_share,
    host_level,
)
from hrm.microbench.machine import setting, system_facts
from hrm.microbench.memory import MemorySamples
from hrm.microbench.notes import Notes
from hrm.microbench.overheads import TaskRun, by_sequence, overheads, repeated
from hrm.microbench.sections import Sections, SmallRuns
from hrm.microbench.shares import SMALL_JOB
from hrm.records import record

if TYPE_CHECKING:
    from hrm.device.backend import Backend

__all__ = ["Request", "profile_machine"]


@record
class Request:
    """What to profile and how: `command` is cited as the source; `disk` is a folder of a disk to measure.

    `kernels_s` is time of its own for the kernels' tables, at all their shapes, whatever else is quick. `output` names
    the file that the caller will write: its journal lies beside it (`hrm.microbench.journal`), and `resume` goes on
    with the journal of a run that was killed.
    """

    quick: bool = False
    command: str = "hrm profile"
    name: str | None = None
    disk: Path | None = None
    kernels_s: float | None = None
    output: Path | None = None
    resume: bool = False


@record
class _Beside:
    """What a profile holds of the machine beside its host."""

    levels: dict[str, Level]
    links: dict[str, Link]
    shares: dict[str, float]
    shared: dict[str, SharedRate]


@record
class _Found:
    """What all visits found."""

    host: HostSamples
    beside: _Beside
    tables: tuple[CeilingTable, ...]
    waking_s: dict[Kernel, float]
    ran: tuple[TaskRun, ...]


def _second_visits(request: Request) -> tuple[str, ...]:
    return ("host memory", "host caches", "host products", *(("disk",) if request.disk else ()))


def _both(first: HostSamples, second: HostSamples) -> HostSamples:
    """Put the samples of both visits together."""

    def memory(name: str) -> dict[str, MemorySamples]:
        one, other = getattr(first, name), getattr(second, name)
        return {
            key: replace(one[key], bytes_per_s=one[key].bytes_per_s + other[key].bytes_per_s)
            for key in one.keys() & other.keys()
        }

    products = tuple(
        replace(one, flop_per_s=one.flop_per_s + other.flop_per_s)
        for one, other in zip(first.products, second.products, strict=True)
    )
    return replace(first, memory=memory("memory"), caches=memory("caches"), products=products)


def _both_reads(first: DiskSamples, second: DiskSamples) -> DiskSamples:
    rates = {name: first.bytes_per_s[name] + second.bytes_per_s[name] for name in first.bytes_per_s}
    names = ("latency_s", "kept", "together_bytes_per_s")
    beside = {name: getattr(first, name) + getattr(second, name) for name in names}
    return replace(first, bytes_per_s=rates, **beside)


def profile_machine(
    backend: Backend,
    probes: Sequence[KernelProbe] = (),
    request: Request | None = None,
    *,
    small_runs: SmallRuns | None = None,
    progress: Callable[[str], None] | None = None,
) -> HardwareProfile:
    """Measure the machine behind `backend`: levels, links, kernel ceilings, contention, a disk if one is asked for.

    `probes` are kernels to make ceiling tables of, in what the time leaves: up to 15 s when quick, else 2 minutes.
    `small_runs` runs small jobs on the backend, in about so many seconds, from which it is learnt what tasks take
    beyond their kernels.

    Raises
    ------
    DeviceError
        When the device fails, or the disk cannot be read directly; `OutOfMemoryError` where the device's memory is too
        small for the buffers.
    """
    request = request or Request()
    if request.disk is not None:
        check_disk(request.disk)
    facts = system_facts()
    run = Sections(Bench(backend, quick=request.quick, progress=progress), _journal(request))
    notes = Notes(request.command)
    found = _visited(run, notes, probes, request, small_runs)
    spec = run.spec
    profile = HardwareProfile(
        name=request.name or (spec.name if spec else f"this-machine-{backend.name}"),
        description=f"{f'emulated device {spec.name} in ' if spec else ''}{setting()}",
        device=cast("Literal['none', 'cuda', 'emulated']", backend.name),
        emulated=spec,
        levels={"cpu": host_level(notes, spec, found.host)} | found.beside.levels,
        links=found.beside.links,
        ceilings=found.tables,
        contention=found.beside.shares,
        shared=found.beside.shared,
        system=facts | _facts_at_the_end(run, request),
        provenance=notes.by_path,
    )
    profile = replace(profile, sequence_s=by_sequence(profile, found.ran))
    ran, waking_s = found.ran, found.waking_s
    return replace(profile, task_s=overheads(profile, ran, waking_s), repeated_s=repeated(profile, ran, waking_s))


def _journal(request: Request) -> Journal:
    if request.output is None:
        return Journal()
    key: dict[str, Any] = {"command": request.command, "machine": setting(), "date": dt.date.today().isoformat()}
    return Journal(partial_path(request.output), key, resume=request.resume)


def _visited(
    run: Sections, notes: Notes, probes: Sequence[KernelProbe], request: Request, small_runs: SmallRuns | None
) -> _Found:
    """Measure all there is, in order."""
    host = run.host(1)
    beside = _beside_the_host(run, notes)
    disk = run.disk(request.disk, 1) if request.disk else None
    later = (SMALL_JOB, *(() if request.quick else _second_visits(request)))
    tables = run.tables(notes, probes, ["cpu", *beside.levels], later, request.kernels_s)
    waking_s = run.waking_up(probes)
    ran = run.small_runs(small_runs) if small_runs is not None else ()
    if ran:
        slowed = "; of a slowed host also waking up after its sleep" if waking_s else ""
        notes.other("task_s", f"median task of a small job, less what kernels' tables and links explain of it{slowed}")
        if any(one.repeated for one in ran):
            notes.other("repeated_s", "the same of decode passes after the first, whose calls they repeat")
        detail = "the same by sequence: how much longer a small job with more sequences took beyond that"
        notes.other("sequence_s", detail)
    if not request.quick:
        host = _both(host, run.host(2))
    if request.disk and disk:
        beside = _with_disk(beside, notes, disk if request.quick else _both_reads(disk, run.disk(request.disk, 2)))
    return _Found(host=host, beside=beside, tables=tables, waking_s=waking_s, ran=ran)


def _beside_the_host(run: Sections, notes: Notes) -> _Beside:
    """Measure the device where there is one: levels, links, contention, shared rates."""
    if run.bench.backend.name == "none":
        return _Beside(levels={}, links={}, shares={}, shared={})
    return _Beside(
        levels={"gpu": run.device(notes)},
        links=run.links(notes),
        shares=run.contention(notes),
        shared={"host_memory": run.shared(notes)},
    )


def _with_disk(beside: _Beside, notes: Notes, disk: DiskSamples) -> _Beside:
    """Add the disk; what a device draws from host memory counts before what it does."""
    return _Beside(
        levels=beside.levels | {"disk": disk_level(notes, disk)},
        links=beside.links | {"disk": disk_link(notes, disk)},
        shares=beside.shares | {"disk": disk_share(notes, disk)},
        shared={"host_memory": disk_and_host(notes, disk)} | beside.shared,
    )


def _facts_at_the_end(run: Sections, request: Request) -> dict[str, str]:
    facts = accelerator_facts(run.bench.backend.device) | {"load at the end": system_facts()["load at the start"]}
    facts |= {"date": dt.date.today().isoformat(), "command": request.command}
    facts["disturbed by other processes"] = ", ".join(run.bench.disturbed) or "nothing"
    if run.journal.resumed:
        facts["resumed"] = f"{len(run.journal.resumed)} sections from a run that was cut short"
    return facts
