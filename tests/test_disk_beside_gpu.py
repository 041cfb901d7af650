"""Experts on disk beside a GPU: when the search leaves some there, and what the link and the disk then do."""

from dataclasses import replace

import numpy as np
import pytest

from hrm.estimate import Fidelity
from hrm.policy import ScheduleName
from hrm.policy_grid import PolicyGrid
from hrm.predict import predict, predict_grid
from hrm.rates import Rates
from hrm.schedule.catalog import build_schedule
from hrm.schedule.task import Lane, Phase, TaskKind
from hrm.schedule.validate import validate
from solver.disk_turn import disk_turn
from solver.explain import phase_bounds
from solver.optimum import found
from solver.search import Method, search, solve
from solver.space import build_space
from tests.machines import ATTENTION_OF, level, machine, model, policy, with_disk, workload
from tests.problems import problem

SPEC = model(hidden_size=64, intermediate_size=512, num_experts=8, num_layers=4)
JOB = workload(gen_len=6, num_sequences=32)
EXPERTS_BYTES = 4 * SPEC.num_moe_layers * SPEC.num_experts * SPEC.expert_parameters


def asked(share=0.5, disk_bytes_per_s=3e7, **changes):
    """A problem whose host memory holds such a share of all experts, and whose GPU two layers' of them and little more.

    The host computes slowly: what the GPU does not keep is streamed.
    """
    gpu = level(2e10, 1e10, capacity_bytes=int(0.6 * EXPERTS_BYTES))
    hardware = with_disk(machine(level(1e8, 1e9), gpu, link_bytes_per_s=1e8), disk_bytes_per_s)
    limit = int(share * EXPERTS_BYTES) + 10**6
    return problem(hardware, JOB, SPEC, ram_limit_bytes=limit, **{"split_experts": False} | changes)


def test_what_the_host_holds_stays_there_and_no_more_is_searched():
    roomy = asked(share=1.5)
    levels = {name: one for name, one in roomy.hardware.levels.items() if name != "disk"}
    no_disk = replace(roomy, hardware=replace(roomy.hardware, levels=levels))

    assert search(roomy) == search(no_disk)
    assert candidates(replace(roomy, schedules=GPU)) == candidates(replace(no_disk, schedules=GPU))


def candidates(wanted):
    return sum(np.size(grid.batch_size) for grid in build_space(wanted).grids)


GPU = (ScheduleName.CGOPIPE, ScheduleName.KV_TRANSFER)


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("split", [False, True])
def test_what_does_not_fit_is_streamed_from_disk_by_every_method(method, split):
    tight = asked(split_experts=split)
    chosen = solve(tight, method=method).policy

    chosen.check(SPEC)
    assert chosen.schedule is not ScheduleName.HOST
    assert 0 < chosen.disk_experts < SPEC.num_experts
    assert tight.short_of(chosen) is None
    more = tight.short_of(replace(chosen, disk_experts=chosen.disk_experts - 1))
    assert more is not None
    assert more.device == "cpu"


def test_no_other_share_between_gpu_host_and_disk_is_faster():
    """Of the N and mu that the search chose, every number of experts in each memory."""
    tight = asked()
    chosen = search(tight)
    best = found(tight, chosen)
    assert best is not None
    for resident in range(SPEC.num_experts + 1):
        for on_disk in range(SPEC.num_experts - resident + 1):
            other = found(tight, replace(chosen, resident_experts=resident, disk_experts=on_disk))
            if other is not None:
                assert other.throughput_tokens_per_s <= best.throughput_tokens_per_s * (1 + 1e-9)


def test_more_host_memory_never_makes_it_slower():
    rates = [
        solve(asked(share=share), simulate=False).prediction.times.throughput_tokens_per_s
        for share in (0.2, 0.5, 0.8, 1.5)
    ]

    assert rates == sorted(rates)


def test_a_slow_disk_binds_and_is_named_and_where_it_stops():
    slow = asked(disk_bytes_per_s=1e6)
    plan = solve(slow)
    turn = disk_turn(slow, plan.policy)

    assert plan.policy.disk_experts > 0
    assert plan.prediction.bottleneck[Phase.DECODE].lane is Lane.DISK
    assert phase_bounds(slow, plan.policy)[1].binding == "disk"
    assert turn is not None
    assert turn.batch_size > plan.policy.batch_size


def times(chosen, hardware):
    return predict(chosen, SPEC, hardware, JOB).by_fidelity


@pytest.mark.parametrize("schedule", [name for name in ScheduleName if name is not ScheduleName.HOST])
def test_a_disk_that_binds_is_hardly_ever_idle_under_any_schedule(schedule):
    """Reading runs ahead over layers and passes: simulated decode takes little more than all that is read."""
    attention = ATTENTION_OF[schedule][0]
    chosen = policy(attention, schedule=schedule, disk_experts=5, batch_size=32, micro_batch_size=8)
    hardware = with_disk(machine(level(1e9, 1e9), level(2e10, 1e10)), bytes_per_s=1e7)
    assert validate(build_schedule(chosen, SPEC), chosen, SPEC) == ()
    read_bytes = (JOB.gen_len - 1) * SPEC.num_moe_layers * 5 * SPEC.expert_parameters * 4
    read_s = read_bytes / Rates(hardware=hardware, measured=True).link_bytes_per_s("disk")

    for fidelity in (Fidelity.CEILING, Fidelity.SIMULATED):
        assert times(chosen, hardware)[fidelity].decode_s == pytest.approx(read_s, rel=0.01)


def test_with_a_fast_disk_the_link_takes_as_long_as_from_memory():
    chosen = policy(disk_experts=5, batch_size=32, micro_batch_size=8, pages_per_layer=SPEC.num_experts)
    hardware = with_disk(machine(level(1e9, 1e9), level(2e10, 1e10), link_bytes_per_s=1e7), bytes_per_s=1e9)
    from_disk, from_memory = (times(one, hardware) for one in (chosen, replace(chosen, disk_experts=0)))

    for fidelity in (Fidelity.CEILING, Fidelity.SIMULATED):
        assert from_disk[fidelity].decode_s == pytest.approx(from_memory[fidelity].decode_s, rel=0.02)


def test_each_expert_on_disk_is_read_once_a_pass_and_crosses_by_itself():
    chosen = policy(resident_experts=1, disk_experts=3)
    for tasks in (build_schedule(chosen, SPEC).prefill, build_schedule(chosen, SPEC).decode):
        kinds = [task.kind for task in tasks]

        assert kinds.count(TaskKind.DISK_READ) == SPEC.num_moe_layers * 3
        assert kinds.count(TaskKind.PAGE_COPY) == SPEC.num_moe_layers * (SPEC.num_experts - 1)


def test_a_grid_of_such_policies_predicts_what_each_does():
    """The one that reads nothing too, whose pages are others."""
    kept = np.arange(6.0)
    grid = replace(PolicyGrid.of(policy(disk_experts=5)), resident_experts=kept, disk_experts=5.0 - kept)
    hardware = with_disk(machine(), bytes_per_s=1e7)
    together = predict_grid(grid, SPEC, hardware, JOB, Fidelity.CEILING)
    for index in range(6):
        alone = predict(grid.take(index), SPEC, hardware, JOB, fidelities=(Fidelity.CEILING,)).times

        assert np.broadcast_to(together.decode_s, 6)[index] == pytest.approx(alone.decode_s)
