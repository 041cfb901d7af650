"""Families with experts in some layers and a dense FFN in the others; grouped-query attention."""

from __future__ import annotations

from hrm.model_config.parts import (
    Fields,
    attention,
    combine,
    decoder,
    dense_layers,
    experts,
    extra,
    leading_dense_layers,
    moe_layer_count,
    qwen_window,
    shared_expert,
    shared_experts,
    softmax_router,
    window_size,
    windows,
)
from hrm.model_config.reader import Reader
from hrm.variants import QKNorm

__all__ = ["MIXED"]


def _qwen2_moe(read: Reader) -> Fields:
    """Biases on Q, K, V, and a gated shared expert."""
    first = read.integer("max_window_layers", default=28, least=0)
    dense = _qwen_dense_layers(read)
    return combine(
        decoder(read),
        attention(read, qkv_bias=read.flag("qkv_bias", True)),
        _qwen_experts(read),
        dense,
        shared_expert(read.integer("shared_expert_intermediate_size", default=5632)),
        extra(moe_layer_count(read, dense) * read.integer("hidden_size")),
        windows(read, size=qwen_window(read), where=lambda layer: layer % 2 == 0 and layer < first),
    )


def _qwen3_moe(read: Reader, tied: bool | None = False) -> Fields:
    """Normed query and key heads; the window, where it is on, holds in all layers."""
    bias = read.flag("attention_bias")
    read.ignore("max_window_layers")
    return combine(
        decoder(read, tied=tied),
        attention(read, qkv_bias=bias, out_bias=bias, qk_norm=QKNorm.HEAD, required=("num_key_value_heads",)),
        _qwen_experts(read),
        _qwen_dense_layers(read),
        softmax_router(read),
        windows(read, size=qwen_window(read)),
    )


def _qwen3_vl_moe(read: Reader) -> Fields:
    """Qwen3-MoE, as the language model of Qwen3-VL; whether it is tied, the two classes' defaults disagree."""
    return _qwen3_moe(read, tied=None)


def _qwen_experts(read: Reader) -> Fields:
    return experts(read, count=("num_experts", "num_local_experts"), width="moe_intermediate_size")


def _qwen_dense_layers(read: Reader) -> Fields:
    """Experts in each `decoder_sparse_step`-th layer, save those listed."""
    step = read.integer("decoder_sparse_step", default=1)
    listed = read.list_of(int, "mlp_only_layers") or []
    at_fault = "mlp_only_layers" if listed else "decoder_sparse_step"
    skipped = (layer for layer in range(read.integer("num_hidden_layers")) if (layer + 1) % step)
    return dense_layers(read, at_fault, (*listed, *skipped))


def _glm4_moe(read: Reader) -> Fields:
    """Biases on Q, K, V where switched on, shared experts, dense layers first."""
    qk_norm = QKNorm.HEAD if read.flag("use_qk_norm") else QKNorm.NONE
    return combine(
        decoder(read),
        attention(read, qkv_bias=read.flag("attention_bias"), qk_norm=qk_norm, required=("num_key_value_heads",)),
        _deepseek_experts(read),
        leading_dense_layers(read),
        shared_experts(read, "n_shared_experts"),
    )


def _glm4v_moe(read: Reader) -> Fields:
    """GLM-4.5, as the language model of GLM-4.5V."""
    read.require("attention_bias")
    return _glm4_moe(read)


def _dots1(read: Reader) -> Fields:
    """Normed query and key heads; a window in the upper layers where there is one."""
    bias = read.flag("attention_bias")
    first = read.integer("max_window_layers", default=62, least=0)
    return combine(
        decoder(read),
        attention(read, qkv_bias=bias, out_bias=bias, qk_norm=QKNorm.HEAD),
        _deepseek_experts(read),
        leading_dense_layers(read),
        shared_experts(read, "n_shared_experts"),
        windows(read, size=window_size(read, default=4096), where=lambda layer: layer >= first),
    )


def _deepseek_experts(read: Reader) -> Fields:
    return experts(read, count=("n_routed_experts", "num_local_experts"), width="moe_intermediate_size")


def _ernie_moe(read: Reader) -> Fields:
    """Experts in each `moe_layer_interval`-th layer of a range; the router's balancing bias is a parameter here."""
    layers = read.integer("num_hidden_layers")
    start = read.integer("moe_layer_start_index", default=1, least=0)
    end = read.integer("moe_layer_end_index", default=-1, least=-1)
    interval = read.integer("moe_layer_interval", default=1)
    last = layers - 1 if end == -1 else end
    without = (layer for layer in range(layers) if not start <= layer <= last or (layer + 1) % interval)
    dense = dense_layers(read, "moe_layer_start_index", without)
    routed = experts(
        read,
        count=("moe_num_experts", "num_experts"),
        chosen=("moe_k", "num_experts_per_tok"),
        width="moe_intermediate_size",
    )
    read.ignore("moe_capacity", "moe_gate", "moe_use_aux_free")
    return combine(
        decoder(read, tied=True),
        attention(read, required=("num_key_value_heads",)),
        routed,
        dense,
        shared_experts(read, "moe_num_shared_experts"),
        extra(moe_layer_count(read, dense) * routed["num_experts"]),
    )


def _llama4(read: Reader) -> Fields:
    """One shared expert, dense layers in between, and attention in chunks in the layers with rotary embedding."""
    layers = read.integer("num_hidden_layers")
    step = read.integer("interleave_moe_layer_step", default=1)
    sparse = read.list_of(int, "moe_layers")
    at_fault = "moe_layers" if sparse is not None else "interleave_moe_layer_step"
    sparse = list(range(step - 1, layers, step)) if sparse is None else sparse
    if any(layer not in range(layers) for layer in sparse):
        raise read.error("moe_layers", f"names layers beyond num_hidden_layers {layers} (correct one)")
    interval = read.integer("no_rope_layer_interval", default=4)
    with_rope = read.list_of(int, "no_rope_layers") or [(layer + 1) % interval for layer in range(layers)]
    if len(with_rope) != layers:
        raise read.error("no_rope_layers", f"has {len(with_rope)} entries for num_hidden_layers {layers} (correct one)")
    read.ignore("use_qk_norm")  # It has no parameters.
    chunk = window_size(read, "attention_chunk_size", default=8192)
    bias = read.flag("attention_bias")
    return combine(
        decoder(read) | {"plain_rope": False},
        attention(read, qkv_bias=bias, out_bias=bias, required=("num_key_value_heads", "head_dim")),
        experts(read),
        dense_layers(read, at_fault, set(range(layers)) - set(sparse), "intermediate_size_mlp"),
        shared_expert(read.integer("intermediate_size")),
        windows(read, size=chunk, named="attention_chunk_size", where=lambda layer: bool(with_rope[layer])),
    )


MIXED = {
    "dots1": _dots1,
    "ernie4_5_moe": _ernie_moe,
    "glm4_moe": _glm4_moe,
    "glm4v_moe_text": _glm4v_moe,
    "llama4_text": _llama4,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
    "qwen3_vl_moe_text": _qwen3_vl_moe,
}
"""Readers of these families by `model_type`."""
