"""Worker threads that do submitted work in order, and the events between them.

Every lane of every backend is one such thread. A worker may be pinned to cores and may be slowed by a factor, which is
how the emulated machine poses a slow host.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import psutil
import torch

from hrm.device.backend import Event
from hrm.errors import DeviceError
from hrm.schedule.task import Lane

__all__ = [
    "StreamSet",
    "WorkEvent",
    "WorkerStream",
    "allowed_cores",
    "current_event",
    "current_lane",
    "leave_out_sleep",
    "physical_cores",
]

_PR_SET_TIMERSLACK = 29
_SWITCH_S = 2e-4
"""Seconds after which a lane that woke up gets the interpreter lock from one that holds on to it. In Python's own 5 ms
a link or a device would stand still: with it a pipeline of 10 ms tasks ran 10 % slower."""
_MOST_CREDIT_S = 1e-3
"""Most oversleep that later work may make up for; more than this is a busy machine, not a coarse timer."""

_current = threading.local()


def current_lane() -> Lane | None:
    """Return the lane whose worker is the calling thread; None outside a worker."""
    return getattr(_current, "lane", None)


def current_event() -> WorkEvent:
    """Return the event of the work that the calling worker does."""
    event: WorkEvent = _current.event
    return event


def leave_out_sleep() -> None:
    """Let the work that calls this end when it is done, on a slowed worker too: measuring need not wait for sleep."""
    _current.sleeps = False


def allowed_cores() -> tuple[int, ...]:
    """Return the cores that this process may run on, ascending."""
    if sys.platform == "linux":
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """Return how many of the allowed cores do arithmetic of their own: two threads of one core share its units."""
    return min(len(allowed_cores()), psutil.cpu_count(logical=False) or sys.maxsize)


class WorkEvent:
    """The end of one submitted piece of work (see `hrm.device.backend.Event`).

    `ready_s` is when it could begin: submitted, and all it was submitted behind ended. It begins later by what waking
    the worker takes.
    """

    __slots__ = ("_after", "_error", "_running", "_work", "ended_s", "ready_s", "started_s")

    def __init__(self, work: Callable[[], object], after: Sequence[Event]) -> None:
        self.ready_s = time.perf_counter()
        self.started_s = 0.0
        self.ended_s = 0.0
        self._work: Callable[[], object] | None = work
        self._after: Sequence[Event] = after
        self._error: BaseException | None = None
        # A held lock is the cheapest thing that threads can wait for; it is released once, at the end of the work.
        self._running = threading.Lock()
        self._running.acquire()

    def wait(self) -> None:
        """Block until the work has ended; raises what the work, or the work it waited for, raised."""
        with self._running:
            pass
        if self._error is not None:
            raise self._error

    def finish(self, error: BaseException | None) -> None:
        """Let go of the work and of what it holds, then wake those who wait."""
        self._error = error
        self._work = None
        self._after = ()
        self._running.release()

    def depend(self) -> None:
        """Wait for the events that this work was submitted behind."""
        for event in self._after:
            event.wait()
            self.ready_s = max(self.ready_s, event.ended_s)

    def work(self) -> None:
        """Do the work, in the calling thread."""
        assert self._work is not None
        self._work()


class WorkerStream:
    """A lane as a daemon thread: submitted work runs in order, each piece after the events it was given.

    `cores` pins the thread, and whatever threads torch starts for it; `threads` is how many of those it may use.
    With a `slowdown` above 1 the worker sleeps after each piece, until it has taken that many times its own duration;
    for a single thread that duration is the thread's CPU time, so that waiting for others is not multiplied.
    `settle` waits for what a piece of work left on its way; the piece ends with it.
    """

    def __init__(
        self,
        lane: Lane,
        *,
        cores: tuple[int, ...] = (),
        threads: int = 1,
        slowdown: float = 1.0,
        settle: Callable[[], None] | None = None,
    ) -> None:
        self.lane = lane
        self._cores = cores
        self._threads = threads
        self._slowdown = slowdown
        self._settle = settle
        self._clock = time.thread_time if threads == 1 else time.perf_counter
        self._credit_s = 0.0
        self._queue: SimpleQueue[WorkEvent | None] = SimpleQueue()
        self._ended = False
        self._dropping = False
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
        # torch keeps one number of threads per thread but starts each with the last one set anywhere: read it here, so
        # that the caller's own number stays as it is.
        torch.get_num_threads()
        self._thread = threading.Thread(target=self._serve, name=f"hrm-{lane}", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], object], after: Sequence[Event] = ()) -> WorkEvent:
        """Queue `work` behind everything submitted before and behind the `after` events; returns at once.

        Raises
        ------
        DeviceError
            When the stream was closed.
        """
        if self._ended:
            raise DeviceError(f"stream {self.lane}: submitted to after it was closed (open the backend again)")
        event = self._new_event(work, after)
        self._queue.put(event)
        return event

    def end(self) -> None:
        """Accept no more work; what was submitted is still done, unless an error is on its way through the caller.

        Then what has not begun is dropped: whoever interrupts a run does not wait for the rest of it.
        """
        if not self._ended:
            self._ended = True
            self._dropping = sys.exception() is not None
            self._queue.put(None)

    def close(self) -> None:
        """Accept no more work, end the thread after what `end` leaves to do."""
        self.end()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _new_event(self, work: Callable[[], object], after: Sequence[Event]) -> WorkEvent:
        return WorkEvent(work, after)

    def _serve(self) -> None:
        self._prepare()
        while True:
            event = self._queue.get()
            if event is None:
                return
            try:
                event.depend()
                if self._dropping:
                    raise DeviceError(f"stream {self.lane}: closed before this work began (run again)")
                self._execute(event)
            except BaseException as error:
                event.finish(error)
            else:
                event.finish(None)
            # The next `get` may block for long; nothing of this piece of work may stay alive meanwhile.
            del event

    def _prepare(self) -> None:
        _current.lane = self.lane
        if sys.platform == "linux":
            if self._cores:
                os.sched_setaffinity(0, self._cores)
            # Sleeps end up to 50 us late by default; paced work wants better.
            ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
        torch.get_num_threads()
        torch.set_num_threads(self._threads)

    def _execute(self, event: WorkEvent) -> None:
        _current.event, _current.sleeps = event, True
        event.started_s = time.perf_counter()
        if self._slowdown == 1.0:
            event.work()
        else:
            begun_s = self._clock()
            event.work()
            if _current.sleeps:
                self._sleep((self._slowdown - 1.0) * (self._clock() - begun_s))
        if self._settle is not None:
            self._settle()
        event.ended_s = time.perf_counter()

    def _sleep(self, owed_s: float) -> None:
        """Sleep for `owed_s` less what earlier sleeps took too long, so that lateness does not add up."""
        wanted_s = owed_s - self._credit_s
        begun_s = time.perf_counter()
        if wanted_s > 0:
            time.sleep(wanted_s)
        self._credit_s = min(time.perf_counter() - begun_s - wanted_s, _MOST_CREDIT_S)


class StreamSet:
    """The streams of a backend, one per lane, made when first asked for and ended together."""

    def __init__(self, make: Callable[[Lane], WorkerStream]) -> None:
        self._make = make
        self._streams: dict[Lane, WorkerStream] = {}
        self._lock = threading.Lock()
        self._closed = False

    def __getitem__(self, lane: Lane) -> WorkerStream:
        """Return the stream of a lane: always the same object for the same lane."""
        with self._lock:
            if self._closed:
                raise DeviceError(f"stream {lane}: the backend was closed (open it again)")
            if lane not in self._streams:
                self._streams[lane] = self._make(lane)
            return self._streams[lane]

    def close(self) -> None:
        """End all streams, then wait for their threads: work may wait for work of another stream."""
        with self._lock:
            self._closed = True
            streams = tuple(self._streams.values())
        for stream in streams:
            stream.end()
        for stream in streams:
            stream.close()
