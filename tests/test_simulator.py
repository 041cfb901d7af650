"""Simulated schedules: bounds, fair shares, and that leaving out what repeats changes nothing."""

from dataclasses import replace
from typing import NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm.policy import ScheduleName
from hrm.schedule.catalog import build_schedule
from hrm.schedule.sharing import Burst, Shared, Work, fair_paces
from hrm.schedule.simulation import Simulation
from hrm.schedule.simulator import PassLoad, simulate_passes
from hrm.schedule.task import Lane, Phase, Schedule, Task, TaskKey, TaskKind, Walk
from hrm.schedule.timeline import simulate_timeline
from tests.machines import with_fuller_layers
from tests.schedules import GPU_SCHEDULES, models, policies, shared_rates, tiny_model, tiny_policy, works

PROPERTY = settings(max_examples=150, deadline=None)


@st.composite
def cases(draw, max_layers=6):
    model = draw(models(max_layers))
    schedule = build_schedule(with_fuller_layers(draw(policies()), model, draw(st.integers(0, 3))), model)
    loads = [
        PassLoad(phase=Phase.PREFILL, work_of=draw(works())),
        PassLoad(phase=Phase.DECODE, work_of=draw(works()), count=draw(st.integers(1, 3))),
    ]
    return schedule, loads


@given(cases(max_layers=24), shared_rates())
@PROPERTY
def test_leaving_out_repetitions_changes_nothing(case, shared):
    schedule, loads = case
    short, whole = simulate_passes(schedule, loads, shared), simulate_passes(schedule, loads, shared, exact=True)
    for one, other in zip(short.loads, whole.loads, strict=True):
        assert one.end_s == pytest.approx(other.end_s, rel=1e-6)
        for lane in Lane:
            assert one.busy_s(lane) == pytest.approx(other.busy_s(lane), rel=1e-6)
            # What is waited for is a matter of choice where two tasks end at once; how long is not.
            waited = [sum(load.waits_s.get(lane, {}).values()) for load in (one, other)]
            assert waited[0] == pytest.approx(waited[1], rel=1e-6, abs=1e-6 * other.end_s)


@given(cases(max_layers=4), st.integers(4, 20))
@settings(max_examples=60, deadline=None)
def test_passes_that_never_repeat_are_off_by_less_than_queues_hold(case, count):
    """Three passes simulated, not twelve: what queues hold, `reach` layers of work at most, was spread over them."""
    schedule, (prefill, decode) = case
    loads = [prefill, replace(decode, count=count)]
    with patch("hrm.schedule.simulation.MOST_PASSES", 3):
        short = simulate_passes(schedule, loads)
    whole = simulate_passes(schedule, loads, exact=True)
    walk = schedule.walks[Phase.DECODE]
    held = max(walk.reach(layer) for layer in range(walk.num_layers)) / walk.num_layers

    assert short.end_s == pytest.approx(whole.end_s, rel=held / 3)


@given(cases(max_layers=12))
@PROPERTY
def test_no_task_starts_before_its_layer_must_be_given(case):
    """The simulator gives lanes no layer earlier than `Walk.reach` says; a task ready before that would start late."""
    schedule, loads = case
    timeline = simulate_timeline(schedule, loads)
    begins = {(timed.pass_index, timed.task.key): timed.start_s for timed in timeline.tasks}
    ends = {(timed.pass_index, timed.task.key): timed.end_s for timed in timeline.tasks}
    finished: list[float] = []
    for index, (phase, tasks) in enumerate(schedule.passes(len(timeline.pass_end_s))):
        walk = schedule.walks[phase]
        for layer in range(walk.num_layers):
            given = [task for task in walk.layer(layer) if task in tasks]
            behind = len(finished) - walk.reach(layer)
            since_s = finished[behind] if behind >= 0 else 0.0
            assert all(begins[index, task.key] >= since_s for task in given)
            finished.append(max(ends[index, task.key] for task in given if task.lane is walk.main))


@pytest.mark.parametrize("schedule", GPU_SCHEDULES)
def test_what_is_simulated_grows_neither_with_layers_nor_with_passes(schedule):
    memory = Shared(name="memory", bytes_per_s=10.0, drawn_by={Lane.CPU: 1.0, Lane.H2D: 1.0})

    def simulated_tasks(layers, passes):
        work = {TaskKind.PAGE_COPY: Work(0.7, 5.0), TaskKind.ATTENTION: Work(1.0, 9.0)}
        built = build_schedule(tiny_policy(schedule, batch_size=5), tiny_model(num_layers=layers))
        loads = [
            PassLoad(phase=phase, work_of=lambda task: work.get(task.kind, Work(0.3)), count=count)
            for phase, count in ((Phase.PREFILL, 1), (Phase.DECODE, passes))
        ]
        simulation = Simulation(built, loads, [memory], exact=False)
        simulation.run()
        return sum(simulation.done)

    few = simulated_tasks(40, 10)
    assert simulated_tasks(400, 10) <= 1.05 * few
    assert simulated_tasks(40, 1000) == few


@given(cases(), shared_rates())
@PROPERTY
def test_lies_between_the_busiest_lane_and_the_sum_of_tasks(case, shared):
    schedule, loads = case
    alone = simulate_timeline(schedule, loads)
    seconds = {lane: alone.busy_s(lane) for lane in Lane}
    end_s = simulate_passes(schedule, loads, shared).end_s

    assert _last_counted_s(alone) <= end_s * (1 + 1e-9)
    assert end_s <= sum(seconds.values()) * (1 + 1e-9)


def _last_counted_s(timeline):
    """The busiest lane, less what nobody waits for: a lane may lay ahead for a pass that never comes."""
    counted = [timed for timed in timeline.tasks if not (timed.task.for_next_pass)]
    return max(sum(t.end_s - t.start_s for t in counted if t.task.lane is lane) for lane in Lane)


def list_schedule(schedule, loads):
    """The ends of the passes by the plain rule, for tasks that share nothing."""
    lane_free: dict[Lane, float] = {}
    ends: dict[tuple[int, TaskKey], float] = {}
    pass_ends = []
    passes = [load for load in loads for _ in range(load.count)]
    given = [schedule.prologue, *[tasks for _, tasks in schedule.passes(len(passes))]]
    for index, tasks in enumerate(given, start=-1):
        for task in tasks:
            needed = [ends.get((index - need.passes_ago, need.key), 0.0) for need in task.needs]
            start_s = max([lane_free.get(task.lane, 0.0), *needed])
            end_s = start_s + passes[max(index, 0)].work_of(task).seconds
            lane_free[task.lane] = ends[index, task.key] = end_s
        if index >= 0:
            pass_ends.append(max(ends[index, task.key] for task in tasks if not task.for_next_pass))
    return tuple(pass_ends)


@given(cases())
@PROPERTY
def test_sharing_nothing_is_plain_list_scheduling(case):
    schedule, loads = case

    assert simulate_timeline(schedule, loads).pass_end_s == list_schedule(schedule, loads)


@given(cases(), shared_rates())
@PROPERTY
def test_lanes_work_in_order_needs_are_met_first_and_gaps_are_explained(case, shared):
    schedule, loads = case
    timeline = simulate_timeline(schedule, loads, shared)
    ends = {(timed.pass_index, timed.task.key): timed.end_s for timed in timeline.tasks}
    free = dict.fromkeys(Lane, 0.0)
    for timed in timeline.tasks:
        assert timed.start_s - timed.waited_s == pytest.approx(free[timed.task.lane])
        assert (timed.waited_s > 0) == (timed.waited_for is not None)
        free[timed.task.lane] = timed.end_s
        for need in timed.task.needs:
            assert timed.start_s >= ends.get((timed.pass_index - need.passes_ago, need.key), 0.0)


@given(cases(), st.sampled_from(Lane), st.floats(0.1, 1))
@PROPERTY
def test_without_sharing_a_faster_lane_never_makes_it_end_later(case, lane, factor):
    schedule, loads = case
    assert _end_s(schedule, _faster(loads, lane, factor)) <= _end_s(schedule, loads) * (1 + 1e-9)


@given(cases(), shared_rates(), st.sampled_from(Lane), st.floats(0.1, 1))
@PROPERTY
def test_the_contention_anomaly_is_bounded_by_the_lanes_that_share(case, shared, lane, factor):
    """The contention anomaly: a faster lane may draw on a shared rate just when a critical task needs it.

    Of k lanes that draw, each task keeps a k-th of its pace, whatever happens when: so it costs a factor k at most.
    """
    schedule, loads = case
    drawing = max([len(one.drawn_by) for one in shared], default=1)
    faster_s = _end_s(schedule, _faster(loads, lane, factor), shared)

    assert faster_s <= max(drawing, 1) * _end_s(schedule, loads, shared) * (1 + 1e-9)


@given(cases(), shared_rates(), st.floats(1, 10))
@PROPERTY
def test_more_of_what_is_shared_hardly_ever_makes_it_end_later(case, shared, factor):
    """The same anomaly, with the same bound; and so much of everything that nothing is short is as fast as can be."""
    schedule, loads = case
    more = tuple(replace(one, bytes_per_s=one.bytes_per_s * factor) for one in shared)
    plenty = tuple(replace(one, bytes_per_s=1e9) for one in shared)
    drawing = max([len(one.drawn_by) for one in shared], default=1)
    end_s = _end_s(schedule, loads, shared)

    assert _end_s(schedule, loads, more) <= max(drawing, 1) * end_s * (1 + 1e-9)
    assert _end_s(schedule, loads, plenty) <= end_s * (1 + 1e-9)


def _end_s(schedule, loads, shared=()):
    return simulate_passes(schedule, loads, shared).end_s


def _faster(loads, lane, factor):
    """Tasks of a lane take less time for the same bytes."""

    def scaled(work_of):
        def work(task):
            seconds, moved_bytes, latency_s = work_of(task)
            scale = factor if task.lane is lane else 1.0
            return Work(seconds * scale, moved_bytes, latency_s * scale)

        return work

    return [replace(load, work_of=scaled(load.work_of)) for load in loads]


PAGES = (TaskKind.PAGE_COPY, TaskKind.PAGE_PIN)


class Rivals(NamedTuple):
    """CGOPipe and its unpaged variant: when each ends, the seconds of CGOPipe's pages, and what paging adds to them."""

    paged_s: float
    unpaged_s: float
    pages_s: float
    added_s: float
    num_pages: int
    dense: bool


@st.composite
def rivals(draw, alike):
    """The same weights cross, each page with a latency; `alike` makes all micro-batches alike.

    None lie on disk, for else each expert is a page of either, and a link that waits for the disk is not late by pages.
    """
    model, layer_s, latency_s = draw(models()), draw(st.floats(0, 20)), draw(st.floats(0, 0.1))
    drawn = draw(policies([ScheduleName.CGOPIPE], max_micro_batches=8))
    paged = replace(drawn, pages_per_layer=None, disk_experts=0)
    work_of = draw(works(latencies=False))

    def work_in(policy):
        def work(task):
            if task.kind in PAGES:
                return Work(layer_s / policy.num_pages(model) + latency_s)
            asked = replace(task, key=task.key._replace(part=1)) if alike else task
            return Work(work_of(asked).seconds)

        return work

    def passes_s(policy):
        phases = ((Phase.PREFILL, 1), (Phase.DECODE, 2))
        loads = [PassLoad(phase=phase, work_of=work_in(policy), count=count) for phase, count in phases]
        schedule = build_schedule(policy, model)
        given = [*schedule.prologue, *(task for _, tasks in schedule.passes(3) for task in tasks)]
        return _end_s(schedule, loads), sum(work_in(policy)(task).seconds for task in given if task.kind in PAGES)

    (paged_s, pages_s), (unpaged_s, whole_s) = passes_s(paged), passes_s(replace(paged, schedule=ScheduleName.UNPAGED))
    return Rivals(paged_s, unpaged_s, pages_s, pages_s - whole_s, paged.num_pages(model), bool(model.dense_layers))


@given(rivals(alike=True))
@PROPERTY
def test_cgopipe_is_never_slower_than_unpaged_beyond_the_latencies_of_its_pages(case):
    """Where micro-batches are alike; dense layers, over which pages spread, may cost one page of each layer besides."""
    spread_s = case.pages_s / case.num_pages if case.dense else 0.0

    assert case.paged_s <= (case.unpaged_s + case.added_s + spread_s) * (1 + 1e-9)


@given(rivals(alike=False))
@PROPERTY
def test_the_paging_anomaly_costs_no_more_than_the_pages_take(case):
    """The paging anomaly: pages and hidden states share a lane, in order; a page may stand behind a state not ready.

    A layer in one piece has passed it by then. Uneven micro-batches and dense layers between make room for it. Were
    pages free, CGOPipe would wait for nothing that unpaged does not wait for, and each second of a page makes it later
    by a second at most.
    """
    assert case.paged_s <= (case.unpaged_s + case.pages_s) * (1 + 1e-9)


def test_two_that_ask_for_more_than_half_share_by_halves():
    """A copy (alone 2 s at 80 B/s) and a kernel (alone 4 s at 80 B/s) on 100 B/s: 50 B/s each while both run.

    The copy needs 160 B / 50 B/s = 3.2 s. By then the kernel has moved 160 of its 320 B; the rest goes at 80 B/s.
    """
    copy = Task(key=TaskKey(TaskKind.PAGE_COPY, 0, 0), lane=Lane.H2D)
    kernel = Task(key=TaskKey(TaskKind.ATTENTION, 0, 0), lane=Lane.CPU)
    work = {Lane.H2D: Work(2.0, 160.0), Lane.CPU: Work(4.0, 320.0)}
    memory = Shared(name="memory", bytes_per_s=100.0, drawn_by={Lane.CPU: 1.0, Lane.H2D: 1.0})
    timeline = _one_pass([copy, kernel], lambda task: work[task.lane], [memory])

    ends = {timed.task.lane: timed.end_s for timed in timeline.tasks}
    assert ends[Lane.H2D] == pytest.approx(3.2)
    assert ends[Lane.CPU] == pytest.approx(3.2 + 160.0 / 80.0)


def test_a_latency_draws_on_nothing():
    """The copy stands still for 1 s, during which the kernel has all to itself."""
    copy = Task(key=TaskKey(TaskKind.PAGE_COPY, 0, 0), lane=Lane.H2D)
    kernel = Task(key=TaskKey(TaskKind.ATTENTION, 0, 0), lane=Lane.CPU)
    work = {Lane.H2D: Work(2.0, 100.0, latency_s=1.0), Lane.CPU: Work(2.0, 200.0)}
    memory = Shared(name="memory", bytes_per_s=100.0, drawn_by={Lane.CPU: 1.0, Lane.H2D: 1.0})
    ends = {timed.task.lane: timed.end_s for timed in _one_pass([copy, kernel], lambda t: work[t.lane], [memory]).tasks}

    assert ends == pytest.approx({Lane.H2D: 3.0, Lane.CPU: 3.0})


def test_beside_others_that_draw_a_lane_keeps_no_more_than_its_share():
    """The kernel goes at half its pace while the copy crosses, which itself keeps all, and at its own from then on."""
    copy = Task(key=TaskKey(TaskKind.PAGE_COPY, 0, 0), lane=Lane.H2D)
    kernel = Task(key=TaskKey(TaskKind.ATTENTION, 0, 0), lane=Lane.CPU)
    work = {Lane.H2D: Work(2.0, 1.0), Lane.CPU: Work(4.0, 1.0)}
    memory = Shared(name="memory", bytes_per_s=1e9, drawn_by={Lane.CPU: 1.0, Lane.H2D: 1.0})
    kept = {Lane.CPU: 0.5, Lane.H2D: 1.0}

    beside = _one_pass([copy, kernel], lambda task: work[task.lane], [memory], kept)
    alone = _one_pass([kernel], lambda task: work[task.lane], [memory], kept)

    assert {one.task.lane: one.end_s for one in beside.tasks} == pytest.approx({Lane.H2D: 2.0, Lane.CPU: 5.0})
    assert [one.end_s for one in alone.tasks] == pytest.approx([4.0])


def test_contention_enters_once_as_the_slower_of_what_is_shared_and_what_is_kept():
    """Memory leaves each of the two half its pace; that a lane keeps half beside a busy one is not taken off again."""
    copy = Task(key=TaskKey(TaskKind.PAGE_COPY, 0, 0), lane=Lane.H2D)
    kernel = Task(key=TaskKey(TaskKind.ATTENTION, 0, 0), lane=Lane.CPU)
    memory = Shared(name="memory", bytes_per_s=1.0, drawn_by={Lane.CPU: 1.0, Lane.H2D: 1.0})
    for kept in (None, {Lane.CPU: 0.5, Lane.H2D: 0.5}, {Lane.CPU: 0.9}):
        beside = _one_pass([copy, kernel], lambda _: Work(2.0, 2.0), [memory], kept)

        assert [one.end_s for one in beside.tasks] == pytest.approx([4.0, 4.0])


def test_who_asks_for_little_gets_it_and_the_others_divide_the_rest():
    assert fair_paces([[10.0], [60.0], [90.0]], [100.0]) == pytest.approx((1.0, 0.75, 0.5))
    assert fair_paces([[40.0], [60.0]], [100.0]) == (1.0, 1.0)
    # A task on two resources gets on at the pace of the scarcer one.
    assert fair_paces([[80.0, 10.0], [80.0, 0.0]], [80.0, 5.0]) == pytest.approx((0.5, 0.5))


PROCESSORS = (Lane.CPU, Lane.GPU, Lane.PIN)


@st.composite
def collisions(draw):
    """A memory that two or three processors share, and what each draws of what it can."""
    rate = draw(st.floats(1.0, 100.0))
    lanes = PROCESSORS[: draw(st.integers(2, 3))]
    bursts = {lane: Burst(draw(st.floats(0.2, 1.5)) * rate, draw(st.sampled_from([1.0, 0.25]))) for lane in lanes}
    parts = {lane: draw(st.floats(0.01, 1.0)) for lane in lanes}
    demands = {lane: parts[lane] * bursts[lane].awake * min(bursts[lane].bytes_per_s, rate) for lane in lanes}
    return Shared(name="memory", bytes_per_s=rate, drawn_by=dict.fromkeys(lanes, 1.0), bursts=bursts), demands


@given(collisions())
def test_colliding_lanes_keep_an_equal_share_of_their_time_at_least_and_draw_no_more_than_there_is(case):
    memory, demands = case
    paces = memory.colliding_paces(demands)

    assert all((1 - 1e-9) / len(demands) <= pace <= 1.0 for pace in paces.values())
    if len(demands) == 2:
        assert sum(demand * paces[lane] for lane, demand in demands.items()) <= memory.bytes_per_s * (1 + 1e-9)


@given(collisions(), st.floats(1.0, 10.0))
def test_more_memory_never_slows_what_collides(case, factor):
    memory, demands = case
    more = replace(memory, bytes_per_s=factor * memory.bytes_per_s)
    paces = memory.colliding_paces(demands)

    assert all(pace >= paces[lane] * (1 - 1e-9) for lane, pace in more.colliding_paces(demands).items())


def test_a_host_that_sleeps_is_slowed_as_one_that_does_not_but_slows_others_less():
    """Awake a quarter of the time, it meets the other in each of its bursts, the other meets it in one of four."""

    def paces(awake):
        bursts = {Lane.CPU: Burst(50.0, awake), Lane.GPU: Burst(50.0)}
        memory = Shared(name="memory", bytes_per_s=50.0, drawn_by={}, bursts=bursts)
        return memory.colliding_paces({Lane.CPU: awake * 50.0, Lane.GPU: 50.0})

    assert paces(1.0) == {Lane.CPU: 0.5, Lane.GPU: 0.5}
    assert paces(0.25) == {Lane.CPU: 0.5, Lane.GPU: 1 / 1.25}


def test_who_is_seldom_on_memory_hardly_notices_others_there():
    """Of 100 B/s, 10 are drawn at 100: a tenth of its time is on memory, and that alone takes twice as long."""
    bursts = dict.fromkeys((Lane.CPU, Lane.GPU), Burst(100.0))
    memory = Shared(name="memory", bytes_per_s=100.0, drawn_by={}, bursts=bursts)

    assert memory.colliding_paces({Lane.CPU: 10.0, Lane.GPU: 100.0}) == pytest.approx(
        {Lane.CPU: 1 / 1.1, Lane.GPU: 1 / 1.1}
    )
    assert memory.colliding_paces({Lane.CPU: 10.0, Lane.GPU: 0.0}) == {Lane.CPU: 1.0}


def _one_pass(tasks, work_of, shared, kept=None):
    walk = Walk(num_layers=1, layer=lambda _: tasks, like=lambda _: 0, main=Lane.CPU, reach=lambda _: 1)
    schedule = Schedule(prologue=(), walks=dict.fromkeys(Phase, walk))
    return simulate_timeline(schedule, [PassLoad(phase=Phase.DECODE, work_of=work_of)], shared, kept)
