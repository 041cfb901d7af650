"""Streams do work in order, behind the events it was given, and hand errors on."""

import itertools
import os
import threading
import time
import weakref

import pytest
import torch

from hrm.device.streams import StreamSet, WorkerStream, allowed_cores, current_lane, leave_out_sleep
from hrm.errors import DeviceError
from hrm.schedule.task import Lane


@pytest.fixture
def streams():
    made = StreamSet(WorkerStream)
    yield made
    made.close()


def _fail():
    raise ValueError("boom")


def _submit_for_ever(stream):
    while True:
        stream.submit(lambda: None)
        time.sleep(1e-3)


def test_work_of_a_stream_runs_in_order_of_submission(streams):
    seen: list[int] = []
    events = [streams[Lane.CPU].submit(lambda number=number: seen.append(number)) for number in range(200)]
    events[-1].wait()

    assert seen == list(range(200))
    assert all(first.ended_s <= second.started_s for first, second in itertools.pairwise(events))


def test_work_starts_after_the_events_it_was_given_have_ended(streams):
    first = streams[Lane.GPU].submit(lambda: time.sleep(0.02))
    second = streams[Lane.CPU].submit(lambda: None, [first])
    second.wait()

    assert first.ended_s - first.started_s >= 0.02
    assert second.started_s >= first.ended_s


def test_streams_run_beside_each_other(streams):
    """Each piece waits for the other to have begun: in series this would break the barrier."""
    barrier = threading.Barrier(2)
    events = [streams[lane].submit(lambda: barrier.wait(timeout=10)) for lane in (Lane.CPU, Lane.GPU)]
    for event in events:
        event.wait()


def test_error_reaches_all_dependents_and_they_do_not_run(streams):
    ran: list[str] = []
    bad = streams[Lane.CPU].submit(_fail)
    dependent = streams[Lane.GPU].submit(lambda: ran.append("dependent"), [bad])
    grandchild = streams[Lane.CPU].submit(lambda: ran.append("grandchild"), [dependent])
    free = streams[Lane.CPU].submit(lambda: ran.append("free"))

    for event in (bad, dependent, grandchild):
        with pytest.raises(ValueError, match="boom"):
            event.wait()
    free.wait()
    assert ran == ["free"]


def test_finished_work_keeps_nothing_alive(streams):
    tensor = torch.zeros(4)
    alive = weakref.ref(tensor)
    event = streams[Lane.CPU].submit(lambda held=tensor: held.sum())
    del tensor
    event.wait()

    assert alive() is None


def test_each_lane_knows_its_name_and_has_one_stream(streams):
    seen: list[Lane | None] = []
    streams[Lane.H2D].submit(lambda: seen.append(current_lane())).wait()

    assert seen == [Lane.H2D]
    assert current_lane() is None
    assert streams[Lane.H2D] is streams[Lane.H2D]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin threads")
def test_pinned_stream_runs_on_its_cores_and_leaves_the_caller_alone():
    before = allowed_cores()
    core = before[-1]
    stream = WorkerStream(Lane.GPU, cores=(core,))
    seen: list[set[int]] = []
    stream.submit(lambda: seen.append(os.sched_getaffinity(0))).wait()
    stream.close()

    assert seen == [{core}]
    assert allowed_cores() == before


def test_thread_count_is_each_streams_own():
    before = torch.get_num_threads()
    numbers: list[int] = []
    streams = [WorkerStream(Lane.CPU, threads=count) for count in (1, 2)]
    for stream in streams:
        stream.submit(lambda: numbers.append(torch.get_num_threads())).wait()
    for stream in streams:
        stream.close()

    assert numbers == [1, 2]
    assert torch.get_num_threads() == before


def test_slowed_stream_takes_its_factor_of_the_cpu_time():
    """One-sided: a machine under load makes it slower still, never faster."""
    stream = WorkerStream(Lane.CPU, slowdown=5.0)
    used_s: list[float] = []

    def work():
        begun_s = time.thread_time()
        while time.thread_time() - begun_s < 0.01:
            pass
        used_s.append(time.thread_time() - begun_s)

    events = [stream.submit(work) for _ in range(3)]
    events[-1].wait()
    stream.close()

    assert events[-1].ended_s - events[0].started_s >= 4.9 * sum(used_s)


def test_sleep_is_left_out_for_the_work_that_says_so_alone(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(WorkerStream, "_sleep", lambda _, owed_s: slept.append(owed_s))
    stream = WorkerStream(Lane.CPU, slowdown=5.0)
    stream.submit(leave_out_sleep).wait()
    before = len(slept)
    stream.submit(lambda: None).wait()
    stream.close()

    assert (before, len(slept)) == (0, 1)


def test_closing_finishes_submitted_work_and_refuses_more():
    streams = StreamSet(WorkerStream)
    ran: list[str] = []
    slow = streams[Lane.GPU].submit(lambda: time.sleep(0.02))
    streams[Lane.CPU].submit(lambda: ran.append("late"), [slow])
    kept = streams[Lane.CPU]
    streams.close()

    assert ran == ["late"]
    with pytest.raises(DeviceError, match="closed"):
        kept.submit(_fail)
    with pytest.raises(DeviceError, match="closed"):
        streams[Lane.CPU]


def test_closing_because_of_an_error_drops_what_has_not_begun():
    streams = StreamSet(WorkerStream)
    ran: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def first():
        begun.set()
        go_on.wait(timeout=10)
        ran.append("begun before")

    def close_while_interrupted():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            streams.close()

    events = [streams[Lane.GPU].submit(first)]
    events.append(streams[Lane.GPU].submit(lambda: ran.append("queued")))
    last = streams[Lane.CPU]
    events.append(last.submit(lambda: ran.append("behind it"), events[:1]))
    begun.wait(timeout=10)
    closing = threading.Thread(target=close_while_interrupted)
    closing.start()
    with pytest.raises(DeviceError, match="submitted to after it was closed"):
        _submit_for_ever(last)
    go_on.set()
    closing.join(timeout=10)

    assert ran == ["begun before"]
    for event in events[1:]:
        with pytest.raises(DeviceError, match="closed before this work began"):
            event.wait()
