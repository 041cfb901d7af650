"""The seam to the machine: streams that work in order, events between them, copies over the link, device memory.

Everything that differs between a CUDA device, the emulated device and no device at all is behind `Backend`. The
engine and the profiler use nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from hrm.schedule.task import Lane

__all__ = ["Backend", "Event", "Stream"]


class Event(Protocol):
    """The end of one submitted piece of work. Times are `time.perf_counter()` seconds, valid once it has ended."""

    @property
    def started_s(self) -> float:
        """When the work began."""

    @property
    def ended_s(self) -> float:
        """When the work ended."""

    def wait(self) -> None:
        """Block the calling thread until the work has ended; raises what the work raised."""


class Stream(Protocol):
    """A lane: work submitted to it runs in order, each piece after the events it was given."""

    def submit(self, work: Callable[[], object], after: Sequence[Event] = ()) -> Event:
        """Queue `work` behind everything submitted before and behind the `after` events; returns at once.

        When a piece of work (or one it waits for) raises, the error is kept: later pieces of the stream that depend on
        it do not run and their events raise it too.
        """


class Backend(Protocol):
    """A device and the host beside it.

    Attributes
    ----------
    name : str
        `none`, `emulated` or `cuda`.
    device : torch.device
        Where device tensors live; the CPU for `none` and `emulated`.
    memory_capacity_bytes : int
        Hard capacity of the device's memory; 0 for `none`.
    memory_used_bytes, memory_peak_bytes : int
        Bytes allocated now, and at most so far.
    """

    name: str
    device: torch.device
    memory_capacity_bytes: int

    @property
    def memory_used_bytes(self) -> int:
        """Device bytes allocated now."""

    @property
    def memory_peak_bytes(self) -> int:
        """Device bytes allocated at most so far."""

    def stream(self, lane: Lane) -> Stream:
        """Return the stream of a lane: always the same object for the same lane."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Allocate device memory (host memory for `none`), counted against the capacity until the tensor dies.

        Raises
        ------
        OutOfMemoryError
            When the capacity would be exceeded; the text gives the bytes asked, used and allowed.
        """

    def host_empty(self, shape: Sequence[int], dtype: torch.dtype, *, pinned: bool = False) -> torch.Tensor:
        """Allocate host memory, page-locked if asked and if the backend can."""

    def direct_empty(self, num_bytes: int) -> torch.Tensor:
        """Allocate host memory that a disk writes straight into and the link reads at its full pace: flat, uint8."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy a tensor into another of equal size and dtype over the link at the link's pace.

        Both are contiguous, or of one shape with gaps only between entries of the first dimension. Called from work on
        the `h2d` or `d2h` stream; the direction follows from that lane.
        """

    def await_copies(self) -> None:
        """Block the calling lane's work until what it has copied so far has arrived: before the host looks at it."""

    def close(self) -> None:
        """End the streams; further use is an error."""
