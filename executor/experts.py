"""The mixture of experts: gather the tokens of each expert, SwiGLU, weighted sum back; and FFNs of all tokens.

Where the compiled kernels suit, one call does all experts of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812

from executor import native
from executor.linear import filled_up, is_native, linear, operand, suits_compiled, with_zeros
from executor.workspace import Workspace
from hrm.model import ModelSpec
from hrm.records import record
from hrm.workspace import COMPILED_ROWS, ROWS_AT_A_TIME

__all__ = [
    "PLAIN",
    "ExpertForm",
    "add_compiled",
    "apply_expert",
    "assignments",
    "feed_forward",
    "sums_dtype",
    "swiglu",
    "weighted_sum",
]


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


@record
class ExpertForm:
    """What an expert is besides its shapes: whether its matrices have biases, and where it is clamped, if anywhere."""

    biased: bool = False
    limit: float | None = None
    alpha: float = 1.702

    @classmethod
    def of(cls, model: ModelSpec) -> ExpertForm:
        """Return that of a model's routed experts."""
        return cls(biased=model.expert_bias, limit=model.swiglu_limit, alpha=model.swiglu_alpha)


PLAIN = ExpertForm()
"""That of most models."""


def sums_dtype(model: ModelSpec, dtype: torch.dtype) -> torch.dtype:
    """Return in which format a CPU sums up what experts with weights of `dtype` give."""
    compiled = ExpertForm.of(model) == PLAIN and suits_compiled(torch.empty(0, dtype=dtype))
    return torch.float32 if compiled or not is_native(dtype, "cpu") else dtype


def swiglu(
    x: torch.Tensor, expert: torch.Tensor, workspace: Workspace, out: torch.Tensor, form: ExpertForm = PLAIN
) -> torch.Tensor:
    """Apply one expert to x [rows, hidden]: down(silu(gate x) * up x), into `out`.

    `expert` is flat: gate [ff, hidden], up [ff, hidden] and down [hidden, ff], one behind the other, then their biases
    in the same order, if any. Clamped, it is down((up x + 1) * gate x * sigmoid(alpha * gate x)).
    """
    hidden = x.shape[1]
    intermediate = (expert.numel() - form.biased * hidden) // (3 * hidden + 2 * form.biased)
    split, end = 2 * intermediate * hidden, 3 * intermediate * hidden
    both = linear(x, expert[:split].view(2 * intermediate, hidden), workspace)
    if form.biased:
        both.add_(expert[end : end + 2 * intermediate])
    gate, up = both[:, :intermediate], both[:, intermediate:]
    if form.limit is None:
        F.silu(gate, inplace=True)
    else:
        F.silu(gate.clamp_(max=form.limit).mul_(form.alpha), inplace=True).div_(form.alpha)
        up.clamp_(-form.limit, form.limit).add_(1)
    result = linear(gate.mul_(up), expert[split:end].view(hidden, intermediate), workspace, out)
    return result.add_(expert[-hidden:]) if form.biased else result


def apply_expert(  # noqa: PLR0913 (the operands of one expert)
    x: torch.Tensor,
    tokens: torch.Tensor,
    shares: torch.Tensor,
    expert: torch.Tensor,
    workspace: Workspace,
    total: torch.Tensor,
    form: ExpertForm = PLAIN,
) -> None:
    """Add an expert's output for some tokens of x [all tokens, hidden], times their shares, to `total`."""
    for rows, part in zip(torch.split(tokens, ROWS_AT_A_TIME), torch.split(shares, ROWS_AT_A_TIME), strict=True):
        with workspace.frame():
            gathered = workspace.take((filled_up(len(rows), x, expert), x.shape[1]), x.dtype)
            torch.index_select(x, 0, rows, out=gathered[: len(rows)])
            gathered[len(rows) :].zero_()
            wide = operand(gathered, expert, workspace)
            result = swiglu(wide, expert, workspace, workspace.take(wide.shape, wide.dtype), form)
            total.index_add_(0, rows, result[: len(rows)].mul_(part))


def weighted_sum(  # noqa: PLR0913 (the operands of one call)
    x: torch.Tensor,
    weights: torch.Tensor,
    chosen: torch.Tensor,
    experts: Sequence[torch.Tensor],
    first: int,
    workspace: Workspace,
    form: ExpertForm = PLAIN,
) -> torch.Tensor:
    """Return what experts number `first` and following add to each token of x [tokens, hidden], in the workspace.

    `weights` and `chosen` [tokens, experts_per_token] are what `route` returns, over all experts.
    """
    if form == PLAIN and suits_compiled(experts[0]):
        total = workspace.take(x.shape, torch.float32)
        numbers = chosen if chosen.dtype == torch.int64 else chosen.to(torch.int64)
        add_compiled(native.Experts(x, numbers, weights, experts, first), total, workspace, adds=False)
        return total
    wide = operand(x, experts[0], workspace)
    total = workspace.take(x.shape, wide.dtype).zero_()
    last = first + len(experts)
    for expert, tokens, shares in assignments(weights, chosen, last):
        if first <= expert < last:
            apply_expert(wide, tokens, shares, experts[expert - first], workspace, total, form)
    return total


def add_compiled(job: native.Experts, total: torch.Tensor, workspace: Workspace, *, adds: bool = True) -> None:
    """Add what the compiled kernels make of a job to `total` [tokens, hidden], float32; or write it there."""
    tokens, hidden = job.x.shape
    rows = min(job.chosen.numel(), COMPILED_ROWS)
    row_bytes = native.packed_bytes(job.weights[0].numel() // (3 * hidden))
    with workspace.frame():
        room = tokens * native.packed_bytes(hidden) + rows * row_bytes
        native.experts(job, total, workspace.take((room,), torch.uint8), torch.get_num_threads(), adds=adds)


def feed_forward(x: torch.Tensor, ffn: torch.Tensor, workspace: Workspace, form: ExpertForm = PLAIN) -> torch.Tensor:
    """Return the output of one FFN for every token of x [tokens, hidden], in the workspace; `ffn` is as an expert."""
    if form == PLAIN and suits_compiled(ffn):
        shares, chosen = torch.ones((len(x), 1)), torch.zeros((len(x), 1), dtype=torch.int64)
        total = workspace.take(x.shape, torch.float32)
        add_compiled(native.Experts(x, chosen, shares, [ffn], 0), total, workspace, adds=False)
        return total
    wide = operand(x, ffn, workspace)
    wide = with_zeros(wide, filled_up(len(wide), wide, ffn), workspace)
    total = workspace.take(wide.shape, wide.dtype)
    for part, result in zip(torch.split(wide, ROWS_AT_A_TIME), torch.split(total, ROWS_AT_A_TIME), strict=True):
        with workspace.frame():
            swiglu(part, ffn, workspace, result, form)
    return total[: len(x)]
