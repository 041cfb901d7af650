"""Links: rate and latency of copies between host and device, each direction alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from hrm.hardware import Measurement
from hrm.microbench.bench import Bench
from hrm.microbench.measure import summary
from hrm.records import record
from hrm.schedule.task import Lane
from hrm.units import MIB

__all__ = ["LinkRates", "copy_work", "link_rates"]

_PILOT_BYTES = MIB
_LEAST_BYTES, _MOST_BYTES = 4 * MIB, 256 * MIB
_SMALL_BYTES = (4 * 1024, 16 * 1024, 64 * 1024)
_SMALL_COPIES = 10


@record
class LinkRates:
    """One direction: bytes/s of large copies, and seconds that a small copy takes beyond its bytes at that rate."""

    bytes_per_s: Measurement
    latency_s: float


def copy_work(bench: Bench, lane: Lane, num_bytes: int) -> Callable[[], object]:
    """Make the work of copying `num_bytes` in a lane's direction, from or to page-locked memory."""
    backend = bench.backend
    device = backend.empty((num_bytes,), torch.uint8)
    host = backend.host_empty((num_bytes,), torch.uint8, pinned=True)
    host.fill_(1)
    if lane is Lane.H2D:
        return lambda: backend.copy(device, host)
    return lambda: backend.copy(host, device)


def link_rates(bench: Bench, lane: Lane) -> LinkRates:
    """Measure one direction with copies that take as long as a repeat may, and with a few small ones."""
    room_bytes = bench.backend.memory_capacity_bytes // 4
    pilot_bytes = min(_PILOT_BYTES, room_bytes)
    pilot_s = bench.seconds(lane, copy_work(bench, lane, pilot_bytes))
    wanted_bytes = pilot_bytes * bench.case_s / pilot_s
    num_bytes = int(min(max(wanted_bytes, _LEAST_BYTES), _MOST_BYTES, room_bytes))
    large = bench.times(lane, {"large": copy_work(bench, lane, num_bytes)})["large"]
    rate = summary([num_bytes / seconds for seconds in large])
    return LinkRates(bytes_per_s=rate, latency_s=_latency_s(bench, lane, rate.median))


def _latency_s(bench: Bench, lane: Lane, bytes_per_s: float) -> float:
    beyond: list[float] = []
    for num_bytes in _SMALL_BYTES:
        work = copy_work(bench, lane, num_bytes)
        times = [bench.seconds(lane, work) for _ in range(_SMALL_COPIES)]
        beyond.append(statistics.median(times) - num_bytes / bytes_per_s)
    return max(0.0, statistics.median(beyond))
