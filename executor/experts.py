"""The mixture of experts: gather the tokens of each expert, SwiGLU, weighted sum back; and FFNs of all tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812

from executor.linear import linear, operand
from executor.workspace import Workspace
from hrm.workspace import ROWS_AT_A_TIME

__all__ = ["apply_expert", "assignments", "feed_forward", "swiglu", "weighted_sum"]


def assignments(
    weights: torch.Tensor, chosen: torch.Tensor, num_experts: int
) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """List, for each expert that was chosen, its number, its tokens in order, and their shares [rows, 1]."""
    flat = chosen.reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=num_experts).tolist()
    tokens = torch.split(torch.div(order, chosen.shape[1], rounding_mode="floor"), counts)
    shares = torch.split(weights.reshape(-1, 1).index_select(0, order), counts)
    return [(expert, tokens[expert], shares[expert]) for expert, count in enumerate(counts) if count]


def swiglu(x: torch.Tensor, expert: torch.Tensor, workspace: Workspace, out: torch.Tensor) -> torch.Tensor:
    """Apply one expert to x [rows, hidden]: down(silu(gate x) * up x), into `out`.

    `expert` is flat: gate [ff, hidden], up [ff, hidden] and down [hidden, ff], one behind the other.
    """
    hidden = x.shape[1]
    intermediate = expert.numel() // (3 * hidden)
    split = 2 * intermediate * hidden
    both = linear(x, expert[:split].view(2 * intermediate, hidden), workspace)
    gate = F.silu(both[:, :intermediate], inplace=True)
    gate.mul_(both[:, intermediate:])
    return linear(gate, expert[split:].view(hidden, intermediate), workspace, out)


def apply_expert(
    x: torch.Tensor,
    tokens: torch.Tensor,
    shares: torch.Tensor,
    expert: torch.Tensor,
    workspace: Workspace,
    total: torch.Tensor,
) -> None:
    """Add an expert's output for some tokens of x [all tokens, hidden], times their shares, to `total`."""
    for rows, part in zip(torch.split(tokens, ROWS_AT_A_TIME), torch.split(shares, ROWS_AT_A_TIME), strict=True):
        with workspace.frame():
            gathered = workspace.take((len(rows), x.shape[1]), x.dtype)
            torch.index_select(x, 0, rows, out=gathered)
            result = swiglu(gathered, expert, workspace, workspace.take(gathered.shape, x.dtype))
            total.index_add_(0, rows, result.mul_(part))


def weighted_sum(
    x: torch.Tensor,
    weights: torch.Tensor,
    chosen: torch.Tensor,
    experts: Sequence[torch.Tensor],
    first: int,
    workspace: Workspace,
) -> torch.Tensor:
    """Return what experts number `first` and following add to each token of x [tokens, hidden], in the workspace.

    `weights` and `chosen` [tokens, experts_per_token] are what `route` returns, over all experts.
    """
    wide = operand(x, experts[0], workspace)
    total = workspace.take(x.shape, wide.dtype).zero_()
    last = first + len(experts)
    for expert, tokens, shares in assignments(weights, chosen, last):
        if first <= expert < last:
            apply_expert(wide, tokens, shares, experts[expert - first], workspace, total)
    return total


def feed_forward(x: torch.Tensor, ffn: torch.Tensor, workspace: Workspace) -> torch.Tensor:
    """Return the output of one FFN for every token of x [tokens, hidden], in the workspace; `ffn` is as an expert."""
    wide = operand(x, ffn, workspace)
    total = workspace.take(x.shape, wide.dtype)
    for part, result in zip(torch.split(wide, ROWS_AT_A_TIME), torch.split(total, ROWS_AT_A_TIME), strict=True):
        with workspace.frame():
            swiglu(part, ffn, workspace, result)
    return total
