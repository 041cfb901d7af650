"""What is left out before it is ranked could not have been the best."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hrm.estimate import Fidelity
from hrm.policy import ScheduleName
from solver.breakpoints import relaxed_optima
from solver.pieces import pieces_of
from solver.pruning import promising
from solver.room import room_for
from solver.space import build_space
from tests.machines import level, machine, workload
from tests.problems import predicted_all, problem, problems


@given(problems(), st.sampled_from([1.0, 1.25]))
@settings(max_examples=100, deadline=None)
def test_nothing_within_reach_is_left_out(asked, reach):
    space = build_space(asked)
    best = predicted_all(asked, space)
    assume(best is not None)
    known_s = reach * best.objective_s
    for grid in space.grids:
        room = room_for(asked, grid)
        left_out = ~promising(asked, room.fullest, Fidelity.CEILING, known_s)
        pieces = pieces_of(asked, room.select(left_out))
        assert relaxed_optima(pieces).objective.min(initial=np.inf) >= known_s * (1 - 1e-9)


def test_a_slow_processor_and_a_slow_link_are_seen_at_once():
    slow = machine(cpu=level(1e6, 1e9), gpu=level(1e12, 1e12), link_bytes_per_s=1e6)
    schedules = (ScheduleName.CGOPIPE, ScheduleName.KV_TRANSFER)
    asked = problem(slow, job=workload(num_sequences=64), schedules=schedules)
    space = build_space(asked)
    best = predicted_all(asked, space)
    assert best is not None
    shares = {
        (grid.template.schedule, grid.template.cpu_experts): np.mean(
            promising(asked, room_for(asked, grid).fullest, Fidelity.CEILING, best.objective_s)
        )
        for grid in space.grids
    }

    streams_nothing = 0.5
    assert shares[ScheduleName.CGOPIPE, 0] == streams_nothing
    assert shares[ScheduleName.CGOPIPE, 1] < 0.5
    assert shares[ScheduleName.KV_TRANSFER, 0] < 0.5
