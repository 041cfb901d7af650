"""What lanes have to do: the schedule's tasks added up, and the bounds that overlap cannot beat."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.cost import Cost
from hrm.hardware import SharedRate
from hrm.lanes import lane_work
from hrm.pass_costs import at_step, contended, pass_costs
from hrm.policy import Processor, ScheduleName, Staging
from hrm.policy_grid import PolicyGrid
from hrm.rates import Rates
from hrm.roofline import Bound
from hrm.schedule.catalog import build_schedule
from hrm.schedule.task import Lane, Phase, TaskKind
from tests.machines import (
    any_machines,
    any_models,
    any_policies,
    any_workloads,
    level,
    machine,
    model,
    policy,
    rate,
    unshared,
    with_fuller_layers,
    workload,
)

PROPERTY = settings(max_examples=80, deadline=None)
FIDELITIES = st.booleans()


def costs_of(chosen, spec, hardware, job, phase, measured=True):
    rates = Rates(hardware=hardware, measured=measured)
    return pass_costs(PolicyGrid.of(chosen), spec, rates, job, phase, 2.0 if phase is Phase.DECODE else 0.0)


def work_of(chosen, spec, hardware, job=None, phase=Phase.DECODE, measured=True):
    costs = costs_of(chosen, spec, hardware, job or workload(), phase, measured)
    return lane_work(costs, Rates(hardware=hardware, measured=measured).shared)


def added(pairs):
    """Sums by key, those of nothing left out: a lane without tasks is as good as one with tasks of no time."""
    sums: dict[object, float] = {}
    for key, seconds in pairs:
        sums[key] = sums.get(key, 0.0) + float(seconds)
    return {key: seconds for key, seconds in sums.items() if seconds}


FULLER = st.integers(0, 3)
CASES = st.tuples(st.sampled_from(Phase), FIDELITIES)


@given(any_policies(), any_models(), any_machines(), any_workloads(), CASES, FULLER)
@settings(max_examples=300, deadline=None)
def test_lane_work_is_the_sum_of_the_tasks_on_the_lane(chosen, spec, hardware, job, case, fuller):
    """So the closed form that the search uses and the schedule that is simulated and run cannot drift apart."""
    chosen, (phase, measured) = with_fuller_layers(chosen, spec, fuller), case
    costs = costs_of(chosen, spec, hardware, job, phase, measured)
    schedule = build_schedule(chosen, spec)
    tasks = schedule.prefill if phase is Phase.PREFILL else schedule.decode
    work = lane_work(costs, ())

    assert added((task.lane, costs.work_of(task).seconds) for task in tasks) == pytest.approx(
        added(work.seconds.items())
    )
    assert added((task.kind, costs.work_of(task).seconds) for task in tasks) == pytest.approx(
        added(work.by_kind.items())
    )
    assert all(work.compute_s[lane] <= seconds * (1 + 1e-12) for lane, seconds in work.seconds.items())


@given(any_policies(), any_models(), any_machines(), any_workloads())
@PROPERTY
def test_every_task_runs_on_the_lane_that_its_kind_is_counted_for(chosen, spec, hardware, job):
    schedule = build_schedule(chosen, spec)
    for phase, tasks in ((Phase.PREFILL, schedule.prefill), (Phase.DECODE, schedule.decode)):
        costs = costs_of(chosen, spec, hardware, job, phase)

        assert all(costs.lane_of(task.kind) is task.lane for task in tasks)


@given(any_policies(), any_models(), any_machines(), any_workloads(), st.floats(1, 40))
@PROPERTY
def test_moving_a_pass_to_another_step_is_costing_it_there(chosen, spec, hardware, job, step):
    rates = Rates(hardware=hardware, measured=True)
    first = costs_of(chosen, spec, hardware, job, Phase.DECODE)

    assert at_step(first, rates, job, step) == pass_costs(PolicyGrid.of(chosen), spec, rates, job, Phase.DECODE, step)


@given(any_policies(), any_models(), any_machines(), any_workloads(), st.sampled_from(Phase), FIDELITIES)
@PROPERTY
def test_the_bound_of_a_pass_is_no_less_than_each_of_its_parts(chosen, spec, hardware, job, phase, measured):
    work = work_of(chosen, spec, hardware, job, phase, measured)
    parts = [*work.seconds.values(), work.chain_s, *work.shared_s.values()]

    assert work.lower_s == max(parts)
    assert work.upper_s == pytest.approx(sum(work.seconds.values()))
    assert work.seconds[work.busiest] == max(work.seconds.values())


CPU_HALF = {TaskKind.EXPERT_OFFLOAD, TaskKind.CPU_EXPERTS, TaskKind.EXPERT_UPLOAD}


@given(any_policies(max_batch=1), any_models(), any_machines(), any_workloads(), st.sampled_from(Phase), FULLER)
@PROPERTY
def test_the_chain_is_the_busy_time_of_what_one_micro_batch_goes_through(chosen, spec, hardware, job, phase, fuller):
    """With one micro-batch nothing of it overlaps: only pages, D1 without attention, and one half of split experts.

    The CPU's half is the one waited for; in series the GPU's half is too, so the way is between the two.
    """
    work = work_of(with_fuller_layers(chosen, spec, fuller), spec, unshared(hardware), job, phase)
    beside = {TaskKind.PAGE_COPY, TaskKind.PAGE_PIN, TaskKind.KV_LOAD, TaskKind.DISK_READ}
    if chosen.attention_device is chosen.main_device or phase is Phase.PREFILL:
        beside.add(TaskKind.QKV_OFFLOAD)
    through_cpu, through_gpu = (
        sum(seconds for kind, seconds in work.by_kind.items() if kind not in beside | other_half)
        for other_half in ({TaskKind.GPU_EXPERTS}, CPU_HALF)
    )
    in_series = chosen.schedule is ScheduleName.SERIAL and phase is Phase.DECODE
    longest = max(through_cpu, through_gpu) if in_series else through_cpu

    assert through_cpu * (1 - 1e-9) <= work.chain_s <= longest * (1 + 1e-9)
    assert work.lower_s == pytest.approx(max(work.chain_s, *work.seconds.values()))


def test_in_series_all_micro_batches_wait_for_each_other():
    """S3: the GPU rests while the CPU attends, so a pass of six micro-batches is six chains."""
    one, six = (
        work_of(policy(schedule=ScheduleName.SERIAL, batch_size=size, micro_batch_size=1), model(), machine())
        for size in (1, 6)
    )

    assert six.chain_s == pytest.approx(6 * one.chain_s)
    overlapped = work_of(policy(schedule=ScheduleName.UNPAGED, batch_size=6, micro_batch_size=1), model(), machine())
    assert overlapped.chain_s == pytest.approx(one.chain_s)


def sharing(rate_bytes_per_s, **drawn_by):
    return replace(machine(), shared={"dram": SharedRate(bytes_per_s=rate(rate_bytes_per_s), drawn_by=drawn_by)})


@given(any_machines(), any_models(), any_workloads(), st.sampled_from(Phase))
@PROPERTY
def test_a_lane_alone_is_never_slower_for_a_rate_that_lanes_share(hardware, spec, job, phase):
    host = policy(Processor.CPU, Processor.CPU)
    work = work_of(host, spec, hardware, job, phase)

    assert set(work.seconds) == {Lane.CPU}
    assert work.lower_s == work.seconds[Lane.CPU]


@given(st.floats(1e3, 1e12), st.floats(0, 2), st.floats(0, 2))
@PROPERTY
def test_lanes_that_share_a_rate_take_no_longer_than_in_turn(shared_bytes_per_s, cpu, link):
    work = work_of(policy(), model(), sharing(shared_bytes_per_s, cpu=cpu, h2d=link))

    assert work.shared_s["dram"] <= (work.seconds[Lane.CPU] + work.seconds[Lane.H2D]) * (1 + 1e-9)


def test_two_lanes_that_need_all_of_a_rate_take_as_long_as_both():
    """Attention on the CPU reads at what its memory gives; pages come up as fast as the same memory gives."""
    job, chosen = workload(2000, 2000), policy(resident_experts=2)
    alone = work_of(chosen, model(), sharing(1e9, cpu=1.0), job, measured=False)
    both = work_of(chosen, model(), sharing(1e9, cpu=1.0, h2d=1.0), job, measured=False)
    pages_s = both.shared_s["dram"] - alone.shared_s["dram"]

    assert pages_s > 0
    assert both.lower_s > alone.lower_s == alone.seconds[Lane.CPU]
    assert both.lower_s == pytest.approx(both.seconds[Lane.CPU] + pages_s)


def test_host_memory_is_shared_unless_the_profile_says_otherwise():
    work = work_of(policy(staging=Staging.PAGEABLE, pages_per_layer=1), model(), machine(), measured=False)
    streamed = 2 * 4 * model().expert_parameters * 4

    assert set(work.shared_s) == {"host_memory"}
    assert work.shared_s["host_memory"] >= (1 + 2) * streamed / 1e9
    assert set(work_of(policy(), model(), sharing(1e9, cpu=1.0)).shared_s) == {"dram"}


@given(st.floats(0.1, 1.0))
@PROPERTY
def test_a_lane_keeps_the_share_of_its_rate_that_was_measured(kept):
    hardware = machine(contention={"h2d": kept})
    costs = costs_of(policy(), model(), hardware, workload(), Phase.DECODE)
    stretched = contended(costs, Rates(hardware=hardware, measured=True))
    before, after = (lane_work(one, ()).seconds for one in (costs, stretched))

    assert after[Lane.H2D] == pytest.approx(before[Lane.H2D] / kept)
    assert after[Lane.GPU] == before[Lane.GPU]


def test_a_pass_on_one_lane_has_nothing_to_contend_with():
    hardware = machine(contention={"cpu": 0.5})
    costs = costs_of(policy(ffn=Processor.CPU), model(), hardware, workload(), Phase.DECODE)

    assert contended(costs, Rates(hardware=hardware, measured=True)) == costs


@given(any_policies(), any_models(), any_machines(), any_workloads(), st.sampled_from(Phase))
@PROPERTY
def test_contention_stretches_tasks_as_it_does_their_lanes(chosen, spec, hardware, job, phase):
    costs = costs_of(chosen, spec, hardware, job, phase)
    stretched = contended(costs, Rates(hardware=hardware, measured=True))
    schedule = build_schedule(chosen, spec)
    tasks = schedule.prefill if phase is Phase.PREFILL else schedule.decode
    alone, together = (lane_work(one, ()) for one in (costs, stretched))

    assert added((task.lane, stretched.work_of(task).seconds) for task in tasks) == pytest.approx(
        added(together.seconds.items())
    )
    assert all(together.seconds[lane] >= seconds * (1 - 1e-12) for lane, seconds in alone.seconds.items())
    assert together.by_kind.keys() == alone.by_kind.keys()
    assert sum(together.by_kind.values()) == pytest.approx(together.upper_s)


def test_a_link_is_bound_by_itself_and_a_processor_by_what_takes_most():
    work = work_of(policy(), model(), machine(cpu=level(1e3, 1e12), gpu=level(1e12, 1e3)), measured=False)

    assert work.bound(Lane.H2D) is work.bound(Lane.D2H) is Bound.CROSS_LEVEL
    assert work.bound(Lane.CPU) is Bound.COMPUTE
    assert work.bound(Lane.GPU) is Bound.MEMORY


def test_a_cost_done_many_times_is_that_many_costs():
    cost = Cost(seconds=2.0, compute_s=1.0, bytes=5.0, latency_s=0.5).times(np.array([1.0, 3.0]))
    parts = np.array([cost.seconds, cost.compute_s, cost.bytes, cost.latency_s])

    assert parts.tolist() == [[2.0, 6.0], [1.0, 3.0], [5.0, 15.0], [0.5, 1.5]]
