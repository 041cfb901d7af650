"""Compiled parts of the profiler: kernels that stream through memory, and reads of a file with several in flight.

The kernels read, copy and do the triad, with regular and with non-temporal stores. All of it is an optional part of the
installation, as `executor.native` is: without a C compiler the profiler measures reading and copying through torch,
leaves out what torch has no kernel for, and reads files by threads of Python. A call goes through ctypes, which
releases the interpreter lock, so threads of Python can work side by side.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from enum import IntEnum
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["GRANULE_BYTES", "Stream", "available", "instruction_set", "read_requests", "stream", "streams"]

GRANULE_BYTES = 512
"""Lengths are multiples of this."""

_ALIGNMENT_BYTES = 64
_INTERFACE_VERSION = 2
_PATHS = ("plain loops", "AVX2", "AVX-512")


class Stream(IntEnum):
    """A kernel, as streams.c numbers them; `NT` writes past the caches, without reading the lines first."""

    READ = 0
    COPY = 1
    COPY_NT = 2
    TRIAD = 3
    TRIAD_NT = 4

    @property
    def buffers(self) -> int:
        """Buffers that a pass goes through: bytes counted are so many times the length of one."""
        return {Stream.READ: 1, Stream.COPY: 2, Stream.COPY_NT: 2}.get(self, 3)


def available() -> bool:
    """Whether the compiled kernels are installed."""
    return _library() is not None


def instruction_set() -> str:
    """Which path of the compiled kernels this CPU runs; empty where there are none."""
    library = _library()
    return "" if library is None else _PATHS[library.hrm_streams_path()]


def streams() -> tuple[Stream, ...]:
    """Kernels that this CPU can run; none without the compiled library."""
    library = _library()
    if library is None:
        return ()
    non_temporal = library.hrm_streams_path() > 0
    return tuple(kind for kind in Stream if non_temporal or not kind.name.endswith("_NT"))


def stream(kind: Stream, buffers: tuple[torch.Tensor, ...], passes: int) -> None:
    """Run a kernel over its buffers `passes` times, in the calling thread.

    Parameters
    ----------
    kind : Stream
        One of `streams()`.
    buffers : tuple of torch.Tensor
        The target, then what is read: `(a, b)`, or `(a, b, c)` for a triad of float64. A read's target takes the sum of
        b's 64-bit words, added up over all passes; elsewhere all are of one length.
    passes : int
        How often.

    Raises
    ------
    ValueError
        When the buffers' lengths or addresses do not suit the kernels, or the CPU does not have this one.
    """
    target, *sources = buffers
    length = sources[0].nbytes
    written = [] if kind is Stream.READ else [target]
    if length % GRANULE_BYTES or any(buffer.nbytes != length for buffer in (*sources, *written)):
        raise ValueError(f"{kind.name}: lengths must be equal multiples of {GRANULE_BYTES} bytes, got {length}")
    if any(buffer.data_ptr() % _ALIGNMENT_BYTES or not buffer.is_contiguous() for buffer in buffers):
        raise ValueError(f"{kind.name}: buffers must be contiguous and begin at a multiple of {_ALIGNMENT_BYTES} bytes")
    if kind not in streams() or len(buffers) != max(2, kind.buffers):
        raise ValueError(f"{kind.name} with {len(buffers)} buffers: this CPU runs {[one.name for one in streams()]}")
    library = _library()
    assert library is not None
    library.hrm_stream(int(kind), target.data_ptr(), sources[0].data_ptr(), sources[-1].data_ptr(), length, passes)


def read_requests(handle: int, buffers: Sequence[memoryview], offsets: Sequence[int]) -> bool:
    """Fill a buffer from each of `offsets`, as many requests at a time as there are buffers of one length.

    Returns False, with nothing read, where there is no compiled reader.

    Raises
    ------
    OSError
        When a read fails or ends early.
    """
    library = _library()
    if library is None:
        return False
    size, depth = len(buffers[0]), len(buffers)
    held = [(ctypes.c_char * size).from_buffer(buffer) for buffer in buffers]
    addresses = (ctypes.c_void_p * depth)(*(ctypes.addressof(one) for one in held))
    places = (ctypes.c_int64 * len(offsets))(*offsets)
    if code := library.hrm_read(handle, addresses, depth, size, places, len(offsets)):
        raise OSError(code, os.strerror(code))
    return True


@cache
def _library() -> ctypes.CDLL | None:
    """Load the library that lies beside this file; None where there is none, or one built from other sources."""
    here = Path(__file__).parent
    for path in (here / f"_streams{suffix}" for suffix in EXTENSION_SUFFIXES):
        if not path.exists():
            continue
        try:
            library = ctypes.CDLL(str(path))
            if library.hrm_streams_version() != _INTERFACE_VERSION:
                continue
            pointer, number = ctypes.c_void_p, ctypes.c_int64
            library.hrm_stream.argtypes = (ctypes.c_int, pointer, pointer, pointer, number, number)
            library.hrm_read.argtypes = (ctypes.c_int, pointer, ctypes.c_int, number, pointer, number)
            return library
        except (OSError, AttributeError):
            continue
    return None
