"""Properties of the schedules as graphs: what holds for every policy."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.dtypes import DType
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor, ScheduleName, Staging
from hrm.schedule.catalog import build_schedule
from hrm.schedule.task import Lane, Schedule, Task, TaskKey, TaskKind


def tiny_model(num_layers=3, num_experts=4):
    return ModelSpec(
        name="tiny",
        family="mixtral",
        num_layers=num_layers,
        hidden_size=8,
        intermediate_size=16,
        num_query_heads=4,
        num_kv_heads=2,
        head_dim=4,
        num_experts=num_experts,
        experts_per_token=2,
        vocab_size=32,
        max_position_embeddings=64,
    )


@st.composite
def schedules(draw):
    model = tiny_model(draw(st.integers(1, 4)))
    ffn = draw(st.sampled_from(Processor))
    attention = draw(st.sampled_from(Processor)) if ffn is Processor.GPU else Processor.CPU
    batch = draw(st.integers(1, 12))
    policy = Policy(
        batch_size=batch,
        micro_batch_size=draw(st.integers(1, batch)),
        attention_device=attention,
        ffn_device=ffn,
        resident_experts=draw(st.integers(0, 4)) if ffn is Processor.GPU else 0,
        kv_on_gpu=1.0 if attention is Processor.GPU else 0.0,
        schedule=ScheduleName.CGOPIPE if ffn is Processor.GPU else ScheduleName.HOST,
        weight_dtype=DType.FLOAT32,
        kv_dtype=DType.FLOAT32,
        staging=draw(st.sampled_from(Staging)),
        pages_per_layer=draw(st.none() | st.integers(1, 7)),
    )
    return policy, model, build_schedule(policy, model)


def unrolled(schedule: Schedule, gen_len: int = 4) -> list[tuple[int, Task, set[tuple[int, TaskKey]]]]:
    """Every task of a generation with its pass, and the (pass, key) pairs that its needs name."""
    passes = [(-1, schedule.prologue)] + [(n, tasks) for n, (_, tasks) in enumerate(schedule.passes(gen_len))]
    return [
        (number, task, {(number - need.passes_ago, need.key) for need in task.needs})
        for number, tasks in passes
        for task in tasks
    ]


@given(schedules())
@settings(max_examples=150, deadline=None)
def test_every_need_names_a_task_given_earlier(case):
    """So in-order lanes can never deadlock; only what the first pass cannot have had may be missing."""
    _, _, schedule = case
    seen = set()
    for number, task, needs in unrolled(schedule):
        missing = {need for need in needs if need not in seen}
        assert all(pass_number < 0 for pass_number, _ in missing)
        assert not any(key.kind is TaskKind.PAGE_COPY and key.layer == 0 and task.kind is TaskKind.POST_ATTENTION
                       for _, key in missing)  # fmt: skip
        assert (number, task.key) not in seen
        seen.add((number, task.key))


@given(schedules())
@settings(max_examples=100, deadline=None)
def test_each_page_of_each_layer_crosses_once_per_pass(case):
    policy, model, schedule = case
    streamed = policy.ffn_device is Processor.GPU and policy.resident_experts < model.num_experts
    expected = {(layer, page) for layer in range(model.num_layers) for page in range(policy.num_pages)}

    for tasks in (schedule.prefill, schedule.decode):
        crossed = [(task.layer, task.part) for task in tasks if task.kind is TaskKind.PAGE_COPY]
        assert sorted(crossed) == (sorted(expected) if streamed else [])


@given(schedules())
@settings(max_examples=100, deadline=None)
def test_no_weights_are_overwritten_while_read(case):
    """A page goes over the layer two before; all of that layer's post-attention must be done by then."""
    policy, model, schedule = case
    last = policy.num_micro_batches - 1
    for number, task, needs in unrolled(schedule):
        if task.kind is TaskKind.PAGE_COPY and number >= 0:
            target = number * model.num_layers + task.layer + (model.num_layers if task.for_next_pass else 0)
            overwritten = divmod(target - 2, model.num_layers)
            assert (overwritten[0], TaskKey(TaskKind.POST_ATTENTION, overwritten[1], last)) in needs


@given(schedules())
@settings(max_examples=60, deadline=None)
def test_post_attention_waits_for_the_last_page_of_its_layer(case):
    policy, model, schedule = case
    if policy.ffn_device is Processor.CPU or policy.resident_experts == model.num_experts:
        return
    for number, task, needs in unrolled(schedule):
        if task.kind is TaskKind.POST_ATTENTION:
            given_in = number - 1 if task.layer == 0 else number
            assert (given_in, TaskKey(TaskKind.PAGE_COPY, task.layer, policy.num_pages - 1)) in needs


@given(schedules())
@settings(max_examples=60, deadline=None)
def test_no_hidden_state_waits_behind_more_than_its_share_of_pages(case):
    policy, _, schedule = case
    share = -(-policy.num_pages // policy.num_micro_batches)
    behind = 0
    for task in schedule.decode:
        if task.lane is Lane.H2D:
            behind = 0 if task.kind is TaskKind.HIDDEN_UPLOAD else behind + 1
            if policy.attention_device is Processor.CPU:
                assert behind <= share


@pytest.mark.parametrize("gen_len", [1, 3])
def test_the_last_pass_lays_nothing_ahead(gen_len):
    policy = Policy(
        batch_size=4,
        micro_batch_size=2,
        attention_device=Processor.CPU,
        ffn_device=Processor.GPU,
        resident_experts=1,
        kv_on_gpu=0.0,
        schedule=ScheduleName.CGOPIPE,
        weight_dtype=DType.FLOAT32,
        kv_dtype=DType.FLOAT32,
    )

    passes = build_schedule(policy, tiny_model()).passes(gen_len)

    assert len(passes) == gen_len
    assert not any(task.for_next_pass for task in passes[-1][1])
    assert all(any(task.for_next_pass for task in tasks) for _, tasks in passes[:-1])
