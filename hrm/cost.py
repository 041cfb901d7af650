"""What a piece of work costs: an operator under its roofs, at peaks (`roof`) or as measured (`ceiling`); a transfer.

Formulas run over a `PolicyGrid`: one policy and many take the same path.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from hrm.arrays import Reals
from hrm.ceilings import CeilingTable
from hrm.operators import Operator
from hrm.rates import Rates
from hrm.records import record
from hrm.roofline import Bound

__all__ = ["Cost", "add_costs", "operator_cost", "transfer_cost"]


@record
class Cost:
    """Seconds of a piece of work, those of them that a compute roof sets, and the bytes that it moves.

    Bytes are a kernel's memory traffic or a copy's payload. `latency_s` is the part of the seconds that moves nothing.
    """

    seconds: Reals = 0.0
    compute_s: Reals = 0.0
    bytes: Reals = 0.0
    latency_s: Reals = 0.0

    def times(self, count: Reals) -> Cost:
        """Return the cost of doing it `count` times in a row."""
        return Cost(
            seconds=self.seconds * count,
            compute_s=self.compute_s * count,
            bytes=self.bytes * count,
            latency_s=self.latency_s * count,
        )

    def bound(self, *, crossing: bool) -> Bound:
        """Return the roof that accounts for most of the time, of work that crosses a link or does not."""
        if crossing:
            return Bound.CROSS_LEVEL
        return Bound.COMPUTE if 2 * float(self.compute_s) > float(self.seconds) else Bound.MEMORY


def add_costs(costs: Iterable[Cost]) -> Cost:
    """Add up work done one after another."""
    parts = tuple(costs)
    if len(parts) < 2:
        return parts[0] if parts else Cost()
    first = parts[0]
    seconds, compute_s, moved, latency_s = first.seconds, first.compute_s, first.bytes, first.latency_s
    for cost in parts[1:]:
        seconds = seconds + cost.seconds
        compute_s = compute_s + cost.compute_s
        moved = moved + cost.bytes
        latency_s = latency_s + cost.latency_s
    return Cost(seconds=seconds, compute_s=compute_s, bytes=moved, latency_s=latency_s)


def transfer_cost(rates: Rates, link: str, payload: Reals) -> Cost:
    """Return the time of `payload` bytes on a link (`h2d`, `d2h`, `disk`, `peer`); none of it where there are none."""
    latency = rates.latency_s(link) * np.sign(payload)
    return Cost(seconds=payload / rates.link_bytes_per_s(link) + latency, bytes=payload, latency_s=latency)


def operator_cost(operator: Operator, rates: Rates, level: str) -> Cost:
    """Return the time of an operator on a level's processor and how much of it a compute roof sets.

    At peaks: max(FLOP / P_peak, bytes / B_peak). As measured: the kernel's ceiling table where the profile has one for
    the level and dtype, else the same maximum at the kernel's achievable rates plus a launch; never less than at peaks.
    """
    compute_s, memory_s = achieved = _kernel_s(operator, rates, level)
    measured = _measured_s(operator, rates, level, achieved) if rates.measured else None
    seconds, latency = measured or (np.maximum(compute_s, memory_s), 0.0)
    bound_by_compute = np.where(compute_s > memory_s, seconds, 0.0)
    return Cost(seconds=seconds, compute_s=bound_by_compute, bytes=operator.bytes, latency_s=latency)


def _measured_s(operator: Operator, rates: Rates, level: str, achieved: tuple[Reals, Reals]) -> tuple[Reals, Reals]:
    """Return an operator's measured or achievable seconds, and those of them that are its launch."""
    table = rates.table(level, operator.kernel, operator.dtype)
    launch: Reals = 0.0 if table else rates.launch_s(level) * np.minimum(operator.calls, 1.0)
    seconds = _table_s(operator, rates, level, achieved, table) if table else np.maximum(*achieved) + launch
    if table is None and rates.within_peaks(level, operator.dtype, operator.kernel):
        return seconds, launch
    return np.maximum(seconds, np.maximum(*_kernel_s(operator, rates.peaks, level))), launch


def _table_s(operator: Operator, rates: Rates, level: str, achieved: tuple[Reals, Reals], table: CeilingTable) -> Reals:
    """Read a kernel's table; beyond its largest shape time grows from its edge as the achievable rates say.

    What was measured at the edge corrects the term that binds there; the other counts from where it takes over.
    """
    size, rows = np.minimum(operator.size, table.sizes[-1]), np.minimum(operator.rows, table.rows[-1])
    edge_s = operator.calls * table.time_s(size, rows)
    if np.all(size == operator.size) and np.all(rows == operator.rows):
        return edge_s
    compute_s, memory_s = achieved
    edge_compute_s, edge_memory_s = _resized_s(operator, rates, level, size / operator.size, rows / operator.rows)
    longer_s = np.maximum(edge_compute_s, edge_memory_s)
    compute_s = compute_s * _correction(edge_s, edge_compute_s, longer_s)
    return np.maximum(compute_s, memory_s * _correction(edge_s, edge_memory_s, longer_s))


def _kernel_s(operator: Operator, rates: Rates, level: str) -> tuple[Reals, Reals]:
    """Return compute and memory seconds at the kernel's rates."""
    compute_s = operator.flop / rates.flop_per_s(level, operator.dtype, operator.kernel)
    return compute_s, operator.bytes / rates.read_bytes_per_s(level, operator.kernel)


def _resized_s(operator: Operator, rates: Rates, level: str, size: Reals, rows: Reals) -> tuple[Reals, Reals]:
    """Return compute and memory seconds at the kernel's rates, for `size` and `rows` times its own shape."""
    flop = operator.flop * size**operator.kernel.size_exponent * rows
    compute_s = flop / rates.flop_per_s(level, operator.dtype, operator.kernel)
    moved = (operator.weight_bytes + operator.kv_bytes * rows) * size + operator.activation_bytes * rows
    return compute_s, moved / rates.read_bytes_per_s(level, operator.kernel)


def _correction(edge_s: Reals, term_s: Reals, longer_s: Reals) -> Reals:
    """Return measured over modelled at a table's edge for the term that binds there; the other is only ever lowered."""
    factor = edge_s / np.maximum(term_s, 1e-300)
    return np.where(term_s >= longer_s, factor, np.minimum(factor, 1.0))
