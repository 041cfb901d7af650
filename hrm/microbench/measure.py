"""How things are timed: interleaved rounds after a warm-up, repeats with foreign load redone, spread kept."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from hrm.device.backend import Backend
from hrm.device.streams import allowed_cores, leave_out_sleep
from hrm.hardware import Measurement
from hrm.records import record
from hrm.schedule.task import Lane

K = TypeVar("K")
T = TypeVar("T")
Timed = Callable[[], float]
"""Does one repeat and returns its seconds."""
Log = Callable[[T, "CpuUse"], None]
"""Is told of every round, also of those that are redone: what came of it, and what CPU time it took."""

__all__ = [
    "MIN_ROUNDS",
    "CpuUse",
    "CpuWatch",
    "Timed",
    "clean_rounds",
    "cores_kept",
    "measure",
    "on_lane",
    "sleepless",
    "summary",
    "warm_up",
]

MIN_ROUNDS = 3
_SETTLED_ROUNDS, _SETTLED_SHARE = 5, 0.02
"""Rounds end early when so many are clean and every case's interquartile range is below this share of its median."""
_NOISY_SHARE = 0.1
_FOREIGN_SHARE = 0.15
"""Share of one core that other processes may use during a round before it counts as contaminated."""
_PROBE_SIZE = 768
_CLOCK_TICKS_S = 0.03
"""What the kernel's CPU accounting, in ticks of 10 ms per core, may be off by."""
_TASKS = Path("/proc/self/task")


@record
class CpuUse:
    """A round's wall time, and the CPU time that this process and others used meanwhile on its cores.

    `waited_s` is how long threads of this process were ready to run and had no core.
    """

    wall_s: float
    own_s: float
    foreign_s: float
    waited_s: float = 0.0
    clean: bool = True


class CpuWatch:
    """Watches, from its making on, how much CPU time other processes use on the cores that this one may use."""

    def __init__(self) -> None:
        self._cores = allowed_cores()
        self._begun_s = time.perf_counter()
        self._own_s = time.process_time()
        self._busy_s = self._busy_so_far_s()
        self._waited_s = _waited_so_far_s()

    def _busy_so_far_s(self) -> float:
        per_core = psutil.cpu_times(percpu=True)
        busy_s = 0.0
        for core in self._cores:
            if core < len(per_core):
                times = per_core[core]
                busy_s += times.user + times.system + getattr(times, "nice", 0.0)
                busy_s += sum(getattr(times, name, 0.0) for name in ("irq", "softirq", "steal"))
        return busy_s

    def use(self) -> CpuUse:
        """Return the times since the beginning; the foreign one to a few ticks of the kernel's clock."""
        own_s = time.process_time() - self._own_s
        foreign_s = self._busy_so_far_s() - self._busy_s - own_s
        wall_s = time.perf_counter() - self._begun_s
        waited_s = _waited_so_far_s() - self._waited_s
        return CpuUse(wall_s=wall_s, own_s=own_s, foreign_s=max(0.0, foreign_s), waited_s=max(0.0, waited_s))

    def contaminated(self) -> bool:
        """Whether others used enough CPU time to disturb what was timed meanwhile.

        The foreign time of a short round may come from the clock's ticks alone: then threads must have waited as well.
        """
        use = self.use()
        limit_s = _FOREIGN_SHARE * use.wall_s
        return use.foreign_s > max(limit_s, _CLOCK_TICKS_S) or min(use.foreign_s, use.waited_s) > limit_s


def _waited_so_far_s() -> float:
    """Return how long this process's threads have been ready to run without a core; 0 where the system does not say.

    Those that run when nobody else does (`hrm.device.awake`) wait all the time.
    """
    waited_ns = 0
    for task in _TASKS.glob("*/schedstat"):
        with suppress(OSError, IndexError, ValueError):  # a thread that has ended, a kernel without the figures
            if os.sched_getscheduler(int(task.parent.name)) != os.SCHED_IDLE:
                waited_ns += int(task.read_text().split()[1])
    return waited_ns / 1e9


def cores_kept() -> float:
    """Return which share of twice one thread's speed two threads have just now, at a product that fits into caches.

    A virtual machine's cores may be the threads of one real core for a while, or wait for each other, and no accounting
    inside it shows that.
    """
    threads = torch.get_num_threads()
    if len(allowed_cores()) < 2:
        return 1.0
    left, right = (torch.ones(_PROBE_SIZE, _PROBE_SIZE) for _ in range(2))
    took_s: dict[int, list[float]] = {1: [], 2: []}
    try:
        for _ in range(MIN_ROUNDS):
            for count, seconds in took_s.items():
                torch.set_num_threads(count)
                begun_s = time.perf_counter()
                torch.mm(left, right)
                seconds.append(time.perf_counter() - begun_s)
    finally:
        torch.set_num_threads(threads)
    one_s, two_s = (statistics.median(seconds) for seconds in took_s.values())
    return min(1.0, one_s / (2.0 * two_s))


def on_lane(backend: Backend, lane: Lane, work: Callable[[], object]) -> Timed:
    """Make a repeat that does `work` on a lane, alone, and takes its time from the lane's own clock."""
    stream = backend.stream(lane)

    def once() -> float:
        event = stream.submit(work)
        event.wait()
        return max(event.ended_s - event.started_s, 1e-9)

    return once


def sleepless(work: Callable[[], object]) -> Callable[[], object]:
    """Make work that a slowed host does at its own speed, without the sleep after it."""

    def run() -> object:
        leave_out_sleep()
        return work()

    return run


def warm_up(cases: Mapping[K, Timed]) -> dict[K, float]:
    """Do each case once, for its caches and first-call costs; the times serve as estimates only."""
    return {key: timed() for key, timed in cases.items()}


def clean_rounds(
    once: Callable[[], T],
    *,
    rounds: int,
    budget_s: float,
    settled: Callable[[list[T]], bool] | None = None,
    log: Log[T] | None = None,
) -> list[T]:
    """Do something up to `rounds` times over and return what came of it, rounds with foreign load redone.

    At most `rounds` are redone in all. Stops early when `settled` says so of the clean ones, or when `budget_s` is
    spent, but not before `MIN_ROUNDS`. Contaminated rounds are used only where too few clean ones came together.
    """
    clean: list[T] = []
    dirty: list[T] = []
    deadline_s = time.perf_counter() + budget_s
    while len(clean) < rounds and len(dirty) <= rounds:
        watch = CpuWatch()
        result = once()
        is_dirty = watch.contaminated()
        (dirty if is_dirty else clean).append(result)
        if log is not None:
            use = watch.use()
            log(result, replace(use, clean=not is_dirty))
        if len(clean) >= MIN_ROUNDS and settled is not None and settled(clean):
            break
        if len(clean) + len(dirty) >= MIN_ROUNDS and time.perf_counter() >= deadline_s:
            break
    return clean if len(clean) >= MIN_ROUNDS else clean + dirty


def measure(
    cases: Mapping[K, Timed], *, rounds: int, budget_s: float, log: Log[dict[K, float]] | None = None
) -> dict[K, tuple[float, ...]]:
    """Time warmed-up cases in turn, round by round, so that a slow spell of the machine meets all of them."""

    def once() -> dict[K, float]:
        return {key: timed() for key, timed in cases.items()}

    kept = clean_rounds(once, rounds=rounds, budget_s=budget_s, settled=_settled, log=log)
    return {key: tuple(times[key] for times in kept) for key in cases}


def _settled(rounds: list[dict[K, float]]) -> bool:
    if len(rounds) < _SETTLED_ROUNDS:
        return False
    found = (summary([times[key] for times in rounds]) for key in rounds[0])
    return all(one.iqr < _SETTLED_SHARE * one.median for one in found)


def summary(values: Sequence[float]) -> Measurement:
    """Median and interquartile range of repeats; noisy when the range exceeds a tenth of the median."""
    median = statistics.median(values)
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (median,) * 3
    return Measurement(median=median, iqr=upper - lower, count=len(values), noisy=upper - lower > _NOISY_SHARE * median)
