"""Device memory of the emulated device: host memory with a hard capacity, counted until each tensor dies."""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import torch

from hrm.device.huge_pages import huge_paged
from hrm.errors import OutOfMemoryError
from hrm.units import format_bytes

__all__ = ["Arena"]

_PAGE_BYTES = 4096


class Arena:
    """Hands out tensors and counts their bytes until the last view of each is gone."""

    def __init__(self, capacity_bytes: int, *, name: str = "device") -> None:
        self.capacity_bytes = capacity_bytes
        self._name = name
        self._used_bytes = 0
        self._peak_bytes = 0
        self._lock = threading.Lock()
        # A tensor may die anywhere, even inside this class while the lock is held: its end is only noted here (an
        # append is atomic) and counted at the next look.
        self._freed_bytes: deque[int] = deque()

    @property
    def used_bytes(self) -> int:
        """Bytes of the tensors alive."""
        with self._lock:
            return self._settle()

    @property
    def peak_bytes(self) -> int:
        """Bytes alive at most so far."""
        with self._lock:
            return self._peak_bytes

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Allocate a tensor whose memory is mapped already, so that no timed work meets a page fault.

        Raises
        ------
        OutOfMemoryError
            When the capacity would be exceeded; nothing is allocated then.
        """
        num_bytes = math.prod(shape) * dtype.itemsize
        self._reserve(num_bytes)
        try:
            tensor = huge_paged(shape, dtype)
        except BaseException:
            self._freed_bytes.append(num_bytes)
            raise
        # The storage outlives every tensor and view on it, and dies with the last of them.
        weakref.finalize(tensor.untyped_storage(), self._freed_bytes.append, num_bytes).atexit = False
        _touch(tensor)
        return tensor

    def _reserve(self, num_bytes: int) -> None:
        with self._lock:
            used_bytes = self._settle()
            if used_bytes + num_bytes > self.capacity_bytes:
                raise OutOfMemoryError(
                    f"{self._name} memory: {num_bytes} bytes asked with {used_bytes} in use exceed the capacity of "
                    f"{self.capacity_bytes} bytes ({format_bytes(self.capacity_bytes)}): use a smaller batch or "
                    f"micro-batch, or fewer resident weights"
                )
            self._used_bytes = used_bytes + num_bytes
            self._peak_bytes = max(self._peak_bytes, self._used_bytes)

    def _settle(self) -> int:
        while self._freed_bytes:
            self._used_bytes -= self._freed_bytes.popleft()
        return self._used_bytes


def _touch(tensor: torch.Tensor) -> None:
    if tensor.numel():
        flat = tensor.view(-1).view(torch.uint8)
        flat[::_PAGE_BYTES].zero_()
        flat[-1] = 0
