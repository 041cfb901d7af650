"""Links: copies of many sizes between host and device, from page-locked and pageable memory, one way and both."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch

from hrm.microbench.bench import Bench, Samples
from hrm.microbench.measure import clean_rounds
from hrm.records import record
from hrm.schedule.task import Lane
from hrm.units import MIB

__all__ = ["LinkSamples", "both_ways_samples", "copy_work", "fitted_link", "link_samples"]

_SIZES = tuple(2**power for power in range(16, 29))
"""64 KiB to 256 MiB, in steps of four when quick."""
_REPEAT_S, _MOST_COPIES = 0.005, 50
"""What copies of one size should take together, and how many they may be for that."""


@record
class LinkSamples:
    """One direction: seconds per copy, by bytes, one figure per round; `bytes_per_s` at the largest size."""

    seconds: dict[int, Samples]

    @property
    def bytes_per_s(self) -> Samples:
        """Rates of the largest copies."""
        most = max(self.seconds)
        return tuple(most / seconds for seconds in self.seconds[most])


def copy_work(bench: Bench, lane: Lane, num_bytes: int, *, pinned: bool = True) -> Callable[[], object]:
    """Make the work of copying `num_bytes` in a lane's direction, from or to host memory, page-locked or not."""
    backend = bench.backend
    device = backend.empty((num_bytes,), torch.uint8)
    host = backend.host_empty((num_bytes,), torch.uint8, pinned=pinned)
    host.fill_(1)
    if lane is Lane.H2D:
        return lambda: backend.copy(device, host)
    return lambda: backend.copy(host, device)


def link_samples(bench: Bench, lane: Lane, *, pinned: bool) -> LinkSamples:
    """Time copies of each size that the device's memory holds and that takes no longer than a repeat may."""
    room_bytes = bench.backend.memory_capacity_bytes // 4
    works: dict[int, Callable[[], object]] = {}
    copies: dict[int, int] = {}
    s_per_byte = 0.0
    for size in _SIZES[::2] if bench.quick else _SIZES:
        if works and (size > room_bytes or size * s_per_byte > bench.case_s):
            break
        num_bytes = min(size, room_bytes)
        work = copy_work(bench, lane, num_bytes, pinned=pinned)
        once_s = bench.seconds(lane, work)
        s_per_byte = once_s / num_bytes
        copies[num_bytes] = max(1, min(_MOST_COPIES, math.ceil(_REPEAT_S / once_s)))
        works[num_bytes] = _several(work, copies[num_bytes])
    times = bench.times(lane, works)
    return LinkSamples(
        seconds={size: tuple(seconds / copies[size] for seconds in found) for size, found in times.items()}
    )


def _several(work: Callable[[], object], times: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(times):
            work()

    return run


def fitted_link(seconds: Mapping[int, Sequence[float]]) -> tuple[float, float]:
    """Fit `latency + bytes / rate` to the median time of each size; return latency (s, not negative) and bytes/s.

    Relative errors count, so that a copy of 64 KiB weighs as much as one of 256 MiB: least squares of
    `latency / t + bytes / (rate t) = 1`.
    """
    points = [(size, statistics.median(times)) for size, times in seconds.items()]
    ones = [(1.0 / time, size / time) for size, time in points]
    aa, ab, bb = (sum(at[i] * at[j] for at in ones) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = (sum(at[i] for at in ones) for i in (0, 1))
    determinant = aa * bb - ab * ab
    latency_s = (a * bb - b * ab) / determinant if len(points) > 1 and determinant > 0 else 0.0
    if latency_s > 0 and (per_byte := (b * aa - a * ab) / determinant) > 0:
        return latency_s, 1.0 / per_byte
    return 0.0, bb / b


def both_ways_samples(bench: Bench) -> dict[Lane, Samples]:
    """Measure both directions at once: bytes/s of each, over what began and ended while the other was busy."""
    lanes = (Lane.H2D, Lane.D2H)
    size = min(4 * MIB, bench.backend.memory_capacity_bytes // 8)
    works = {lane: copy_work(bench, lane, size) for lane in lanes}
    counts = {lane: max(3, math.ceil(bench.case_s / bench.seconds(lane, work))) for lane, work in works.items()}

    def once() -> dict[Lane, float]:
        streams = {lane: bench.backend.stream(lane) for lane in lanes}
        events = {lane: [streams[lane].submit(works[lane]) for _ in range(counts[lane])] for lane in lanes}
        for submitted in events.values():
            submitted[-1].wait()
        until_s = min(submitted[-1].ended_s for submitted in events.values())
        rates = {}
        for lane, submitted in events.items():
            inside = [event for event in submitted if event.ended_s <= until_s]
            rates[lane] = len(inside) * size / (inside[-1].ended_s - inside[0].started_s)
        return rates

    kept = clean_rounds(once, rounds=bench.rounds, budget_s=bench.part_left_s, log=bench.log)
    return {lane: tuple(rates[lane] for rates in kept) for lane in lanes}
