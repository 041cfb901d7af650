"""The walk over breakpoints against dense evaluation, on pieces of any slope."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.policy_grid import PolicyGrid
from solver.breakpoints import relaxed_optima, whole_optima
from solver.pieces import Pieces
from solver.room import Affine, Room
from tests.machines import policy

SLOPES = st.floats(-5, 5).map(lambda value: round(value, 3))
ENDS = st.floats(0, 6).map(lambda value: round(value, 3))


@st.composite
def any_pieces(draw, count=3):
    """Passes of up to four bounds, rising and falling, over ranges of resident experts."""
    passes, lines = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    shape = passes, lines, count
    slope = np.array(draw(st.lists(SLOPES, min_size=passes * lines * count, max_size=passes * lines * count)))
    start = np.array(draw(st.lists(st.floats(1, 9), min_size=slope.size, max_size=slope.size)))
    low = np.array(draw(st.lists(ENDS, min_size=count, max_size=count)))
    width = np.array(draw(st.lists(ENDS, min_size=count, max_size=count)))
    return pieces_with(Affine(intercept=60.0 + start.reshape(shape), slope=slope.reshape(shape)), low, low + width)


def pieces_with(bounds, low, high):
    passes, lines, count = bounds.intercept.shape
    numbers = np.arange(1.0, count + 1.0)
    grid = PolicyGrid(
        template=policy(),
        batch_size=numbers,
        micro_batch_size=np.ones(count),
        resident_experts=np.zeros(count),
        cpu_experts=np.zeros(count),
        kv_on_gpu=np.zeros(count),
    )
    return Pieces(
        room=Room(grid=grid, least=low, most=high, low=low, high=high, memory=()),
        pass_names=tuple(f"pass_{place}" for place in range(passes)),
        bound_names=tuple(f"line_{place}" for place in range(lines)),
        bounds=bounds,
        weights={"objective": np.outer(np.arange(1.0, passes + 1.0), np.ones(count))},
    )


@given(any_pieces())
@settings(max_examples=300, deadline=None)
def test_no_number_of_experts_beats_the_breakpoint_found(pieces):
    found = relaxed_optima(pieces)

    assert np.all((pieces.room.low <= found.resident) & (found.resident <= pieces.room.high))
    for share in np.linspace(0.0, 1.0, 201):
        tried = pieces.sums(pieces.room.low + share * (pieces.room.high - pieces.room.low))["objective"]
        assert np.all(found.objective <= tried * (1 + 1e-9))


@given(any_pieces())
@settings(max_examples=300, deadline=None)
def test_the_best_whole_number_is_beside_the_best_real_one(pieces):
    found = whole_optima(pieces, relaxed_optima(pieces))
    fewest, most = pieces.room.whole

    for place in range(pieces.room.size):
        whole = np.arange(fewest[place], most[place] + 1)
        tried = [pieces.sums(np.full(pieces.room.size, number))["objective"][place] for number in whole]
        assert found.objective[place] <= min(tried, default=np.inf) * (1 + 1e-12)
        assert np.isfinite(found.objective[place]) == bool(len(whole))


def test_the_bottom_of_a_vee_is_found():
    """One bound falls from 10, another rises from 1, both by 1: they meet at 4.5."""
    bounds = Affine(intercept=np.array([[[10.0], [1.0]]]), slope=np.array([[[-1.0], [1.0]]]))
    found = relaxed_optima(pieces_with(bounds, np.zeros(1), np.full(1, 9.0)))

    assert (found.resident[0], found.objective[0]) == (4.5, 5.5)
