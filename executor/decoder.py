"""The decoder's mathematics between attention and experts: embedding, norms, projections, rotary positions, head."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from executor.experts import mixture, route
from executor.linear import linear, operand
from executor.workspace import Workspace
from hrm.model import ModelSpec
from hrm.records import record

__all__ = [
    "LayerWeights",
    "ModelWeights",
    "RotaryTable",
    "next_logits",
    "post_attention",
    "pre_attention",
    "rms_norm",
    "rotate",
    "route_attended",
]


@record
class LayerWeights:
    """A layer's weights outside the experts; `qkv` is Q, K and V one behind the other, a dense layer has no router."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    output: torch.Tensor
    post_norm: torch.Tensor
    router: torch.Tensor | None


@record
class ModelWeights:
    """The weights outside the experts, on the device that runs the FFN; with tied embeddings `head` is `embedding`."""

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor
    head: torch.Tensor


class RotaryTable:
    """Cosines and sines of every position up to a length: [positions, 1, head_dim / 2], computed in float32."""

    def __init__(self, model: ModelSpec, positions: int, dtype: torch.dtype, device: torch.device) -> None:
        exponents = torch.arange(0, model.head_dim, 2, dtype=torch.float32) / model.head_dim
        angles = torch.outer(torch.arange(positions, dtype=torch.float32), 1.0 / model.rope_theta**exponents)
        self._cos = angles.cos().to(device, dtype).unsqueeze(1)
        self._sin = angles.sin().to(device, dtype).unsqueeze(1)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines of these positions."""
        return self._cos.index_select(0, positions), self._sin.index_select(0, positions)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, workspace: Workspace) -> torch.Tensor:
    """Return x / rms(x) * weight in the dtype of `x`, in the workspace; the norm is computed in float32."""
    normed = workspace.take(x.shape, x.dtype)
    with workspace.frame():
        wide = x if x.dtype == torch.float32 else workspace.take(x.shape, torch.float32).copy_(x)
        norms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norms.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        if wide is x:
            torch.mul(x, scale, out=normed)
        else:
            normed.copy_(wide.mul_(scale))
    return normed.mul_(weight)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
    """Rotate x [tokens, heads, head_dim] by its positions into `out`, pairing element i with i + head_dim / 2."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)


def pre_attention(
    hidden: torch.Tensor,
    layer: LayerWeights,
    model: ModelSpec,
    rotary: tuple[torch.Tensor, torch.Tensor],
    workspace: Workspace,
    out: Sequence[torch.Tensor],
) -> None:
    """Input norm, QKV projection and RoPE of hidden [tokens, h1]; `out` takes queries, keys and values.

    Each of `out` is [tokens, heads, head_dim], in any layout and floating dtype.
    """
    tokens = hidden.shape[0]
    heads = (model.num_query_heads, model.num_kv_heads, model.num_kv_heads)
    with workspace.frame():
        normed = rms_norm(hidden, layer.input_norm, model.rms_norm_eps, workspace)
        joint = linear(normed, layer.qkv, workspace).view(tokens, sum(heads), model.head_dim)
        query, keys, values = torch.split(joint, list(heads), dim=1)
        for source, target in ((query, out[0]), (keys, out[1])):
            with workspace.frame():
                direct = target.dtype == source.dtype
                turned = target if direct else workspace.take(source.shape, source.dtype)
                rotate(source, *rotary, turned)
                if not direct:
                    target.copy_(turned)
        out[2].copy_(values)


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
        hidden.add_(linear(attended, layer.output, workspace))
    with workspace.frame():
        normed = rms_norm(hidden, layer.post_norm, model.rms_norm_eps, workspace)
        hidden.add_(mixture(normed, layer.router, experts, model.experts_per_token, workspace))


def route_attended(
    attended: torch.Tensor,
    hidden: torch.Tensor,
    layer: LayerWeights,
    model: ModelSpec,
    workspace: Workspace,
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Do as `post_attention` up to the experts; `out` takes each token's shares, experts and normed hidden state.

    Without a router every token goes to expert 0 with a share of 1.
    """
    shares, chosen, normed = out
    with workspace.frame():
        hidden.add_(linear(attended, layer.output, workspace))
    with workspace.frame():
        normed.copy_(rms_norm(hidden, layer.post_norm, model.rms_norm_eps, workspace))
        if layer.router is None:
            shares.fill_(1.0)
            chosen.zero_()
        else:
            weights, experts = route(linear(normed, layer.router, workspace), model.experts_per_token)
            shares.copy_(weights)
            chosen.copy_(experts)


def next_logits(hidden: torch.Tensor, weights: ModelWeights, model: ModelSpec, workspace: Workspace) -> torch.Tensor:
    """Return the logits of the next token after each row of hidden [sequences, h1], in the workspace."""
    normed = rms_norm(hidden, weights.final_norm, model.rms_norm_eps, workspace)
    return linear(operand(normed, weights.head, workspace), weights.head, workspace)
