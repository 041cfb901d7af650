"""Families with multi-head latent attention: DeepSeek V2 and V3, and those made after them."""

from __future__ import annotations

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

__all__ = ["LATENT"]


def _deepseek(read: Reader) -> Fields:
    """Shared experts beside the routed ones; the layers before `first_k_dense_replace` are dense."""
    return combine(
        decoder(read),
        _latent_attention(read),
        experts(read, count=("n_routed_experts", "num_local_experts", "num_experts"), width="moe_intermediate_size"),
        leading_dense_layers(read),
        shared_experts(read, "n_shared_experts"),
    )


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


LATENT = {"deepseek_v2": _deepseek, "deepseek_v3": _deepseek, "glm4_moe_lite": _deepseek, "kimi_k2": _deepseek}
"""Readers of families with latent attention by `model_type`."""
