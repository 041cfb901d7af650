"""The compiled library: found beside this file, loaded by ctypes, its path chosen by what the CPU has.

It is an optional part of the installation: without a C++ compiler the package installs all the same and kernels run
through torch, slower. A call through ctypes releases the interpreter lock. Threads are those of the OpenMP runtime that
torch itself runs on, where it has one: they are up already, and no second pool competes with them.

Two environment variables are read at each call: `HRM_NATIVE=0` turns the library off, and
`HRM_NATIVE_ISA=scalar|avx2|avx512|avx512_bf16` forces one of its paths instead of the best that the CPU has.

What a thread asks for is called by `call`, so that `recording` can list it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import NamedTuple

from hrm.device.openmp import parallel_address
from hrm.errors import DeviceError

__all__ = [
    "Call",
    "Recording",
    "available",
    "call",
    "chosen_path",
    "instruction_sets",
    "keep",
    "library",
    "recording",
    "status_line",
]

_INTERFACE_VERSION = 7
_INSTRUCTION_SETS = ("scalar", "avx2", "avx512", "avx512_bf16")


class Call(NamedTuple):
    """A kernel with the arguments of a call. They hold pointers: what these point to must live as long."""

    kernel: Callable[..., int | None]
    arguments: tuple[object, ...]


class Recording(NamedTuple):
    """What a thread has called, and memory made for it that lives as long as the calls."""

    calls: list[Call]
    kept: list[object]


class _Here(threading.local):
    """The thread's recording; None outside of one."""

    recording: Recording | None = None


_here = _Here()


@contextmanager
def recording() -> Iterator[Recording]:
    """List what this thread calls inside the block."""
    outside, _here.recording = _here.recording, Recording([], [])
    try:
        yield _here.recording
    finally:
        _here.recording = outside


def keep(*memory: object) -> None:
    """Let memory that was made for a kernel's output live as long as what is recorded, if anything is."""
    if _here.recording is not None:
        _here.recording.kept.extend(memory)


def call(kernel: str, num_threads: int, *jobs: ctypes.Structure) -> int | None:
    """Run a kernel on the path of this CPU; 0 or None if all is well. There must be a library."""
    compiled = library()
    assert compiled is not None
    asked = Call(getattr(compiled, f"hrm_{kernel}"), (*map(ctypes.byref, jobs), chosen_path(), num_threads))
    if _here.recording is not None:
        _here.recording.calls.append(asked)
    return asked.kernel(*asked.arguments)


def library() -> ctypes.CDLL | None:
    """Return the compiled library; None where it is not installed or turned off by `HRM_NATIVE=0`."""
    return _library() if _enabled() else None


def chosen_path() -> int:
    """Return the number of the path to run, for the library's calls."""
    return _chosen_path(os.environ.get("HRM_NATIVE_ISA", ""))


def available() -> bool:
    """Whether the compiled library is installed, usable and not turned off by `HRM_NATIVE=0`."""
    return library() is not None


def instruction_sets() -> tuple[str, ...]:
    """Paths of the compiled library that this CPU can run, slowest first; empty where it is not available."""
    found = library()
    if found is None:
        return ()
    return tuple(name for path, name in enumerate(_INSTRUCTION_SETS) if found.hrm_has_path(path))


def status_line() -> str:
    """One line for reports: which compiled path runs, or why none does and what to do."""
    if not _enabled():
        return "compiled kernels: none, using torch (HRM_NATIVE=0)"
    if _library() is None:
        return "compiled kernels: none, using torch (install a C++ compiler and reinstall)"
    return f"compiled kernels: {_INSTRUCTION_SETS[chosen_path()]}"


def _enabled() -> bool:
    return os.environ.get("HRM_NATIVE", "1") != "0"


@cache
def _library() -> ctypes.CDLL | None:
    """Load the library that lies beside this file; None where there is none, or one built from other sources."""
    here = Path(__file__).parent
    for path in (here / f"_kernels{suffix}" for suffix in EXTENSION_SUFFIXES):
        if not path.exists():
            continue
        try:
            found = ctypes.CDLL(str(path))
            if found.hrm_interface_version() != _INTERFACE_VERSION:
                continue
            pointer, number = ctypes.c_void_p, ctypes.c_int32
            found.hrm_decode_attention.argtypes = (pointer, number, number)
            found.hrm_prefill_attention.argtypes = (pointer, number, number)
            found.hrm_append_kv.argtypes = (pointer, number, number)
            found.hrm_move_rows.argtypes = (pointer, number, number)
            for name in ("linear", "experts", "rms_norm", "rotate", "copy_rows", "add", "route", "largest"):
                kernel = getattr(found, f"hrm_{name}")
                kernel.argtypes, kernel.restype = (pointer, number, number), None
            found.hrm_add_norm.argtypes, found.hrm_add_norm.restype = (pointer, pointer, number, number), None
            found.hrm_use_openmp.argtypes, found.hrm_use_openmp.restype = (pointer,), None
            found.hrm_use_openmp(parallel_address())
            return found
        except (OSError, AttributeError):
            continue
    return None


@cache
def _chosen_path(asked: str) -> int:
    """Return the number of the path that was asked for, or of the last that the CPU has when nothing was."""
    allowed = instruction_sets()
    if asked and asked not in allowed:
        raise DeviceError(f"HRM_NATIVE_ISA: {asked!r} cannot run on this CPU (choose one of {', '.join(allowed)})")
    return _INSTRUCTION_SETS.index(asked or allowed[-1])
