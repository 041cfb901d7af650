"""How close decode attention comes to the DRAM read roof, measured beside it.

Rounds alternate the roof (the profiler's own compiled read over memory far larger than any cache, each thread on a core
of its own) and the kernel over caches of the chosen size; each round gives one ratio, and the median is printed with
the smallest and the largest. A round counts when this process had its cores to itself; where none did, all count and
the line ends in `disturbed`. The arithmetic column is the kernel's own limit: its rate on one sequence, which the
processor's cache holds.

    python benchmarks/attention_kernel.py [--cache-mb 64 256 512] [--rounds 7] [--path avx2]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from executor import native
from hrm.device.huge_pages import huge_paged
from hrm.device.openmp import end_helpers
from hrm.device.streams import allowed_cores
from hrm.microbench.native import Stream, stream
from hrm.microbench.threads import side_by_side

ROOF_BYTES = 2**29


@dataclass(frozen=True)
class Shape:
    """Query and KV heads, their dimension, and tokens per sequence."""

    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    length: int
    dtype: torch.dtype

    @property
    def sequence_bytes(self) -> int:
        """K and V of one sequence."""
        return 2 * self.num_kv_heads * self.length * self.head_dim * self.dtype.itemsize

    def __str__(self) -> str:
        heads = f"{self.num_query_heads}/{self.num_kv_heads}x{self.head_dim}"
        return f"{str(self.dtype).removeprefix('torch.'):8s} {heads:9s} {self.length:5d} tokens"


SHAPES = (
    Shape(32, 8, 128, 2048, torch.bfloat16),
    Shape(32, 8, 128, 512, torch.bfloat16),
    Shape(32, 8, 128, 2048, torch.float32),
    Shape(9, 3, 64, 512, torch.bfloat16),
)


def main() -> None:
    """Print one line per shape, cache size and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache-mb", type=int, nargs="+", default=[64, 256, 512], help="K and V together, in 1e6 B")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--path", choices=native.instruction_sets(), help="instead of the best this CPU has")
    arguments = parser.parse_args()
    if arguments.path:
        os.environ["HRM_NATIVE_ISA"] = arguments.path
    print(native.status_line())
    print(
        "dtype    heads x d  per sequence   cache  threads  roof GB/s  kernel GB/s  ratio (least-most)  arithmetic GB/s"
    )
    memory = huge_paged((ROOF_BYTES,), torch.uint8).fill_(1)
    for shape in SHAPES:
        for num_threads in arguments.threads:
            torch.set_num_threads(num_threads)
            roof = read(memory, num_threads)
            in_cache = sample(attention(shape, 1, num_threads), shape.sequence_bytes, num_threads, repeats=20)
            for cache_mb in arguments.cache_mb:
                batch = max(cache_mb * 10**6 // shape.sequence_bytes, 1)
                run = attention(shape, batch, num_threads)
                rounds = measure(roof, run, batch * shape.sequence_bytes, num_threads, arguments.rounds)
                print(line(shape, batch, num_threads, rounds, in_cache.bytes_per_s), flush=True)


def read(memory: torch.Tensor, num_threads: int) -> Callable[[], object]:
    """Return a call that reads `memory` once, a part of it on each core."""
    parts = memory.view(num_threads, -1)
    works = [partial(stream, Stream.READ, (torch.zeros(8, dtype=torch.int64), part), 1) for part in parts]
    return partial(side_by_side, allowed_cores()[:num_threads], works)


def attention(shape: Shape, batch: int, num_threads: int) -> Callable[[], object]:
    """Return a call of the kernel over `batch` sequences, warmed up."""
    elements = shape.num_kv_heads * shape.length * shape.head_dim
    one = torch.randn(elements).to(shape.dtype)
    keys, values = (huge_paged((batch * elements,), shape.dtype) for _ in range(2))
    keys.view(batch, -1).copy_(one)
    values.view(batch, -1).copy_(one.flip(0))
    query = torch.randn(batch, shape.num_query_heads, shape.head_dim).to(shape.dtype)
    lengths = torch.full((batch,), shape.length, dtype=torch.int64)
    offsets = torch.arange(batch, dtype=torch.int64) * elements
    out = torch.empty_like(query)

    def run() -> None:
        native.decode_attention(query, keys, values, offsets, lengths, lengths, shape.num_kv_heads, out, num_threads)

    run()
    return run


@dataclass(frozen=True)
class Sample:
    """A rate, and the share of its threads' time that this process really had."""

    bytes_per_s: float
    busy: float


def sample(work: Callable[[], object], num_bytes: int, num_threads: int, repeats: int = 1) -> Sample:
    """Time one or more runs of `work`."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        work()
    elapsed_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    return Sample(num_bytes * repeats / elapsed_s, cpu_s / elapsed_s / num_threads)


def measure(
    roof: Callable[[], object], run: Callable[[], object], num_bytes: int, num_threads: int, num_rounds: int
) -> list[tuple[Sample, Sample]]:
    """Alternate roof and kernel until enough rounds were undisturbed, or three times as many were tried.

    The kernel's helping threads end before the roof, for they look out for work on the cores that it reads from.
    """
    rounds: list[tuple[Sample, Sample]] = []
    while len(rounds) < 3 * num_rounds and len(undisturbed(rounds)) < num_rounds:
        end_helpers()
        of_roof = sample(roof, ROOF_BYTES, num_threads)
        run()
        rounds.append((of_roof, sample(run, num_bytes, num_threads)))
    return rounds


def undisturbed(rounds: list[tuple[Sample, Sample]]) -> list[tuple[Sample, Sample]]:
    """Return the rounds in which the process had nine tenths of its cores."""
    return [pair for pair in rounds if min(pair[0].busy, pair[1].busy) >= 0.9]


def line(
    shape: Shape, batch: int, num_threads: int, rounds: list[tuple[Sample, Sample]], in_cache_bytes_per_s: float
) -> str:
    """Format the medians of one configuration with the spread of the ratio."""
    kept = undisturbed(rounds)
    roof, kernel = (
        statistics.median(taken.bytes_per_s for taken in column) / 1e9 for column in zip(*(kept or rounds), strict=True)
    )
    ratios = sorted(achieved.bytes_per_s / bound.bytes_per_s for bound, achieved in kept or rounds)
    return (
        f"{shape}  {batch * shape.sequence_bytes / 1e6:4.0f} MB  {num_threads:7d}  {roof:9.1f}  {kernel:11.1f}"
        f"  {statistics.median(ratios):5.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})  {in_cache_bytes_per_s / 1e9:15.1f}"
        f"{'' if kept else '  disturbed'}"
    )


if __name__ == "__main__":
    main()
