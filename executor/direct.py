"""Reading a file past the page cache, several requests at once, into aligned memory."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch

from hrm.device.direct_memory import REQUESTS
from hrm.device.huge_pages import aligned_memory
from hrm.errors import FileError
from hrm.memory import DISK_BLOCK_BYTES

__all__ = [
    "REQUESTS",
    "REQUEST_BYTES",
    "DirectFile",
    "Reading",
    "aligned_buffers",
    "finish",
    "request_bounds",
]

Reading = Sequence[Future[None]]
"""Requests in flight that were asked for together."""

REQUEST_BYTES = 4 << 20
"""Bytes of a request at most. On a virtual machine's disk two in flight of 5.3 MB, or four of half that, came in at 4.1
GB/s, one of 5.3 MB at 2.7, and four of a quarter at 3.5: some 10 MB must be on the way."""


def aligned_buffers(
    num_bytes: int, count: int, allocate: Callable[[int], torch.Tensor] = aligned_memory
) -> list[torch.Tensor]:
    """Return buffers like `aligned_memory` of whole blocks each, one behind the other in one piece of memory."""
    return list(allocate(num_bytes * count).view(count, num_bytes).unbind())


def request_bounds(num_bytes: int) -> list[int]:
    """Say where whole blocks are cut into requests, as even as they get: offsets, first and last included.

    >>> request_bounds(6 << 20)
    [0, 3145728, 6291456]
    """
    blocks, count = num_bytes // DISK_BLOCK_BYTES, max(1, math.ceil(num_bytes / REQUEST_BYTES))
    return [blocks * at // count * DISK_BLOCK_BYTES for at in range(count + 1)]


def finish(reading: Reading) -> None:
    """Wait until all was read that was begun together, and raise the first error of it.

    Whatever fails, nothing of it is still being written when this returns.
    """
    for error in [request.exception() for request in reading]:
        if error is not None:
            raise error


class DirectFile:
    """A file open for direct reads, `requests` of them in flight at most.

    A file system that allows none reads through the page cache, and lets go of it.

    Raises
    ------
    FileError
        When the file cannot be opened.
    """

    def __init__(self, path: Path, requests: int = REQUESTS) -> None:
        self._file = _open(path)
        self._threads = ThreadPoolExecutor(max_workers=requests, thread_name_prefix="hrm-disk-read")
        weakref.finalize(self, _close, self._threads, self._file.handle)

    def read(self, offset: int, target: torch.Tensor) -> None:
        """Fill `target` (from `aligned_memory`) from `offset` on; both are whole blocks.

        Raises
        ------
        FileError
            When the file ends early or the disk fails; the text names file and offset.
        """
        finish(self.begin(offset, target))

    def begin(self, offset: int, target: torch.Tensor) -> Reading:
        """Ask for what `read` reads; `target` is whole when `finish` returns. What is asked for first is read first."""
        view = target.numpy().data
        bounds = pairwise(request_bounds(target.numel()))
        return [self._threads.submit(self._file.read, offset + first, view[first:last]) for first, last in bounds]


class _Open(NamedTuple):
    """An open file. Requests in flight hold on to it and not to who asked, so that the latter can wait for them."""

    path: Path
    handle: int
    cached: bool

    def read(self, offset: int, target: memoryview) -> None:
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self.handle, [target[done:]], offset + done)
            except OSError as error:
                raise FileError(
                    f"{self.path}: cannot be read at byte {offset + done}: {error.strerror} (check the disk)"
                ) from None
            done += count
            if count == 0 or count % DISK_BLOCK_BYTES:
                raise FileError(
                    f"{self.path}: ends at byte {offset + done}, {len(target) - done} bytes early "
                    f"(delete it, it is made again)"
                )
        if self.cached:
            os.posix_fadvise(self.handle, offset, len(target), os.POSIX_FADV_DONTNEED)


def _open(path: Path) -> _Open:
    try:
        try:
            return _Open(path, os.open(path, os.O_RDONLY | os.O_DIRECT), cached=False)
        except (AttributeError, OSError):
            return _Open(path, os.open(path, os.O_RDONLY), cached=True)
    except OSError as error:
        raise FileError(f"{path}: cannot be opened: {error.strerror} (check the path)") from None


def _close(threads: ThreadPoolExecutor, handle: int) -> None:
    threads.shutdown(cancel_futures=True)
    os.close(handle)
