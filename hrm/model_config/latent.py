"""Families with multi-head latent attention: DeepSeek V2 and V3, and those made after them."""

from __future__ import annotations

from dataclasses import replace

from hrm.model import LatentAttention
from hrm.model_config.parts import (
    Fields,
    combine,
    decoder,
    experts,
    extra,
    leading_dense_layers,
    shared_experts,
)
from hrm.model_config.reader import Reader
from hrm.model_config.rotary import yarn_gain
from hrm.variants import Router, Scoring

__all__ = ["LATENT"]


def _deepseek(read: Reader, router: Router) -> Fields:
    """Shared experts beside the routed ones; the layers before `first_k_dense_replace` are dense."""
    routed = experts(
        read, count=("n_routed_experts", "num_local_experts", "num_experts"), width="moe_intermediate_size"
    )
    fields = combine(
        _with_sharper_attention(read, decoder(read)),
        _latent_attention(read),
        routed,
        leading_dense_layers(read),
        shared_experts(read, "n_shared_experts"),
        {"router": router},
    )
    if routed["num_experts"] % router.groups or router.groups_per_token > router.groups:
        raise read.error(
            "n_group",
            f"{router.groups} does not divide {routed['num_experts']} experts, or is below topk_group (correct)",
        )
    return fields


def _deepseek_v2(read: Reader) -> Fields:
    """Softmax scores that are never renormalised (as transformers does, whatever `norm_topk_prob`), perhaps grouped."""
    read.only("topk_method", "greedy", "group_limited_greedy")
    grouped = read.value("topk_method") == "group_limited_greedy"
    scale = read.number("routed_scaling_factor", 1.0)
    groups, chosen = (read.optional_integer(name) or 1 for name in ("n_group", "topk_group"))
    if not grouped:
        groups = chosen = 1
    return _deepseek(read, Router(renormalized=False, scale=scale, groups=groups, groups_per_token=chosen))


def _deepseek_v3(read: Reader, groups: int = 8, groups_per_token: int = 4, scale: float = 2.5) -> Fields:
    """Sigmoid scores, a bias for the choice, and groups by their two best; defaults are those of transformers."""
    read.only("scoring_func", "sigmoid")
    read.only("topk_method", "noaux_tc")
    read.only("rope_interleave", True)
    router = Router(
        scoring=Scoring.SIGMOID,
        renormalized=read.flag("norm_topk_prob", True),
        scale=read.number("routed_scaling_factor", scale),
        groups=read.integer("n_group", default=groups),
        groups_per_token=read.integer("topk_group", default=groups_per_token),
        group_best=2,
        correction=True,
    )
    return _deepseek(read, router)


def _glm4_moe_lite(read: Reader) -> Fields:
    return _deepseek_v3(read, groups=1, groups_per_token=1, scale=1.8)


def _with_sharper_attention(read: Reader, fields: Fields) -> Fields:
    """Multiply the logits of attention, besides what YaRN does, by the square of the gain of `mscale_all_dim`."""
    yarn = fields["yarn"]
    for name in ("rope_parameters", "rope_scaling"):
        section = read.section(name)
        if yarn is not None and section is not None and section.value("mscale_all_dim"):
            gain = yarn_gain(yarn.factor, section.number("mscale_all_dim", 1.0))
            fields = fields | {"yarn": replace(yarn, logit_scale=gain**2)}
        if section is not None:
            section.ignore_all()
    return fields


def _latent_attention(read: Reader) -> Fields:
    """Read the ranks and head sizes; the norms of the two latents are counted apart."""
    read.require("q_lora_rank")
    read.ignore("qk_head_dim", "head_dim")
    query_heads = read.integer("num_attention_heads")
    if read.integer("num_key_value_heads", default=query_heads) != query_heads:
        raise read.error("num_key_value_heads", f"differs from num_attention_heads {query_heads} (latent: one each)")
    latent = LatentAttention(
        q_lora_rank=read.optional_integer("q_lora_rank"),
        kv_lora_rank=read.integer("kv_lora_rank"),
        nope_head_dim=read.integer("qk_nope_head_dim"),
        rope_head_dim=read.integer("qk_rope_head_dim"),
        value_head_dim=read.integer("v_head_dim"),
    )
    norms = (latent.q_lora_rank or 0) + latent.kv_lora_rank
    fields = {
        "num_query_heads": query_heads,
        "num_kv_heads": query_heads,
        "head_dim": latent.nope_head_dim + latent.rope_head_dim,
        "latent": latent,
    }
    return fields | extra(read.integer("num_hidden_layers") * norms)


LATENT = {
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
    "glm4_moe_lite": _glm4_moe_lite,
    "kimi_k2": _deepseek_v3,
}
"""Readers of families with latent attention by `model_type`."""
