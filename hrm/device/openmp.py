"""The OpenMP runtime that torch runs on, and the threads that it keeps for each thread that has worked in parallel."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

__all__ = ["end_helpers", "parallel_address"]

_PAUSE_SOFT = 1
"""`omp_pause_soft`: threads end, settings stay."""


def parallel_address() -> int | None:
    """Return the address of `GOMP_parallel`; None where torch has no such runtime."""
    parallel = getattr(_runtime(), "GOMP_parallel", None)
    return None if parallel is None else ctypes.cast(parallel, ctypes.c_void_p).value


def end_helpers() -> None:
    """End the threads that help the calling thread; it gets new ones when it works in parallel again.

    A helper looks out for work for a while before it sleeps, unless there are more threads than cores in all: then each
    call wakes it anew. Layers of 80 rows on 2 cores took 1.4 times as long beside an idle helper of another thread.
    """
    pause = getattr(_runtime(), "omp_pause_resource_all", None)
    if pause is not None:
        pause(_PAUSE_SOFT)


@cache
def _runtime() -> ctypes.CDLL | None:
    """Return a library through which the runtime's names are found."""
    import torch

    for path in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        try:
            # A library's handle also finds the names of those that it depends on.
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    return None
