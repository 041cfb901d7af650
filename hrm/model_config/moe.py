"""Families with experts in every layer, and grouped-query attention."""

from __future__ import annotations

from hrm.model_config.parts import (
    Fields,
    attention,
    combine,
    decoder,
    experts,
    extra,
    shared_expert,
    softmax_router,
    window_size,
    windows,
)
from hrm.model_config.reader import Reader
from hrm.model_config.rotary import rope
from hrm.variants import QKNorm, Router

__all__ = ["MOE"]


def _mixtral(read: Reader) -> Fields:
    return combine(
        decoder(read, theta=1e6),
        attention(read, required=("num_key_value_heads",)),
        experts(read),
        windows(read, size=window_size(read)),
    )


def _phimoe(read: Reader) -> Fields:
    """Mixtral with biases, those of its layer norms and of lm_head included."""
    bias = read.flag("attention_bias")
    hidden, layers = read.integer("hidden_size"), read.integer("num_hidden_layers")
    head_bias = read.flag("lm_head_bias") * read.integer("vocab_size")
    return combine(
        decoder(read),
        attention(read, qkv_bias=bias, out_bias=bias, required=("num_key_value_heads",)),
        experts(read),
        windows(read, size=window_size(read)),
        extra((2 * layers + 1) * hidden + head_bias),
    )


def _minimax_m2(read: Reader) -> Fields:
    """Mixtral with norms over all query and key heads; its earlier, hybrid attention is refused."""
    kinds = read.list_of(int, "attn_type_list")
    if kinds is not None and set(kinds) != {1}:
        raise read.error("attn_type_list", f"{kinds[0]} marks linear attention, which is not modelled (only 1)")
    read.only("use_qk_norm", True)
    read.only("qk_norm_type", "per_layer")
    read.ignore("mlp_intermediate_size", "shared_moe_mode")
    return combine(
        decoder(read),
        attention(read, qk_norm=QKNorm.ALL_HEADS, required=("num_key_value_heads", "head_dim")),
        experts(read),
        shared_expert(read.integer("shared_intermediate_size", default=0, least=0)),
    )


def _gpt_oss(read: Reader) -> Fields:
    """Biases everywhere, a sink per query head, clamped experts, and a window in every second layer."""
    bias = read.flag("attention_bias", True)
    routed = experts(read, chosen=("num_experts_per_tok", "experts_per_token"), bias=True)
    heads = attention(read, qkv_bias=bias, out_bias=bias, required=("num_key_value_heads", "head_dim"))
    return combine(
        decoder(read),
        heads,
        routed,
        extra(read.integer("num_hidden_layers") * (heads["num_query_heads"] + routed["num_experts"])),
        windows(read, size=window_size(read, default=128), where=lambda layer: layer % 2 == 0),
    ) | {
        "router": Router(bias=True),
        "attention_sinks": True,
        "swiglu_limit": read.number("swiglu_limit", 7.0),
        "swiglu_alpha": read.number("swiglu_alpha", 1.702),
    }


def _olmoe(read: Reader) -> Fields:
    """Norms over all query and key heads together; FlexOlmo's other norms are as many as usual."""
    bias = read.flag("attention_bias")
    clip = None if read.value("clip_qkv") is None else read.number("clip_qkv", 0.0)
    return combine(
        decoder(read),
        attention(read, qkv_bias=bias, out_bias=bias, qk_norm=QKNorm.ALL_HEADS),
        experts(read),
        softmax_router(read),
        {"qkv_clip": clip},
    )


def _granitemoe(read: Reader) -> Fields:
    bias = read.flag("attention_bias")
    return combine(
        decoder(read),
        attention(read, qkv_bias=bias, out_bias=bias),
        experts(read),
        shared_expert(read.integer("shared_intermediate_size", default=0, least=0)),
    )


def _dbrx(read: Reader) -> Fields:
    """DBRX has names of its own."""
    attention_part, ffn = read.required_section("attn_config"), read.required_section("ffn_config")
    attention_part.ignore("clip_qkv", "model_type")
    ffn.ignore("moe_jitter_eps", "moe_loss_weight", "moe_normalize_expert_weights")
    ffn.only("ffn_act_fn", {"name": "silu"})
    ffn.only("hidden_size", read.integer("d_model"))
    hidden, heads = read.integer("d_model"), read.integer("n_heads")
    kv_heads = attention_part.integer("kv_n_heads")
    read.only("num_key_value_heads", kv_heads)
    positions = rope(read)
    if hidden % heads or heads % kv_heads:
        raise read.error("n_heads", f"{heads} does not divide d_model {hidden}, or kv_n_heads {kv_heads} it (correct)")
    routed = experts(ffn, count=("moe_num_experts",), chosen=("moe_top_k",), width="ffn_hidden_size")
    theta = attention_part.number("rope_theta", positions["rope_theta"])
    return {
        **routed,
        **positions,
        "num_layers": read.integer("n_layers"),
        "hidden_size": hidden,
        "num_query_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": hidden // heads,
        "vocab_size": read.integer("vocab_size"),
        "max_position_embeddings": read.integer("max_seq_len"),
        "rope_theta": theta,
        "tie_word_embeddings": read.flag("tie_word_embeddings"),
    }


def _hunyuan_moe(read: Reader) -> Fields:
    """One shared expert as wide as a routed one; published files write numbers once for each layer."""
    width = read.integer("intermediate_size")
    read.only("use_cla", False)
    read.only("norm_type", "rms")
    read.only("use_rotary_pos_emb", True)
    read.ignore("cla_share_factor", "dense_list", "org_vocab_size", "pool_type", "use_mixed_mlp_moe")
    for name, only in (("num_shared_expert", 1), ("moe_intermediate_size", width)):
        if read.value(name) is not None and read.same_for_all(name) != only:
            raise read.error(name, f"{read.same_for_all(name)} is not supported (only {only})")
    read.only("use_qk_norm", True)
    bias = read.flag("attention_bias")
    return combine(
        decoder(read),
        attention(read, qkv_bias=bias, out_bias=bias, qk_norm=QKNorm.HEAD),
        experts(read, count=("num_experts", "num_local_experts"), chosen=("moe_topk", "num_experts_per_tok")),
        shared_expert(width),
    )


MOE = {
    "dbrx": _dbrx,
    "flex_olmo": _olmoe,
    "gpt_oss": _gpt_oss,
    "granitemoe": _granitemoe,
    "granitemoeshared": _granitemoe,
    "hunyuan_v1_moe": _hunyuan_moe,
    "minimax_m2": _minimax_m2,
    "mixtral": _mixtral,
    "olmoe": _olmoe,
    "phimoe": _phimoe,
}
"""Readers of these families by `model_type`."""
