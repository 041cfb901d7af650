"""The mixture of experts: route each token, gather the tokens of each expert, SwiGLU, weighted sum back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812

from executor.linear import ROWS_AT_A_TIME, linear, linear_workspace_bytes, operand
from executor.workspace import Workspace

__all__ = ["experts_workspace_bytes", "mixture", "route", "swiglu"]


def route(
    x: torch.Tensor, router: torch.Tensor, experts_per_token: int, workspace: Workspace
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights (float32) and numbers of the experts of each token, both [tokens, experts_per_token].

    As Mixtral does: softmax over all experts in float32, the largest ones, renormalised to a sum of one.
    """
    shares = torch.softmax(linear(x, router, workspace), dim=-1, dtype=torch.float32)
    weights, chosen = torch.topk(shares, experts_per_token, dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True), chosen


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


def mixture(
    x: torch.Tensor,
    router: torch.Tensor | None,
    experts: Sequence[torch.Tensor],
    experts_per_token: int,
    workspace: Workspace,
) -> torch.Tensor:
    """Return the experts' output for x [tokens, hidden], in the workspace; without a router the one expert's."""
    wide = operand(x, experts[0], workspace)
    if router is None:
        total = workspace.take(x.shape, wide.dtype)
        for rows in torch.arange(len(x)).split(ROWS_AT_A_TIME):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            with workspace.frame():
                swiglu(wide[part], experts[0], workspace, total[part])
        return total
    total = workspace.take(x.shape, wide.dtype).zero_()
    weights, chosen = route(x, router, experts_per_token, workspace)
    for expert, tokens, shares in _assignments(weights, chosen, experts):
        for rows, part in zip(tokens.split(ROWS_AT_A_TIME), shares.split(ROWS_AT_A_TIME), strict=True):
            with workspace.frame():
                gathered = workspace.take((len(rows), x.shape[1]), wide.dtype)
                torch.index_select(wide, 0, rows, out=gathered)
                result = swiglu(gathered, expert, workspace, workspace.take(gathered.shape, wide.dtype))
                total.index_add_(0, rows, result.mul_(part))
    return total


def _assignments(
    weights: torch.Tensor, chosen: torch.Tensor, experts: Sequence[torch.Tensor]
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """List, for each expert that was chosen, its weights, its tokens in order, and their shares [rows, 1]."""
    flat = chosen.reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=len(experts)).tolist()
    tokens = torch.div(order, chosen.shape[1], rounding_mode="floor").split(counts)
    shares = weights.reshape(-1, 1).index_select(0, order).to(experts[0].dtype).split(counts)
    return [entry for entry, count in zip(zip(experts, tokens, shares, strict=True), counts, strict=True) if count]


def experts_workspace_bytes(tokens: int, hidden: int, intermediate: int, num_experts: int) -> int:
    """Bound the workspace that `mixture` takes beside `x`: its sum and one expert's rows, whatever the routing."""
    rows = min(tokens, ROWS_AT_A_TIME)
    piece = max(
        linear_workspace_bytes(0, hidden, 2 * intermediate),
        linear_workspace_bytes(0, intermediate, hidden),
        linear_workspace_bytes(tokens, hidden, num_experts),
    )
    return 4 * (2 * tokens * hidden + tokens * num_experts + 2 * rows * (hidden + intermediate)) + piece + 8 * 64
