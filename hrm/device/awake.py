"""Keeps the cores of a slowed host from halting while it sleeps.

A host is slowed by sleeping after each piece of work. A host that is slow would not halt meanwhile, but the core of a
virtual machine does, and is slower at first when it goes on. What that costs, multiplied by the slowdown, belongs to
the emulation and not to the host: after 12 ms the first kernel took 0.1 to 0.2 ms more on a Zen 5, where the core
spins 0.03 to 0.1 ms.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable

__all__ = ["Awake"]

_WORD_BITS = 8 * ctypes.sizeof(ctypes.c_ulong)
_locks_lent: list[ctypes.Array[ctypes.c_char]] = []
"""Spin locks are not freed: a thread may look at its own a last time after it was let go."""


class Awake:
    """A thread per core that spins while nobody else wants the core, until `close`; on Linux only.

    By its policy, SCHED_IDLE, any other thread that wakes up takes the core from it at once. It waits in the C library
    for a spin lock that is held here, never in Python: it must not hold the interpreter lock when it is put aside.
    """

    def __init__(self, cores: Iterable[int]) -> None:
        self._locks = [lock for core in cores if (lock := _spin_on(core))] if sys.platform == "linux" else []

    def close(self) -> None:
        """Let the threads go; again does nothing."""
        while self._locks:
            ctypes.CDLL(None).pthread_spin_unlock(self._locks.pop())


def _spin_on(core: int) -> ctypes.Array[ctypes.c_char] | None:
    """Start a thread that spins on a core until the lock returned is let go; None where the system forbids it."""
    libc, thread, priority = ctypes.CDLL(None), ctypes.c_ulong(), ctypes.c_int(0)
    lock = ctypes.create_string_buffer(64)
    libc.pthread_spin_init(lock, 0)
    libc.pthread_spin_lock(lock)
    if libc.pthread_create(ctypes.byref(thread), None, libc.pthread_spin_lock, lock):
        return None
    _locks_lent.append(lock)
    mask = (ctypes.c_ulong * (core // _WORD_BITS + 1))()
    mask[-1] = 1 << core % _WORD_BITS
    refused = libc.pthread_setschedparam(thread, os.SCHED_IDLE, ctypes.byref(priority))
    refused = refused or libc.pthread_setaffinity_np(thread, ctypes.sizeof(mask), mask)
    libc.pthread_detach(thread)
    if refused:
        libc.pthread_spin_unlock(lock)
    return None if refused else lock
