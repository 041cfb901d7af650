"""A CUDA device through torch: real streams, events, page-locked memory. Thin, no logic of its own.

Each lane is a worker thread, but on the device's lanes it only issues work to a CUDA stream and goes on: waiting for an
event of the device is done by the device. Work outside the streams is not ordered with work in them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hrm.device.backend import Event
from hrm.device.huge_pages import huge_paged
from hrm.device.locked import locked_bytes
from hrm.device.parts import parts
from hrm.device.streams import StreamSet, WorkerStream, current_lane, physical_cores
from hrm.errors import DeviceError, OutOfMemoryError
from hrm.schedule.task import Lane

__all__ = ["CudaBackend"]


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _lock(address: int, num_bytes: int) -> None:
    if int(_runtime().cudaHostRegister(address, num_bytes, 0)) != 0:
        raise OutOfMemoryError(
            f"cuda: {num_bytes} bytes of host memory cannot be page-locked (plan for less, or pageable)"
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _timed_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]


class _Anchor:
    """A moment known on both clocks: the device's, as an event, and the host's, in `perf_counter` seconds."""

    def __init__(self) -> None:
        self._event = _timed_event()
        torch.cuda.synchronize()
        self._event.record()
        self._event.synchronize()
        self._at_s = time.perf_counter()

    def host_s(self, event: torch.cuda.Event) -> float:
        """Translate an event that the device has passed to the host's clock."""
        return self._at_s + 1e-3 * float(self._event.elapsed_time(event))


class _IssuedEvent:
    """Work issued to a CUDA stream: `issued` ends when the worker has issued it, `wait` when the device has done it."""

    __slots__ = ("_anchor", "begin", "end", "issued")

    issued: Event

    def __init__(self, anchor: _Anchor) -> None:
        self._anchor = anchor
        self.begin = _timed_event()
        self.end = _timed_event()

    def wait(self) -> None:
        """Block until the device has done the work; raises what issuing it raised."""
        self.issued.wait()
        try:
            self.end.synchronize()
        except RuntimeError as error:
            raise DeviceError(f"cuda: {_first_line(error)} (try hrm selftest --device cuda)") from None

    @property
    def started_s(self) -> float:
        """When the device began; valid after `wait`."""
        return self._anchor.host_s(self.begin)

    @property
    def ended_s(self) -> float:
        """When the device ended; valid after `wait`."""
        return self._anchor.host_s(self.end)


class _DeviceStream:
    """A device lane: a worker thread that issues work to one CUDA stream."""

    def __init__(self, lane: Lane, device: torch.device, anchor: _Anchor) -> None:
        self._worker = WorkerStream(lane)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._anchor = anchor

    def submit(self, work: Callable[[], object], after: Sequence[Event] = ()) -> _IssuedEvent:
        event = _IssuedEvent(self._anchor)

        def issue() -> None:
            for other in after:
                if isinstance(other, _IssuedEvent):
                    other.issued.wait()
                    self._stream.wait_event(other.end)
                else:
                    other.wait()
            try:
                with torch.cuda.stream(self._stream):
                    event.begin.record()
                    work()
                    event.end.record()
            except torch.OutOfMemoryError as error:
                raise OutOfMemoryError(f"cuda: {_first_line(error)} (plan again with a smaller micro-batch)") from None

        event.issued = self._worker.submit(issue)
        return event

    def close(self) -> None:
        self._worker.close()
        self._stream.synchronize()


class CudaBackend:
    """The CUDA device `cuda:INDEX` and the host beside it."""

    def __init__(self, index: int = 0) -> None:
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise DeviceError(f"--device cuda:{index}: torch finds no such device (use --device none or emulated)")
        self.name = "cuda"
        self.device = torch.device("cuda", index)
        torch.cuda.set_device(self.device)
        self.memory_capacity_bytes = int(torch.cuda.get_device_properties(self.device).total_memory)
        anchor = _Anchor()
        device_lanes = (Lane.GPU, Lane.H2D, Lane.D2H)
        self._device_streams = {lane: _DeviceStream(lane, self.device, anchor) for lane in device_lanes}
        self._host_streams = StreamSet(self._make_host_stream)
        self._library_bytes = 0
        self.stream(Lane.GPU).submit(self._load_libraries).wait()
        self._library_bytes = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)

    def _load_libraries(self) -> None:
        """Multiply a little, so that libraries and their workspace on the device are there before anyone measures."""
        for dtype in (torch.float32, torch.float16):
            square = torch.ones((64, 64), dtype=dtype, device=self.device)
            torch.mm(square, square)

    def _make_host_stream(self, lane: Lane) -> WorkerStream:
        return WorkerStream(lane, threads=physical_cores() if lane is Lane.CPU else 1)

    @property
    def memory_used_bytes(self) -> int:
        """Device bytes allocated now, without the libraries' own."""
        return torch.cuda.memory_allocated(self.device) - self._library_bytes

    @property
    def memory_peak_bytes(self) -> int:
        """Device bytes allocated at most so far, without the libraries' own."""
        return torch.cuda.max_memory_allocated(self.device) - self._library_bytes

    def stream(self, lane: Lane) -> WorkerStream | _DeviceStream:
        """Return the stream of a lane."""
        return self._device_streams.get(lane) or self._host_streams[lane]

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Allocate device memory. Keep it until the device has done all work on it: other streams may still use it."""
        try:
            return torch.empty(tuple(shape), dtype=dtype, device=self.device)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(f"{self.device}: {_first_line(error)}") from None

    def host_empty(self, shape: Sequence[int], dtype: torch.dtype, *, pinned: bool = False) -> torch.Tensor:
        """Allocate host memory, page-locked if asked."""
        if not pinned:
            return huge_paged(shape, dtype)
        num_bytes = math.prod(shape) * dtype.itemsize
        flat = locked_bytes(num_bytes, _lock, _runtime().cudaHostUnregister)
        return flat.view(dtype).view(tuple(shape))

    def direct_empty(self, num_bytes: int) -> torch.Tensor:
        """Allocate page-locked memory, which begins at a page."""
        return self.host_empty((num_bytes,), torch.uint8, pinned=True)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy over the link in the calling lane's CUDA stream."""
        if current_lane() not in (Lane.H2D, Lane.D2H):
            raise DeviceError(f"copy called from {current_lane() or 'no lane'}: call it on the h2d or d2h stream")
        for part, of in parts(target, source):
            part.copy_(of, non_blocking=True)

    def await_copies(self) -> None:
        """Wait for the calling lane's CUDA stream."""
        torch.cuda.current_stream().synchronize()

    def close(self) -> None:
        """End the streams; further use is an error."""
        self._host_streams.close()
        for stream in self._device_streams.values():
            stream.close()
