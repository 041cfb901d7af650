"""How things are timed: interleaved rounds after a warm-up, repeats with foreign load redone, spread kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import psutil

from hrm.device.backend import Backend
from hrm.device.streams import allowed_cores
from hrm.hardware import Measurement
from hrm.schedule.task import Lane

K = TypeVar("K")
T = TypeVar("T")
Timed = Callable[[], float]
"""Does one repeat and returns its seconds."""

__all__ = ["MIN_ROUNDS", "CpuWatch", "Timed", "clean_rounds", "measure", "on_lane", "summary", "warm_up"]

MIN_ROUNDS = 3
_NOISY_SHARE = 0.1
_FOREIGN_SHARE = 0.15
"""Share of one core that other processes may use during a round before it counts as contaminated."""
_CLOCK_TICKS_S = 0.03
"""What the kernel's CPU accounting, in ticks of 10 ms per core, may be off by."""


class CpuWatch:
    """Watches, from its making on, how much CPU time other processes use on the cores that this one may use."""

    def __init__(self) -> None:
        self._cores = allowed_cores()
        self._begun_s = time.perf_counter()
        self._foreign_s = self._foreign_so_far_s()

    def _foreign_so_far_s(self) -> float:
        per_core = psutil.cpu_times(percpu=True)
        busy_s = 0.0
        for core in self._cores:
            if core < len(per_core):
                times = per_core[core]
                busy_s += times.user + times.system + getattr(times, "nice", 0.0)
                busy_s += sum(getattr(times, name, 0.0) for name in ("irq", "softirq", "steal"))
        return busy_s - time.process_time()

    def contaminated(self) -> bool:
        """Whether others used enough CPU time to disturb what was timed meanwhile."""
        foreign_s = self._foreign_so_far_s() - self._foreign_s
        wall_s = time.perf_counter() - self._begun_s
        return foreign_s > max(_FOREIGN_SHARE * wall_s, _CLOCK_TICKS_S)


def on_lane(backend: Backend, lane: Lane, work: Callable[[], object]) -> Timed:
    """Make a repeat that does `work` on a lane, alone, and takes its time from the lane's own clock."""
    stream = backend.stream(lane)

    def once() -> float:
        event = stream.submit(work)
        event.wait()
        return max(event.ended_s - event.started_s, 1e-9)

    return once


def warm_up(cases: Mapping[K, Timed]) -> dict[K, float]:
    """Do each case once, for its caches and first-call costs; the times serve as estimates only."""
    return {key: timed() for key, timed in cases.items()}


def clean_rounds(once: Callable[[], T], *, rounds: int, budget_s: float) -> list[T]:
    """Do something `rounds` times over and return what came of it, rounds with foreign load redone.

    At most `rounds` are redone in all. Stops early when `budget_s` is spent, but not before `MIN_ROUNDS`. Contaminated
    rounds are used only where too few clean ones came together.
    """
    clean: list[T] = []
    dirty: list[T] = []
    deadline_s = time.perf_counter() + budget_s
    while len(clean) < rounds and len(dirty) <= rounds:
        watch = CpuWatch()
        result = once()
        (dirty if watch.contaminated() else clean).append(result)
        if len(clean) + len(dirty) >= MIN_ROUNDS and time.perf_counter() >= deadline_s:
            break
    return clean if len(clean) >= MIN_ROUNDS else clean + dirty


def measure(cases: Mapping[K, Timed], *, rounds: int, budget_s: float) -> dict[K, tuple[float, ...]]:
    """Time warmed-up cases in turn, round by round, so that a slow spell of the machine meets all of them."""
    kept = clean_rounds(lambda: {key: timed() for key, timed in cases.items()}, rounds=rounds, budget_s=budget_s)
    return {key: tuple(times[key] for times in kept) for key in cases}


def summary(values: Sequence[float]) -> Measurement:
    """Median and interquartile range of repeats; noisy when the range exceeds a tenth of the median."""
    median = statistics.median(values)
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (median,) * 3
    return Measurement(median=median, iqr=upper - lower, count=len(values), noisy=upper - lower > _NOISY_SHARE * median)
