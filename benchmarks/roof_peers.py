"""Single-purpose tools that the profiler's roofs are measured beside, and how each is run."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from executor.direct import REQUEST_BYTES, REQUESTS, DirectFile, aligned_buffers, finish
from hrm.units import GIB

__all__ = ["REPEATS", "WARM_UPS", "Rate", "built_stream", "disk_peers", "memory_peers"]

Rate = Callable[[], float]
"""Runs something once and returns its rate."""

STREAM_SOURCE = Path(__file__).parent / "data" / "stream.c"
STREAM_FLAGS = ("-O3", "-march=native", "-ffast-math", "-fopenmp", "-fno-tree-loop-distribute-patterns")
WARM_UPS, REPEATS = 2, 9
"""What STREAM does in a run; the first ones are not counted."""
EXECUTORS = (REQUEST_BYTES, REQUESTS)
"""Bytes of a request, and requests in flight, of the executor."""
EXECUTOR_BYTES = GIB // 2
"""What the executor reads at a time."""
LIKWID = {"read": "load", "copy": "copy", "copy_nt": "copy_mem", "triad": "stream", "triad_nt": "stream_mem"}


def memory_peers(stream: Path | None, access: str, threads: int) -> dict[str, Rate]:
    """Return the peers that measure this access with the same kind of store."""
    peers: dict[str, Rate] = {}
    if stream is not None and not access.endswith("_nt"):
        peers["STREAM"] = lambda: stream_rate(stream, access, threads)
    if shutil.which("likwid-bench"):
        peers["likwid-bench"] = lambda: likwid_rate(access, threads)
    if shutil.which("sysbench") and access == "read":
        peers["sysbench"] = lambda: sysbench_rate(threads)
    return peers


def built_stream(folder: Path) -> Path | None:
    """Compile STREAM's loops; None without a compiler."""
    missing = [tool for tool in ("gcc", "likwid-bench", "sysbench") if not shutil.which(tool)]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}")
    if "gcc" in missing:
        return None
    binary = folder / "stream"
    subprocess.run(["gcc", *STREAM_FLAGS, str(STREAM_SOURCE), "-o", str(binary)], check=True)
    return binary


def said(command: list[str], **environment: str) -> str:
    """Run a command and return what it printed."""
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | environment, timeout=300
    ).stdout


def stream_rate(binary: Path, access: str, threads: int) -> float:
    """Run STREAM's loop and return the median rate of its repeats."""
    printed = said(
        [str(binary), access, str(REPEATS)], OMP_NUM_THREADS=str(threads), OMP_PROC_BIND="true", OMP_PLACES="cores"
    )
    return statistics.median(float(line) for line in printed.split())


def likwid_rate(access: str, threads: int) -> float:
    """Run likwid-bench with the widest vectors that this CPU has."""
    wide = "avx512" if torch.backends.cpu.get_cpu_capability() == "AVX512" else "avx"
    printed = said(["likwid-bench", "-t", f"{LIKWID[access]}_{wide}", "-w", f"S0:512000kB:{threads}", "-i", "12"])
    return 1e6 * float(re.search(r"MByte/s:\s+([\d.]+)", printed)[1])  # type: ignore[index]


def sysbench_rate(threads: int) -> float:
    """Run sysbench with blocks too large for a cache, a buffer for each thread."""
    memory_options = ("scope=local", "block-size=256M", "total-size=1000G", "oper=read")
    options = [f"--memory-{option}" for option in memory_options]
    printed = said(["sysbench", "memory", f"--threads={threads}", *options, "--time=1", "run"])
    return 2**20 * float(re.search(r"\(([\d.]+) MiB/sec\)", printed)[1])  # type: ignore[index]


def disk_peers(path: str, size: int, depth: int) -> dict[str, Rate]:
    """Return what reads a file on and on past the page cache, so many requests at a time: fio, and the executor."""
    return {"fio": fio(path, size, depth)} | (
        {"our executor": executor(path, size)} if (size, depth) == EXECUTORS else {}
    )


def fio(path: str, size: int, depth: int) -> Rate:
    """Make the rate of fio's sequential direct reads for a second."""
    options = ["--name=read", f"--filename={path}", "--rw=read", "--direct=1", "--ioengine=libaio", f"--size={GIB}"]
    options += [f"--bs={size}", f"--iodepth={depth}", "--runtime=1", "--time_based", "--output-format=json"]
    return lambda: float(json.loads(said(["fio", *options]))["jobs"][0]["read"]["bw_bytes"])


def executor(path: str, size: int) -> Rate:
    """Make the rate at which the executor reads, expert after expert: one ahead, each in such requests."""
    file, expert_bytes = DirectFile(Path(path)), REQUESTS * size
    buffers = aligned_buffers(expert_bytes, 2)
    places = itertools.cycle(range(0, GIB, expert_bytes))
    count = max(2, EXECUTOR_BYTES // expert_bytes)

    def rate() -> float:
        begun_s = time.perf_counter()
        reading = file.begin(next(places), buffers[0])
        for number in range(1, count):
            ahead = file.begin(next(places), buffers[number % 2])
            finish(reading)
            reading = ahead
        finish(reading)
        return count * expert_bytes / (time.perf_counter() - begun_s)

    return rate
