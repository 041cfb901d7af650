"""Dense families: one FFN a layer."""

from __future__ import annotations

from hrm.model_config.parts import (
    Fields,
    attention,
    combine,
    decoder,
    dense_ffn,
    extra,
    qwen_window,
    window_size,
    windows,
)
from hrm.model_config.reader import Reader
from hrm.variants import QKNorm

__all__ = ["DENSE"]


def _llama(read: Reader) -> Fields:
    """Llama, and those that differ from it by scalar multipliers (Granite)."""
    bias = read.flag("attention_bias")
    return combine(
        decoder(read, norm_eps=1e-6),
        attention(read, qkv_bias=bias, out_bias=bias),
        dense_ffn(read, bias=read.flag("mlp_bias")),
    )


def _mistral(read: Reader) -> Fields:
    """Llama with a window in all layers: of 4,096 tokens where the field is left out, as transformers has it."""
    window = windows(read, size=window_size(read, default=4096))
    return combine(decoder(read), attention(read, required=("num_key_value_heads",)), dense_ffn(read), window)


def _ministral3(read: Reader) -> Fields:
    required = ("num_key_value_heads", "head_dim")
    return combine(
        decoder(read), attention(read, required=required), dense_ffn(read), windows(read, size=window_size(read))
    )


def _phi3(read: Reader) -> Fields:
    """Phi-3 and Phi-4: Llama with Q, K, V and gate, up in one matrix each."""
    return combine(decoder(read), attention(read), dense_ffn(read), windows(read, size=window_size(read)))


def _qwen2(read: Reader) -> Fields:
    """Llama with biases on Q, K, V, and a window in the upper layers where it is switched on."""
    return combine(decoder(read), attention(read, qkv_bias=True), dense_ffn(read), _upper_window(read))


def _qwen3(read: Reader) -> Fields:
    """Qwen2 with normed query and key heads instead of biases."""
    bias = read.flag("attention_bias")
    return combine(
        decoder(read),
        attention(read, qkv_bias=bias, out_bias=bias, qk_norm=QKNorm.HEAD, required=("head_dim",)),
        dense_ffn(read),
        _upper_window(read),
    )


def _upper_window(read: Reader) -> Fields:
    first = read.integer("max_window_layers", default=28, least=0)
    return windows(read, size=qwen_window(read), where=lambda layer: layer >= first)


def _smollm3(read: Reader) -> Fields:
    """Llama with rotary embedding left out in every fourth layer."""
    read.only("use_sliding_window", False)
    read.ignore("no_rope_layers", "no_rope_layer_interval", "sliding_window", "max_window_layers")
    bias = read.flag("attention_bias")
    return combine(
        decoder(read, tied=True) | {"plain_rope": False},
        attention(read, qkv_bias=bias, out_bias=bias, required=("num_key_value_heads",)),
        dense_ffn(read, bias=read.flag("mlp_bias")),
        windows(read, size=None),
    )


def _olmo2(read: Reader) -> Fields:
    """Norms after attention and FFN instead of before them, and over all query and key heads together."""
    bias = read.flag("attention_bias")
    return combine(
        decoder(read), attention(read, qkv_bias=bias, out_bias=bias, qk_norm=QKNorm.ALL_HEADS), dense_ffn(read)
    )


def _olmo3(read: Reader) -> Fields:
    """OLMo 2 with a window in three of four layers."""
    size = window_size(read, default=4096)
    return combine(_olmo2(read), windows(read, size=size, where=lambda layer: (layer + 1) % 4 != 0))


def _seed_oss(read: Reader) -> Fields:
    return combine(
        decoder(read),
        attention(
            read,
            qkv_bias=read.flag("attention_bias", True),
            out_bias=read.flag("attention_out_bias"),
            required=("num_key_value_heads", "head_dim"),
        ),
        dense_ffn(read, bias=read.flag("mlp_bias")),
    )


def _ernie(read: Reader) -> Fields:
    required = ("num_key_value_heads", "head_dim")
    return combine(decoder(read, tied=True), attention(read, required=required), dense_ffn(read))


def _hunyuan(read: Reader) -> Fields:
    bias = read.flag("attention_bias")
    return combine(decoder(read), attention(read, qkv_bias=bias, out_bias=bias, qk_norm=QKNorm.HEAD), dense_ffn(read))


_GELU = ("gelu", "gelu_pytorch_tanh")


def _gemma(read: Reader) -> Fields:
    bias = read.flag("attention_bias")
    return combine(
        decoder(read, tied=True, activations=_GELU),
        attention(read, qkv_bias=bias, out_bias=bias, required=("num_key_value_heads", "head_dim")),
        dense_ffn(read),
    )


def _gemma2(read: Reader) -> Fields:
    """Gemma with norms before and after attention and FFN, and a window in every second layer."""
    size = window_size(read, default=4096)
    return combine(
        _gemma(read),
        extra(2 * read.integer("num_hidden_layers") * read.integer("hidden_size")),
        windows(read, size=size, where=lambda layer: layer % 2 == 0),
    )


def _gemma3(read: Reader) -> Fields:
    """Gemma 2 with normed query and key heads, and a window in all layers but every sixth."""
    size = window_size(read, default=4096)
    period = read.integer("sliding_window_pattern", "_sliding_window_pattern", default=6)
    gemma = _gemma(read)
    norms = 2 * (read.integer("hidden_size") + gemma["head_dim"])
    return combine(
        gemma,
        extra(read.integer("num_hidden_layers") * norms),
        windows(read, size=size, where=lambda layer: (layer + 1) % period != 0),
    )


DENSE = {
    "ernie4_5": _ernie,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "granite": _llama,
    "hunyuan_v1_dense": _hunyuan,
    "llama": _llama,
    "ministral3": _ministral3,
    "mistral": _mistral,
    "olmo2": _olmo2,
    "olmo3": _olmo3,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "seed_oss": _seed_oss,
    "smollm3": _smollm3,
}
"""Readers of dense families by `model_type`."""
