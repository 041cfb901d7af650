"""Affine pieces are what the core says, at every number of resident experts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from hrm.estimate import Fidelity
from hrm.passes import job_passes
from hrm.predict import predict_grid
from solver.grid import objective_s
from solver.pieces import bounds_by_name, pieces_of
from solver.room import room_for, with_resident
from solver.space import build_space
from tests.machines import unshared
from tests.problems import problems


def core_bounds(asked, pieces, resident):
    """What the core says of each bound of each pass, as the pieces lay them out."""
    grid = with_resident(pieces.room.grid, resident)
    passes = job_passes(grid, asked.model, asked.hardware, asked.workload, Fidelity.CEILING)
    found = np.zeros_like(pieces.bounds.intercept)
    for place, one in enumerate(passes):
        for name, seconds in bounds_by_name(one.work).items():
            found[place, pieces.bound_names.index(name)] = seconds
    return found


@given(problems())
@settings(max_examples=100, deadline=None)
def test_bounds_are_affine_in_the_resident_experts(asked):
    asked = replace(asked, hardware=unshared(asked.hardware))
    for grid in build_space(asked).grids:
        pieces = pieces_of(asked, room_for(asked, grid))
        for share in (0.0, 0.3, 1.0):
            resident = pieces.room.least + share * (pieces.room.most - pieces.room.least)
            if pieces.room.size:
                found = core_bounds(asked, pieces, resident)
                assert pieces.bounds.at(resident) == pytest.approx(found, rel=1e-9, abs=1e-15)


@given(problems())
@settings(max_examples=100, deadline=None)
def test_with_shared_rates_a_line_between_whole_numbers_is_a_bound(asked):
    """What a lane draws on a shared rate counts up to its own time: a concave corner, which lies above its chord."""
    for grid in build_space(asked).grids:
        pieces = pieces_of(asked, room_for(asked, grid))
        fewest, most = pieces.room.whole
        for share in (0.0, 0.5, 1.0):
            resident = np.clip(fewest + share * (most - fewest), pieces.room.least, pieces.room.most)
            inside = (resident >= fewest) & (fewest < most)
            if inside.any():
                found = core_bounds(asked, pieces, resident)[..., inside]
                assert np.all(pieces.bounds.at(resident)[..., inside] <= found * (1 + 1e-9) + 1e-15)


@given(problems())
@settings(max_examples=100, deadline=None)
def test_more_resident_experts_never_take_longer(asked):
    for grid in build_space(asked).grids:
        pieces = pieces_of(asked, room_for(asked, grid))
        if pieces.room.size:
            scale = np.abs(pieces.bounds.intercept) + 1e-15
            assert np.all(pieces.bounds.slope <= 1e-9 * scale)


@given(problems())
@settings(max_examples=100, deadline=None)
def test_the_objective_is_what_is_predicted(asked):
    for grid in build_space(asked).grids:
        pieces = pieces_of(asked, room_for(asked, grid))
        fewest, most = pieces.room.whole
        if np.any(fewest <= most):
            resident = np.clip(most, pieces.room.least, pieces.room.most)
            whole = with_resident(pieces.room.grid, resident)
            times = predict_grid(whole, asked.model, asked.hardware, asked.workload, Fidelity.CEILING)
            expected = np.broadcast_to(objective_s(asked, times), resident.shape)
            assert pieces.sums(resident)["objective"] == pytest.approx(expected, rel=1e-9)


@given(problems())
@settings(max_examples=100, deadline=None)
def test_memory_leaves_what_the_ledger_leaves(asked):
    for grid in build_space(asked).grids:
        pieces = pieces_of(asked, room_for(asked, grid))
        fewest, most = pieces.room.whole
        for place in range(pieces.room.size):
            for resident in range(int(pieces.room.least[place]), int(pieces.room.most[place]) + 1):
                short = asked.short_of(pieces.policy(place, resident))
                allowed = fewest[place] <= resident <= most[place]
                assert short is None if allowed else True
                assert allowed or short is not None or nearly_full(asked, pieces.policy(place, resident))


def nearly_full(asked, policy):
    """Whether a policy fits by a few bytes only: each class of the ledger is rounded up to whole ones."""
    roomy = {
        name: replace(one, usable_bytes=one.usable_bytes - 16 // one.count)
        for name, one in asked.hardware.levels.items()
    }
    return replace(asked, hardware=replace(asked.hardware, levels=roomy)).short_of(policy) is not None
