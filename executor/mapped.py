"""Memory-mapped pages: they count as the process's memory from the first touch until they are let go."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import torch

__all__ = ["drop_cache", "let_go"]

_MADV_DONTNEED = 4


def let_go(mapped: torch.Tensor) -> None:
    """Unmap the pages that lie wholly inside a tensor of a file mapped for reading; it reads the file again if asked.

    Never for other memory, whose contents would be lost. Elsewhere than on Linux nothing happens.
    """
    page = mmap.PAGESIZE
    first = -(-mapped.data_ptr() // page) * page
    num_bytes = (mapped.data_ptr() + mapped.nbytes) // page * page - first
    if num_bytes > 0 and sys.platform == "linux":
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(num_bytes), _MADV_DONTNEED)


def drop_cache(path: Path) -> None:
    """Let the page cache go of a file that is read no more; elsewhere than on Linux nothing happens."""
    if sys.platform != "linux":
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
