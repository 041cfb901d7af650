"""How families differ where their shapes do not: what predictions leave out and the executor computes."""

from __future__ import annotations

import math
from enum import StrEnum

from hrm.records import record
from hrm.units import Positive, PositiveInt

__all__ = ["QKNorm", "Router", "Scoring", "Yarn"]


class QKNorm(StrEnum):
    """What the norms of queries and keys run over."""

    NONE = "none"
    HEAD = "head"
    ALL_HEADS = "all_heads"


class Scoring(StrEnum):
    """How a router turns logits into scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@record
class Router:
    """How a token's experts are chosen, and with what shares; the default is Mixtral's.

    The best-scored experts are chosen, out of the best `groups_per_token` of equal `groups`; a group's score is the sum
    of its `group_best` best. Shares are scores, divided by their sum if `renormalized`, times `scale`.
    """

    scoring: Scoring = Scoring.SOFTMAX
    renormalized: bool = True
    scale: Positive = 1.0
    groups: PositiveInt = 1
    groups_per_token: PositiveInt = 1
    group_best: PositiveInt = 1
    bias: bool = False
    """Whether logits have a bias, a parameter like others."""
    correction: bool = False
    """Whether scores have a bias for the choice alone, kept in float32; it balances experts and is no parameter."""


@record
class Yarn:
    """Rotary embedding stretched to longer contexts (YaRN, arXiv 2309.00071).

    Dimensions that turn more than `beta_fast` times over the original context stay as they are, those that turn less
    than `beta_slow` times are slowed by `factor`, with a ramp between; `truncate` rounds its ends outward. Cosines and
    sines are multiplied by `rotary_scale`, the logits of attention by `logit_scale`.
    """

    factor: Positive
    original_context_len: PositiveInt
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    truncate: bool = True
    rotary_scale: Positive = 1.0
    logit_scale: Positive = 1.0

    def ramp(self, rotary_dim: int, theta: float) -> tuple[float, float]:
        """Return between which of the `rotary_dim / 2` frequencies the ramp runs: none slowed, all slowed."""
        low, high = (
            rotary_dim * math.log(self.original_context_len / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary_dim - 1)
        return low, high if high != low else high + 0.001
