"""How close the profiler's roofs come to single-purpose tools, measured beside them.

Memory against STREAM (built here), `likwid-bench` and `sysbench`, same bytes counted, same kind of store; products
against an exhaustive sweep of shapes; the disk against `fio`, same file, request and depth. Each peer's run stands next
to one of ours, round after round; what is printed is the ratio of the medians, and both medians with their smallest and
largest. Rounds before which other processes were at work count only where too few others came together.

    python benchmarks/profile_roofs.py [--only memory products disk] [--rounds 7] [--disk FOLDER]
    python benchmarks/profile_roofs.py --agree FIRST.yaml SECOND.yaml     two profiles of one machine, roof by roof

Debian: apt-get install gcc likwid sysbench fio. What is missing is said and left out.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from roof_peers import REPEATS, WARM_UPS, Rate, built_stream, disk_peers, memory_peers

from hrm.device.host import HostBackend
from hrm.device.openmp import end_helpers
from hrm.dtypes import DType
from hrm.files import read_yaml
from hrm.microbench.bench import TORCH_DTYPES, Bench
from hrm.microbench.compute import best_shapes, product
from hrm.microbench.disk import DEPTHS, REQUEST_BYTES, DirectReader, fill_file, nameless_file, request_name
from hrm.microbench.machine import system_facts
from hrm.microbench.measure import CpuWatch, on_lane
from hrm.microbench.memory import host_memory_cases
from hrm.microbench.shares import share_s
from hrm.microbench.threads import with_threads
from hrm.schedule.task import Lane
from hrm.units import GIB

ACCESSES = ("read", "copy", "copy_nt", "triad", "triad_nt")
PRODUCTS = (DType.FLOAT32, DType.BFLOAT16)
SIDES = (256, 512, 1024, 2048, 4096)
LONGEST_S, FINALISTS, CHOOSING_ROUNDS = 0.05, 5, 7
"""The sweep is of all shapes with these sides that take no longer, in both layouts, one short timing each; the fastest
are then timed beside ours."""
QUIET_S = 0.3
K = TypeVar("K")


def main() -> None:
    """Print the table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("memory", "products", "disk"), default=["memory", "products"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--access", nargs="+", choices=ACCESSES, default=ACCESSES, help="of the memory roofs compared")
    parser.add_argument("--dtype", nargs="+", type=DType, default=list(PRODUCTS), help="of the products compared")
    parser.add_argument("--disk", type=Path, help="folder on the disk to read; with it the disk is compared too")
    parser.add_argument("--agree", nargs=2, type=Path, metavar="PROFILE")
    options = parser.parse_args()
    if options.agree:
        agree(*options.agree)
        return
    for name, value in system_facts().items():
        print(f"{name}: {value}")
    print(f"{'roof':28s} {'peer':14s} {'ours/peer':>9s}   ours: median (least to most)   peer, G/s")
    backend = HostBackend()
    bench = Bench(backend, quick=False)
    if "memory" in options.only:
        memory(bench, options.access, options.rounds)
    if "products" in options.only:
        products(Bench(backend, quick=False), options.dtype, options.rounds)
    if options.disk is not None:
        disk(bench, options.rounds, options.disk)
    backend.close()


def alternate(roof: str, ours: Rate, peers: Mapping[str, Rate], rounds: int) -> None:
    """Run each peer and ours in turn, and print a line per peer.

    Which of the two comes first changes from round to round: the first one finds the cores asleep.
    """
    pairs: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in peers}
    for index in range(rounds):
        for name, peer in peers.items():
            quiet = is_quiet()
            took = {rate: rate() for rate in ((ours, peer) if index % 2 else (peer, ours))}
            pairs[name].append((took[ours], took[peer], quiet))
    for name, both in pairs.items():
        kept = [pair for pair in both if pair[2]]
        kept = kept if len(kept) >= min(3, rounds) else both
        own, other = ([pair[side] for pair in kept] for side in (0, 1))
        ratio = statistics.median(own) / statistics.median(other)
        note = "" if all(pair[2] for pair in kept) else "   disturbed"
        print(f"{roof:28s} {name:14s} {ratio:9.2f}   {spread(own)}   {spread(other)}{note}", flush=True)


def spread(rates: list[float]) -> str:
    """Format the median with the smallest and the largest, in units of 1e9."""
    median, least, most = (value / 1e9 for value in (statistics.median(rates), min(rates), max(rates)))
    return f"{median:7.2f} ({least:.2f} to {most:.2f})"


def is_quiet() -> bool:
    """Watch for a moment whether other processes use these cores."""
    watch = CpuWatch()
    time.sleep(QUIET_S)
    return not watch.contaminated()


def memory(bench: Bench, accesses: Sequence[str], rounds: int) -> None:
    """Compare the DRAM roofs, by one and by all threads."""
    cases = host_memory_cases(bench).by_name
    counts = sorted({int(name.rpartition("_x")[2]) for name in cases})
    with tempfile.TemporaryDirectory() as folder:
        stream = built_stream(Path(folder))
        for access, threads in itertools.product(accesses, counts):
            if (name := f"dram_{access}_x{threads}") in cases:
                amount, work = cases[name]
                once = on_lane(bench.backend, Lane.CPU, work)
                alternate(name, settled_rate(amount, once), memory_peers(stream, access, threads), rounds)


def settled_rate(amount: float, once: Callable[[], float]) -> Rate:
    """Make a median rate of as many repeats as STREAM makes, its warm-up left out: cores were asleep before."""
    return lambda: amount / statistics.median([once() for _ in range(WARM_UPS + REPEATS)][WARM_UPS:])


def rate_of(amount: float, once: Callable[[], float]) -> Rate:
    """Make a rate of an amount and of what takes so many seconds."""
    return lambda: amount / once()


def products(bench: Bench, dtypes: Sequence[DType], rounds: int) -> None:
    """Compare the best product that the profiler finds, in its own time, with the best of an exhaustive sweep.

    Either is chosen by a few repeats of its finalists and judged by others: the fastest of many, taken by the very
    repeats that are shown, is fast by luck too.
    """
    bench.begin_part(share_s("host product shapes", quick=False))
    shapes = best_shapes(bench, Lane.CPU)
    most = max(one.threads for one in shapes)
    for dtype, threads in itertools.product(dtypes, sorted({1, most})):
        own = [one.shape for one in shapes if (one.dtype, one.threads, one.absurd) == (dtype, threads, False)]
        if not own:
            print(f"{dtype}_x{threads}: absurdly slow here, not compared")
            continue
        found = {shape: product_rate(bench, dtype, shape, threads) for shape in own}
        ours = fastest(found)
        swept = sweep(bench, dtype, threads)
        best = fastest(swept)
        roof = f"{dtype}_x{threads} {'x'.join(str(side) for side in ours)}"
        alternate(roof, found[ours], {best: swept[best]}, rounds)


def fastest(rates: Mapping[K, Rate]) -> K:
    """Return which of several has the highest median of a few repeats, taken in turn."""
    found: dict[K, list[float]] = {key: [] for key in rates}
    for _ in range(CHOOSING_ROUNDS):
        for key, rate in rates.items():
            found[key].append(rate())
    return max(found, key=lambda key: statistics.median(found[key]))


def product_rate(bench: Bench, dtype: DType, shape: tuple[int, int, int], threads: int) -> Rate:
    """Make the rate of the profiler's own product at a shape."""
    flop, work = product(bench, Lane.CPU, dtype, shape, threads)
    return repeated_rate(bench, flop, work)


def repeated_rate(bench: Bench, flop: float, work: Callable[[], object]) -> Rate:
    """Make the rate of a product repeated for some 0.1 s."""
    once = on_lane(bench.backend, Lane.CPU, work)
    times = max(1, int(bench.case_s / 2 / bench.seconds(Lane.CPU, work)))
    return lambda: times * flop / sum(once() for _ in range(times))


def sweep(bench: Bench, dtype: DType, threads: int) -> dict[str, Rate]:
    """Try every shape and layout once, and return the fastest few by name, to be measured beside ours."""
    usual = bench.asked_on(Lane.CPU, torch.get_num_threads)
    tried: list[tuple[float, str, float, Callable[[], object]]] = []
    fastest = 0.0
    for rows, inner, columns in itertools.product(SIDES, repeat=3):
        flop = 2.0 * rows * inner * columns
        if fastest and flop / fastest > LONGEST_S:
            continue
        kind = TORCH_DTYPES[dtype]
        left, out = torch.ones(rows, inner, dtype=kind), torch.empty(rows, columns, dtype=kind)
        for layout, right in {
            "n": torch.ones(inner, columns, dtype=kind),
            "t": torch.ones(columns, inner, dtype=kind).t(),
        }.items():
            end_helpers()
            work = with_threads(threads, usual, plain_product(left, right, out))
            found = flop / bench.seconds(Lane.CPU, work)
            fastest = max(fastest, found)
            tried.append((found, f"{rows}x{inner}x{columns}{layout}", flop, work))
            tried = sorted(tried, key=lambda one: -one[0])[:FINALISTS]
    return {name: repeated_rate(bench, flop, work) for _, name, flop, work in tried}


def plain_product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> Callable[[], object]:
    """Make a product into memory that is there already."""
    return lambda: torch.mm(left, right, out=out)


def disk(bench: Bench, rounds: int, folder: Path) -> None:
    """Compare direct reads with fio's, of the same file."""
    if not shutil.which("fio"):
        print("not installed, left out: fio")
        return
    with nameless_file(folder) as (writing, reading):
        fill_file(writing, GIB)
        reader = DirectReader(reading, GIB)
        path = f"/proc/{os.getpid()}/fd/{reading}"
        for size, depth in itertools.product(REQUEST_BYTES, DEPTHS):
            amount, once = reader.repeat(bench, size, depth)
            peers = disk_peers(path, size, depth)
            alternate(f"disk {request_name(size, depth)}", rate_of(amount, once), peers, rounds)


def agree(first: Path, second: Path) -> None:
    """Print each roof of two profiles with their ratio, and how many agree and how many are noisy."""
    one, other = (dict(measured(read_yaml(path), "")) for path in (first, second))
    apart = noisy = 0
    for name in one.keys() & other.keys():
        ratio = other[name]["median"] / one[name]["median"]
        flagged = one[name]["noisy"] or other[name]["noisy"]
        noisy += flagged
        apart += not flagged and abs(ratio - 1) > 0.1
        print(f"{name:60s} {ratio:6.2f} {'noisy' if flagged else 'apart' if abs(ratio - 1) > 0.1 else ''}")
    print(
        f"{len(one.keys() & other.keys())} roofs, {noisy} noisy in one or both, {apart} of the others over 10 % apart"
    )


def measured(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every measurement of a profile with its path."""
    if isinstance(value, dict) and {"median", "iqr", "noisy"} <= set(value):
        yield path.strip("."), value
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from measured(entry, f"{path}.{name}")


if __name__ == "__main__":
    main()
