"""Why no policy is allowed, and the least change that would do: computed by trying, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil, floor, log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.dtypes import DType
from hrm.errors import InfeasibleError, SchemaError
from hrm.files import to_plain
from hrm.hardware import HardwareProfile
from hrm.policy import Policy, ScheduleName
from hrm.policy_grid import PolicyGrid
from hrm.predict import Times
from hrm.rates import Rates
from hrm.records import record
from hrm.shortage import Shortage, usable_bytes
from hrm.units import format_bytes, format_s
from solver.pieces import Pieces, pieces_of
from solver.problem import Problem
from solver.room import WHOLE, MemoryRow, fits_at_all, memory_rows, ranges, resident_range, room_for
from solver.space import build_space, one_at_a_time, placements

__all__ = ["Infeasible", "NoPlanError", "Remedy", "missed_when_simulated", "no_plan"]

Column = NDArray[np.float64]


@record
class Remedy:
    """A change with which a policy is allowed: what to change, and to what."""

    change: str
    value: str | int | float
    text: str


@record
class Infeasible:
    """Why no policy is allowed: the memory that is short, or the limit on time with the least that can be reached."""

    reason: str
    short: Shortage | None = None
    limit: str | None = None
    least_s: float | None = None
    remedies: tuple[Remedy, ...] = ()


class NoPlanError(InfeasibleError):
    """No policy is allowed; `why` says what is short and what would do."""

    def __init__(self, why: Infeasible) -> None:
        remedies = ", or ".join(remedy.text for remedy in why.remedies) or "choose a smaller model or another machine"
        super().__init__(f"{why.reason} (least changes that do: {remedies})")
        self.why = why

    def document(self) -> dict[str, Any]:
        """Return the JSON document that `solve --json` prints."""
        short = self.why.short
        missing = {"missing_bytes": short.missing_bytes} if short else {}
        plain: dict[str, Any] = to_plain(self.why)
        return {
            "status": "infeasible",
            **plain,
            "short": {**plain["short"], **missing} if short else None,
            "error": str(self),
        }


def no_plan(problem: Problem) -> NoPlanError:
    """Return the error that says why a problem has no plan."""
    if not any(placements(problem)):
        named, host = ", ".join(problem.schedules), ScheduleName.HOST.value
        remedy = Remedy(change="--schedule", value=host, text=f"--schedule {host}")
        return NoPlanError(
            Infeasible(reason=f"--schedule {named}: {problem.hardware.name} has no gpu", remedies=(remedy,))
        )
    if _fits(problem):
        return NoPlanError(_too_slow(problem))
    short = _least_shortage(problem)
    reason = f"{problem.model.name} does not fit {problem.hardware.name} with one sequence: {short}"
    return NoPlanError(Infeasible(reason=reason, short=short, remedies=tuple(_memory_remedies(problem))))


def _fits(problem: Problem) -> bool:
    """Say whether one sequence fits, in any placement."""
    return any(fits_at_all(problem, _one_sequence(problem, template)).any() for template in placements(problem))


def _one_sequence(problem: Problem, template: Policy) -> PolicyGrid:
    return one_at_a_time(problem, template, np.ones(1))


def _least_shortage(problem: Problem) -> Shortage:
    """Return the largest shortage of the placement that comes closest, its resident experts at their best.

    Closest is one that is short of few devices' memory, and then of few bytes in all: what more memory of one kind
    would mend.
    """
    found = (_shortages(problem, _one_sequence(problem, template)) for template in placements(problem))
    least = min((shorts for of_template in found for shorts in of_template), key=_missing)
    return max(least, key=lambda one: one.missing_bytes)


def _missing(shorts: Sequence[Shortage]) -> tuple[int, int]:
    """Return how many devices lack memory, and how much in all, each at its own peak."""
    missing: dict[str, int] = {}
    for short in shorts:
        missing[short.device] = max(missing.get(short.device, 0), short.missing_bytes)
    return sum(bool(lacking) for lacking in missing.values()), sum(missing.values())


def _shortages(problem: Problem, grid: PolicyGrid) -> Iterator[tuple[Shortage, ...]]:
    """Yield for each candidate and range of resident experts what each limit on memory is short by."""
    for least, most in ranges(problem, grid):
        rows = memory_rows(problem, grid, least, most)
        resident = _resident_at_best(rows, least, most)
        for place in range(len(most)):
            yield tuple(
                Shortage(
                    device=row.device,
                    needed_bytes=ceil(row.held.at(resident)[place]),
                    usable_bytes=int(row.limit_bytes),
                )
                for row in rows
            )


def _resident_at_best(rows: tuple[MemoryRow, ...], least: Column, most: Column) -> Column:
    """Return as many resident experts as fit on the GPU; without one as few as there may be, the others on disk."""
    on_gpu = tuple(row for row in rows if row.device == "gpu")
    _, high = resident_range(on_gpu, least, most if on_gpu else least)
    return np.clip(np.floor(high + WHOLE), least, np.maximum(least, most))


def _memory_remedies(problem: Problem) -> Iterator[Remedy]:
    """Yield the least of each: more memory of one kind, a narrower format of weights or cache."""
    for device in ("cpu", "gpu"):
        if device in problem.hardware.levels:
            yield from _more_memory(problem, device)
    weights = problem.expert_dtype or problem.weight_dtype
    yield from _narrower(problem, "--weight-dtype", weights, lambda dtype: _in_format(problem, dtype))
    yield from _narrower(problem, "--kv-dtype", problem.kv_dtype, lambda dtype: replace(problem, kv_dtype=dtype))


def _in_format(problem: Problem, dtype: DType) -> Problem:
    return replace(problem, weight_dtype=dtype, expert_dtype=None)


def _narrower(problem: Problem, option: str, now: DType, changed: Callable[[DType], Problem]) -> Iterator[Remedy]:
    """Yield the widest format narrower than `now` that does, of those that the machine computes with."""
    for dtype in sorted(DType, key=lambda one: -one.bytes_per_element):
        narrower = dtype.bytes_per_element < now.bytes_per_element
        if narrower and _computes(problem.hardware, dtype) and _fits(changed(dtype)):
            yield Remedy(change=option, value=dtype.value, text=f"{option} {dtype}")
            return


def _more_memory(problem: Problem, device: str) -> Iterator[Remedy]:
    """Yield how much more memory of a device does, where the others suffice."""
    enough = 1 << 60
    roomy = _with_memory(problem, device, enough)
    if not _fits(roomy):
        return
    now = usable = usable_bytes(problem.hardware, device, problem.ram_limit_bytes)
    while enough - usable > 1:
        middle = (usable + enough) // 2
        usable, enough = (usable, middle) if _fits(_with_memory(problem, device, middle)) else (middle, enough)
    more = enough - now
    yield Remedy(change=f"{device}_memory_bytes", value=more, text=f"{format_bytes(more)} more {device} memory")


def _with_memory(problem: Problem, device: str, usable: int) -> Problem:
    level = replace(problem.hardware.levels[device], usable_bytes=usable, capacity_bytes=usable, count=1)
    hardware = replace(problem.hardware, levels=problem.hardware.levels | {device: level})
    return replace(problem, hardware=hardware, ram_limit_bytes=None if device == "cpu" else problem.ram_limit_bytes)


def _too_slow(problem: Problem) -> Infeasible:
    """Say which limits on time no policy keeps, and how far each would have to be raised if the others stay."""
    parts = [pieces_of(problem, room_for(problem, grid)) for grid in build_space(problem).grids]
    limits = problem.time_limits_s
    alone = {name: _least_share(parts, name, ()) for name in limits}
    missed = [name for name in limits if alone[name] > 1.0]
    beside = {name: _least_share(parts, name, tuple(set(limits) - {name})) for name in limits}
    named = " and ".join(f"--max-{name}-s {limits[name]:g}" for name in missed or limits)
    reached = ", ".join(f"{format_s(alone[name] * limits[name])}" for name in missed)
    remedies = [_raised(name, share * limits[name]) for name, share in beside.items() if np.isfinite(share)]
    if problem.max_makespan_s is not None and problem.workload.num_sequences is not None:
        remedies += _fewer_sequences(problem)
    if not remedies:
        factor = _rounded_up(_least_factor(parts, tuple(limits)))
        remedies.append(Remedy(change="limits", value=factor, text=f"all limits on time times {factor:g}"))
    return Infeasible(
        reason=f"no policy keeps {named}" + (f": the least that any reaches is {reached}" if missed else " at once"),
        limit=missed[0] if missed else None,
        least_s=alone[missed[0]] * limits[missed[0]] if missed else None,
        remedies=tuple(remedies),
    )


def missed_when_simulated(problem: Problem, closest: Times) -> NoPlanError:
    """Return the error for limits on time that policies keep at `ceiling` alone; `closest` are the best simulated."""
    shares = {name: float(share) for name, share in problem.limits.shares(closest).items()}
    worst = max(shares, key=lambda name: shares[name])
    limit = problem.time_limits_s[worst]
    reason = (
        f"no policy found keeps --max-{worst}-s {limit:g} when simulated: the nearest takes "
        f"{format_s(shares[worst] * limit)}, though at `ceiling` it is in time"
    )
    raised = [_raised(name, share * problem.time_limits_s[name]) for name, share in shares.items() if share > 1.0]
    text = " and ".join(one.text for one in raised)
    remedies = (Remedy(change="limits", value=max(shares.values()), text=text), _NO_SIMULATE)
    return NoPlanError(Infeasible(reason=reason, limit=worst, least_s=shares[worst] * limit, remedies=remedies))


_NO_SIMULATE = Remedy(change="--no-simulate", value=1, text="--no-simulate, which trusts `ceiling`")


def _least_share(parts: list[Pieces], name: str, kept: tuple[str, ...]) -> float:
    """Return the least of a time among candidates that keep the limits `kept`, as a share of its own limit."""
    least = np.inf
    for pieces in parts:
        fewest, most = pieces.room.whole
        sums = pieces.sums(most)
        allowed = fewest <= most
        for other in kept:
            allowed &= sums[other] <= 1.0
        least = min(least, float(sums[name][allowed].min(initial=np.inf)))
    return least


def _least_factor(parts: list[Pieces], names: tuple[str, ...]) -> float:
    """Return by how much all limits together would have to be raised."""
    least = np.inf
    for pieces in parts:
        fewest, most = pieces.room.whole
        sums = pieces.sums(most)
        largest = np.max([sums[name] for name in names], axis=0)
        least = min(least, float(largest[fewest <= most].min(initial=np.inf)))
    return least


def _raised(name: str, least_s: float) -> Remedy:
    value = _rounded_up(least_s)
    return Remedy(change=f"--max-{name}-s", value=value, text=f"--max-{name}-s {value:g}")


def _rounded_up(value: float) -> float:
    """Return the next number of four significant digits: written out, it still does."""
    step = 10.0 ** (floor(log10(value)) - 3)
    return ceil(value / step) * step


def _fewer_sequences(problem: Problem) -> Iterator[Remedy]:
    """Yield the largest job that is done in time, if one of a single sequence is."""
    total = problem.workload.num_sequences
    assert total is not None
    done, beyond = 0, total
    while beyond - done > 1:
        middle = (done + beyond) // 2
        smaller = replace(problem, workload=replace(problem.workload, num_sequences=middle))
        parts = [pieces_of(smaller, room_for(smaller, grid)) for grid in build_space(smaller).grids]
        others = tuple(name for name in smaller.time_limits_s if name != "makespan")
        in_time = _least_share(parts, "makespan", others) <= 1.0
        done, beyond = (middle, beyond) if in_time else (done, middle)
    if done:
        yield Remedy(change="--num-sequences", value=done, text=f"--num-sequences {done}")


def _computes(hardware: HardwareProfile, dtype: DType) -> bool:
    rates = Rates(hardware=hardware, measured=True)
    try:
        for name in ("cpu", "gpu"):
            if name in hardware.levels:
                rates.flop_per_s(name, dtype)
    except SchemaError:
        return False
    return True
