"""How many experts memory has room for: what each device holds is affine in the resident experts per layer."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from hrm.arrays import Reals
from hrm.memory import DeviceLedger, demand, usable_bytes
from hrm.policy import PolicyGrid, Processor
from hrm.records import record
from solver.problem import Problem

__all__ = ["WHOLE", "Affine", "MemoryRow", "fits", "memory_rows", "most_resident", "resident_range"]

WHOLE = 1e-9
"""Rounding: a number this close to a whole one is taken for it."""
_ROUNDED_UP = len(fields(DeviceLedger))
"""Bytes by which a ledger, whose classes are rounded up, may exceed the sum of them."""

Column = NDArray[np.float64]


@record
class Affine:
    """Numbers that are affine in the resident experts per layer, each at `intercept` where there is none."""

    intercept: Column
    slope: Column

    def at(self, resident: Column) -> Column:
        """Return the numbers at so many resident experts."""
        return self.intercept + self.slope * resident


@record
class MemoryRow:
    """What the candidates of a grid hold on a device, and the bytes that they may."""

    device: str
    held: Affine
    limit_bytes: float


def memory_rows(problem: Problem, grid: PolicyGrid) -> tuple[MemoryRow, ...]:
    """Return the bytes of a grid's candidates, device by device."""
    none, one = (
        demand(replace(grid, resident_experts=np.full_like(grid.batch_size, count)), problem.model, problem.workload)
        for count in (0.0, 1.0)
    )
    rows = []
    for device in _devices(grid):
        base, more = (_total(classes[device], grid) for classes in (none, one))
        held = Affine(intercept=base, slope=more - base)
        rows.append(MemoryRow(device=device, held=held, limit_bytes=_limit_bytes(problem, device)))
    return tuple(rows)


def resident_range(rows: tuple[MemoryRow, ...], least: Column, most: Column) -> tuple[Column, Column]:
    """Return from where to where between `least` and `most` the resident experts fit; nothing does where low > high."""
    low, high = least, most
    for row in rows:
        room, slope = row.limit_bytes - row.held.intercept, row.held.slope
        edge = room / np.where(slope == 0.0, 1.0, slope)
        low = np.where(slope < 0.0, np.maximum(low, edge), low)
        high = np.where(slope > 0.0, np.minimum(high, edge), high)
        high = np.where((slope == 0.0) & (room < 0.0), -1.0, high)
    return low, high


def most_resident(problem: Problem, grid: PolicyGrid) -> Column:
    """Return the experts per layer that a grid's candidates could keep on the GPU, whatever its memory."""
    if grid.template.main_device is Processor.CPU:
        return np.zeros_like(grid.batch_size)
    return problem.model.num_experts - grid.cpu_experts + np.zeros_like(grid.batch_size)


def fits(problem: Problem, grid: PolicyGrid) -> NDArray[np.bool_]:
    """Say of each policy of a grid whether its ledger fits the machine."""
    classes = demand(grid, problem.model, problem.workload)
    fitting = np.ones(np.shape(grid.batch_size), dtype=bool)
    for device in _devices(grid):
        fitting &= _total(classes[device], grid) <= _limit_bytes(problem, device)
    return fitting


def _limit_bytes(problem: Problem, device: str) -> float:
    return float(usable_bytes(problem.hardware, device, problem.ram_limit_bytes) - _ROUNDED_UP)


def _total(classes: dict[str, Reals], grid: PolicyGrid) -> Column:
    return np.broadcast_to(sum(classes.values()), np.shape(grid.batch_size))


def _devices(grid: PolicyGrid) -> tuple[str, ...]:
    return ("cpu",) if grid.template.main_device is Processor.CPU else ("gpu", "cpu")
