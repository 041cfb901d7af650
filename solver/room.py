"""How many experts memory has room for: what each device holds is affine in the resident experts per layer.

Resident is what lies in the memory of the main device: on the GPU where there is one, the others being in host memory
and, where that has no room for all, on disk; else in host memory, the others being on disk. It is the one number that a
candidate leaves open: what a candidate with a disk has in host memory beside a GPU is as much as fits.
"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from hrm.arrays import Reals
from hrm.memory import DeviceLedger, demand, streamed_layer_bytes
from hrm.policy import Policy, Processor
from hrm.policy_grid import PolicyGrid
from hrm.records import record
from hrm.shortage import usable_bytes
from solver.problem import Problem

__all__ = [
    "WHOLE",
    "Affine",
    "MemoryRow",
    "Room",
    "exceeds_host",
    "fits",
    "fits_at_all",
    "memory_rows",
    "most_resident",
    "on_disk_beside_host",
    "ranges",
    "resident_of",
    "resident_range",
    "room_for",
    "with_resident",
]

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


@record
class Room:
    """K candidates and how many resident experts each has room for; each stands once per range (`ranges`).

    Resident experts may go from `least` to `most`, and `memory` leaves `low` to `high`, real numbers.
    """

    grid: PolicyGrid
    least: Column
    most: Column
    low: Column
    high: Column
    memory: tuple[MemoryRow, ...]

    @property
    def size(self) -> int:
        """K: how many candidates there are."""
        return len(self.low)

    @property
    def whole(self) -> tuple[Column, Column]:
        """The fewest and the most whole experts that fit; some candidates have none."""
        return np.ceil(self.low - WHOLE), np.floor(self.high + WHOLE)

    @property
    def fullest(self) -> PolicyGrid:
        """The candidates with as many experts resident as fit, real numbers."""
        return with_resident(self.grid, self.high)

    def select(self, places: NDArray[np.bool_] | NDArray[np.int64]) -> Room:
        """Return some of the candidates."""
        memory = tuple(
            replace(row, held=Affine(intercept=row.held.intercept[places], slope=row.held.slope[places]))
            for row in self.memory
        )
        columns = {name: getattr(self, name)[places] for name in ("least", "most", "low", "high")}
        return Room(grid=self.grid.select(places), memory=memory, **columns)


def with_resident(grid: PolicyGrid, resident: Column) -> PolicyGrid:
    """Return a grid's candidates, which leave the number open (all on disk, or none on the GPU), with so many."""
    on_disk = grid.disk_experts - resident if grid.reads_disk else grid.disk_experts
    if grid.template.main_device is Processor.CPU:
        return replace(grid, disk_experts=on_disk)
    return replace(grid, resident_experts=resident, disk_experts=on_disk)


def resident_of(problem: Problem, policy: Policy) -> int:
    """Return a policy's resident experts, counted as its candidate counts them."""
    beside_disk = policy.main_device is Processor.CPU and problem.reads_disk
    return problem.model.num_experts - policy.disk_experts if beside_disk else policy.resident_experts


def ranges(problem: Problem, grid: PolicyGrid) -> list[tuple[Column, Column]]:
    """Return the ranges of resident experts, least and most, over which time and memory are affine.

    Once all are resident nothing is streamed: buffers and latencies are gone, and that is a range of its own.
    """
    none, all_of_them = np.zeros_like(grid.batch_size), most_resident(problem, grid)
    streams = grid.template.main_device is Processor.GPU or grid.reads_disk
    return [(none, all_of_them - 1.0), (all_of_them, all_of_them)] if streams else [(none, all_of_them)]


def room_for(problem: Problem, grid: PolicyGrid) -> Room:
    """Return those of a grid's candidates that some real number of resident experts fits."""
    room = _room(problem, grid)
    return room.select(room.low <= room.high)


def _room(problem: Problem, grid: PolicyGrid) -> Room:
    ends = ranges(problem, grid)
    least, most = (np.concatenate(column) for column in zip(*ends, strict=True))
    grid = grid.select(np.tile(np.arange(np.size(grid.batch_size)), len(ends)))
    memory = memory_rows(problem, grid, least, most)
    low, high = resident_range(memory, least, most)
    return Room(grid=grid, least=least, most=most, low=low, high=high, memory=memory)


def memory_rows(problem: Problem, grid: PolicyGrid, least: Column, most: Column) -> tuple[MemoryRow, ...]:
    """Return the bytes of a grid's candidates, device by device, affine from `least` to `most` resident experts."""
    ends = np.stack([least, np.maximum(least, most)])
    both = with_resident(grid.select(np.tile(np.arange(len(least)), 2)), ends.ravel())
    classes = demand(both, problem.model, problem.workload)
    apart = ends[1] - ends[0]
    rows = []
    for device in _devices(grid):
        base, more = _total(classes[device], both).reshape(2, -1)
        slope = (more - base) / np.where(apart == 0.0, 1.0, apart)
        held = Affine(intercept=base - slope * least, slope=slope)
        rows.append(MemoryRow(device=device, held=held, limit_bytes=_limit_bytes(problem, device)))
    return tuple(rows)


def fits_at_all(problem: Problem, grid: PolicyGrid) -> NDArray[np.bool_]:
    """Say of a grid's candidates whether some number of resident experts fits."""
    fewest, most = _room(problem, grid).whole
    fitting: NDArray[np.bool_] = np.any(np.reshape(fewest <= most, (-1, np.size(grid.batch_size))), axis=0)
    return fitting


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
    """Return the experts per layer that a grid's candidates could keep resident, whatever the memory."""
    if grid.template.main_device is Processor.CPU or grid.reads_disk:
        return grid.disk_experts + np.zeros_like(grid.batch_size)
    return problem.model.num_experts - grid.cpu_experts + np.zeros_like(grid.batch_size)


def exceeds_host(problem: Problem, placement: Policy) -> bool:
    """Say whether host memory cannot hold one sequence of a placement with no expert elsewhere."""
    one = replace(placement, batch_size=1, micro_batch_size=1, resident_experts=0, disk_experts=0)
    return bool(np.any(_room_on_host(problem, PolicyGrid.of(one)) < 0.0))


def on_disk_beside_host(problem: Problem, grid: PolicyGrid) -> Column:
    """Return how many of each layer's experts, in candidates with none on the GPU, host memory has no room for.

    One at least, and those that the CPU computes are not among them.
    """
    streamed = problem.model.num_experts - grid.cpu_experts
    expert = problem.model.num_moe_layers * streamed_layer_bytes(grid, problem.model) / streamed
    # From one on, for those in memory may have to pass staging pages.
    room = _room_on_host(problem, replace(grid, disk_experts=np.maximum(streamed - 1.0, 1.0)))
    kept = np.floor(1.0 + room / np.maximum(expert, 1.0))
    return np.clip(streamed - kept, 1.0, streamed)


def _room_on_host(problem: Problem, grid: PolicyGrid) -> Column:
    classes = demand(grid, problem.model, problem.workload)
    return _limit_bytes(problem, "cpu") - _total(classes["cpu"], grid)


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
