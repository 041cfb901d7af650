"""Experts on disk in the search: when they are, how many, and where the disk stops binding."""

from dataclasses import replace

import pytest

from hrm.errors import InfeasibleError
from hrm.estimate import Fidelity
from hrm.memory import ledger
from hrm.policy_grid import PolicyGrid
from hrm.predict import predict
from hrm.schedule.task import Lane, Phase
from solver.disk_turn import _with, disk_turn
from solver.explain import phase_bounds
from solver.search import Method, search, solve
from tests.machines import cpu_only, level, model, with_disk, workload
from tests.problems import problem

SPEC = model(hidden_size=64, intermediate_size=512, num_experts=8, num_layers=4)
JOB = workload(gen_len=6, num_sequences=32)


def asked(disk_bytes_per_s=1e7, share=0.5, **changes):
    """A problem whose memory holds such a share of all experts, and what else one sequence needs."""
    hardware = with_disk(cpu_only(level(1e9, 1e9)), bytes_per_s=disk_bytes_per_s)
    whole = 4 * SPEC.num_moe_layers * SPEC.num_experts * SPEC.expert_parameters
    return problem(hardware, changes.pop("job", JOB), SPEC, ram_limit_bytes=int(share * whole) + 10**6, **changes)


def test_what_fits_stays_in_memory():
    assert solve(asked(share=3.0)).policy.disk_experts == 0


@pytest.mark.parametrize("method", Method)
def test_what_does_not_fit_is_read_from_disk_by_every_method(method):
    found = asked()
    policy = solve(found, method=method).policy

    assert 0 < policy.disk_experts < SPEC.num_experts
    assert found.short_of(policy) is None
    assert found.short_of(replace(policy, disk_experts=policy.disk_experts - 1)) is not None


def test_memory_is_filled_to_the_last_expert():
    found = asked(share=0.55)
    policy = solve(found).policy
    layers = SPEC.num_moe_layers
    on_disk = policy.disk_experts * layers - policy.fuller_layers - 1
    more = replace(policy, disk_experts=-(-on_disk // layers), fuller_layers=-on_disk % layers)

    assert found.short_of(policy) is None
    assert found.short_of(more) is not None


def test_what_fills_memory_is_no_slower_than_what_was_searched():
    for share in (0.3, 0.45, 0.6, 0.8):
        found = asked(disk_bytes_per_s=3e7, share=share)
        plan = solve(found)
        searched = search(found)
        inputs = found.model, found.hardware, found.workload
        rate = predict(searched, *inputs).by_fidelity[Fidelity.SIMULATED].throughput_tokens_per_s

        assert plan.prediction.by_fidelity[Fidelity.SIMULATED].throughput_tokens_per_s >= rate * (1 - 1e-9)


def test_more_memory_never_makes_it_slower():
    rates = [
        solve(asked(share=share)).prediction.by_fidelity[Fidelity.CEILING].throughput_tokens_per_s
        for share in (0.3, 0.5, 0.7, 1.5)
    ]

    assert rates == sorted(rates)


def test_without_a_disk_it_is_infeasible_and_says_how_much_is_missing():
    found = asked()
    levels = {"cpu": found.hardware.levels["cpu"]}

    with pytest.raises(InfeasibleError, match="cpu memory is short by"):
        solve(replace(found, hardware=replace(found.hardware, levels=levels, links={})))


def test_a_slow_disk_binds_and_is_named():
    found = asked(disk_bytes_per_s=1e6)
    plan = solve(found)
    bounds = phase_bounds(found, plan.policy)

    assert plan.prediction.bottleneck[Phase.DECODE].lane is Lane.DISK
    assert bounds[1].binding == "disk"
    assert bounds[1].roof == "cross-level"


def test_the_disk_stops_binding_where_the_cpu_takes_as_long():
    found = asked()
    policy = solve(found).policy
    turn = disk_turn(found, policy)
    assert turn is not None

    def decode_s(batch_size):
        job = replace(found.workload, num_sequences=None)
        made = predict(replace(_with(policy, batch_size)), SPEC, found.hardware, job, fidelities=(Fidelity.CEILING,))
        return made.bottleneck[Phase.DECODE].lane

    assert decode_s(turn.batch_size - 1) is Lane.DISK
    assert decode_s(turn.batch_size + 1) is Lane.CPU
    assert (turn.short is None) == (found.short_of(_with(policy, turn.batch_size)) is None)
    assert str(turn).startswith(f"the disk stops binding at N = {turn.batch_size} (")


def test_where_that_does_not_fit_the_bytes_are_named():
    found = asked(disk_bytes_per_s=1e5)
    turn = disk_turn(found, solve(found).policy)

    assert turn is not None
    assert turn.short is not None
    assert "for which cpu memory is short by" in str(turn)


def test_the_ledger_of_a_plan_counts_what_its_grid_counts():
    policy = solve(asked()).policy

    assert PolicyGrid.of(policy).disk_experts == policy.disk_experts
    assert ledger(policy, SPEC, JOB).cpu.page_buffers > 0
