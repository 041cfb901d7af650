"""Host memory for reads past the page cache: private pages, huge ones where the system has them.

The disk writes straight into it, so each page is looked up and held for each request, and a request is cut where the
next page lies elsewhere. A system makes huge pages only where 2 MiB of a mapping lie whole between two multiples of
2 MiB: so a mapping begins at one, and small buffers lie in one mapping. On a virtual machine of 2 cores requests of
128 KiB and 1 MiB, 16 in flight, came in at 1.4 and 1.2 GB/s each into a mapping of its own, at 3.8 and 3.6 into one
for all of them.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress

from hrm.units import MIB

__all__ = ["HUGE_BYTES", "REQUESTS", "direct_buffers", "direct_memory", "mapping"]

REQUESTS = 4
"""Requests that the executor has in flight, so that a disk's rate is that of so many."""

HUGE_BYTES = 2 * MIB
"""A huge page."""


def mapping(num_bytes: int, advised_bytes: int) -> memoryview:
    """Return `num_bytes` of zeroed memory from a multiple of 2 MiB on, the first `advised_bytes` in huge pages if any.

    It is a mapping of its own, private to the process; around those bytes it has small pages, whatever the system makes
    of memory that nobody advised. There must be `mmap.MADV_HUGEPAGE`.
    """
    held_bytes = max(num_bytes, advised_bytes) + HUGE_BYTES
    pages = mmap.mmap(-1, held_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    begin = -ctypes.addressof(ctypes.c_char.from_buffer(pages)) % HUGE_BYTES
    with suppress(OSError):  # a kernel without huge pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
        pages.madvise(mmap.MADV_HUGEPAGE, begin, advised_bytes)
    return memoryview(pages)[begin : begin + num_bytes]


def direct_memory(num_bytes: int) -> memoryview:
    """Return `num_bytes` of zeroed memory that begins at a page; what is held is rounded up to whole huge pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(mmap.mmap(-1, num_bytes))
    return mapping(num_bytes, -(-num_bytes // HUGE_BYTES) * HUGE_BYTES)


def direct_buffers(num_bytes: int, count: int) -> list[memoryview]:
    """Return buffers of `num_bytes` each, whole pages, one behind the other in one piece of memory."""
    whole = direct_memory(num_bytes * count)
    return [whole[number * num_bytes : (number + 1) * num_bytes] for number in range(count)]
