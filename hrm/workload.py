"""What is asked of the model: how many sequences, how long their prompts, how many tokens each generates."""

from __future__ import annotations

import math

from hrm.errors import HrmError
from hrm.records import record
from hrm.units import Positive, PositiveInt

__all__ = ["Workload"]


@record
class Workload:
    """A job of sequences that each bring a prompt and generate `gen_len` tokens.

    `prompt_lens` holds the real lengths where they are known (ascending); else mean and maximum describe them.
    `num_sequences` is the size of the job; None means as many as the batch takes.
    """

    mean_prompt_len: Positive
    max_prompt_len: PositiveInt
    gen_len: PositiveInt
    num_sequences: PositiveInt | None = None
    prompt_lens: tuple[PositiveInt, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse a maximum below the mean."""
        if self.max_prompt_len < self.mean_prompt_len:
            raise HrmError(
                f"--max-prompt-len {self.max_prompt_len}: smaller than the mean prompt length "
                f"{self.mean_prompt_len:g} (raise it)"
            )

    @classmethod
    def from_prompt_lens(cls, prompt_lens: tuple[int, ...], gen_len: int) -> Workload:
        """Describe a job by the lengths of its prompts, in tokens."""
        lens = tuple(sorted(prompt_lens))
        return cls(
            mean_prompt_len=sum(lens) / len(lens),
            max_prompt_len=lens[-1],
            gen_len=gen_len,
            num_sequences=len(lens),
            prompt_lens=lens,
        )

    @property
    def mean_square_prompt_len(self) -> float:
        """Mean of the squared prompt lengths, which causal attention grows with.

        Where only mean and maximum are known, that of an exponential law, 2·mean², but no more than mean·max.
        """
        if self.prompt_lens is None:
            return self.mean_prompt_len * min(2 * self.mean_prompt_len, float(self.max_prompt_len))
        return sum(length**2 for length in self.prompt_lens) / len(self.prompt_lens)

    @property
    def max_context_len(self) -> int:
        """Tokens in the KV cache of the longest sequence when it ends (the last token made is never cached)."""
        return self.max_prompt_len + self.gen_len - 1

    def prompt_tokens(self, count: int) -> int:
        """Return what the prompts of a batch of `count` sequences hold at most, as the engine deals jobs into waves.

        Prompts are dealt by length, back and forth, so that no wave gets more than its average share and one longest
        prompt on top.
        """
        return self._at_most(count, longest=1)

    def micro_batch_prompt_tokens(self, count: int) -> int:
        """Return what the prompts of a micro-batch of `count` sequences hold at most.

        A wave is dealt into micro-batches as a job is into waves: what a wave has above the average may come on top.
        """
        return self._at_most(count, longest=2)

    def _at_most(self, count: int, *, longest: int) -> int:
        return min(math.ceil(count * self.mean_prompt_len) + longest * self.max_prompt_len, count * self.max_prompt_len)
