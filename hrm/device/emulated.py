"""The emulated device: a second processor in the same box, with memory and a link of its own.

A wind tunnel. Compute runs on real cores set apart for the device, every copied byte is really moved, lanes really
overlap and contend; only the pace of the link and of the host is imposed, after the work was done. The cores of a
slowed host do not halt while it sleeps, for a slow host would not (`hrm.device.awake`).
"""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Iterable, Sequence

import torch

from hrm.device.arena import Arena
from hrm.device.awake import Awake
from hrm.device.huge_pages import aligned_memory, huge_paged
from hrm.device.parts import parts
from hrm.device.streams import StreamSet, WorkerStream, WorkEvent, allowed_cores, current_event, current_lane
from hrm.errors import DeviceError
from hrm.hardware import EmulatedSpec
from hrm.schedule.task import Lane

__all__ = ["EmulatedBackend", "PacedLink"]

_CHUNK_BYTES = 256 * 1024
_CHUNK_S = 2e-3
"""Bytes between two looks at the clock: at least the former, and what crosses in the latter. Fine enough to spread a
copy over its time; coarse enough to leave the interpreter lock to the lanes that compute."""
_AHEAD_S = 2e-4
"""How far a copy may run ahead of the pace before it sleeps: a shorter sleep costs more than it spreads."""


class PacedLink:
    """One direction of the emulated link: moves bytes in chunks and never faster than its pace.

    Like a real one it goes on from copy to copy by itself: a copy that was ready while the one before still crossed
    starts when that one ends, however late the host's thread wakes up.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_s = 0.0

    def copy(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], event: WorkEvent) -> None:
        """Move the second tensor of each pair into the first; they have arrived at the pace after `settle`.

        Each chunk has its own deadline, counted from when `event` was ready and the link free, so that late wake-ups
        do not add up; the event starts then too.
        """
        until_s = max(event.ready_s, self._free_s)
        event.started_s = min(event.started_s, until_s)
        chunk_bytes = max(_CHUNK_BYTES, int(_CHUNK_S * self.bytes_per_s))
        for target, source in pairs:
            num_bytes = source.nbytes
            target_address, source_address = target.data_ptr(), source.data_ptr()
            for offset in range(0, num_bytes, chunk_bytes):
                size = min(chunk_bytes, num_bytes - offset)
                # memmove through ctypes lets go of the interpreter lock: other lanes run meanwhile.
                ctypes.memmove(target_address + offset, source_address + offset, size)
                until_s += size / self.bytes_per_s
                _sleep_until(until_s - _AHEAD_S)
        self._free_s = until_s

    def settle(self) -> None:
        """Wait until what was copied has arrived."""
        _sleep_until(self._free_s)


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
        self._awake = Awake(self._host_cores if spec.host_slowdown > 1.0 else ())
        weakref.finalize(self, self._awake.close)

    def _make_stream(self, lane: Lane) -> WorkerStream:
        if lane is Lane.GPU:
            return WorkerStream(lane, cores=self._device_cores, threads=len(self._device_cores))
        if link := self._links.get(lane):
            return WorkerStream(lane, cores=self._host_cores, settle=link.settle)
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
        return huge_paged(shape, dtype)

    def direct_empty(self, num_bytes: int) -> torch.Tensor:
        """Allocate host memory that a disk writes straight into, in huge pages."""
        return aligned_memory(num_bytes)

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
        link.copy(parts(target, source), current_event())

    def await_copies(self) -> None:
        """Block until what the calling lane has copied has arrived."""
        lane = current_lane()
        if link := self._links.get(lane) if lane is not None else None:
            link.settle()

    def close(self) -> None:
        """End the streams; further use is an error."""
        self._streams.close()
        self._awake.close()


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
