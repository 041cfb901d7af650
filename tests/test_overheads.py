"""What tasks take beyond their kernels: what a profile says of it is in every prediction but the roofs."""

from dataclasses import replace

import pytest

from executor.small_runs import SMALL, small_runs
from hrm.ceilings import Kernel
from hrm.device.emulated import EmulatedBackend
from hrm.device.host import HostBackend
from hrm.dtypes import DType
from hrm.estimate import Fidelity
from hrm.hardware import EmulatedSpec
from hrm.microbench.overheads import TaskRun, by_sequence, overheads, repeated
from hrm.pass_costs import items_of, pass_costs
from hrm.policy import Processor, ScheduleName
from hrm.policy_grid import PolicyGrid
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


def test_prefill_attention_costs_what_the_main_devices_does():
    """Decode tells what a task costs, and there attention may be the host's."""
    extra = EXTRA | {"attention_on_gpu": {TaskKind.ATTENTION: 0.125}}
    plain, slower = (only(costs(one, Phase.PREFILL)) for one in (machine(), replace(machine(), task_s=extra)))

    assert slower[TaskKind.ATTENTION].seconds - plain[TaskKind.ATTENTION].seconds == pytest.approx(0.125)


@pytest.mark.parametrize(("gen_len", "extra_s"), [(2, 0.25), (3, (0.25 + 0.05) / 2), (11, (0.25 + 9 * 0.05) / 10)])
def test_later_decode_passes_take_what_repeating_leaves(gen_len, extra_s):
    again = {"attention_on_cpu": {TaskKind.ATTENTION: 0.05}}
    slower, job = replace(machine(), task_s=EXTRA, repeated_s=again), replace(workload(), gen_len=gen_len)

    def attention_s(hardware, phase, of=job):
        rates = Rates(hardware=hardware, measured=True)
        return only(pass_costs(PolicyGrid.of(policy()), model(), rates, of, phase, 1.0))[TaskKind.ATTENTION].seconds

    plain_s, found_s = (attention_s(one, Phase.DECODE) for one in (machine(), slower))
    assert found_s - plain_s == pytest.approx(extra_s)
    assert attention_s(slower, Phase.PREFILL) == attention_s(replace(machine(), task_s=EXTRA), Phase.PREFILL)


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
            Phase.DECODE: {
                TaskKind.POST_ATTENTION: float(explained[TaskKind.POST_ATTENTION].seconds) + 0.5,
                TaskKind.PRE_ATTENTION: 0.0,
                TaskKind.PAGE_COPY: 9.0,
            }
        },
    )

    found = overheads(machine(), [run])

    assert found == {"attention_on_cpu": {TaskKind.POST_ATTENTION: pytest.approx(0.5), TaskKind.PRE_ATTENTION: 0.0}}


def test_waking_up_is_paid_by_the_tasks_of_the_host():
    tasks = {TaskKind.ATTENTION: 0.0, TaskKind.POST_ATTENTION: 0.0}
    run = TaskRun(
        policy=policy(batch_size=2, micro_batch_size=2),
        model=model(),
        workload=replace(workload(), gen_len=2),
        seconds={Phase.DECODE: tasks},
    )

    found = overheads(machine(), [run], {Kernel.ATTENTION_DECODE: 0.25, Kernel.EXPERT_FFN: 0.5})
    split = replace(run, policy=replace(run.policy, cpu_experts=1), seconds={Phase.DECODE: {TaskKind.CPU_EXPERTS: 0.0}})
    of_experts = overheads(machine(), [split], {Kernel.EXPERT_FFN: 0.5})

    assert found == {"attention_on_cpu": {TaskKind.ATTENTION: 0.25, TaskKind.POST_ATTENTION: 0.0}}
    assert of_experts == {"split_experts": {TaskKind.CPU_EXPERTS: 0.5}}


def test_what_repeated_passes_take_is_judged_apart():
    run = run_of(2, Phase.DECODE, attention=0.5)
    attention_s = run.seconds[Phase.DECODE][TaskKind.ATTENTION]
    again = replace(run, repeated={TaskKind.ATTENTION: attention_s - 0.4})

    assert repeated(machine(), [run]) == {}
    assert repeated(machine(), [again]) == {"attention_on_cpu": {TaskKind.ATTENTION: pytest.approx(0.1)}}
    assert overheads(machine(), [again]) == {"attention_on_cpu": {TaskKind.ATTENTION: pytest.approx(0.5)}}


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
            seconds={Phase.DECODE: {TaskKind.ATTENTION: seconds, TaskKind.CPU_EXPERTS: 100.0}},
        )
        for on_cpu, seconds in ((0, first_s), (1, 7.0))
    ]

    found = overheads(machine(), runs)

    assert found["attention_on_cpu"] == {TaskKind.ATTENTION: pytest.approx(0.5)}
    assert set(found["split_experts"]) == {TaskKind.CPU_EXPERTS}


def run_of(sequences, phase, **beyond_s):
    """Return a small run whose tasks took so much longer than the machine explains."""
    of = policy(batch_size=sequences, micro_batch_size=sequences)
    small = replace(workload(), gen_len=2)
    rates = Rates(hardware=machine(), measured=True)
    explained = only(pass_costs(PolicyGrid.of(of), model(), rates, small, phase, 1.0 if phase is Phase.DECODE else 0.0))
    seconds = {TaskKind(kind): float(explained[TaskKind(kind)].seconds) + extra for kind, extra in beyond_s.items()}
    return TaskRun(policy=of, model=model(), workload=small, seconds={phase: seconds})


def test_what_grows_with_the_sequences_is_paid_by_sequence_where_they_are_gone_through_one_by_one():
    runs = [
        run_of(2, Phase.PREFILL, qkv_offload=0.5, post_attention=0.5, attention=0.7),
        run_of(6, Phase.PREFILL, qkv_offload=2.5, post_attention=2.5, attention=0.6),
    ]

    found = by_sequence(machine(), runs)

    assert found == {
        "attention_on_cpu": {
            Phase.PREFILL: {TaskKind.QKV_OFFLOAD: pytest.approx(0.5), TaskKind.ATTENTION: pytest.approx(0.0)}
        }
    }


def test_a_task_takes_longer_by_each_of_its_sequences_in_the_phase_alone():
    each = {"attention_on_cpu": {Phase.PREFILL: {TaskKind.QKV_OFFLOAD: 0.25}}}
    slower = replace(machine(), sequence_s=each)
    of = policy(batch_size=6, micro_batch_size=3)

    prefill, decode = (only(costs(slower, phase, of=of)) for phase in Phase)

    plain = only(costs(machine(), Phase.PREFILL, of=of))
    for kind, cost in plain.items():
        extra_s = 3 * 0.25 if kind is TaskKind.QKV_OFFLOAD else 0.0
        assert prefill[kind].seconds - cost.seconds == pytest.approx(extra_s)
    assert decode == only(costs(machine(), Phase.DECODE, of=of))


def test_copies_of_a_cache_are_asked_for_while_others_cross():
    """Of 2 parts x heads x sequences small copies the asking counts where it takes longer than all their bytes."""
    of = policy(schedule=ScheduleName.KV_TRANSFER, attention=Processor.GPU)
    plain = only(costs(machine(), of=of))[TaskKind.KV_LOAD].seconds

    def fetched_s(each_s):
        each = {"kv_transfer": {Phase.DECODE: {TaskKind.KV_LOAD: each_s}}}
        return only(costs(replace(machine(), sequence_s=each), of=of))[TaskKind.KV_LOAD].seconds

    items = items_of(TaskKind.KV_LOAD, model(), of.micro_batch_size)
    assert fetched_s(0.5 * plain / items) == plain
    assert fetched_s(3.0 * plain / items) == pytest.approx(3.0 * plain)


def test_the_part_of_a_task_that_goes_by_the_sequence_is_not_charged_twice():
    run = run_of(4, Phase.DECODE, attention=2.0)
    each = {"attention_on_cpu": {Phase.DECODE: {TaskKind.ATTENTION: 0.25}}}

    by_task = overheads(replace(machine(), sequence_s=each), [run])

    assert by_task == {"attention_on_cpu": {TaskKind.ATTENTION: pytest.approx(1.0)}}


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
    beside = ["attention_on_cpu", "attention_on_gpu", "kv_transfer", "split_experts"]
    assert placements == 2 * [*beside, "all_on_cpu", "all_on_cpu"]
    assert [(placement_of(run.policy, kind), run.policy.disk_experts) for run in alone] == 2 * [
        ("all_on_cpu", 0),
        ("all_on_cpu", SMALL.num_experts // 2),
    ]
    assert all(seconds > 0 for run in runs for found in run.seconds.values() for seconds in found.values())
    assert TaskKind.KV_LOAD in runs[2].seconds[Phase.DECODE]
    assert {TaskKind.CPU_EXPERTS, TaskKind.GPU_EXPERTS, TaskKind.EXPERT_OFFLOAD, TaskKind.EXPERT_UPLOAD} <= set(
        runs[3].seconds[Phase.DECODE]
    )
    assert {TaskKind.KEPT_EXPERTS, TaskKind.DISK_EXPERTS} <= set(alone[1].seconds[Phase.DECODE])
    few, many = runs[0], runs[6]
    assert few.policy.micro_batch_size < many.policy.micro_batch_size
    assert few.workload.mean_prompt_len == many.workload.mean_prompt_len
    assert SMALL.dtype is DType.BFLOAT16
    assert not any(run.repeated for run in runs[:4])
    assert set(alone[0].repeated) == set(alone[0].seconds[Phase.DECODE])
