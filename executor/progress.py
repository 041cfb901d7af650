"""Who hears of a job while it runs: of the answers that are finished, and of how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from executor.answer import Answer
from executor.prompts import Completion
from hrm.records import record

__all__ = ["Listener", "Progress"]


@record
class Progress:
    """How far a job is: prompts answered, tokens made, and seconds since the first wave began."""

    answered: int
    prompts: int
    tokens: int
    elapsed_s: float


class Listener:
    """Tells of a job's answers and progress whoever wants to hear of them."""

    def __init__(
        self,
        answers: Sequence[Answer],
        on_progress: Callable[[Progress], None] | None,
        on_answers: Callable[[Sequence[Completion]], None] | None,
    ) -> None:
        self._answers = answers
        self._on_progress = on_progress
        self._on_answers = on_answers
        self._answered = 0
        self._begun_s = time.perf_counter()

    def hear(self, finished: Sequence[Answer]) -> None:
        """Pass on what a pass has finished."""
        self._answered += len(finished)
        if self._on_answers is not None and finished:
            self._on_answers([answer.completion() for answer in finished])
        if self._on_progress is not None:
            self._on_progress(
                Progress(
                    answered=self._answered,
                    prompts=len(self._answers),
                    tokens=sum(len(answer.tokens) for answer in self._answers),
                    elapsed_s=time.perf_counter() - self._begun_s,
                )
            )
