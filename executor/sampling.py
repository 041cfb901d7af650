"""Choosing the next token: the likeliest, or one drawn by a seed and the token's number, whatever runs beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Le, MinLen

from hrm.records import record
from hrm.units import NonNegative, NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    import torch

__all__ = ["Settings", "pick", "seed_for", "uniform"]


TopShare = Annotated[float, Gt(0), Le(1)]
Text = Annotated[str, MinLen(1)]


@record
class Settings:
    """How a prompt is answered: how its tokens are chosen, and where the answer ends.

    At temperature 0 the likeliest token is taken, whatever `top_k` and `top_p` say. Else one of the `top_k` likeliest
    (None: of all), of them the fewest that together have a share of `top_p`, in proportion to their shares at the
    temperature. What is drawn follows from `seed` and the token's number alone.

    The answer ends after `max_new_tokens` (None: the plan's `gen_len`); before, at the first of the texts in `stop`,
    which is not part of it, or with an end token of the model, unless `ignore_eos`.
    """

    temperature: NonNegative = 0.0
    top_k: PositiveInt | None = None
    top_p: TopShare = 1.0
    seed: NonNegativeInt = 0
    max_new_tokens: PositiveInt | None = None
    stop: tuple[Text, ...] = ()
    ignore_eos: bool = False


_LIKELY = 1024
"""Tokens that are looked at first for `top_p`: they mostly have that share already, and sorting all costs more."""


def seed_for(seed: int, prompt_id: str) -> int:
    """Return a prompt's own seed, where the seed is the job's: equal prompts of a job get different answers."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{prompt_id}".encode(), digest_size=8).digest(), "little")


def uniform(seed: int, number: int) -> float:
    """Return the number in [0, 1) that belongs to a seed and a token's number in its answer."""
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2.0**53


def pick(logits: torch.Tensor, settings: Sequence[Settings], numbers: Sequence[int]) -> torch.Tensor:
    """Return the next token of each row of logits [sequences, vocab]; `numbers` counts the tokens made before it."""
    tokens = _likeliest(logits)
    for row, (own, number) in enumerate(zip(settings, numbers, strict=True)):
        if own.temperature > 0:
            tokens[row] = _draw(logits[row], own, uniform(own.seed, number))
    return tokens


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    """Return the first of the largest of each row; of bfloat16 on a CPU torch's `argmax` takes five times as long."""
    from executor import native

    if not native.suits_rows(logits):
        return logits.max(dim=-1).indices
    import torch

    tokens = torch.empty(len(logits), dtype=torch.int64)
    native.largest(logits, tokens, torch.get_num_threads())
    return tokens


def _draw(logits: torch.Tensor, settings: Settings, at: float) -> torch.Tensor:
    """Return the token in whose stretch of the cumulated shares `at` lies."""
    scaled = (logits.double() - logits.max()) / settings.temperature
    shares = scaled.softmax(dim=-1)
    kept, tokens = _kept(shares, settings)
    cumulated = kept.cumsum(dim=-1)
    place = (cumulated <= at * cumulated[-1]).sum().clamp(max=len(kept) - 1)
    return place if tokens is None else tokens[place]


def _kept(shares: torch.Tensor, settings: Settings) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the shares that `top_k` and then `top_p` leave, and their tokens, likeliest first; None: as they stand."""
    tokens, whole = None, shares.sum()
    if settings.top_k is not None and settings.top_k < len(shares):
        shares, tokens = shares.topk(settings.top_k)
        whole = shares.sum()
    if settings.top_p >= 1:
        return shares, tokens
    if tokens is None:
        likely, tokens = shares.topk(min(_LIKELY, len(shares)))
        shares, tokens = (likely, tokens) if likely.sum() >= settings.top_p * whole else shares.sort(descending=True)
    before = shares.cumsum(dim=-1) - shares
    return shares * (before < settings.top_p * whole), tokens
