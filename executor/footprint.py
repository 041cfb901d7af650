"""Host memory that a run takes, held against its ledger: an overrun is an error before it is the system's."""

from __future__ import annotations

import ctypes
import sys

import psutil

from hrm.device.backend import Backend
from hrm.errors import OutOfMemoryError
from hrm.units import MIB, format_bytes

__all__ = ["TOLERANCE", "Footprint"]

TOLERANCE = 0.05
"""Share of the planned bytes by which a run may exceed them."""
_UNPLANNED_BYTES = 128 * MIB
"""What no ledger counts, however small the model: task records, libraries' own buffers, memory freed but not returned.
Tiny models on 2 cores took 10 to 60 MiB of it."""


class Footprint:
    """The process's memory without that of an emulated device, which lies in it: all of it, and what was there before.

    `runtime_bytes` is what the process had when this was made: the interpreter, the libraries, the caller's own. Only
    what comes on top is held against `planned_bytes`; all of it against `limit_bytes`.

    Raises
    ------
    OutOfMemoryError
        When the plan does not fit the limit.
    """

    def __init__(self, backend: Backend, planned_bytes: int, limit_bytes: int | None = None) -> None:
        self._process = psutil.Process()
        self._backend = backend
        self.planned_bytes = planned_bytes
        _give_back_freed()
        self.runtime_bytes = self._held_bytes()
        self.peak_bytes = 0
        self._limit_bytes = limit_bytes
        self._hold_to_limit(planned_bytes)

    def _hold_to_limit(self, held_bytes: int) -> None:
        if self._limit_bytes is not None and self.runtime_bytes + held_bytes > self._limit_bytes:
            raise OutOfMemoryError(
                f"--ram-limit {format_bytes(self._limit_bytes)}: the run needs {format_bytes(held_bytes)} beside "
                f"{format_bytes(self.runtime_bytes)} of libraries (raise it, or solve again with it on a profile "
                f"that measured the libraries)"
            )

    def _held_bytes(self) -> int:
        held: int = self._process.memory_info().rss - self._inside_bytes()
        return held

    def _inside_bytes(self) -> int:
        """Return what an emulated device holds: its memory lies in the process."""
        return self._backend.memory_used_bytes if self._backend.device.type == "cpu" else 0

    def look(self) -> None:
        """Note what is held now.

        Raises
        ------
        OutOfMemoryError
            When it is beyond the plan.
        """
        allowed_bytes = (1 + TOLERANCE) * self.planned_bytes + _UNPLANNED_BYTES
        held_bytes = self._held_bytes() - self.runtime_bytes
        if held_bytes > allowed_bytes:
            _give_back_freed()
            held_bytes = self._held_bytes() - self.runtime_bytes
        self.peak_bytes = max(self.peak_bytes, held_bytes)
        self._hold_to_limit(self.peak_bytes)
        if self.peak_bytes > allowed_bytes:
            raise OutOfMemoryError(
                f"host memory: the run holds {self.peak_bytes} bytes ({format_bytes(self.peak_bytes)}) beside "
                f"{format_bytes(self.runtime_bytes)} of libraries{self._parts()}, its plan counts {self.planned_bytes} "
                f"({format_bytes(self.planned_bytes)}): plan for these very prompts, or with a smaller batch"
            )

    def _parts(self) -> str:
        """Say what else the process holds now, as far as it is known: it may be what is too much."""
        memory, inside = self._process.memory_info(), self._inside_bytes()
        mapped = f", {format_bytes(memory.shared)} in mapped files" if hasattr(memory, "shared") else ""
        return mapped + (f", {format_bytes(inside)} of the emulated device" if inside else "")


def _give_back_freed() -> None:
    """Let the C library give back what was freed and it still holds, between blocks in use; where it can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
