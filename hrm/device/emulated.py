"""The emulated device: a second processor in the same box, with memory and a link of its own.

A wind tunnel. Compute runs on real cores set apart for the device, every copied byte is really moved, lanes really
overlap and contend; only the pace of the link and of the host is imposed, after the work was done.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence

import torch

from hrm.device.arena import Arena
from hrm.device.streams import StreamSet, WorkerStream, allowed_cores, current_lane
from hrm.errors import DeviceError
from hrm.hardware import EmulatedSpec
from hrm.schedule.task import Lane

__all__ = ["EmulatedBackend", "PacedLink"]

_CHUNK_BYTES = 256 * 1024
"""Bytes between two looks at the clock: fine enough to spread a copy over its time, coarse enough to cost nothing."""


class PacedLink:
    """One direction of the emulated link: moves bytes in chunks and never faster than its pace."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s

    def copy(self, target_address: int, source_address: int, num_bytes: int) -> None:
        """Move bytes, and return no sooner than `num_bytes / bytes_per_s` seconds later.

        Each chunk has its own deadline counted from the start of the copy, so that late wake-ups do not add up.
        """
        begun_s = time.perf_counter()
        for offset in range(0, num_bytes, _CHUNK_BYTES):
            end = min(offset + _CHUNK_BYTES, num_bytes)
            # memmove through ctypes lets go of the interpreter lock: other lanes run meanwhile.
            ctypes.memmove(target_address + offset, source_address + offset, end - offset)
            _sleep_until(begun_s + end / self.bytes_per_s)


def _sleep_until(deadline_s: float) -> None:
    while (left_s := deadline_s - time.perf_counter()) > 0:
        time.sleep(left_s)


class EmulatedBackend:
    """A device posed by an `EmulatedSpec`. Core numbers count the cores this process may use, from 0."""

    def __init__(self, spec: EmulatedSpec) -> None:
        self.name = "emulated"
        self.device = torch.device("cpu")
        self.spec = spec
        self.memory_capacity_bytes = spec.memory_capacity_bytes
        self._device_cores, self._host_cores = _real_cores(spec)
        self._arena = Arena(spec.memory_capacity_bytes, name="emulated device")
        self._links = {Lane.H2D: PacedLink(spec.h2d_bytes_per_s), Lane.D2H: PacedLink(spec.d2h_bytes_per_s)}
        self._streams = StreamSet(self._make_stream)

    def _make_stream(self, lane: Lane) -> WorkerStream:
        if lane is Lane.GPU:
            return WorkerStream(lane, cores=self._device_cores, threads=len(self._device_cores))
        # Staging into pinned memory is the host's work too, so it is as slow as the host.
        slowdown = self.spec.host_slowdown if lane in (Lane.CPU, Lane.PIN) else 1.0
        threads = len(self._host_cores) if lane is Lane.CPU else 1
        return WorkerStream(lane, cores=self._host_cores, threads=threads, slowdown=slowdown)

    @property
    def memory_used_bytes(self) -> int:
        """Device bytes allocated now."""
        return self._arena.used_bytes

    @property
    def memory_peak_bytes(self) -> int:
        """Device bytes allocated at most so far."""
        return self._arena.peak_bytes

    def stream(self, lane: Lane) -> WorkerStream:
        """Return the stream of a lane: the `gpu` lane on the device's cores, all others on the host's."""
        return self._streams[lane]

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Allocate device memory, counted against the capacity until the last view of it dies."""
        return self._arena.empty(shape, dtype)

    def host_empty(self, shape: Sequence[int], dtype: torch.dtype, *, pinned: bool = False) -> torch.Tensor:  # noqa: ARG002
        """Allocate host memory; the emulated link reads all of it at the same pace, pinned or not."""
        return torch.empty(tuple(shape), dtype=dtype)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Move every byte of `source` over the link at the pace of the calling lane's direction.

        Raises
        ------
        DeviceError
            When called from elsewhere than the `h2d` or `d2h` stream, or the two tensors do not match.
        """
        lane = current_lane()
        link = self._links.get(lane) if lane is not None else None
        if link is None:
            raise DeviceError(f"copy called from {lane or 'no lane'}: call it in work of the h2d or d2h stream")
        if target.dtype != source.dtype or target.numel() != source.numel():
            raise DeviceError(
                f"copy of {source.numel()} {source.dtype} into {target.numel()} {target.dtype}: sizes and dtypes differ"
            )
        if not (target.is_contiguous() and source.is_contiguous()):
            raise DeviceError("copy of a tensor with gaps: make both tensors contiguous")
        link.copy(target.data_ptr(), source.data_ptr(), source.nbytes)

    def await_copies(self) -> None:
        """Do nothing: `copy` returns when all has arrived."""

    def close(self) -> None:
        """End the streams; further use is an error."""
        self._streams.close()


def _real_cores(spec: EmulatedSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    allowed = allowed_cores()
    if len(allowed) < 2:
        raise DeviceError(
            f"--device emulated:{spec.name}: this process may use one core only, and the emulated device needs one of "
            f"its own (use --device none, or allow a second core)"
        )
    for field_name, cores in (("device_cores", spec.device_cores), ("host_cores", spec.host_cores)):
        if not cores or not all(0 <= core < len(allowed) for core in cores):
            raise DeviceError(
                f"{spec.name}: {field_name}: {list(cores)} must name cores from 0 to {len(allowed) - 1} (edit the file)"
            )
    if shared := set(spec.device_cores) & set(spec.host_cores):
        raise DeviceError(f"{spec.name}: device_cores and host_cores share {sorted(shared)} (give each its own cores)")
    return tuple(allowed[core] for core in spec.device_cores), tuple(allowed[core] for core in spec.host_cores)
