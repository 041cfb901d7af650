"""How many distinct experts the tokens of a micro-batch hit: what decides how many expert weights are read."""

from __future__ import annotations

from hrm.model import ModelSpec

__all__ = ["distinct_experts"]


def distinct_experts(model: ModelSpec, tokens: float) -> float:
    """Return the expected number of experts that at least one of `tokens` tokens is routed to, under uniform routing.

    n_e (1 - (1 - k/n_e)^t): each token leaves out an expert with probability 1 - k/n_e, tokens independently.
    """
    experts = model.num_experts
    left_out = 1.0 - model.experts_per_token / experts
    return float(experts * (1.0 - left_out**tokens))
