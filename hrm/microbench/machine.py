"""What the machine is, as far as it says: processor, memory, versions."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil
import torch

__all__ = ["cpu_model", "memory_bytes", "setting"]

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


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
    try:
        limit = int(_CGROUP_LIMIT.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return total, available
    return min(total, limit), min(available, limit)


def setting() -> str:
    """Return what a CPU measurement depends on: processor, instruction set, torch."""
    return f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
