"""Which sequences run together: jobs dealt into waves, waves into micro-batches, and where each one's tokens lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby

from hrm.policy import Policy
from hrm.records import record

__all__ = ["MicroBatch", "Wave", "deal_waves", "make_wave", "runs"]


def runs(lens: Sequence[int], most_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield first and last (one past) of prompts side by side that are of one length; empty ones not.

    A run of several holds at most so many tokens.
    """
    first = 0
    for length, same in groupby(lens):
        end = first + len(tuple(same))
        if length:
            step = max(1, most_tokens // length)
            yield from ((begin, min(begin + step, end)) for begin in range(first, end, step))
        first = end


@record
class MicroBatch:
    """Sequences `first` to `last` (one past) of a wave, and the rows of their prompt tokens."""

    first: int
    last: int
    prompt_lens: tuple[int, ...]
    token_starts: tuple[int, ...]

    @property
    def num_sequences(self) -> int:
        """Sequences in the micro-batch; 0 where a last wave does not reach that far."""
        return self.last - self.first

    @property
    def num_tokens(self) -> int:
        """Prompt tokens of all its sequences."""
        return sum(self.prompt_lens)

    @property
    def token_first(self) -> int:
        """Row of its first prompt token in the wave."""
        return self.token_starts[0]

    @property
    def token_last(self) -> int:
        """One past the row of its last prompt token in the wave."""
        return self.token_starts[-1]

    def rows(self, first: int, last: int) -> slice:
        """Rows, within the micro-batch, of its sequences `first` to `last` (one past)."""
        return slice(self.token_starts[first] - self.token_first, self.token_starts[last] - self.token_first)

    def runs(self, most_tokens: int) -> Iterator[tuple[int, int]]:
        """Yield the runs of its prompts (see `runs`)."""
        return runs(self.prompt_lens, most_tokens)


@record
class Wave:
    """Sequences that run at once, in the order of their micro-batches; `order` holds their places in the job."""

    order: tuple[int, ...]
    prompt_lens: tuple[int, ...]
    micro_batches: tuple[MicroBatch, ...]

    @property
    def num_tokens(self) -> int:
        """Prompt tokens of all sequences."""
        return sum(self.prompt_lens)

    def with_prompts(self, prompt_lens: Sequence[int]) -> tuple[MicroBatch, ...]:
        """Return the same micro-batches over other prompts, of length 0 where a sequence brings none."""
        return _micro_batches([(batch.first, batch.last) for batch in self.micro_batches], tuple(prompt_lens))


def _deal(lens: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Deal indices of `lens` into groups of these sizes, longest first, each to the group that is least full.

    Back and forth among equally full groups; so no group gets more than its average share and one longest on top.
    """
    groups: list[list[int]] = [[] for _ in sizes]
    for index in sorted(range(len(lens)), key=lambda at: -lens[at]):
        open_groups = [group for group, size in enumerate(sizes) if len(groups[group]) < size]
        chosen = min(
            open_groups,
            key=lambda group: (
                (len(groups[group]) + 1) / sizes[group],
                group if len(groups[group]) % 2 == 0 else -group,
            ),
        )
        groups[chosen].append(index)
    return groups


def deal_waves(prompt_lens: Sequence[int], batch_size: int) -> list[list[int]]:
    """Deal the sequences of a job into waves of `batch_size`; the last wave may be smaller."""
    total = len(prompt_lens)
    return _deal(prompt_lens, [min(batch_size, total - first) for first in range(0, total, batch_size)])


def make_wave(members: Sequence[int], prompt_lens: Sequence[int], policy: Policy) -> Wave:
    """Deal the members of a wave into the policy's micro-batches; trailing ones may stay empty.

    `members` are places in the job, `prompt_lens` the lengths of the whole job.
    """
    bounds = [policy.micro_batch_bounds(index) for index in range(policy.num_micro_batches)]
    clipped = [(min(first, len(members)), min(last, len(members))) for first, last in bounds]
    groups = _deal([prompt_lens[place] for place in members], [last - first for first, last in clipped if last > first])
    order = tuple(members[index] for group in groups for index in group)
    lens = tuple(prompt_lens[place] for place in order)
    return Wave(order=order, prompt_lens=lens, micro_batches=_micro_batches(clipped, lens))


def _micro_batches(bounds: Iterable[tuple[int, int]], lens: tuple[int, ...]) -> tuple[MicroBatch, ...]:
    starts = tuple(accumulate(lens, initial=0))
    return tuple(
        MicroBatch(first=first, last=last, prompt_lens=lens[first:last], token_starts=starts[first : last + 1])
        for first, last in bounds
    )
