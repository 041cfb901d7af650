"""Memory roofs: rates of reading and of copying memory far larger than any cache."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hrm.hardware import Measurement
from hrm.microbench.bench import Bench
from hrm.schedule.task import Lane
from hrm.units import MIB

__all__ = ["device_memory_rates", "host_memory_rates", "num_threads"]

_BUFFER_BYTES = 256 * MIB
"""What a repeat goes through: read whole, or its first half copied to a buffer of that size."""

Case = tuple[float, Callable[[], object]]


def _cases(target: torch.Tensor, source: torch.Tensor) -> dict[str, Case]:
    """Make the cases; reading counts each byte once, copying twice: read and written."""
    copied = source[: target.numel()]
    return {
        "read": (float(source.nbytes), source.sum),
        "copy": (2.0 * target.nbytes, lambda: target.copy_(copied)),
    }


def num_threads(bench: Bench, lane: Lane) -> int:
    """Return how many threads a lane's kernels use."""
    seen: list[int] = []
    bench.backend.stream(lane).submit(lambda: seen.append(torch.get_num_threads())).wait()
    return seen[0]


def host_memory_rates(bench: Bench) -> dict[str, Measurement]:
    """Measure bytes/s of host memory: `read` and `copy` with all threads, `read_1` and `copy_1` with one."""
    elements = _BUFFER_BYTES // 4
    source, target = torch.ones(elements), torch.ones(elements // 2)
    cases = _cases(target, source)
    threads = num_threads(bench, Lane.CPU)
    if threads > 1:
        cases |= {f"{name}_1": (amount, _with_one_thread(work, threads)) for name, (amount, work) in cases.items()}
    rates = bench.rates(Lane.CPU, cases)
    return rates if threads > 1 else rates | {f"{name}_1": rate for name, rate in rates.items()}


def _with_one_thread(work: Callable[[], object], threads: int) -> Callable[[], object]:
    def narrowed() -> None:
        torch.set_num_threads(1)
        try:
            work()
        finally:
            torch.set_num_threads(threads)

    return narrowed


def device_memory_rates(bench: Bench) -> dict[str, Measurement]:
    """Measure bytes/s of device memory: `read` and `copy`."""
    elements = min(_BUFFER_BYTES, bench.backend.memory_capacity_bytes // 4) // 4
    source, target = (bench.backend.empty((count,), torch.float32) for count in (elements, elements // 2))

    def fill() -> None:
        source.fill_(1.0)
        target.fill_(1.0)

    bench.backend.stream(Lane.GPU).submit(fill).wait()
    return bench.rates(Lane.GPU, _cases(target, source))
