"""One profiling run: the backend measured, how thorough to be, how much time is left, and every sample taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from hrm.device.backend import Backend
from hrm.device.openmp import end_helpers
from hrm.dtypes import DType
from hrm.files import to_plain
from hrm.hardware import EmulatedSpec
from hrm.microbench.measure import CpuUse, Timed, measure, on_lane, warm_up
from hrm.schedule.task import Lane

K = TypeVar("K")
T = TypeVar("T")

__all__ = ["TORCH_DTYPES", "Bench", "Samples"]

Samples = tuple[float, ...]
"""One figure per round that was kept."""

TORCH_DTYPES = {
    DType.FLOAT32: torch.float32,
    DType.BFLOAT16: torch.bfloat16,
    DType.FLOAT16: torch.float16,
}

_QUICK_S, _THOROUGH_S = 10.5, 112.0
"""Time a whole profile takes. With what starting the program takes, 15 s and 2 minutes on two cores."""


class Bench:
    """The backend measured and the time left; `say` reports progress in short lines.

    The time is dealt out: `begin_part` gives what is measured next its share, and measuring ends with the share or with
    the profile, but not before each case was timed `MIN_ROUNDS` times.
    """

    def __init__(self, backend: Backend, *, quick: bool, progress: Callable[[str], None] | None = None) -> None:
        self.backend = backend
        self.quick = quick
        self.rounds = 3 if quick else 7
        self.case_s = 0.04 if quick else 0.1
        """Longest that one repeat should take where its size can be chosen."""
        self._deadline_s = time.perf_counter() + (_QUICK_S if quick else _THOROUGH_S)
        self._part_end_s = self._deadline_s
        self._progress = progress
        self._log: list[dict[str, Any]] = []
        self._part = ""
        self._clean: dict[str, list[bool]] = {}

    @property
    def left_s(self) -> float:
        """Seconds until the profile should end; negative when it is late."""
        return self._deadline_s - time.perf_counter()

    @property
    def part_left_s(self) -> float:
        """Seconds left to what is measured now; negative when it is late."""
        return self._part_end_s - time.perf_counter()

    def begin_part(self, share_s: float) -> None:
        """Give what is measured next so many seconds, or what is left where that is less."""
        self._part_end_s = min(time.perf_counter() + share_s, self._deadline_s)

    def slowdown(self, lane: Lane) -> float:
        """Return by what factor an emulated machine slows a lane's work by sleeping after it."""
        spec: EmulatedSpec | None = getattr(self.backend, "spec", None)
        return spec.host_slowdown if spec is not None and lane is Lane.CPU else 1.0

    def say(self, text: str) -> None:
        """Report what is measured next: the part that rounds belong to from now on."""
        self._part = text
        if self._progress is not None:
            self._progress(text)

    def log(self, result: object, use: CpuUse) -> None:
        """Keep what a round gave and the CPU time it took, whether it will be used or not."""
        self._log.append({"result": to_plain(result)} | to_plain(use))
        self._clean.setdefault(self._part, []).append(use.clean)

    @property
    def disturbed(self) -> list[str]:
        """Parts in most of whose rounds other processes used the cores, so that their figures had to count."""
        return [part for part, clean in self._clean.items() if 2 * sum(clean) < len(clean)]

    def take_log(self) -> list[dict[str, Any]]:
        """Return the rounds kept since the last call, as plain data."""
        taken, self._log = self._log, []
        return taken

    def seconds(self, lane: Lane, work: Callable[[], object]) -> float:
        """Estimate how long a piece of work takes on a lane: the second of two calls."""
        once = on_lane(self.backend, lane, work)
        once()
        return once()

    def times(self, lane: Lane, works: Mapping[K, Callable[[], object]], *, to_come: int = 1) -> dict[K, Samples]:
        """Time pieces of work on a lane, one at a time, in turn; one of so many such measurements of this part."""
        timed: dict[K, Timed] = {key: on_lane(self.backend, lane, work) for key, work in works.items()}
        warm_up(timed)
        return measure(timed, rounds=self.rounds, budget_s=self.part_left_s / to_come, log=self.log)

    def rates(
        self, lane: Lane, cases: Mapping[K, tuple[float, Callable[[], object]]], *, to_come: int = 1
    ) -> dict[K, Samples]:
        """Measure rates on a lane; each case is an amount (FLOP or bytes) and the work that does it."""
        times = self.times(lane, {key: work for key, (_, work) in cases.items()}, to_come=to_come)
        return {key: tuple(amount / seconds for seconds in times[key]) for key, (amount, _) in cases.items()}

    def made_for(self, lane: Lane, make: Callable[[torch.device], T]) -> T:
        """Make operands for a processor's lane: on the device's own lane for `gpu`, else in the calling thread.

        So the device's operands are ready for its lane, and a slowed host is not slow at what nobody times. What helped
        the calling thread ends, or it would be in the lane's way (`hrm.device.openmp`).
        """
        if lane is not Lane.GPU:
            found = make(torch.device("cpu"))
            end_helpers()
            return found
        made: list[T] = []
        self.backend.stream(lane).submit(lambda: made.append(make(self.backend.device))).wait()
        return made[0]

    def asked_on(self, lane: Lane, question: Callable[[], T]) -> T:
        """Return what `question` answers in the thread of a lane: how many threads it uses, on which cores."""
        answers: list[T] = []
        self.backend.stream(lane).submit(lambda: answers.append(question())).wait()
        return answers[0]
