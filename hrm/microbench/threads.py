"""Threads side by side: each on a core of its own, begun together, done when the last is."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from hrm.device.streams import allowed_cores
from hrm.microbench.bench import Bench
from hrm.microbench.machine import one_per_core
from hrm.schedule.task import Lane

__all__ = ["lane_cores", "side_by_side", "with_threads"]


def lane_cores(bench: Bench) -> tuple[int, ...]:
    """Return a core per thread of the CPU lane, no two of them threads of one physical core where that can be had."""
    threads = bench.asked_on(Lane.CPU, torch.get_num_threads)
    cores = bench.asked_on(Lane.CPU, allowed_cores)
    apart = one_per_core(cores)
    return (*apart, *(core for core in cores if core not in apart))[:threads]


def side_by_side(cores: Sequence[int], works: Sequence[Callable[[], object]]) -> None:
    """Do a piece of work on each core at once, the first in the calling thread; its own cores are as before after."""
    start = threading.Barrier(len(works))
    failed: list[BaseException] = []

    def one(core: int, work: Callable[[], object]) -> None:
        try:
            with _pinned(core):
                start.wait()
                work()
        except BaseException as error:
            failed.append(error)
            start.abort()

    others = [threading.Thread(target=one, args=pair, daemon=True) for pair in zip(cores[1:], works[1:], strict=True)]
    for thread in others:
        thread.start()
    one(cores[0], works[0])
    for thread in others:
        thread.join()
    if failed:
        raise failed[0]


@contextmanager
def _pinned(core: int) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def with_threads(count: int, usual: int, work: Callable[[], object]) -> Callable[[], object]:
    """Return `work` done with `count` of torch's threads, where the calling thread's usual number is `usual`."""
    if count == usual:
        return work

    def narrowed() -> None:
        torch.set_num_threads(count)
        try:
            work()
        finally:
            torch.set_num_threads(usual)

    return narrowed
