"""`none`: no device beside the host. Work runs on the CPU lane; there is no link."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hrm.device.huge_pages import aligned_memory, huge_paged
from hrm.device.streams import StreamSet, WorkerStream, physical_cores
from hrm.errors import DeviceError
from hrm.schedule.task import Lane

__all__ = ["HostBackend"]


class HostBackend:
    """The host alone. The CPU lane uses `threads` threads, by default one per physical core that is allowed."""

    def __init__(self, *, threads: int | None = None) -> None:
        self.name = "none"
        self.device = torch.device("cpu")
        self.memory_capacity_bytes = 0
        self._threads = threads or physical_cores()
        self._streams = StreamSet(self._make_stream)

    def _make_stream(self, lane: Lane) -> WorkerStream:
        if lane in (Lane.GPU, Lane.H2D, Lane.D2H):
            raise DeviceError(
                f"lane {lane}: there is no device here (use --device emulated, or plan for the CPU alone)"
            )
        return WorkerStream(lane, threads=self._threads if lane is Lane.CPU else 1)

    @property
    def memory_used_bytes(self) -> int:
        """Always 0: host memory is not counted."""
        return 0

    @property
    def memory_peak_bytes(self) -> int:
        """Always 0: host memory is not counted."""
        return 0

    def stream(self, lane: Lane) -> WorkerStream:
        """Return the stream of a host lane.

        Raises
        ------
        DeviceError
            For the lanes of a device: `gpu`, `h2d`, `d2h`.
        """
        return self._streams[lane]

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Allocate host memory."""
        return huge_paged(shape, dtype)

    def host_empty(self, shape: Sequence[int], dtype: torch.dtype, *, pinned: bool = False) -> torch.Tensor:  # noqa: ARG002
        """Allocate host memory; without a device there is nothing to pin it for."""
        return huge_paged(shape, dtype)

    def direct_empty(self, num_bytes: int) -> torch.Tensor:
        """Allocate host memory that a disk writes straight into, in huge pages."""
        return aligned_memory(num_bytes)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Fail: there is no link."""
        raise DeviceError(
            f"copy of {source.nbytes} bytes into {target.nbytes}: there is no link without a device "
            f"(use --device emulated)"
        )

    def await_copies(self) -> None:
        """Do nothing: `copy` returns when all has arrived."""

    def close(self) -> None:
        """End the streams; further use is an error."""
        self._streams.close()
