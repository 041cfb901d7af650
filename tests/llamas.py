"""Tiny Llamas for tests of checkpoints: as safetensors, as GGUF, their logits and files."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from executor.checkpoint import dense, upcycle

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])

DIMENSIONS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 48,
    "max_position_embeddings": 64,
}

VOCABULARY = ["<|end|>", "<|user|>", *"abcdehlotwr123,!", "Ġ", "Ċ", "lo", "Ġw"]


def llama(*, tied=False, dtype=torch.float32):
    torch.manual_seed(5)
    config = LlamaConfig(**DIMENSIONS, tie_word_embeddings=tied, rope_parameters={"rope_theta": 5e4}, bos_token_id=7)
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    return model.to(dtype)


def save_llama(folder, **options):
    model = llama(**options)
    model.save_pretrained(folder)
    return model


def logits(model):
    with torch.inference_mode():
        return model(TOKENS).logits.float()


def logits_of(folder):
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def permuted(weight, num_heads):
    """Order the rows of a query or key projection as llama.cpp's converter does."""
    return weight.reshape(num_heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
}


def gguf_name(name):
    for old, new in GGUF_NAMES.items():
        name = name.replace(old, new)
    return name


def add_dimensions(writer, config):
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def add_tokenizer(writer):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3, 3] + [1] * (len(VOCABULARY) - 2))
    writer.add_token_merges(["l o", "Ġ w"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}<|user|>{{ m.content }}{% endfor %}")


def save_gguf(path, model, *, architecture="llama", extra=()):
    """Write a model as llama.cpp's converter lays it out, in float32 so that nothing is rounded."""
    writer = gguf.GGUFWriter(path, architecture)
    add_dimensions(writer, model.config)
    add_tokenizer(writer)
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        values, short = parameter.detach().float().numpy(), gguf_name(name)
        kind = short.split(".")[-2]
        writer.add_tensor(short, permuted(values, heads[kind]) if kind in heads else values)
    for name in extra:
        writer.add_tensor(name, np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def assert_refused(source, dest, kind, message):
    """Both makers fail with one line that says why, and leave nothing behind."""
    for make in (dense, upcycle):
        before = sorted(dest.parent.iterdir())
        with pytest.raises(kind, match=message) as caught:
            make(source, dest)

        assert "\n" not in str(caught.value)
        assert sorted(dest.parent.iterdir()) == before
