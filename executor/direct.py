"""Reading a file past the page cache, several requests at once, into aligned memory."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import torch

from hrm.device.direct_memory import REQUESTS, direct_memory
from hrm.errors import FileError
from hrm.memory import DISK_BLOCK_BYTES

__all__ = ["REQUESTS", "DirectFile", "Reading", "aligned_buffers", "aligned_memory", "finish"]

Reading = Sequence[Future[None]]
"""Requests in flight that were asked for together."""


def aligned_memory(num_bytes: int) -> torch.Tensor:
    """Return zeroed host memory that begins at a page, as reads past the page cache ask for: flat, uint8."""
    return torch.frombuffer(direct_memory(num_bytes), dtype=torch.uint8)


def aligned_buffers(num_bytes: int, count: int) -> list[torch.Tensor]:
    """Return buffers like `aligned_memory` of whole blocks each, one behind the other in one piece of memory."""
    return list(aligned_memory(num_bytes * count).view(count, num_bytes).unbind())


def finish(reading: Reading) -> None:
    """Wait until all was read that was begun together, and raise the first error of it.

    Whatever fails, nothing of it is still being written when this returns.
    """
    for error in [request.exception() for request in reading]:
        if error is not None:
            raise error


class DirectFile:
    """A file open for direct reads, `requests` of them in flight at most: a piece of it is cut into as many.

    A file system that allows none reads through the page cache, and lets go of it.

    Raises
    ------
    FileError
        When the file cannot be opened.
    """

    def __init__(self, path: Path, requests: int = REQUESTS) -> None:
        self.path = path
        try:
            try:
                self._handle, self._cached = os.open(path, os.O_RDONLY | os.O_DIRECT), False
            except (AttributeError, OSError):
                self._handle, self._cached = os.open(path, os.O_RDONLY), True
        except OSError as error:
            raise FileError(f"{path}: cannot be opened: {error.strerror} (check the path)") from None
        self._requests = requests
        self._threads = ThreadPoolExecutor(max_workers=requests, thread_name_prefix="hrm-disk-read")
        weakref.finalize(self, _close, self._threads, self._handle)

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
        blocks = target.numel() // DISK_BLOCK_BYTES
        bounds = [blocks * at // self._requests * DISK_BLOCK_BYTES for at in range(self._requests + 1)]
        view = target.numpy().data
        return [self._threads.submit(self._read, offset + first, view[first:last]) for first, last in pairwise(bounds)]

    def _read(self, offset: int, target: memoryview) -> None:
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._handle, [target[done:]], offset + done)
            except OSError as error:
                raise FileError(
                    f"{self.path}: cannot be read at byte {offset + done}: {error.strerror} (check the disk)"
                ) from None
            if count == 0:
                raise FileError(
                    f"{self.path}: ends at byte {offset + done}, {len(target) - done} bytes early "
                    f"(delete it, it is made again)"
                )
            done += count
        if self._cached:
            os.posix_fadvise(self._handle, offset, len(target), os.POSIX_FADV_DONTNEED)


def _close(threads: ThreadPoolExecutor, handle: int) -> None:
    threads.shutdown()
    os.close(handle)
