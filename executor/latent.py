"""Multi-head latent attention around the cache (DeepSeek-V2, arXiv 2405.04434 section 2.1).

A token's cache is one latent with its rotated part. Prefill expands latents to keys and values of every head. Decode
folds the key expansion into the query and the value expansion into the output instead, head by head, and so attends
over the latents themselves: one KV head, whose values are the first part of its keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from executor.linear import is_native, linear
from executor.norm import rms_norm
from executor.rotary import rotate
from executor.workspace import Workspace
from hrm.model import ModelSpec
from hrm.records import record
from hrm.workspace import PIECE_ELEMENTS

__all__ = ["LatentWeights", "expand", "fold", "project_latents", "unfold"]

_NORM_EPS = 1e-6
"""The norms of latents have their own, whatever `rms_norm_eps`."""


@record
class LatentWeights:
    """A layer's projections; rows that make rotated elements are in the order in which `rotate` pairs them.

    `up` is [heads, nope_head_dim + value_head_dim, kv_lora_rank]: keys, then values. `query` takes what `query_down`
    makes where there is one.
    """

    query_down: torch.Tensor | None = None
    query_norm: torch.Tensor | None = None
    query: torch.Tensor
    down: torch.Tensor
    latent_norm: torch.Tensor
    up: torch.Tensor


def project_latents(
    x: torch.Tensor,
    weights: LatentWeights,
    model: ModelSpec,
    rotary: tuple[torch.Tensor, torch.Tensor],
    workspace: Workspace,
    out: Sequence[torch.Tensor],
) -> None:
    """Make queries [tokens, heads, head_dim] and latents [tokens, 1, cache_width] of x [tokens, h1] in `out`."""
    queries, latents = out
    assert model.latent is not None
    rank, nope = model.latent.kv_lora_rank, model.latent.nope_head_dim
    with workspace.frame():
        source = x
        if weights.query_down is not None and weights.query_norm is not None:
            source = rms_norm(linear(x, weights.query_down, workspace), weights.query_norm, _NORM_EPS, workspace)
        whole = linear(source, weights.query, workspace).view(queries.shape)
        queries[..., :nope].copy_(whole[..., :nope])
        rotate(whole[..., nope:], *rotary, queries[..., nope:])
    with workspace.frame():
        joint = linear(x, weights.down, workspace).unsqueeze(1)
        latents[..., :rank].copy_(rms_norm(joint[..., :rank], weights.latent_norm, _NORM_EPS, workspace))
        rotate(joint[..., rank:], *rotary, latents[..., rank:])


def expand(
    latents: torch.Tensor, weights: LatentWeights, model: ModelSpec, workspace: Workspace
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and values [prompts, heads, tokens, ...] of latents [prompts, 1, tokens, cache_width].

    All lies in the workspace.
    """
    assert model.latent is not None
    rank, nope = model.latent.kv_lora_rank, model.latent.nope_head_dim
    heads, (prompts, _, tokens, _) = model.num_query_heads, latents.shape
    flat = latents[..., :rank].flatten(0, 2)
    both = linear(flat, weights.up.flatten(0, 1), workspace).view(prompts, tokens, heads, -1).transpose(1, 2)
    keys = workspace.take((prompts, heads, tokens, model.head_dim), latents.dtype)
    keys[..., :nope].copy_(both[..., :nope])
    keys[..., nope:].copy_(latents[..., rank:])
    return keys, both[..., nope:]


def fold(
    queries: torch.Tensor, weights: LatentWeights, model: ModelSpec, workspace: Workspace, out: torch.Tensor
) -> None:
    """Fold the key expansion into queries [tokens, heads, head_dim]; `out` is [tokens, heads, cache_width].

    Attention over the cache divides by the root of the width that it sees: what is amiss goes into the queries.
    """
    assert model.latent is not None
    rank, nope = model.latent.kv_lora_rank, model.latent.nope_head_dim
    _each_head(queries[..., :nope], weights.up[:, :nope], workspace, out[..., :rank])
    out[..., rank:].copy_(queries[..., nope:])
    out.mul_(model.attention_scale * math.sqrt(model.cache_width))


def unfold(attended: torch.Tensor, weights: LatentWeights, model: ModelSpec, workspace: Workspace) -> torch.Tensor:
    """Return the values [tokens, heads * value_head_dim] of attended latents [tokens, heads * kv_lora_rank]."""
    assert model.latent is not None
    heads, nope = model.num_query_heads, model.latent.nope_head_dim
    out = workspace.take((len(attended), heads, model.latent.value_head_dim), attended.dtype)
    _each_head(attended.view(len(attended), heads, -1), weights.up[:, nope:].mT, workspace, out)
    return out.flatten(1)


def _each_head(x: torch.Tensor, weight: torch.Tensor, workspace: Workspace, out: torch.Tensor) -> None:
    """Multiply x [tokens, heads, inputs] by weight [heads, inputs, outputs], head by head, into `out`."""
    heads, inputs, outputs = weight.shape
    native = is_native(weight.dtype, weight.device.type)
    dtype = weight.dtype if native else torch.float32
    step = heads if native else max(1, PIECE_ELEMENTS // (inputs * outputs))
    for first in range(0, heads, step):
        some = slice(first, first + step)
        with workspace.frame():
            piece, part = weight[some], x[:, some].transpose(0, 1)
            if not native:
                piece = workspace.take(piece.shape, dtype).copy_(piece)
                part = workspace.take(part.shape, dtype).copy_(part)
            result = workspace.take((len(piece), len(x), outputs), dtype)
            out[:, some].copy_(torch.bmm(part, piece, out=result).transpose(0, 1))
