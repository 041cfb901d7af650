"""Which experts a token goes to, and with what shares: softmax or sigmoid scores, groups, biases."""

from __future__ import annotations

from collections.abc import Callable

import torch

from executor import native
from executor.linear import linear, suits_compiled, widened_product
from executor.workspace import Workspace
from hrm.model import ModelSpec
from hrm.records import record
from hrm.variants import Router, Scoring

__all__ = ["RouterWeights", "choose_experts", "route"]

MIXTRAL = Router()


@record
class RouterWeights:
    """A layer's router: weight [experts, hidden], and the biases [experts] that its model has.

    `listener`, where there is one, gets the numbers of the experts [tokens, experts_per_token] of each choice.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    correction: torch.Tensor | None = None
    listener: Callable[[torch.Tensor], None] | None = None


def choose_experts(
    x: torch.Tensor, router: RouterWeights, model: ModelSpec, workspace: Workspace
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `route` does for x [tokens, hidden]; logits are computed in float32, whatever the weights' format."""
    with workspace.frame():
        logits = workspace.take((len(x), model.num_experts), torch.float32)
        if x.dtype == router.weight.dtype == torch.float32 or suits_compiled(router.weight):
            linear(x, router.weight, workspace, logits)
        else:
            widened_product(x, router.weight, workspace, logits)
        if router.bias is not None:
            logits.add_(router.bias)
        shares, chosen = route(logits, model.experts_per_token, model.router, router.correction)
        if router.listener is not None:
            router.listener(chosen)
        return shares, chosen


def route(
    logits: torch.Tensor, experts_per_token: int, rule: Router = MIXTRAL, correction: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return shares (float32) and numbers of the experts of each token, both [tokens, experts_per_token].

    `correction` [experts] is added to scores for the choice alone.
    """
    plain = rule.scoring is Scoring.SOFTMAX and rule.groups == 1 and correction is None
    if plain and logits.dtype == torch.float32 and native.suits_rows(logits):
        return _route_compiled(logits, experts_per_token, rule)
    wide = logits.float()
    scores = wide.sigmoid() if rule.scoring is Scoring.SIGMOID else torch.softmax(wide, dim=-1)
    ranks = scores if correction is None else scores + correction
    if rule.groups > 1:
        ranks = _best_groups(ranks, rule)
    chosen = torch.topk(ranks, experts_per_token, dim=-1).indices
    shares = scores.gather(1, chosen)
    if rule.renormalized:
        shares = shares / shares.sum(dim=-1, keepdim=True)
    return shares * rule.scale, chosen


def _route_compiled(logits: torch.Tensor, experts_per_token: int, rule: Router) -> tuple[torch.Tensor, torch.Tensor]:
    shares = logits.new_empty((len(logits), experts_per_token))
    chosen = torch.empty(shares.shape, dtype=torch.int64)
    native.keep(shares, chosen)
    threads = torch.get_num_threads()
    native.route(logits, shares, chosen, renormalized=rule.renormalized, scale=rule.scale, num_threads=threads)
    return shares, chosen


def _best_groups(ranks: torch.Tensor, rule: Router) -> torch.Tensor:
    """Leave out the experts of all but the best groups."""
    grouped = ranks.view(len(ranks), rule.groups, -1)
    totals = grouped.topk(rule.group_best, dim=-1).values.sum(dim=-1)
    best = torch.topk(totals, rule.groups_per_token, dim=-1).indices
    left_out = torch.ones_like(totals, dtype=torch.bool).scatter_(1, best, False)
    return grouped.masked_fill(left_out.unsqueeze(-1), float("-inf")).flatten(-2)
