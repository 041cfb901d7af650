"""What the machine is and how it is set, as far as it says: processor, memory, cores, huge pages, versions, load."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from hrm.device.streams import allowed_cores
from hrm.microbench.native import instruction_set

__all__ = [
    "cpu_model",
    "last_cache_bytes",
    "memory_bytes",
    "numa_nodes",
    "one_per_core",
    "runtime_bytes",
    "setting",
    "system_facts",
]

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_NODES = Path("/sys/devices/system/node")
_CPUS = Path("/sys/devices/system/cpu")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def cpu_model() -> str:
    """Return the name of the host's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def memory_bytes() -> tuple[int, int]:
    """Return the host memory that there is and that is free, a container's limit included."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    limit = _said(_CGROUP_LIMIT)
    return (min(total, int(limit)), min(available, int(limit))) if limit.isdecimal() else (total, available)


def runtime_bytes() -> int:
    """Return what this process holds of memory with nothing of a plan in it: interpreter, torch and what it woke up.

    What was freed goes back to the system first: the allocator keeps it for a process that measured for minutes.
    """
    with suppress(OSError, AttributeError):  # a C library that cannot
        ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def setting() -> str:
    """Return what a CPU measurement depends on: processor, instruction set, torch."""
    return f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def one_per_core(cores: Sequence[int]) -> tuple[int, ...]:
    """Return the first of the given hardware threads of each physical core, in their order."""
    seen: set[str] = set()
    apart = []
    for core in cores:
        siblings = _said(_CPUS / f"cpu{core}/topology/thread_siblings_list") or str(core)
        if siblings not in seen:
            seen.add(siblings)
            apart.append(core)
    return tuple(apart)


def numa_nodes(cores: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Return the given cores by the node of memory that is theirs; one node where the system names none."""
    nodes = {}
    for folder in sorted(_NODES.glob("node[0-9]*"), key=lambda path: int(path.name[4:])):
        near = _numbers(_said(folder / "cpulist"))
        if own := tuple(core for core in cores if core in near):
            nodes[int(folder.name[4:])] = own
    return nodes or {0: tuple(cores)}


def last_cache_bytes() -> int:
    """Return the size that the system gives for the last cache, all of its instances together; 0 where it is unknown.

    A virtual machine often reports its host's, of which its own share is smaller.
    """
    sizes = {}
    for index in _CPUS.glob("cpu[0-9]*/cache/index3"):
        size = re.fullmatch(r"(\d+)K", _said(index / "size"))
        if size:
            sizes[_said(index / "shared_cpu_list")] = int(size[1]) * 1024
    return sum(sizes.values())


def system_facts() -> dict[str, str]:
    """Return, in words, how the host is set while it is measured."""
    cores = allowed_cores()
    chosen = re.search(r"\[(\w+)\]", _said(_HUGE_PAGES))
    return {
        "processor": cpu_model(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "cores allowed": f"{len(cores)}, {len(one_per_core(cores))} of them physical",
        "numa nodes": str(len(numa_nodes(cores))),
        "kernel": f"{platform.system()} {platform.release()}",
        "huge pages": chosen[1] if chosen else "unknown",
        "governor": _said(_CPUS / "cpu0/cpufreq/scaling_governor") or "not told (as in most virtual machines)",
        "load at the start": f"{os.getloadavg()[0]:.2f}",
        "torch": str(torch.__version__),
        "streaming kernels": instruction_set() or "none compiled, torch reads and copies",
    }


def _said(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _numbers(ranges: str) -> set[int]:
    """Understand a list of cores as Linux writes it: `0-3,8`."""
    found: set[int] = set()
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
