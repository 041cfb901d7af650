"""Simulated timelines: in-order lanes that never all rest, between the busiest lane and the sum of all tasks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.policy import Processor
from hrm.schedule.catalog import build_schedule
from hrm.schedule.simulate import simulate
from hrm.schedule.task import Lane, Need, Task, TaskKey, TaskKind
from tests.machines import model, policies, policy

PROPERTY = settings(max_examples=100, deadline=None)


@st.composite
def timelines(draw):
    """A schedule of a random policy with seconds drawn per kind and part, and what simulating it gives."""
    spec = model(num_layers=draw(st.integers(1, 4)))
    schedule = build_schedule(draw(policies()), spec)
    passes = schedule.passes(draw(st.integers(1, 4)))
    seconds = {}

    def task_s(task):
        key = (task.kind, task.part)
        if key not in seconds:
            seconds[key] = draw(st.floats(0, 5) | st.just(1.0))
        return seconds[key]

    return schedule.prologue, [(tasks, task_s) for _, tasks in passes]


@given(timelines())
@PROPERTY
def test_lies_between_the_busiest_lane_and_the_sum_of_tasks(case):
    timeline = simulate(*case)
    busy = {lane: timeline.busy_s(lane) for lane in Lane}

    assert max(busy.values()) <= timeline.pass_end_s[-1] * (1 + 1e-9)
    assert timeline.pass_end_s[-1] <= sum(busy.values()) * (1 + 1e-9)


@given(timelines())
@PROPERTY
def test_lanes_work_in_order_and_needs_are_met_first(case):
    timeline = simulate(*case)
    ends = {(timed.pass_index, timed.task.key): timed.end_s for timed in timeline.tasks}
    free = dict.fromkeys(Lane, 0.0)
    for timed in timeline.tasks:
        assert timed.start_s >= free[timed.task.lane]
        free[timed.task.lane] = timed.end_s
        for need in timed.task.needs:
            assert timed.start_s >= ends.get((timed.pass_index - need.passes_ago, need.key), 0.0)


@given(timelines())
@PROPERTY
def test_some_lane_is_always_at_work(case):
    timeline = simulate(*case)
    reached = 0.0
    for start, end in sorted((timed.start_s, timed.end_s) for timed in timeline.tasks):
        assert start <= reached * (1 + 1e-9)
        reached = max(reached, end)


@given(timelines(), st.sampled_from(TaskKind), st.floats(0, 1))
@PROPERTY
def test_a_faster_kind_of_task_never_makes_it_end_later(case, kind, factor):
    prologue, passes = case
    faster = [
        (tasks, lambda task, task_s=task_s: task_s(task) * (factor if task.kind is kind else 1.0))
        for tasks, task_s in passes
    ]
    before, after = simulate(prologue, passes), simulate(prologue, faster)

    for one, other in zip(before.pass_end_s, after.pass_end_s, strict=True):
        assert other <= one * (1 + 1e-9)


def test_two_lanes_overlap_unless_one_needs_the_other():
    first = Task(key=TaskKey(TaskKind.PRE_ATTENTION, 0, 0), lane=Lane.GPU)
    free = Task(key=TaskKey(TaskKind.PAGE_COPY, 0, 0), lane=Lane.H2D)
    bound = Task(key=free.key, lane=Lane.H2D, needs=(Need(first.key),))

    assert simulate((), [((first, free), lambda _: 1.0)]).pass_end_s == (1.0,)
    assert simulate((), [((first, bound), lambda _: 1.0)]).pass_end_s == (2.0,)


@pytest.mark.parametrize("copy_s", [0.5, 3.0, 10.0])
def test_streaming_is_as_slow_as_the_slower_of_link_and_gpu(copy_s):
    """One second of GPU work per micro-batch, and a page each: in the long run the slower lane sets the pace."""
    spec = model(num_layers=8)
    chosen = policy(Processor.GPU, batch_size=4, micro_batch_size=1)
    schedule = build_schedule(chosen, spec)
    seconds = {TaskKind.POST_ATTENTION: 1.0, TaskKind.PAGE_COPY: copy_s}
    ends = simulate(schedule.prologue, [(schedule.decode, lambda task: seconds.get(task.kind, 0.0))] * 4).pass_end_s

    assert ends[-1] - ends[-2] == pytest.approx(8 * 4 * max(1.0, copy_s), rel=0.15)
