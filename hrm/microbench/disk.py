"""A disk: sequential direct reads of a file by size of request and number in flight, and what one small read takes.

The page cache is bypassed (O_DIRECT into aligned buffers), so what is measured is the disk and the way to it; a virtual
machine's host may still cache. A thread per request in flight reads into memory as the executor's does; compiled where
it can be, for between two small reads the interpreter takes longer than the disk.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from hrm.device.direct_memory import REQUESTS, direct_buffers, direct_memory
from hrm.errors import DeviceError
from hrm.microbench.bench import Bench, Samples
from hrm.microbench.contention import host_reader
from hrm.microbench.measure import clean_rounds, measure, warm_up
from hrm.microbench.native import read_requests
from hrm.records import record
from hrm.schedule.task import Lane
from hrm.units import GIB, MIB, format_bytes

__all__ = [
    "DEPTHS",
    "REQUEST_BYTES",
    "DirectReader",
    "DiskSamples",
    "check_disk",
    "disk_samples",
    "fill_file",
    "nameless_file",
    "request_name",
]

REQUEST_BYTES = (MIB // 8, MIB, 4 * MIB, 16 * MIB)
DEPTHS = (1, REQUESTS, 16)
_FILE_BYTES, _LEAST_BYTES = GIB, 64 * MIB
_ROUNDS_QUICK, _ROUNDS_A_VISIT = 5, 3
_FREE_SHARE = 4
"""The file takes at most one part in so many of what is free."""
_WRITE_BYTES = 16 * MIB
_SMALL_BYTES, _SMALL_READS = 4096, 100
_BESIDE_BYTES, _BESIDE_S = 4 * MIB, 2.0
_IN_MEMORY = ("tmpfs", "ramfs")


@record
class DiskSamples:
    """Rates of reading by request (`1MiB_x4`: size and number in flight), seconds of a 4 KiB read, and the disk.

    `kept` is the share of its rate that the disk keeps while the CPU reads memory, and `together_bytes_per_s` what both
    then bring into it or read there.
    """

    bytes_per_s: dict[str, Samples]
    latency_s: Samples
    kept: Samples
    together_bytes_per_s: Samples
    capacity_bytes: int
    free_bytes: int
    file_bytes: int
    file_system: str

    @property
    def best_request(self) -> str:
        """The fastest way of reading among those with as many requests in flight as the executor has."""
        names = [name for name in self.bytes_per_s if name.endswith(f"_x{REQUESTS}")]
        return max(names, key=lambda name: statistics.median(self.bytes_per_s[name]))


def request_name(num_bytes: int, depth: int) -> str:
    """Name a way of reading."""
    return f"{format_bytes(num_bytes).replace(' ', '')}_x{depth}"


def check_disk(folder: Path) -> str:
    """Return the file system of a folder whose disk can be read past the page cache.

    Raises
    ------
    DeviceError
        When it cannot: no such folder, files kept in memory, no direct reads, too little room.
    """
    if not folder.is_dir():
        raise DeviceError(f"--disk {folder}: no such folder (name one on the disk to measure)")
    if not os.access(folder, os.W_OK):
        raise DeviceError(f"--disk {folder}: may not be written to (choose another folder on the disk)")
    kind = _file_system(folder)
    if kind in _IN_MEMORY:
        raise DeviceError(f"--disk {folder}: {kind} keeps its files in memory (choose a folder on a disk)")
    free_bytes = psutil.disk_usage(str(folder)).free
    if free_bytes < _FREE_SHARE * _LEAST_BYTES:
        raise DeviceError(
            f"--disk {folder}: {format_bytes(free_bytes)} free, {format_bytes(_FREE_SHARE * _LEAST_BYTES)} wanted "
            "(choose another disk)"
        )
    buffer = direct_memory(_SMALL_BYTES)
    try:
        with nameless_file(folder) as (writing, reading):
            os.write(writing, bytes(_SMALL_BYTES))
            os.preadv(reading, [buffer], 0)
    except (OSError, AttributeError):
        raise DeviceError(
            f"--disk {folder}: {kind} allows no reads past the page cache (choose a folder on a local disk)"
        ) from None
    return kind


def _file_system(folder: Path) -> str:
    """Return the type of the file system that holds a folder: of the longest mount point above it."""
    here = folder.resolve()
    found = [
        (len(Path(one.mountpoint).parts), order, one.fstype)
        for order, one in enumerate(psutil.disk_partitions(all=True))
        if here.is_relative_to(one.mountpoint)
    ]
    return max(found)[2] if found else "its file system"


def disk_samples(bench: Bench, folder: Path) -> DiskSamples:
    """Measure the disk of a folder on a temporary file, which has no name and so is gone whatever happens.

    Raises
    ------
    DeviceError
        As `check_disk`.
    """
    kind = check_disk(folder)
    usage = psutil.disk_usage(str(folder))
    wanted = _FILE_BYTES // 4 if bench.quick else _FILE_BYTES
    file_bytes = min(wanted, usage.free // _FREE_SHARE) // _WRITE_BYTES * _WRITE_BYTES
    with nameless_file(folder) as (writing, reading):
        fill_file(writing, file_bytes)
        reader = DirectReader(reading, file_bytes)
        rates = reader.rates(bench)
        latency = tuple(reader.small_read_s() for _ in range(_SMALL_READS))
        kept, together = reader.beside_host(bench)
    return DiskSamples(
        bytes_per_s=rates,
        latency_s=latency,
        kept=kept,
        together_bytes_per_s=together,
        capacity_bytes=usage.total,
        free_bytes=usage.free,
        file_bytes=file_bytes,
        file_system=kind,
    )


@contextmanager
def nameless_file(folder: Path) -> Iterator[tuple[int, int]]:
    """Make a file that has lost its name, so that it is gone however this ends; yield handles to write and to read."""
    writing, name = tempfile.mkstemp(prefix=".hrm-disk-", dir=folder)
    reading = -1
    try:
        try:
            reading = os.open(name, os.O_RDONLY | os.O_DIRECT)
        finally:
            Path(name).unlink()
        yield writing, reading
    finally:
        os.close(writing)
        if reading >= 0:
            os.close(reading)


def fill_file(handle: int, num_bytes: int) -> None:
    """Write what no disk can compress, and see it through to the disk."""
    block = bytearray(random.Random(0).randbytes(_WRITE_BYTES))
    for number in range(num_bytes // _WRITE_BYTES):
        block[:8] = number.to_bytes(8, "little")
        written = 0
        while written < _WRITE_BYTES:
            written += os.write(handle, memoryview(block)[written:])
    os.fsync(handle)


class DirectReader:
    """Reads on through a file, from its begin again after its end."""

    def __init__(self, handle: int, file_bytes: int) -> None:
        self._handle = handle
        self._file_bytes = file_bytes
        self._small = direct_memory(_SMALL_BYTES)
        self._places = random.Random(1)
        self._next: dict[int, Iterator[int]] = {}

    def rates(self, bench: Bench) -> dict[str, Samples]:
        """Measure bytes/s by request, one after the other in each round."""
        requests = [(REQUEST_BYTES[-1], REQUESTS)] if bench.quick else itertools.product(REQUEST_BYTES, DEPTHS)
        amounts = {request_name(size, depth): self.repeat(bench, size, depth) for size, depth in requests}
        timed = {name: work for name, (_, work) in amounts.items()}
        warm_up(timed)
        rounds = _ROUNDS_QUICK if bench.quick else _ROUNDS_A_VISIT
        times = measure(timed, rounds=rounds, budget_s=bench.part_left_s, log=bench.log)
        return {name: tuple(amounts[name][0] / seconds for seconds in times[name]) for name in times}

    def repeat(self, bench: Bench, size: int, depth: int) -> tuple[int, Callable[[], float]]:
        """Choose how many requests a repeat makes; return their bytes and the repeat, which returns its seconds."""
        buffers = direct_buffers(size, depth)
        count = max(2 * depth, 2 * _WRITE_BYTES // size)
        pilot_s = self.read(buffers, count)
        count = max(depth, int(count * bench.case_s / pilot_s))
        return count * size, lambda: self.read(buffers, count)

    def beside_host(self, bench: Bench) -> tuple[Samples, Samples]:
        """Measure the disk alone and beside a CPU that reads memory, in turn: shares kept, and bytes/s of both."""
        buffers, (read_bytes, work) = direct_buffers(_BESIDE_BYTES, REQUESTS), host_reader(bench)
        work()
        count = max(REQUESTS, int(2 * REQUESTS * bench.case_s / self.read(buffers, 2 * REQUESTS)))

        def once() -> tuple[float, float]:
            alone_s, calls = self.read(buffers, count), itertools.count()
            begun, done = threading.Event(), threading.Event()

            def busy() -> None:
                begun.set()
                while not done.is_set():
                    work()
                    next(calls)

            reading = bench.backend.stream(Lane.CPU).submit(busy)
            begun.wait()
            beside_s = self.read(buffers, count)
            done.set()
            reading.wait()
            host_bytes_per_s = next(calls) * read_bytes / (reading.ended_s - reading.started_s)
            return min(1.0, alone_s / beside_s), host_bytes_per_s + count * _BESIDE_BYTES / beside_s

        rounds = clean_rounds(once, rounds=bench.rounds, budget_s=_BESIDE_S, log=bench.log)
        kept, together = zip(*rounds, strict=True)
        return kept, together

    def read(self, buffers: list[memoryview], count: int) -> float:
        """Make `count` requests, as many at a time as there are buffers, and return the seconds."""
        size = len(buffers[0])
        places = self._next.setdefault(size, itertools.cycle(range(0, self._file_bytes, size)))
        offsets = list(itertools.islice(places, count))
        begun_s = time.perf_counter()
        if not read_requests(self._handle, buffers, offsets):
            _read_in_threads(self._handle, buffers, offsets)
        return time.perf_counter() - begun_s

    def small_read_s(self) -> float:
        """Return the seconds of one small read somewhere."""
        offset = self._places.randrange(self._file_bytes // _SMALL_BYTES) * _SMALL_BYTES
        begun_s = time.perf_counter()
        os.preadv(self._handle, [self._small], offset)
        return time.perf_counter() - begun_s


def _read_in_threads(handle: int, buffers: list[memoryview], offsets: list[int]) -> None:
    """Do without the compiled reader: small requests, many in flight, then come out about a tenth slower."""
    failed: list[OSError] = []

    def serve(number: int) -> None:
        # Every thread goes its own way through the file: taking turns over one list costs more than a small read.
        buffer = [buffers[number]]
        try:
            for offset in offsets[number :: len(buffers)]:
                os.preadv(handle, buffer, offset)
        except OSError as error:
            failed.append(error)

    others = [threading.Thread(target=serve, args=(number,), daemon=True) for number in range(1, len(buffers))]
    for thread in others:
        thread.start()
    serve(0)
    for thread in others:
        thread.join()
    if failed:
        raise failed[0]
