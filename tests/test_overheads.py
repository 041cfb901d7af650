"""What tasks take beyond their kernels: what a profile says of it is in every prediction but the roofs."""

from dataclasses import replace

import pytest

from executor.small_runs import SMALL, small_runs
from hrm.device.emulated import EmulatedBackend
from hrm.device.host import HostBackend
from hrm.dtypes import DType
from hrm.estimate import Fidelity
from hrm.hardware import EmulatedSpec
from hrm.lanes import pass_costs
from hrm.microbench.overheads import TaskRun, overheads
from hrm.policy import PolicyGrid, Processor, ScheduleName
from hrm.predict import predict
from hrm.rates import Rates, placement_of
from hrm.schedule.task import Phase, TaskKind
from tests.machines import machine, model, policy, workload

EXTRA = {"attention_on_cpu": {TaskKind.ATTENTION: 0.25, TaskKind.QKV_OFFLOAD: 0.5, TaskKind.POST_ATTENTION: 1.0}}


def costs(hardware, phase=Phase.DECODE, of=None, measured=True):
    rates = Rates(hardware=hardware, measured=measured)
    return pass_costs(PolicyGrid.of(of or policy()), model(), rates, workload(), phase, 1.0)


def only(found):
    (kinds,) = found.full.values()
    return kinds


def test_every_task_of_the_kind_takes_as_much_longer():
    plain, slower = only(costs(machine())), only(costs(replace(machine(), task_s=EXTRA)))

    for kind, cost in plain.items():
        extra_s = EXTRA["attention_on_cpu"].get(kind, 0.0)
        assert slower[kind].seconds - cost.seconds == pytest.approx(extra_s)
        assert slower[kind].latency_s - cost.latency_s == pytest.approx(extra_s)
        assert slower[kind].bytes == cost.bytes


def test_other_placements_and_the_roofs_know_nothing_of_it():
    slower = replace(machine(), task_s=EXTRA)
    on_gpu = policy(attention=Processor.GPU)

    assert only(costs(slower, of=on_gpu)) == only(costs(machine(), of=on_gpu))
    assert only(costs(slower, measured=False)) == only(costs(machine(), measured=False))


def test_a_job_takes_longer_by_the_tasks_that_nothing_hides():
    """Serial: of each micro-batch and layer, attention and post-attention are in everybody's way."""
    serial = policy(schedule=ScheduleName.SERIAL)
    slower = replace(machine(), task_s=EXTRA)
    plain, found = (
        predict(serial, model(), one, workload()).by_fidelity[Fidelity.SIMULATED] for one in (machine(), slower)
    )

    tasks = 3 * serial.num_micro_batches * model().num_layers
    assert found.decode_s - plain.decode_s >= tasks * (0.25 + 1.0) * 0.9


def test_what_the_profile_explains_is_taken_off():
    explained = only(costs(machine(), of=policy(batch_size=2, micro_batch_size=2)))
    run = TaskRun(
        policy=policy(batch_size=2, micro_batch_size=2),
        model=model(),
        workload=replace(workload(), gen_len=2),
        seconds={
            TaskKind.POST_ATTENTION: float(explained[TaskKind.POST_ATTENTION].seconds) + 0.5,
            TaskKind.PRE_ATTENTION: 0.0,
            TaskKind.PAGE_COPY: 9.0,
        },
    )

    found = overheads(machine(), [run])

    assert found == {"attention_on_cpu": {TaskKind.POST_ATTENTION: pytest.approx(0.5), TaskKind.PRE_ATTENTION: 0.0}}


@pytest.mark.parametrize(
    ("attention", "ffn", "schedule", "name"),
    [
        (Processor.CPU, Processor.CPU, ScheduleName.HOST, "all_on_cpu"),
        (Processor.CPU, Processor.GPU, ScheduleName.UNPAGED, "attention_on_cpu"),
        (Processor.GPU, Processor.GPU, ScheduleName.LAYERWISE, "attention_on_gpu"),
        (Processor.GPU, Processor.GPU, ScheduleName.KV_TRANSFER, "kv_transfer"),
    ],
)
def test_placements_have_names(attention, ffn, schedule, name):
    assert placement_of(policy(attention, ffn, schedule=schedule), TaskKind.ATTENTION) == name


def test_split_experts_have_tasks_of_their_own_and_share_the_others():
    split = policy(cpu_experts=1)
    own = {TaskKind.CPU_EXPERTS: 0.25, TaskKind.EXPERT_UPLOAD: 0.5, TaskKind.POST_ATTENTION: 2.0}
    plain, slower = (
        only(costs(one, of=split)) for one in (machine(), replace(machine(), task_s=EXTRA | {"split_experts": own}))
    )

    extra = EXTRA["attention_on_cpu"] | own
    for kind, cost in plain.items():
        assert slower[kind].seconds - cost.seconds == pytest.approx(extra.get(kind, 0.0))


def test_of_tasks_that_do_the_same_in_two_runs_the_first_counts():
    explained = only(costs(machine(), of=policy(batch_size=2, micro_batch_size=2)))
    first_s = float(explained[TaskKind.ATTENTION].seconds) + 0.5
    runs = [
        TaskRun(
            policy=policy(batch_size=2, micro_batch_size=2, cpu_experts=on_cpu),
            model=model(),
            workload=replace(workload(), gen_len=2),
            seconds={TaskKind.ATTENTION: seconds, TaskKind.CPU_EXPERTS: 100.0},
        )
        for on_cpu, seconds in ((0, first_s), (1, 7.0))
    ]

    found = overheads(machine(), runs)

    assert found["attention_on_cpu"] == {TaskKind.ATTENTION: pytest.approx(0.5)}
    assert set(found["split_experts"]) == {TaskKind.CPU_EXPERTS}


def test_the_executor_runs_every_placement_that_there_is_room_for():
    spec = EmulatedSpec(name="roomy", memory_capacity_bytes=2**28, h2d_bytes_per_s=4e9, d2h_bytes_per_s=4e9)
    device, host = EmulatedBackend(spec), HostBackend(threads=1)
    try:
        runs, alone = small_runs(device), small_runs(host)
    finally:
        device.close()
        host.close()

    kind = TaskKind.POST_ATTENTION
    placements = [placement_of(run.policy, kind) for run in runs]
    assert placements == ["attention_on_cpu", "attention_on_gpu", "kv_transfer", "split_experts", "all_on_cpu"]
    assert [placement_of(run.policy, kind) for run in alone] == ["all_on_cpu"]
    assert all(seconds > 0 for run in runs for seconds in run.seconds.values())
    assert TaskKind.KV_LOAD in runs[2].seconds
    assert {TaskKind.CPU_EXPERTS, TaskKind.GPU_EXPERTS, TaskKind.EXPERT_OFFLOAD, TaskKind.EXPERT_UPLOAD} <= set(
        runs[3].seconds
    )
    assert SMALL.dtype is DType.BFLOAT16
