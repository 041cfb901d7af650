"""Memory roofs: rates of reading, copying and the triad, from DRAM and from each cache, by one thread and by all.

What is counted: a byte read and a byte written, each once. A regular store first reads the line that it writes (write
allocate); that traffic is not counted, as in STREAM, so copy and triad with regular stores come out at about two thirds
and three quarters of what memory moved. Non-temporal stores read nothing first: they are another roof.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch

from hrm.microbench.bench import Bench, Samples
from hrm.microbench.machine import last_cache_bytes, numa_nodes
from hrm.microbench.native import GRANULE_BYTES, Stream, stream, streams
from hrm.microbench.threads import lane_cores, side_by_side, with_threads
from hrm.records import record
from hrm.schedule.task import Lane
from hrm.units import MIB

__all__ = [
    "CACHE_BYTES",
    "MemoryCases",
    "MemorySamples",
    "cache_samples",
    "device_memory_samples",
    "host_memory_cases",
    "host_memory_samples",
]

_BUFFER_BYTES, _MOST_BYTES = 256 * MIB, 768 * MIB
"""What all threads together go through: at least the first, or half of it when quick; at most the second."""
_CACHES_OVER = 4
"""Times the last cache that it is at least."""
CACHE_BYTES = {"l1": 16 * 1024, "l2": 256 * 1024, "l3": 4 * MIB}
"""What a thread reads over and over for a cache's roof: half of the smallest L1 and L2 of a server or desktop, and more
than the largest L2. Fixed, for the sizes that a virtual machine reports are often its host's."""
_PILOT_BYTES = 64 * MIB
"""What a first trial moves per thread, so that starting threads does not count."""

Case = tuple[float, Callable[[], object]]


@record
class MemorySamples:
    """Rates of one access, per round, and how it was measured."""

    threads: int
    thread_bytes: int
    bytes_per_s: Samples


class MemoryCases:
    """Cases of streaming over buffers by name (amount in bytes, work), and what each is: threads, bytes per thread."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.by_name: dict[str, Case] = {}
        self._setting: dict[str, tuple[int, int]] = {}

    def add(self, name: str, cores: Sequence[int], parts: Sequence[torch.Tensor], kind: Stream) -> None:
        """Add a kernel that each core runs over its part of memory, cut into as many buffers as the kernel has."""
        works = [partial(stream, kind, _buffers(part, kind)) for part in parts]
        thread_bytes = min(part.nbytes for part in parts)
        pass_bytes = sum(kind.buffers * work.args[1][1].nbytes for work in works)

        def run(passes: int) -> None:
            side_by_side(cores, [partial(work, passes) for work in works])

        pilot = math.ceil((_PILOT_BYTES // 4 if self._bench.quick else _PILOT_BYTES) / thread_bytes)
        pilot_s = self._bench.seconds(Lane.CPU, partial(run, pilot))
        passes = max(1, round(pilot * self._bench.case_s / 2 / pilot_s))
        self.add_work(name, (len(cores), thread_bytes), (float(passes * pass_bytes), partial(run, passes)))

    def add_work(self, name: str, setting: tuple[int, int], case: Case) -> None:
        """Add any other work that moves a known number of bytes."""
        self.by_name[name] = case
        self._setting[name] = setting

    def measured(self) -> dict[str, MemorySamples]:
        """Measure all cases in turn."""
        rates = self._bench.rates(Lane.CPU, self.by_name)
        return {
            name: MemorySamples(threads=self._setting[name][0], thread_bytes=self._setting[name][1], bytes_per_s=found)
            for name, found in rates.items()
        }


def host_memory_samples(bench: Bench) -> dict[str, MemorySamples]:
    """Measure DRAM by one and by all threads of the CPU lane, all cases in turn."""
    return host_memory_cases(bench).measured()


def host_memory_cases(bench: Bench) -> MemoryCases:
    """Make what goes through DRAM by one and by all threads of the CPU lane: torch's copy, and the compiled kernels.

    Names are `dram_ACCESS_xTHREADS`; `dram_read_nodeK_xTHREADS` is a NUMA node's cores reading its own memory, where
    there are several. Each thread touches its part first, so that it lies in the memory next to it.
    """
    nodes = numa_nodes(lane_cores(bench))
    cores = [core for near in nodes.values() for core in near]
    parts = _touched(bench, cores)
    near_one = [part for core, part in zip(cores, parts, strict=True) if core in next(iter(nodes.values()))]
    cases = MemoryCases(bench)
    for threads, own in {1: [_joined(near_one)], len(cores): parts}.items():
        _add_torch(cases, threads, len(cores), _joined(near_one if threads == 1 else parts))
        for kind in _wanted(bench):
            cases.add(f"dram_{kind.name.lower()}_x{threads}", cores[:threads], own, kind)
    for node, near in nodes.items() if len(nodes) > 1 and Stream.READ in streams() else ():
        own = [part for core, part in zip(cores, parts, strict=True) if core in near]
        cases.add(f"dram_read_node{node}_x{len(near)}", near, own, Stream.READ)
    return cases


def cache_samples(bench: Bench) -> dict[str, MemorySamples]:
    """Measure how fast each cache is read, by one and by all threads; nothing where no kernels were compiled.

    A call of torch takes longer than reading a small cache, so there is no second way.
    """
    cases = MemoryCases(bench)
    cores = lane_cores(bench)
    for name, usual_bytes in CACHE_BYTES.items() if Stream.READ in streams() else ():
        for threads in sorted({1, len(cores)}):
            thread_bytes = min(usual_bytes, _shared_cache_bytes(threads)) if name == "l3" else usual_bytes
            if name != "l3" or thread_bytes > 2 * CACHE_BYTES["l2"]:
                parts = [torch.ones(thread_bytes // 8, dtype=torch.float64) for _ in range(threads)]
                cases.add(f"{name}_read_x{threads}", cores[:threads], parts, Stream.READ)
    return cases.measured()


def _shared_cache_bytes(threads: int) -> int:
    """Return a thread's part of half of the last cache, in whole granules; unlimited where the size is unknown."""
    whole = last_cache_bytes() or 2 * threads * CACHE_BYTES["l3"]
    return whole // (2 * threads) // GRANULE_BYTES * GRANULE_BYTES


def _wanted(bench: Bench) -> tuple[Stream, ...]:
    """Return the kernels to run; a quick profile has time for what predictions use: reading, and torch's copy."""
    return tuple(kind for kind in streams() if kind is Stream.READ or not bench.quick)


def _touched(bench: Bench, cores: Sequence[int]) -> list[torch.Tensor]:
    """Allocate a part of one buffer for each core, touched first by it."""
    total_bytes = min(_MOST_BYTES, max(_BUFFER_BYTES // (2 if bench.quick else 1), _CACHES_OVER * last_cache_bytes()))
    words = max(GRANULE_BYTES, total_bytes // len(cores) // 8 // GRANULE_BYTES * GRANULE_BYTES)
    whole = torch.empty(len(cores), words, dtype=torch.float64)
    parts = [whole[index] for index in range(len(cores))]
    bench.asked_on(Lane.CPU, lambda: side_by_side(cores, [partial(_fill, part) for part in parts]))
    return parts


def _fill(part: torch.Tensor) -> None:
    """Fill memory with ones in the calling thread alone."""
    part.numpy().fill(1.0)


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return neighbouring parts of one buffer as one."""
    words = sum(part.numel() for part in parts)
    return torch.as_strided(parts[0], (words,), (1,))


def _buffers(part: torch.Tensor, kind: Stream) -> tuple[torch.Tensor, ...]:
    """Cut a part into a kernel's buffers, of an odd number of granules.

    So that no load follows a store whose address ends in the same 12 bits, which a CPU would take for the same place.
    """
    if kind is Stream.READ:
        return torch.zeros(8, dtype=torch.float64), part
    words = GRANULE_BYTES // 8
    granules = part.numel() // kind.buffers // words
    length = (granules - 1 + granules % 2) * words
    return tuple(part[index * length : (index + 1) * length] for index in range(kind.buffers))


def _add_torch(cases: MemoryCases, threads: int, usual: int, memory: torch.Tensor) -> None:
    """Add torch's copy, which is what staging runs, and its sum where no kernel was compiled to read with."""
    half = memory.numel() // 2
    target, source = memory[:half], memory[half : 2 * half]
    setting = (threads, memory.nbytes // threads)
    copy = with_threads(threads, usual, lambda: target.copy_(source))
    cases.add_work(f"dram_torch_copy_x{threads}", setting, (2.0 * target.nbytes, copy))
    if Stream.READ not in streams():
        read = with_threads(threads, usual, memory.sum)
        cases.add_work(f"dram_read_x{threads}", setting, (float(memory.nbytes), read))


def device_memory_samples(bench: Bench) -> dict[str, Samples]:
    """Measure bytes/s of device memory: `read` and `copy`, through torch."""
    elements = min(_BUFFER_BYTES, bench.backend.memory_capacity_bytes // 4) // 4
    source, target = (bench.backend.empty((count,), torch.float32) for count in (elements, elements // 2))

    def fill() -> None:
        source.fill_(1.0)
        target.fill_(1.0)

    bench.backend.stream(Lane.GPU).submit(fill).wait()
    copied = source[: target.numel()]
    cases: dict[str, Case] = {
        "read": (float(source.nbytes), source.sum),
        "copy": (2.0 * target.nbytes, lambda: target.copy_(copied)),
    }
    return bench.rates(Lane.GPU, cases)
