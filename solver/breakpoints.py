"""The exact least of a sum of maxima of affine pieces in one variable, for many candidates at once.

Each pass lasts the largest of affine functions of the resident experts r; a weighted sum of passes is convex and
piecewise linear in r, and least at an end of its range or at a breakpoint. The tangents at both ends of what is left of
the range meet at or below the curve: if on it, there is the least; else the range is cut there. Each cut passes at
least one breakpoint, so that the walk ends, after as many steps as a few breakpoints take.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hrm.records import record
from solver.pieces import Pieces
from solver.room import WHOLE

__all__ = ["Optima", "relaxed_optima", "whole_optima"]

Column = NDArray[np.float64]

_TOUCHING = 1e-12
"""Relative distance below which a tangent touches the curve."""


@record
class Optima:
    """For each candidate the resident experts at which the objective is least, and that objective (infinite: none)."""

    resident: Column
    objective: Column


def relaxed_optima(pieces: Pieces) -> Optima:
    """Return the least objective of each candidate over real numbers of resident experts that fit; limits aside."""
    low, high = pieces.room.low.copy(), pieces.room.high.copy()
    best = np.where(_value(pieces, low) <= _value(pieces, high), low, high)
    left = np.arange(pieces.room.size)
    while len(left):
        at_low, falling = _tangent(pieces, left, low[left], rightwards=True)
        at_high, rising = _tangent(pieces, left, high[left], rightwards=False)
        inside = (falling < 0.0) & (rising > 0.0) & (low[left] < high[left])
        best[left] = np.where(falling >= 0.0, low[left], np.where(rising <= 0.0, high[left], best[left]))
        left = left[inside]
        at_low, falling, at_high, rising = (column[inside] for column in (at_low, falling, at_high, rising))
        step = (at_low - at_high + rising * (high[left] - low[left])) / (rising - falling)
        meet = np.clip(low[left] + step, low[left], high[left])
        expected = at_low + falling * (meet - low[left])
        found, slope = _tangent(pieces, left, meet, rightwards=True)
        best[left] = meet
        going_down = slope < 0.0
        low[left] = np.where(going_down, meet, low[left])
        high[left] = np.where(going_down, high[left], meet)
        left = left[found > expected + _TOUCHING * np.abs(found)]
    return Optima(resident=best, objective=_value(pieces, best))


def whole_optima(pieces: Pieces, relaxed: Optima) -> Optima:
    """Return the least objective of each candidate over whole numbers of resident experts that fit and keep limits.

    The objective is convex: without limits the best whole number is next to the best real one. With limits all are
    tried.
    """
    fewest, most = pieces.room.whole
    if len(pieces.weights) > 1:
        tried = [np.clip(fewest + step, fewest, most) for step in range(int((most - fewest).max(initial=0.0)) + 1)]
    else:
        tried = [np.clip(rounded, fewest, most) for rounded in _neighbours(relaxed.resident)]
    best = Optima(resident=fewest, objective=np.full(pieces.room.size, np.inf))
    for resident in tried:
        sums = pieces.sums(resident)
        allowed = fewest <= most
        for name, share in sums.items():
            allowed &= (name == "objective") | (share <= 1.0)
        objective = np.where(allowed, sums["objective"], np.inf)
        better = objective < best.objective
        best = Optima(
            resident=np.where(better, resident, best.resident),
            objective=np.where(better, objective, best.objective),
        )
    return best


def _neighbours(resident: Column) -> tuple[Column, Column]:
    return np.floor(resident + WHOLE), np.ceil(resident - WHOLE)


def _value(pieces: Pieces, resident: Column) -> Column:
    return pieces.sums(resident)["objective"]


def _tangent(pieces: Pieces, places: NDArray[np.int64], resident: Column, *, rightwards: bool) -> tuple[Column, Column]:
    """Return the objective of some candidates, and its slope to the right or to the left."""
    slopes = pieces.bounds.slope[..., places]
    values = pieces.bounds.intercept[..., places] + slopes * resident
    longest = values.max(axis=1)
    touching = values >= (longest - _TOUCHING * np.abs(longest))[:, None]
    outside = -np.inf if rightwards else np.inf
    steepest = np.where(touching, slopes, outside)
    steepest = steepest.max(axis=1) if rightwards else steepest.min(axis=1)
    weights = pieces.weights["objective"][:, places]
    return (weights * longest).sum(axis=0), (weights * steepest).sum(axis=0)
