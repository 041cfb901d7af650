"""One flat buffer per lane from which its work takes temporaries: counted, mapped once, never freed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from executor.memory import Allocate
from hrm.errors import OutOfMemoryError

__all__ = ["ALIGNMENT_BYTES", "Workspace", "host_workspace"]

ALIGNMENT_BYTES = 64


class Workspace:
    """A stack of temporaries. What a `frame` took is free again when the frame ends.

    Tasks of a lane run one after another, so one workspace serves the whole lane.
    """

    def __init__(self, capacity_bytes: int, allocate: Allocate) -> None:
        self.capacity_bytes = capacity_bytes
        self.peak_bytes = 0
        self._used_bytes = 0
        self._flat = allocate((capacity_bytes,), torch.uint8).zero_()

    @contextmanager
    def frame(self) -> Iterator[None]:
        """Give back at the end of the block what was taken inside."""
        before = self._used_bytes
        try:
            yield
        finally:
            self._used_bytes = before

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a contiguous tensor with arbitrary contents, valid until the enclosing frame ends.

        Raises
        ------
        OutOfMemoryError
            When the workspace is too small: the engine sized it for less than it runs.
        """
        num_bytes = math.prod(shape) * dtype.itemsize
        first = self._used_bytes
        last = first + num_bytes
        if last > self.capacity_bytes:
            raise OutOfMemoryError(
                f"workspace: {num_bytes} bytes asked with {first} of {self.capacity_bytes} in use (use a smaller "
                f"micro-batch)"
            )
        self._used_bytes = -(-last // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        self.peak_bytes = max(self.peak_bytes, last)
        return self._flat[first:last].view(dtype).view(tuple(shape))


def host_workspace(capacity_bytes: int) -> Workspace:
    """Make a workspace in host memory."""
    return Workspace(capacity_bytes, lambda shape, dtype: torch.empty(tuple(shape), dtype=dtype))
