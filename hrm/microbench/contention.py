"""Contention: the share of its rate that a lane keeps beside busy ones, and the memory rate that all have together."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch

from hrm.device.backend import Event
from hrm.dtypes import DType
from hrm.hardware import Rate, SharedRate
from hrm.microbench.bench import Bench
from hrm.microbench.compute import product
from hrm.microbench.links import copy_work
from hrm.microbench.measure import MIN_ROUNDS, clean_rounds, sleepless, summary
from hrm.schedule.task import Lane
from hrm.units import MIB

__all__ = ["contention", "host_reader", "shared_host_memory"]

_READ_BYTES, _READ_CHUNKS = 32 * MIB, 8
_COPY_BYTES = MIB // 2
_GEMM_SIZE, _GEMM_ROWS = 1024, 128
_SHORTEST_S = 0.03
"""Least time that all lanes work side by side, alone."""

Work = Callable[[], object]
_AloneTogether = tuple[list[float], list[float]]
"""Seconds of a lane's pieces of work while it worked alone, and while others worked too."""


def contention(bench: Bench) -> dict[str, float]:
    """Measure, per lane, its time alone over its time while the others work: a share of at most 1.

    The CPU lane reads host memory, the GPU lane multiplies matrices, the link brings data up; the way down is measured
    in place of the way up. Alone and together alternate, so that a slow spell of the machine meets both. The times
    compared are lower quartiles: contention slows every piece of work, a passing disturbance only some.
    """
    works = _lane_works(bench)
    counts = _counts(bench, works, 6)
    rounds = clean_rounds(
        lambda: _round(bench, works, counts), rounds=MIN_ROUNDS, budget_s=bench.part_left_s, log=bench.log
    )
    shares = {}
    for lane in works:
        alone_s, together_s = (_lower_quartile([times for one in rounds for times in one[lane][at]]) for at in (0, 1))
        shares[str(lane)] = min(1.0, alone_s / together_s)
    return shares


def shared_host_memory(bench: Bench) -> SharedRate:
    """Measure the bytes/s that lanes draw from host memory together: the CPU reads, the link brings data up.

    An emulated device's memory is host memory too: then its lane reads as well, and a copy reads and writes there. A
    slowed host does not sleep here: what memory gives is asked for, and how often a lane asks is known.
    """
    on_host = bench.backend.device.type == "cpu"
    crossing = 2.0 if on_host else 1.0
    drawn_by = {Lane.CPU: 1.0, Lane.H2D: crossing, Lane.D2H: crossing, Lane.PIN: 2.0}
    cases = {Lane.CPU: (float(_read_bytes(bench, Lane.CPU)), sleepless(_reader(bench, Lane.CPU)))}
    copy_bytes = _copy_bytes(bench)
    cases[Lane.H2D] = (float(copy_bytes), copy_work(bench, Lane.H2D, copy_bytes))
    if on_host:
        drawn_by[Lane.GPU] = 1.0
        cases[Lane.GPU] = (float(_read_bytes(bench, Lane.GPU)), _reader(bench, Lane.GPU))
    works = {lane: work for lane, (_, work) in cases.items()}
    counts = _counts(bench, works, 2)

    def total_bytes_per_s() -> float:
        spans = _overlapping(_run(bench, works, counts))
        return sum(
            drawn_by[lane] * amount / statistics.median(_durations(spans[lane])) for lane, (amount, _) in cases.items()
        )

    rounds = clean_rounds(total_bytes_per_s, rounds=MIN_ROUNDS, budget_s=bench.part_left_s, log=bench.log)
    return SharedRate(
        bytes_per_s=Rate(measured=summary(rounds)), drawn_by={str(lane): share for lane, share in drawn_by.items()}
    )


def _counts(bench: Bench, works: Mapping[Lane, Work], windows: int) -> dict[Lane, int]:
    """Choose how often each lane does its work in a window, so that rounds of so many windows fit the part's time."""
    once_s = {lane: bench.seconds(lane, work) for lane, work in works.items()}
    window_s = max(_SHORTEST_S, bench.part_left_s / (MIN_ROUNDS * windows))
    return {lane: math.ceil(window_s / seconds) for lane, seconds in once_s.items()}


def _read_bytes(bench: Bench, lane: Lane) -> int:
    return (
        _READ_BYTES if lane is Lane.CPU else min(_READ_BYTES, bench.backend.memory_capacity_bytes // 4 // _READ_CHUNKS)
    )


def host_reader(bench: Bench) -> tuple[int, Work]:
    """Return what reads host memory on the CPU lane, and the bytes of a call."""
    return _read_bytes(bench, Lane.CPU), _reader(bench, Lane.CPU)


def _reader(bench: Bench, lane: Lane) -> Work:
    """Make the work of reading a piece of a buffer too large for caches, the next one each time."""
    shape = (_READ_CHUNKS, _read_bytes(bench, lane) // 4)
    whole = torch.empty(shape) if lane is Lane.CPU else bench.backend.empty(shape, torch.float32)
    chunks = itertools.cycle(whole.fill_(1.0))
    return lambda: next(chunks).sum()


def _copy_bytes(bench: Bench) -> int:
    return min(_COPY_BYTES, bench.backend.memory_capacity_bytes // 8)


def _round(bench: Bench, works: Mapping[Lane, Work], counts: Mapping[Lane, int]) -> dict[Lane, _AloneTogether]:
    few = {lane: max(2, count // 3) for lane, count in counts.items()}
    alone = {lane: _durations(_run(bench, {lane: work}, few)[lane]) for lane, work in works.items()}
    up = _overlapping(_run(bench, _without(works, Lane.D2H), counts))
    down = _overlapping(_run(bench, _without(works, Lane.H2D), counts))
    together = up | {Lane.D2H: down[Lane.D2H]}
    return {lane: (alone[lane], _durations(together[lane])) for lane in works}


def _without(works: Mapping[Lane, Work], left_out: Lane) -> dict[Lane, Work]:
    return {lane: work for lane, work in works.items() if lane is not left_out}


def _lane_works(bench: Bench) -> dict[Lane, Work]:
    copy_bytes = _copy_bytes(bench)
    return {
        Lane.CPU: _reader(bench, Lane.CPU),
        Lane.GPU: product(bench, Lane.GPU, DType.FLOAT32, (_GEMM_ROWS, _GEMM_SIZE, _GEMM_SIZE))[1],
        Lane.H2D: copy_work(bench, Lane.H2D, copy_bytes),
        Lane.D2H: copy_work(bench, Lane.D2H, copy_bytes),
    }


def _run(bench: Bench, works: Mapping[Lane, Work], counts: Mapping[Lane, int]) -> dict[Lane, list[Event]]:
    """Do each lane's work so many times, all lanes at once, and wait for the end."""
    events: dict[Lane, list[Event]] = {lane: [] for lane in works}
    for lane, work in works.items():
        events[lane] = [bench.backend.stream(lane).submit(work) for _ in range(counts[lane])]
    for submitted in events.values():
        submitted[-1].wait()
    return events


def _overlapping(events: Mapping[Lane, Sequence[Event]]) -> dict[Lane, Sequence[Event]]:
    """Keep what began and ended while every lane was busy; all of a lane where that is nothing."""
    begin_s = max(submitted[0].started_s for submitted in events.values())
    end_s = min(submitted[-1].ended_s for submitted in events.values())
    kept = {}
    for lane, submitted in events.items():
        inside = [event for event in submitted if event.started_s >= begin_s and event.ended_s <= end_s]
        kept[lane] = inside or submitted
    return kept


def _durations(events: Sequence[Event]) -> list[float]:
    return [event.ended_s - event.started_s for event in events]


def _lower_quartile(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 4]
