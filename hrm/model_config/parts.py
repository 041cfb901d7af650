"""The parts that configurations of many families describe alike, each read into fields of `ModelSpec`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from hrm.model_config.reader import Reader
from hrm.model_config.rotary import rope
from hrm.variants import QKNorm, Router

__all__ = [
    "Fields",
    "attention",
    "combine",
    "decoder",
    "dense_ffn",
    "dense_layers",
    "experts",
    "extra",
    "heads",
    "leading_dense_layers",
    "moe_layer_count",
    "qwen_window",
    "shared_expert",
    "shared_experts",
    "softmax_router",
    "window_size",
    "windows",
]

Fields = dict[str, Any]
"""Some of `ModelSpec`'s fields by name."""


def combine(*parts: Fields) -> Fields:
    """Join parts; those that count `bias_parameters` add up, any other field comes from one part alone."""
    combined: Fields = {"bias_parameters": sum(part.get("bias_parameters", 0) for part in parts)}
    for part in parts:
        own = {name: value for name, value in part.items() if name != "bias_parameters"}
        assert not own.keys() & combined.keys(), "two parts gave one field"
        combined |= own
    return combined


def num_layers(read: Reader) -> int:
    """Read the number of layers."""
    return read.integer("num_hidden_layers")


def decoder(
    read: Reader,
    *,
    tied: bool | None = False,
    activations: tuple[str, ...] = ("silu",),
    theta: float = 1e4,
    norm_eps: float = 1e-5,
) -> Fields:
    """Read what every decoder has: sizes, norm, rotary embedding; the FFN is gated, whatever its activation.

    `tied`, `theta` and `norm_eps` are the family's defaults; None where it has none and the field is required.
    """
    read.only("hidden_act", *activations)
    read.only("hidden_activation", *activations)
    return rope(read, theta) | {
        "num_layers": num_layers(read),
        "hidden_size": read.integer("hidden_size"),
        "vocab_size": read.integer("vocab_size"),
        "max_position_embeddings": read.integer("max_position_embeddings"),
        "rms_norm_eps": read.number("rms_norm_eps", norm_eps),
        "tie_word_embeddings": read.flag("tie_word_embeddings", tied),
    }


def heads(read: Reader, required: Collection[str] = ()) -> Fields:
    """Read the attention heads, of `hidden_size / num_attention_heads` elements and as many for keys unless said.

    `required` names the fields for which the family's own default is one model's number, not a rule: they may be null
    but not left out.
    """
    read.require(*required)
    query_heads = read.integer("num_attention_heads")
    kv_heads = read.integer("num_key_value_heads", default=query_heads)
    if query_heads % kv_heads:
        raise read.error(
            "num_key_value_heads", f"{kv_heads} does not divide num_attention_heads {query_heads} (correct one)"
        )
    hidden_size = read.integer("hidden_size")
    names = ("head_dim", "attention_head_dim")
    if read.value(*names) is None and hidden_size % query_heads:
        raise read.error(
            "num_attention_heads",
            f"{query_heads} does not divide hidden_size {hidden_size} (correct it, or add head_dim)",
        )
    head_dim = read.integer(*names, default=hidden_size // query_heads)
    return {"num_query_heads": query_heads, "num_kv_heads": kv_heads, "head_dim": head_dim}


def attention(
    read: Reader,
    *,
    qkv_bias: bool = False,
    out_bias: bool = False,
    qk_norm: QKNorm = QKNorm.NONE,
    required: Collection[str] = (),
) -> Fields:
    """Read multi-head or grouped-query attention; its biases and query and key norms are counted apart."""
    fields = heads(read, required)
    query = fields["num_query_heads"] * fields["head_dim"]
    kv = fields["num_kv_heads"] * fields["head_dim"]
    norms = {QKNorm.NONE: 0, QKNorm.HEAD: 2 * fields["head_dim"], QKNorm.ALL_HEADS: query + kv}
    per_layer = norms[qk_norm] + qkv_bias * (query + 2 * kv) + out_bias * read.integer("hidden_size")
    kinds = {"qk_norm": qk_norm, "qkv_bias": qkv_bias, "output_bias": out_bias}
    return fields | kinds | extra(num_layers(read) * per_layer)


def softmax_router(read: Reader) -> Fields:
    """Read a router that scores by softmax and divides shares by their sum only where told to."""
    return {"router": Router(renormalized=read.flag("norm_topk_prob"))}


def extra(parameters: int) -> Fields:
    """Count parameters that no operator has."""
    return {"bias_parameters": parameters}


def dense_ffn(read: Reader, *, bias: bool = False) -> Fields:
    """Read the FFN of a dense model: the degenerate case of one expert."""
    return {
        "num_experts": 1,
        "experts_per_token": 1,
        "intermediate_size": read.integer("intermediate_size"),
        "expert_bias": bias,
    }


def experts(
    read: Reader,
    *,
    count: tuple[str, ...] = ("num_local_experts", "num_experts"),
    chosen: tuple[str, ...] = ("num_experts_per_tok",),
    width: str = "intermediate_size",
    bias: bool = False,
) -> Fields:
    """Read the routed experts: how many, how many a token takes, how wide one is; the fields' names vary."""
    num_experts, per_token = read.integer(*count), read.same_for_all(*chosen)
    if per_token > num_experts:
        raise read.error(chosen[0], f"{per_token} exceeds {count[0]} {num_experts} (correct one)")
    return {
        "num_experts": num_experts,
        "experts_per_token": per_token,
        "intermediate_size": read.same_for_all(width),
        "expert_bias": bias,
    }


def shared_expert(width: int) -> Fields:
    """Give the joint width of the experts that every token visits."""
    return {"shared_intermediate_size": width}


def shared_experts(read: Reader, count: str) -> Fields:
    """Read shared experts given by their number, each as wide as a routed one; the field may be null, not missing."""
    read.require(count)
    number = read.integer(count, default=0, least=0)
    return shared_expert(number * read.integer("moe_intermediate_size"))


def dense_layers(read: Reader, at_fault: str, layers: Iterable[int], width: str = "intermediate_size") -> Fields:
    """Set `layers` apart as those with a dense FFN, whose width the field `width` gives; `at_fault` chose them."""
    dense, total = tuple(sorted(set(layers))), num_layers(read)
    if any(layer not in range(total) for layer in dense):
        raise read.error(at_fault, f"names layers beyond num_hidden_layers {total} (correct one)")
    if len(dense) == total:
        raise read.error(at_fault, f"{read.value(at_fault)!r} leaves no layer with experts (correct it)")
    if not dense:
        read.ignore(width)
        return {}
    return {"dense_layers": dense, "dense_intermediate_size": read.integer(width)}


def leading_dense_layers(read: Reader) -> Fields:
    """Read DeepSeek's layout: dense layers first, then experts in each `moe_layer_freq`-th; or one kind per layer."""
    total = num_layers(read)
    kinds = read.list_of(str, "mlp_layer_types")
    if kinds is not None:
        read.ignore("first_k_dense_replace")
        if len(kinds) != total or set(kinds) - {"dense", "sparse"}:
            raise read.error("mlp_layer_types", f"expected {total} entries, each dense or sparse (correct it)")
        dense = [layer for layer, kind in enumerate(kinds) if kind == "dense"]
        return dense_layers(read, "mlp_layer_types", dense)
    first = read.integer("first_k_dense_replace", least=0)
    every = read.integer("moe_layer_freq", default=1)
    dense = [layer for layer in range(total) if layer < first or layer % every]
    return dense_layers(read, "first_k_dense_replace", [*dense, *range(total, first)])


def moe_layer_count(read: Reader, dense: Fields) -> int:
    """Count the layers with experts, given what `dense_layers` returned."""
    return num_layers(read) - len(dense.get("dense_layers", ()))


def window_size(read: Reader, name: str = "sliding_window", default: int | None = None) -> int | None:
    """Read a window: null is none, and a missing field the family's default."""
    return read.optional_integer(name) if name in read else default


def qwen_window(read: Reader) -> int | None:
    """Read Qwen's window, which a field of its own switches on."""
    size = window_size(read, default=4096)
    return size if read.flag("use_sliding_window") else None


def windows(
    read: Reader,
    *,
    size: int | None,
    named: str = "sliding_window",
    where: Callable[[int], bool] | None = None,
) -> Fields:
    """Say which layers look back over `size` tokens at most: those `layer_types` names, or else those of the rule.

    Without a rule it is all of them. A chunk is taken for a window of its length; one that no position outgrows is
    none.
    """
    total = num_layers(read)
    kinds = read.list_of(str, "layer_types")
    windowed = tuple(layer for layer in range(total) if where is None or where(layer))
    if kinds is not None:
        _check_kinds(read, kinds, total)
        windowed = tuple(layer for layer, kind in enumerate(kinds) if kind in _WINDOWED)
        if windowed and size is None:
            raise read.error("layer_types", f"names {kinds[windowed[0]]}, but {named} is off (correct one)")
    if size is None or not windowed or size >= read.integer("max_position_embeddings"):
        return {}
    return {"sliding_window": size, "windowed_layers": windowed}


_WINDOWED = ("sliding_attention", "chunked_attention")
_UNLIMITED = ("full_attention", "attention")


def _check_kinds(read: Reader, kinds: list[str], total: int) -> None:
    for kind in kinds:
        if kind not in (*_WINDOWED, *_UNLIMITED):
            raise read.error("layer_types", f"{kind!r} is not supported (only {', '.join((*_UNLIMITED, *_WINDOWED))})")
    if len(kinds) != total:
        raise read.error("layer_types", f"has {len(kinds)} entries for num_hidden_layers {total} (correct one)")
