"""Grouped-query attention before the cache: projections with their biases, norms of queries and keys, rotation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from executor.linear import linear
from executor.norm import rms_norm
from executor.rotary import rotate
from executor.rows import copy_rows
from executor.workspace import Workspace
from hrm.model import ModelSpec
from hrm.records import record

__all__ = ["GroupedWeights", "project"]


@record
class GroupedWeights:
    """A layer's projections: `qkv` is Q, K and V one behind the other, as is its bias; a norm is as wide as it runs.

    `sinks` has a logit per query head; `host_sinks` are the same in host memory, in float32.
    """

    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None = None
    query_norm: torch.Tensor | None = None
    key_norm: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    host_sinks: torch.Tensor | None = None


def project(
    x: torch.Tensor,
    weights: GroupedWeights,
    model: ModelSpec,
    rotary: tuple[torch.Tensor, torch.Tensor],
    workspace: Workspace,
    out: Sequence[torch.Tensor],
) -> None:
    """Make queries, keys and values of x [tokens, h1] in `out`, each [tokens, heads, head_dim], its dtype free."""
    with workspace.frame():
        joint = linear(x, weights.qkv, workspace)
        if weights.qkv_bias is not None:
            joint.add_(weights.qkv_bias)
        query, keys, values = torch.split(joint, [model.query_size, model.kv_size, model.kv_size], dim=1)
        for source, norm, target in ((query, weights.query_norm, out[0]), (keys, weights.key_norm, out[1])):
            with workspace.frame():
                heads = source.view(len(x), -1, model.head_dim)
                if norm is not None:
                    # A norm as wide as a head runs over each, a wider one over all of them together.
                    over = heads if len(norm) == model.head_dim else source
                    heads = rms_norm(over, norm, model.rms_norm_eps, workspace).view(heads.shape)
                _rotate(heads, rotary, workspace, target)
        copy_rows(values.view(len(x), -1, model.head_dim), out[2])


def _rotate(
    heads: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], workspace: Workspace, target: torch.Tensor
) -> None:
    direct = target.dtype == heads.dtype
    turned = target if direct else workspace.take(heads.shape, heads.dtype)
    rotate(heads, *rotary, turned)
    if not direct:
        target.copy_(turned)
