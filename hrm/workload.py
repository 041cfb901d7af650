"""What is asked of the model: how many sequences, how long their prompts, how many tokens each generates."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hrm.arrays import Reals
from hrm.errors import HrmError
from hrm.records import record
from hrm.routing import Routing
from hrm.units import Positive, PositiveInt

__all__ = ["DEFAULT_GEN_LEN", "DEFAULT_PROMPT_LEN", "Workload"]

DEFAULT_PROMPT_LEN, DEFAULT_GEN_LEN = 512, 128
"""What a run is taken to be that was published without its lengths: `pp512` and `tg128`, the tests that llama.cpp's
`llama-bench` runs unless told otherwise, and by which most such runs are reported."""


@record
class Workload:
    """A job of sequences that each bring a prompt and generate `gen_len` tokens.

    `prompt_lens` holds the real lengths where they are known (ascending); else mean and maximum describe them, and
    lengths are taken as exponentially distributed, those beyond the maximum cut to it. With `padded` every prompt is
    computed as long as the longest. `num_sequences` is the size of the job; None means as many as the batch takes.
    """

    mean_prompt_len: Positive
    max_prompt_len: PositiveInt
    gen_len: PositiveInt
    num_sequences: PositiveInt | None = None
    prompt_lens: tuple[PositiveInt, ...] | None = None
    padded: bool = False
    routing: Routing = Routing()

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
    def computed_prompt_len(self) -> float:
        """Mean prompt length as computed: with padding that of the longest. Costs follow from this one."""
        return float(self.max_prompt_len) if self.padded else self.mean_prompt_len

    @property
    def mean_square_prompt_len(self) -> float:
        """Mean of the squared prompt lengths as computed."""
        return self._moments(self.max_prompt_len)[1]

    def mean_causal_pairs(self, window: int | None = None) -> float:
        """Return the mean over prompts of the (query, key) pairs that causal attention computes.

        A prompt of s tokens has s(s+1)/2 pairs; with a window W < s, W(W+1)/2 + (s-W)W.
        """
        reach = self.max_prompt_len if window is None else min(window, self.max_prompt_len)
        mean, mean_square = self._moments(reach)
        return (mean_square + mean) / 2.0 + (self.computed_prompt_len - mean) * reach

    def mean_context(self, step: float, window: int | None = None) -> float:
        """Return the mean over sequences of the tokens attended to, `step` tokens after the prompt, in the window."""
        if window is None:
            return self.computed_prompt_len + step
        room = window - step
        return float(window) if room <= 0 else step + self._moments(min(room, self.max_prompt_len))[0]

    def _moments(self, cap: float) -> tuple[float, float]:
        """Return the mean and the mean square of prompt lengths cut to `cap`, at most the longest."""
        if self.padded or self.mean_prompt_len == self.max_prompt_len:
            return float(cap), float(cap) ** 2
        if self.prompt_lens is None:
            return _exponential_moments(_decay_len(self.mean_prompt_len, self.max_prompt_len), cap)
        sums, sums_of_squares = _running_sums(self.prompt_lens)
        whole, count = int(np.searchsorted(self.prompt_lens, cap)), len(self.prompt_lens)
        cut = count - whole
        return float(sums[whole] + cut * cap) / count, float(sums_of_squares[whole] + cut * cap**2) / count

    @property
    def max_context_len(self) -> int:
        """Tokens in the KV cache of the longest sequence when it ends (the last token made is never cached)."""
        return self.max_prompt_len + self.gen_len - 1

    def prompt_tokens(self, count: Reals) -> Reals:
        """Return what the prompts of a batch of `count` sequences hold at most, as the engine deals jobs into waves.

        Prompts are dealt by length, back and forth, so that no wave gets more than its average share and one longest
        prompt on top.
        """
        return self._at_most(count, longest=1)

    def micro_batch_prompt_tokens(self, count: Reals) -> Reals:
        """Return what the prompts of a micro-batch of `count` sequences hold at most.

        A wave is dealt into micro-batches as a job is into waves: what a wave has above the average may come on top.
        """
        return self._at_most(count, longest=2)

    def _at_most(self, count: Reals, *, longest: int) -> Reals:
        dealt = np.ceil(count * self.computed_prompt_len) + longest * self.max_prompt_len
        most: Reals = np.minimum(dealt, count * self.max_prompt_len)
        return most


@lru_cache(maxsize=64)
def _running_sums(prompt_lens: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sums, and the sums of squares, of the first 0, 1, 2, ... of ascending lengths."""
    lens = np.concatenate(([0.0], prompt_lens))
    return np.cumsum(lens), np.cumsum(lens**2)


@lru_cache(maxsize=1024)
def _decay_len(mean: float, longest: float) -> float:
    """Find, by bisection, the decay length of the exponential law whose lengths cut to `longest` have the mean.

    In units of the longest, decay·(1 - exp(-1/decay)) is the mean.
    """
    low, high = 0.0, longest / mean
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if -math.expm1(-middle) > middle * mean / longest else (low, middle)
    return longest / high


def _exponential_moments(decay_len: float, cap: float) -> tuple[float, float]:
    """Return the mean and the mean square of min(s, cap) for exponential s of a decay length.

    With x = cap/decay they are decay·(1 - e^-x) and 2·decay²·(1 - (1+x)·e^-x), which loses its digits at small x.
    """
    x = cap / decay_len
    mean = -decay_len * math.expm1(-x)
    if x < _SERIES_BELOW:
        return mean, cap**2 * (1.0 - 2.0 * x / 3.0)
    return mean, 2.0 * decay_len**2 * (-math.expm1(-x) - x * math.exp(-x))


_SERIES_BELOW = 1e-4
