"""Kernel ceilings: the executor's kernels, handed in as values, timed over a grid of shapes on each processor."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from hrm.ceilings import CeilingTable, Kernel
from hrm.dtypes import DType
from hrm.hardware import Measurement
from hrm.microbench.bench import Bench
from hrm.microbench.measure import Timed, measure, on_lane, summary, warm_up
from hrm.records import record
from hrm.schedule.task import Lane

__all__ = ["KernelProbe", "MakeKernel", "measure_table", "measure_tables"]

MakeKernel = Callable[[int, int, Lane, torch.device], Callable[[], object]]

_QUICK_ROWS = 4
_SECOND_COLUMN_S = 0.8
"""What a second row count may take even when the time is spent: one alone says nothing of how time grows with rows."""
_REPEAT_S, _MOST_CALLS = 0.02, 64
"""What a repeat should last at least, and how many calls of a kernel it may take for that."""
_LANES = {"cpu": Lane.CPU, "gpu": Lane.GPU}


@record
class KernelProbe:
    """A kernel and the shapes to time it at; `sizes` and `rows` ascend and mean what `hrm.ceilings.Kernel` says.

    `make(size, rows, lane, device)` allocates the operands and returns one call of the kernel. The call should find its
    operands as in a run, not in a cache: let it go round over several buffers. They may hold anything finite; filling
    them with random numbers often takes longer than the timing.
    """

    kernel: Kernel
    dtype: DType
    sizes: tuple[int, ...]
    rows: tuple[int, ...]
    make: MakeKernel
    levels: tuple[str, ...] = ("cpu", "gpu")


def measure_tables(bench: Bench, probes: Sequence[KernelProbe], levels: Iterable[str]) -> tuple[CeilingTable, ...]:
    """Measure the table of every probe on every level, in the time that is left, shared evenly.

    The device comes first: it is the faster one, and what it leaves of its time goes to the host.
    """
    in_order = sorted(levels, key=lambda level: level != "gpu")
    jobs = [(probe, level) for level in in_order for probe in probes if level in probe.levels]
    tables = []
    for done, (probe, level) in enumerate(jobs):
        bench.say(f"kernel {probe.kernel} in {probe.dtype} on {level}")
        tables.append(measure_table(bench, probe, level, budget_s=max(0.0, bench.left_s) / (len(jobs) - done)))
    return tuple(tables)


def measure_table(bench: Bench, probe: KernelProbe, level: str, *, budget_s: float) -> CeilingTable:
    """Measure a probe's table row count by row count until the time is spent; the fewest rows in any case.

    Many rows come before those between, for beyond its last row count a table keeps the rate of its edge, which is far
    too low where the edge is at few rows.
    """
    deadline_s = time.perf_counter() + budget_s
    sizes = _ends(probe.sizes) if bench.quick else probe.sizes
    columns: dict[int, _Column] = {}
    rows: int | None = probe.rows[0]
    while rows is not None:
        columns[rows] = _measure_column(bench, probe, _LANES[level], sizes, rows)
        left_s = deadline_s - time.perf_counter()
        if len(columns) == 1:
            left_s = max(left_s, _SECOND_COLUMN_S)
        rows = None if bench.quick and len(columns) == _QUICK_ROWS else _next_rows(probe.rows, columns, left_s)
    measured = sorted(columns)
    cells = [[columns[rows].cells[size] for rows in measured] for size in sizes]
    return CeilingTable(
        kernel=probe.kernel,
        level=level,
        dtype=probe.dtype,
        sizes=tuple(float(size) for size in sizes),
        rows=tuple(measured),
        seconds=tuple(tuple(cell.median for cell in line) for line in cells),
        iqr_s=max(cell.iqr for line in cells for cell in line),
    )


@record
class _Column:
    """What was measured at one row count, by size, and what it cost: making the operands, and running."""

    cells: dict[int, Measurement]
    make_s: float
    run_s: float


def _measure_column(bench: Bench, probe: KernelProbe, lane: Lane, sizes: tuple[int, ...], rows: int) -> _Column:
    begun_s = time.perf_counter()
    timed = {size: _timed(bench, probe, lane, size, rows) for size in sizes}
    made_s = time.perf_counter()
    once_s = sum(warm_up(timed).values())
    times = measure(timed, rounds=bench.rounds, budget_s=bench.rounds * once_s)
    cells = {size: summary(times[size]) for size in sizes}
    return _Column(cells=cells, make_s=made_s - begun_s, run_s=time.perf_counter() - made_s)


def _next_rows(wanted: tuple[int, ...], columns: dict[int, _Column], left_s: float) -> int | None:
    """Return the most rows that fit into the time left, else the row count farthest from the measured ones."""
    most = max(columns)

    def expected_s(rows: int) -> float:
        above = min((done for done in columns if done > rows), default=most)
        column = columns[above]
        return column.make_s + column.run_s * max(1.0, rows / above)

    def distance(rows: int) -> float:
        return min(abs(math.log(rows / done)) for done in columns)

    fitting = [rows for rows in wanted if rows not in columns and expected_s(rows) <= left_s]
    beyond = [rows for rows in fitting if rows > most]
    return max(beyond) if beyond else max(fitting, key=distance, default=None)


def _timed(bench: Bench, probe: KernelProbe, lane: Lane, size: int, rows: int) -> Timed:
    """Make a repeat of a kernel: several calls in a row, as in a run, where one kernel follows another on a lane.

    A call on its own would find its threads asleep and its temporaries gone from the cache.
    """
    call = bench.made_for(lane, lambda device: probe.make(size, rows, lane, device))
    calls = min(_MOST_CALLS, math.ceil(_REPEAT_S / bench.seconds(lane, call)))

    def several() -> None:
        for _ in range(calls):
            call()

    repeat = on_lane(bench.backend, lane, several)
    return lambda: repeat() / calls


def _ends(values: tuple[int, ...]) -> tuple[int, ...]:
    return values if len(values) < 2 else (values[0], values[-1])
