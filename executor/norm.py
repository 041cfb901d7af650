"""RMS norms, and sums of what a layer adds to its hidden states."""

from __future__ import annotations

import torch

from executor import native
from executor.workspace import Workspace

__all__ = ["add_and_norm", "add_to", "rms_norm"]


def add_to(hidden: torch.Tensor, x: torch.Tensor) -> None:
    """Add `x` to the hidden states; both [tokens, hidden], `x` of a dtype of its own."""
    if native.suits_rows(hidden, x):
        native.add(hidden, x, torch.get_num_threads())
    else:
        hidden.add_(x)


def add_and_norm(
    hidden: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, workspace: Workspace, out: torch.Tensor
) -> None:
    """Do as `add_to` and then as `rms_norm` of the hidden states, into `out`."""
    if native.suits_rows(hidden, x, weight, out):
        native.add_rms_norm(hidden, x, weight, eps, out, torch.get_num_threads())
        return
    add_to(hidden, x)
    with workspace.frame():
        out.copy_(rms_norm(hidden, weight, eps, workspace))


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, workspace: Workspace) -> torch.Tensor:
    """Return x / rms(x) * weight in the dtype of `x`, in the workspace; the norm is computed in float32."""
    normed = workspace.take(x.shape, x.dtype)
    if x.dim() in (2, 3) and native.suits_rows(x, weight):
        native.rms_norm(x, weight, eps, normed, torch.get_num_threads())
        return normed
    with workspace.frame():
        wide = x if x.dtype == torch.float32 else workspace.take(x.shape, torch.float32).copy_(x)
        norms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norms.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        if wide is x:
            torch.mul(x, scale, out=normed)
        else:
            normed.copy_(wide.mul_(scale))
    return normed.mul_(weight)
