"""Write a Mixtral-format checkpoint as GGUF in bfloat16, for llama.cpp: tensor by tensor, without a vocabulary.

llama.cpp rotates neighbouring elements of a head, Hugging Face's models one half against the other: rows of the query
and key projections are put in llama.cpp's order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter

from executor.loading import CheckpointReader
from hrm.model import ModelSpec
from hrm.model_config import load_model

__all__ = ["write_gguf"]

ALIGNMENT = 32


def write_gguf(checkpoint: Path, path: Path) -> None:
    """Write `checkpoint` to `path`; the file gets its name when it is whole."""
    model, reader = load_model(checkpoint), CheckpointReader(checkpoint)
    unfinished = path.with_suffix(".unfinished")
    writer = GGUFWriter(unfinished, "llama")
    _describe(writer, model)
    for name, shape, wide in _tensors(model):
        stored, raw = (np.float32, GGMLQuantizationType.F32) if wide else (np.uint16, GGMLQuantizationType.BF16)
        num_bytes = int(np.prod(shape)) * np.dtype(stored).itemsize
        writer.add_tensor_info(name, shape, np.dtype(np.float32), num_bytes, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape, wide in _tensors(model):
        tensor = _read(reader, model, name, shape)
        bits = tensor.to(torch.float32).numpy() if wide else tensor.to(torch.bfloat16).view(torch.uint16).numpy()
        writer.write_tensor_data(np.ascontiguousarray(bits))
    writer.close()
    reader.close()
    unfinished.replace(path)


def _describe(writer: GGUFWriter, model: ModelSpec) -> None:
    writer.add_context_length(model.max_position_embeddings)
    writer.add_embedding_length(model.hidden_size)
    writer.add_block_count(model.num_layers)
    writer.add_feed_forward_length(model.intermediate_size)
    writer.add_head_count(model.num_query_heads)
    writer.add_head_count_kv(model.num_kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(model.rope_theta)
    writer.add_layer_norm_rms_eps(model.rms_norm_eps)
    writer.add_expert_count(model.num_experts)
    writer.add_expert_used_count(model.experts_per_token)
    writer.add_vocab_size(model.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(32)


def _tensors(model: ModelSpec) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Yield name, shape and whether float32 of all tensors."""
    hidden, ff, experts = model.hidden_size, model.intermediate_size, model.num_experts
    yield "token_embd.weight", (model.vocab_size, hidden), False
    for layer in range(model.num_layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (hidden,), True
        yield f"{block}.attn_q.weight", (model.query_size, hidden), False
        yield f"{block}.attn_k.weight", (model.kv_size, hidden), False
        yield f"{block}.attn_v.weight", (model.kv_size, hidden), False
        yield f"{block}.attn_output.weight", (hidden, model.query_size), False
        yield f"{block}.ffn_norm.weight", (hidden,), True
        yield f"{block}.ffn_gate_inp.weight", (experts, hidden), True
        yield f"{block}.ffn_gate_exps.weight", (experts, ff, hidden), False
        yield f"{block}.ffn_up_exps.weight", (experts, ff, hidden), False
        yield f"{block}.ffn_down_exps.weight", (experts, hidden, ff), False
    yield "output_norm.weight", (hidden,), True
    if not model.tie_word_embeddings:
        yield "output.weight", (model.vocab_size, hidden), False


_DENSE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "block_sparse_moe.gate",
}
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_EXPERTS = {"ffn_gate_exps": "w1", "ffn_up_exps": "w3", "ffn_down_exps": "w2"}


def _read(reader: CheckpointReader, model: ModelSpec, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Read a tensor as llama.cpp wants it."""
    if name in _OUTSIDE:
        return reader.read(_OUTSIDE[name], shape)
    _, layer, kind, _ = name.split(".")
    prefix = f"model.layers.{layer}"
    if kind in _EXPERTS:
        stem, own = f"{prefix}.block_sparse_moe.experts", _EXPERTS[kind]
        parts = [reader.read(f"{stem}.{expert}.{own}.weight", shape[1:]) for expert in range(shape[0])]
        return torch.stack(parts)
    tensor = reader.read(f"{prefix}.{_DENSE[kind]}.weight", shape)
    if kind not in ("attn_q", "attn_k"):
        return tensor
    heads = shape[0] // model.head_dim
    return tensor.view(heads, 2, model.head_dim // 2, shape[1]).transpose(1, 2).reshape(shape)
