"""Threads of the OpenMP runtime: a thread's helpers end when it says so."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

from hrm.device.openmp import end_helpers


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of the process as Linux lists them")
def test_helpers_end_and_the_next_parallel_work_is_as_right_as_before() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        numbers = torch.ones(1 << 20)
        numbers.mul_(2)
        with_helpers = _num_threads()
        end_helpers()
        without = _num_threads_once_below(with_helpers)
        numbers.mul_(2)
    finally:
        end_helpers()
        torch.set_num_threads(threads)

    assert without <= with_helpers - 2
    assert bool((numbers == 4).all())


def _num_threads_once_below(many: int) -> int:
    """Count threads when those that were told to end had a second to leave the system's list."""
    until_s = time.monotonic() + 1
    while _num_threads() > many - 2 and time.monotonic() < until_s:
        time.sleep(0.01)
    return _num_threads()


def _num_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))
