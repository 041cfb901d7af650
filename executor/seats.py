"""Who sits where: the seats of a wave, who takes a seat that is free again, and what a round of passes starts from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from executor.answer import Answer
from executor.sampling import Settings
from executor.wave import MicroBatch, Wave
from hrm.records import record

__all__ = ["Lengths", "Round", "Seats"]


class Lengths(NamedTuple):
    """Tokens cached of each sequence before a round's first decode pass, and at most before its room is full."""

    before: torch.Tensor
    most: torch.Tensor

    def at(self, pass_index: int, first: int, last: int) -> torch.Tensor:
        """Return what is cached of sequences `first` to `last` (one past) when a decode pass begins.

        A sequence that has ended is computed on until its seat is taken, over and over in the last token of its room.
        """
        return torch.minimum(self.before[first:last] + (pass_index - 1), self.most[first:last])


@record
class Round:
    """Passes that run one behind the other: pass 0 over the prompts of newcomers, then decode passes of all seats.

    `micro_batches` hold as prompt lengths those of newcomers, and 0 for sequences that go on or have ended. `made`
    counts for each seat the tokens of its answer before pass 0, where one that goes on makes its last token again.
    """

    micro_batches: tuple[MicroBatch, ...]
    prompt_tokens: torch.Tensor
    positions: torch.Tensor
    settings: tuple[Settings, ...]
    made: tuple[int, ...]
    last_tokens: torch.Tensor
    on_main: Lengths
    on_host: Lengths


class Seats:
    """The seats of a wave: each has room for the prompt it was dealt to, and takes one that is no longer after it.

    So whoever sits where, neither cache nor prompts outgrow what the wave was dealt. `waiting` is shared by the waves
    of a job: who has not begun, longest prompt first.
    """

    def __init__(self, wave: Wave, answers: Sequence[Answer], waiting: dict[Answer, None], gen_len: int) -> None:
        self.wave = wave
        self._gen_len = gen_len
        self._owners = [answers[place] for place in wave.order]
        self._seated: list[Answer | None] = [None] * len(self._owners)
        self._newcomers: dict[int, Answer] = {}
        self._waiting = waiting
        self._lost = 0

    @property
    def live(self) -> list[tuple[int, Answer]]:
        """Seats of answers that go on, in order."""
        return [(seat, answer) for seat, answer in enumerate(self._seated) if answer is not None and answer.left]

    @property
    def passes(self) -> int:
        """Passes that a round takes that begins now: until the last answer is as long as it may get."""
        return max(answer.left + (seat not in self._newcomers) for seat, answer in self.live)

    def seat(self) -> None:
        """Give the free seats to those who wait: their owners first, then the longest prompt that fits."""
        self._lost = 0
        self._newcomers = dict(self._fitting())
        for seat, answer in self._newcomers.items():
            self._seated[seat] = answer
            del self._waiting[answer]

    def _fitting(self) -> Iterator[tuple[int, Answer]]:
        waiting = self._waiting.copy()
        free = {seat for seat, answer in enumerate(self._seated) if answer is None or not answer.left}
        for seat in [seat for seat in free if self._owners[seat] in waiting]:
            free.remove(seat)
            del waiting[self._owners[seat]]
            yield seat, self._owners[seat]
        for seat in sorted(free, key=lambda at: self.wave.prompt_lens[at]):
            fits = (answer for answer in waiting if len(answer.prompt.tokens) <= self.wave.prompt_lens[seat])
            if (answer := next(fits, None)) is not None:
                del waiting[answer]
                yield seat, answer

    def take(self, pass_index: int, tokens: Sequence[int]) -> list[Answer]:
        """Hand out the tokens that a pass made, one a seat; return the answers that this finished."""
        took = [(seat, answer) for seat, answer in self.live if pass_index or seat in self._newcomers]
        for seat, answer in took:
            answer.take(tokens[seat])
        return [answer for _, answer in took if not answer.left]

    def passes_after(self, pass_index: int) -> int:
        """Return how many passes the round takes in all, seen when a pass has ended and the next one runs.

        A round ends to let those in who wait, once seats have stood empty for as many turns as letting them in takes
        from those who go on: they stand still for a pass over the weights. So at most twice as much is lost as by
        whoever knew how long the answers get.
        """
        live = self.live
        if not live:
            return pass_index + 1
        self._lost += sum(1 for _ in self._fitting())
        left = 1 if self._lost >= len(live) else max(answer.left for _, answer in live)
        return pass_index + 1 + left

    def round(self, device: torch.device) -> Round:
        """Describe the round that begins now."""
        seats, live = range(len(self._seated)), dict(self.live)
        going_on = {seat: answer for seat, answer in live.items() if seat not in self._newcomers}
        prompts = [self._newcomers[seat].prompt.tokens if seat in self._newcomers else () for seat in seats]
        lengths = Lengths(
            torch.tensor([live[seat].cached_tokens if seat in live else 0 for seat in seats]),
            # The last token made is never cached.
            torch.tensor([length + self._gen_len - 2 for length in self.wave.prompt_lens]),
        )
        return Round(
            micro_batches=self.wave.with_prompts([len(tokens) for tokens in prompts]),
            prompt_tokens=torch.tensor([token for tokens in prompts for token in tokens], device=device),
            positions=torch.tensor([at for tokens in prompts for at in range(len(tokens))], device=device),
            settings=tuple(live[seat].prompt.settings if seat in live else Settings() for seat in seats),
            made=tuple(len(going_on[seat].tokens) - 1 if seat in going_on else 0 for seat in seats),
            last_tokens=torch.tensor([going_on[seat].tokens[-1] if seat in going_on else 0 for seat in seats]),
            on_main=Lengths(*(lens.to(device) for lens in lengths)),
            on_host=lengths,
        )
