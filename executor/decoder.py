"""The decoder's mathematics between attention and experts: norms, projections, router, FFNs, head."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from executor.experts import ExpertForm, feed_forward, weighted_sum
from executor.grouped import GroupedWeights, project
from executor.latent import LatentWeights, project_latents
from executor.linear import linear, operand
from executor.norm import add_and_norm, add_to, rms_norm
from executor.routing import RouterWeights, choose_experts
from executor.workspace import Workspace
from hrm.model import ModelSpec
from hrm.records import record

__all__ = ["LayerWeights", "ModelWeights", "next_logits", "post_attention", "pre_attention", "route_attended"]


@record
class LayerWeights:
    """A layer's weights outside the routed experts.

    `ffn` is what every token passes, flat as an expert: a dense layer's FFN, or all shared experts as one. A dense
    model has neither that nor a router: its FFN is the one expert.
    """

    input_norm: torch.Tensor
    attention: GroupedWeights | LatentWeights
    output: torch.Tensor
    output_bias: torch.Tensor | None = None
    post_norm: torch.Tensor
    router: RouterWeights | None = None
    ffn: torch.Tensor | None = None


@record
class ModelWeights:
    """The weights outside the experts, on the device that runs the FFN; with tied embeddings `head` is `embedding`."""

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor
    head: torch.Tensor


def pre_attention(
    hidden: torch.Tensor,
    layer: LayerWeights,
    model: ModelSpec,
    rotary: tuple[torch.Tensor, torch.Tensor],
    workspace: Workspace,
    out: Sequence[torch.Tensor],
) -> None:
    """Input norm, projections and rotation of hidden [tokens, h1]; `out` takes queries, keys and values, or latents.

    Each of `out` is [tokens, heads, head_dim], in any layout and floating dtype.
    """
    with workspace.frame():
        normed = rms_norm(hidden, layer.input_norm, model.rms_norm_eps, workspace)
        if isinstance(layer.attention, LatentWeights):
            project_latents(normed, layer.attention, model, rotary, workspace, out)
        else:
            project(normed, layer.attention, model, rotary, workspace, out)


def post_attention(
    attended: torch.Tensor,
    hidden: torch.Tensor,
    layer: LayerWeights,
    experts: Sequence[torch.Tensor],
    model: ModelSpec,
    workspace: Workspace,
) -> None:
    """O projection, residual, norm, router, experts, residual: updates hidden [tokens, h1] in place."""
    with workspace.frame():
        normed = workspace.take(hidden.shape, hidden.dtype)
        _add_attended(attended, hidden, layer, model, workspace, normed)
        if layer.router is not None:
            shares, chosen = choose_experts(normed, layer.router, model, workspace)
            with workspace.frame():
                add_to(hidden, weighted_sum(normed, shares, chosen, experts, 0, workspace, ExpertForm.of(model)))
        ffn = experts[0] if layer.router is None and layer.ffn is None else layer.ffn
        _add_ffn(normed, ffn, hidden, workspace)


def _add_attended(
    attended: torch.Tensor,
    hidden: torch.Tensor,
    layer: LayerWeights,
    model: ModelSpec,
    workspace: Workspace,
    normed: torch.Tensor,
) -> None:
    """O projection and residual; `normed` takes the norm of the hidden states that this makes."""
    with workspace.frame():
        projected = linear(attended, layer.output, workspace)
        if layer.output_bias is None:
            add_and_norm(hidden, projected, layer.post_norm, model.rms_norm_eps, workspace, normed)
            return
        add_to(hidden, projected)
        normed.copy_(rms_norm(hidden.add_(layer.output_bias), layer.post_norm, model.rms_norm_eps, workspace))


def _add_ffn(normed: torch.Tensor, ffn: torch.Tensor | None, hidden: torch.Tensor, workspace: Workspace) -> None:
    if ffn is not None:
        with workspace.frame():
            add_to(hidden, feed_forward(normed, ffn, workspace))


def route_attended(
    attended: torch.Tensor,
    hidden: torch.Tensor,
    layer: LayerWeights,
    model: ModelSpec,
    workspace: Workspace,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Do as `post_attention` up to the routed experts; `out` takes each token's shares, experts and normed state.

    Without a router every token goes to expert 0 with a share of 1.
    """
    shares, chosen, normed = out
    _add_attended(attended, hidden, layer, model, workspace, normed)
    with workspace.frame():
        if layer.router is None:
            shares.fill_(1.0)
            chosen.zero_()
        else:
            weights, experts = choose_experts(normed, layer.router, model, workspace)
            shares.copy_(weights)
            chosen.copy_(experts)
    _add_ffn(normed, layer.ffn, hidden, workspace)


def next_logits(hidden: torch.Tensor, weights: ModelWeights, model: ModelSpec, workspace: Workspace) -> torch.Tensor:
    """Return the logits of the next token after each row of hidden [sequences, h1], in the workspace."""
    normed = rms_norm(hidden, weights.final_norm, model.rms_norm_eps, workspace)
    return linear(operand(normed, weights.head, workspace), weights.head, workspace)
