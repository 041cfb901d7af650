"""Kernel ceilings: the executor's kernels, handed in as values, timed over a grid of shapes on each processor."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from hrm.ceilings import CeilingTable, Kernel
from hrm.dtypes import DType
from hrm.hardware import Measurement
from hrm.microbench.bench import Bench
from hrm.microbench.measure import MIN_ROUNDS, Timed, measure, on_lane, sleepless, summary
from hrm.records import record
from hrm.schedule.task import Lane

__all__ = ["KernelProbe", "MakeKernel", "measure_table", "table_jobs", "waking_up"]

Call = Callable[[], object]
MakeKernel = Callable[[int, int, Lane, torch.device], Call]
_Operands = Callable[[torch.device], Call]
"""Makes the operands of one shape, and returns a call of the kernel on them."""

_QUICK_ROWS = 4
_SECOND_COLUMN_S = 0.3
"""What a second row count may take even when the time is spent: one alone says nothing of how time grows with rows."""
_REPEAT_S, _MOST_CALLS = 0.01, 64
"""What a repeat should last at least, and how many calls of a kernel it may take for that."""
_SEVERAL, _MOST_ROWS = 4, 2048
"""How often a call of several does the kernel, and rows of all together: with more, what a call costs counts little."""
_SLEEP_S, _WAKINGS = 1.2e-2, 15
"""Sleep before two calls of a slowed host, and how often. The longer a core was idle the more the first call costs, up
to some 20 ms, though it was kept from halting: an expert of 11 MB took 0.10 ms more after 12 ms and 0.12 after 20 (Zen
5, a virtual machine)."""
_LANES = {"cpu": Lane.CPU, "gpu": Lane.GPU}


@record
class KernelProbe:
    """A kernel and the shapes to time it at; `sizes` and `rows` ascend and mean what `hrm.ceilings.Kernel` says.

    `make(size, rows, lane, device)` allocates the operands and returns one call of the kernel. The call should find its
    operands as in a run, not in a cache: let it go round over several buffers. They may hold anything finite; filling
    them with random numbers often takes longer than the timing.

    Of a kernel that a task does several times in one call, as the experts of a layer, `make_several(count)` makes what
    does it so often: its table holds what each further one adds, and what a call costs is the task's.
    `make_task` makes a call with what a task does around the kernel, where `make` leaves that out.
    """

    kernel: Kernel
    dtype: DType
    sizes: tuple[int, ...]
    rows: tuple[int, ...]
    make: MakeKernel
    make_several: Callable[[int], MakeKernel] | None = None
    make_task: MakeKernel | None = None
    levels: tuple[str, ...] = ("cpu", "gpu")


def table_jobs(probes: Sequence[KernelProbe], levels: Iterable[str]) -> list[tuple[KernelProbe, str]]:
    """Return which probe to measure on which level, in order.

    The device comes first: it is the faster one, and what it leaves of its time goes to the host.
    """
    in_order = sorted(levels, key=lambda level: level != "gpu")
    return [(probe, level) for level in in_order for probe in probes if level in probe.levels]


def measure_table(
    bench: Bench, probe: KernelProbe, level: str, *, budget_s: float, coarse: bool = False
) -> CeilingTable:
    """Measure a probe's table row count by row count until the time is spent; two of them in any case.

    A middle row count tells what others cost. Then come the most rows that fit, for beyond its last row count a table
    keeps the rate of its edge, then the fewest, then those farthest from the measured ones. A `coarse` table has the
    outermost sizes and a few row counts. What a slowed host would sleep is multiplied in, not waited for.
    """
    lane = _LANES[level]
    deadline_s = time.perf_counter() + budget_s
    sizes = _ends(probe.sizes) if coarse else probe.sizes
    wanted = min(len(probe.rows), _QUICK_ROWS) if coarse else len(probe.rows)
    columns: dict[int, _Column] = {}
    rows: int | None = probe.rows[(len(probe.rows) - 1) // 2]
    while rows is not None and len(columns) < wanted:
        share_s = (deadline_s - time.perf_counter()) / (wanted - len(columns))
        columns[rows] = _measure_column(bench, lane, probe, (sizes, rows), share_s)
        left_s = deadline_s - time.perf_counter()
        if len(columns) == 1:
            left_s = max(left_s, _SECOND_COLUMN_S)
        rows = _next_rows(probe.rows, columns, left_s)
    measured = sorted(columns)
    slowdown = bench.slowdown(lane)
    cells = [[columns[rows].cells[size] for rows in measured] for size in sizes]
    return CeilingTable(
        kernel=probe.kernel,
        level=level,
        dtype=probe.dtype,
        sizes=tuple(float(size) for size in sizes),
        rows=tuple(measured),
        seconds=tuple(tuple(slowdown * cell.median for cell in line) for line in cells),
        iqr_s=slowdown * max(cell.iqr for line in cells for cell in line),
    )


def waking_up(bench: Bench, probe: KernelProbe) -> Measurement:
    """Measure how much longer the first call of a kernel takes on a slowed host after a sleep than the one after it.

    It is paid by task, for the host sleeps after each: its seconds are multiplied as the work's are.
    """
    sizes, rows = probe.sizes, probe.rows[(len(probe.rows) - 1) // 2]
    make, size = probe.make_task or probe.make, sizes[len(sizes) // 2]
    call = bench.made_for(Lane.CPU, lambda device: make(size, rows, Lane.CPU, device))
    longer_s: list[float] = []

    def several() -> None:
        for _ in range(_WAKINGS):
            time.sleep(_SLEEP_S)
            first_s, second_s = (_seconds_of(call) for _ in range(2))
            longer_s.append(first_s - second_s)

    on_lane(bench.backend, Lane.CPU, sleepless(several))()
    return summary([max(0.0, bench.slowdown(Lane.CPU) * seconds) for seconds in longer_s])


def _seconds_of(call: Callable[[], object]) -> float:
    begun_s = time.perf_counter()
    call()
    return time.perf_counter() - begun_s


@record
class _Column:
    """What was measured at one row count, by size, what calls at all sizes take, and what making operands cost."""

    cells: dict[int, Measurement]
    calls_s: float
    make_s: float

    def expected_s(self, more_rows: float) -> float:
        """Return what a column of `more_rows` times the rows takes at least: its operands, two trials, the rounds."""
        calls_s = self.calls_s * max(1.0, more_rows)
        return self.make_s + 2 * calls_s + MIN_ROUNDS * max(calls_s, len(self.cells) * _REPEAT_S)


def _measure_column(
    bench: Bench, lane: Lane, probe: KernelProbe, shapes: tuple[Sequence[int], int], share_s: float
) -> _Column:
    """Measure a row count by size, in as many rounds as its share of the time allows, which are `MIN_ROUNDS` or more.

    The trials that tell how many calls a repeat makes have warmed each kernel up.
    """
    sizes, rows = shapes
    begun_s = time.perf_counter()
    count = min(_SEVERAL, _MOST_ROWS // rows) if probe.make_several else 1
    calls = {
        (size, times): bench.made_for(lane, _made(probe, lane, size, rows, times))
        for size in sizes
        for times in {1, count}
    }
    made_s = time.perf_counter()
    timed = {shape: _timed(bench, lane, call) for shape, call in calls.items()}
    left_s = begun_s + share_s - time.perf_counter()
    found = measure(timed, rounds=bench.rounds, budget_s=left_s, log=bench.log)
    cells = {size: summary(_of_each(found[size, 1], found[size, count], count)) for size in sizes}
    calls_s = sum(statistics.median(seconds) for seconds in found.values())
    return _Column(cells=cells, calls_s=calls_s, make_s=made_s - begun_s)


def _of_each(once_s: Sequence[float], several_s: Sequence[float], count: int) -> Sequence[float]:
    """Return what each further one of `count` in a call adds, round by round; of a single one what it takes."""
    if count < 2:
        return once_s
    return [max((more - one) / (count - 1), 1e-9) for one, more in zip(once_s, several_s, strict=True)]


def _made(probe: KernelProbe, lane: Lane, size: int, rows: int, count: int = 1) -> _Operands:
    make = probe.make_several(count) if probe.make_several and count > 1 else probe.make
    return lambda device: make(size, rows, lane, device)


def _next_rows(wanted: tuple[int, ...], columns: dict[int, _Column], left_s: float) -> int | None:
    """Return the row count to measure next in the time left: most rows, fewest, then the farthest from the measured."""

    def fits(rows: int) -> bool:
        nearest = min(columns, key=lambda done: abs(math.log(rows / done)))
        return columns[nearest].expected_s(rows / nearest) <= left_s

    def distance(rows: int) -> float:
        return min(abs(math.log(rows / done)) for done in columns)

    fitting = [rows for rows in wanted if rows not in columns and fits(rows)]
    beyond = [rows for rows in fitting if rows > max(columns)]
    if beyond:
        return max(beyond)
    if fitting and min(wanted) not in columns:
        return min(fitting)
    return max(fitting, key=distance, default=None)


def _timed(bench: Bench, lane: Lane, call: Callable[[], object]) -> Timed:
    """Make a repeat of a kernel: several calls in a row, as in a run, where one kernel follows another on a lane.

    A call on its own would find its threads asleep and its temporaries gone from the cache. So does the first one of a
    task on a slowed host, which sleeps after each: `waking_up` measures that.
    """
    once_s = bench.seconds(lane, sleepless(call))
    calls = min(_MOST_CALLS, math.ceil(_REPEAT_S / once_s))

    def several() -> None:
        for _ in range(calls):
            call()

    repeat = on_lane(bench.backend, lane, sleepless(several))
    return lambda: repeat() / calls


def _ends(values: tuple[int, ...]) -> tuple[int, ...]:
    return values if len(values) < 2 else (values[0], values[-1])
