"""Three independent answers agree: HiGHS, the walk over breakpoints, and every policy predicted by the core."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hrm.errors import HrmError
from hrm.estimate import Fidelity
from hrm.predict import predict_grid
from solver.breakpoints import relaxed_optima, whole_optima
from solver.grid import objective_s, within_limits
from solver.milp import solve_milp
from solver.pieces import pieces_of
from solver.room import resident_of, room_for, with_resident
from solver.space import build_space, single
from tests.machines import level, machine
from tests.problems import predicted_all, problem, problems, with_limits
from tests.test_breakpoints import any_pieces

FACTORS = st.tuples(*[st.sampled_from([0.9, 1.0 + 1e-9, 1.3, 4.0])] * 3)


def close(value):
    return pytest.approx(value, rel=1e-6)


def times_of(asked, policy):
    grid = with_resident(single(asked, policy), np.array([float(resident_of(asked, policy))]))
    times = predict_grid(grid, asked.model, asked.hardware, asked.workload, Fidelity.CEILING)
    return replace(
        times,
        **{
            name: float(np.ravel(getattr(times, name))[0])
            for name in (
                "prefill_s", "decode_s", "throughput_tokens_per_s", "time_to_first_token_s", "time_per_token_s"
            )
        },
    )  # fmt: skip


def proved(asked, space, known_s, *, presolve):
    """The optimum of a space by HiGHS: its policy, and the result."""
    parts = [pieces_of(asked, room_for(asked, grid)) for grid in space.grids]
    found = solve_milp(parts, known_s=known_s, presolve=presolve)
    return parts[found.part].policy(found.index, round(found.resident)), found


@given(problems(), FACTORS, st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_milp_and_grid_agree_on_the_discrete_problem(asked, factors, limited, presolve):
    space = build_space(asked)
    best = predicted_all(asked, space)
    assume(best is not None)
    if limited:
        asked = with_limits(asked, times_of(asked, best.policy), factors)
        best = predicted_all(asked, space)
        assume(best is not None)
    policy, found = proved(asked, space, best.objective_s, presolve=presolve)
    times = times_of(asked, policy)

    assert found.objective_s == close(best.objective_s)
    assert float(objective_s(asked, times)) == close(best.objective_s)
    assert found.bound_s == close(best.objective_s)
    assert found.gap <= 1e-6
    assert asked.short_of(policy) is None
    relaxed = replace(asked, **{f"max_{name}_s": limit * (1 + 1e-6) for name, limit in asked.time_limits_s.items()})
    assert within_limits(relaxed, times)


@given(problems(), FACTORS, st.booleans())
@settings(max_examples=200, deadline=None)
def test_breakpoints_and_grid_agree_on_the_discrete_problem(asked, factors, limited):
    space = build_space(asked)
    best = predicted_all(asked, space)
    assume(best is not None)
    if limited:
        asked = with_limits(asked, times_of(asked, best.policy), factors)
        best = predicted_all(asked, space)
    parts = [pieces_of(asked, room_for(asked, grid)) for grid in space.grids]
    found = [whole_optima(pieces, relaxed_optima(pieces)).objective.min(initial=np.inf) for pieces in parts]

    assert min(found) == close(best.objective_s if best else np.inf)


@given(problems(), st.data())
@settings(max_examples=200, deadline=None)
def test_lp_and_breakpoints_agree_on_the_relaxation(asked, data):
    """Of one candidate, real numbers of experts allowed: devices, N and mu are fixed."""
    grid = data.draw(st.sampled_from(build_space(asked).grids))
    assume(np.size(grid.batch_size))
    place = data.draw(st.integers(0, np.size(grid.batch_size) - 1))
    pieces = pieces_of(asked, room_for(asked, grid.select(np.array([place]))))
    assume(pieces.room.size)
    expected = relaxed_optima(pieces).objective.min()

    found = solve_milp([pieces], known_s=expected, presolve=False, whole=False)

    assert found.objective_s == close(expected)


@given(any_pieces())
@settings(max_examples=200, deadline=None)
def test_lp_and_breakpoints_agree_whatever_the_slopes(pieces):
    expected = relaxed_optima(pieces).objective.min()

    assert solve_milp([pieces], known_s=expected, presolve=False, whole=False).objective_s == close(expected)


@given(any_pieces())
@settings(max_examples=100, deadline=None)
def test_milp_and_whole_breakpoints_agree_whatever_the_slopes(pieces):
    expected = whole_optima(pieces, relaxed_optima(pieces)).objective.min()
    assume(np.isfinite(expected))

    for presolve in (False, True):
        found = solve_milp([pieces], known_s=expected, presolve=presolve)
        assert found.objective_s == close(expected)


def test_constraints_are_named_after_the_terms_of_the_paper(tmp_path):
    asked = problem(machine(gpu=level(1e10, 1e10, capacity_bytes=120_000)))
    parts = [pieces_of(asked, room_for(asked, grid)) for grid in build_space(asked).grids]
    known = min(relaxed_optima(pieces).objective.min(initial=np.inf) for pieces in parts)
    solve_milp(parts, known_s=known, presolve=False, write_lp=tmp_path / "policy.lp")
    written = (tmp_path / "policy.lp").read_text()

    for name in (
        "prefill_gpu",
        "decode_2_h2d",
        "decode_1_cpu",
        "decode_1_chain",
        "gpu_memory",
        "cpu_memory",
        "one_policy",
    ):
        assert f"\n{name}: " in written
    assert "N6_mu3" in written


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    asked = problem()
    parts = [pieces_of(asked, room_for(asked, grid)) for grid in build_space(asked).grids]

    with pytest.raises(HrmError, match=r"--write-lp .* cannot be written"):
        solve_milp(parts, known_s=1.0, presolve=False, write_lp=tmp_path / "none" / "policy.lp")


def test_presolve_leaves_out_only_what_cannot_be_best():
    asked = problem()
    space = build_space(asked)
    best = predicted_all(asked, space)
    pruned, whole = (proved(asked, space, best.objective_s, presolve=presolve)[1] for presolve in (True, False))

    assert pruned.pruned > whole.pruned
    assert pruned.objective_s == close(whole.objective_s)
