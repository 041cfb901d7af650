"""Page-locked host memory of exactly the size asked for: torch's own comes in powers of two, up to twice the bytes."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import torch

__all__ = ["locked_bytes"]


class _Pages(mmap.mmap):
    """Pages that are unlocked just before they are unmapped."""

    unlock: Callable[[], object] | None = None

    def __del__(self) -> None:
        """Unlock what was locked."""
        if self.unlock is not None:
            self.unlock()


def locked_bytes(num_bytes: int, lock: Callable[[int, int], object], unlock: Callable[[int], object]) -> torch.Tensor:
    """Return a tensor of bytes in pages of its own; they are locked, by address and size, until its storage dies."""
    pages = _Pages(-1, max(1, num_bytes))
    flat = torch.frombuffer(pages, dtype=torch.uint8)
    address = flat.data_ptr()
    lock(address, flat.nbytes)
    pages.unlock = lambda: unlock(address)
    return flat[:num_bytes]
