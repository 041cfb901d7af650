"""Counts of operators against torch's own counter on a reference layer of explicit matmuls, and against real tensors.

Torch's counter sees no causality and counts nothing for its fused attention on the CPU: hence matmuls written out, and
masks that are summed. Tensors lie on the meta device, which knows shapes and needs no memory.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from hrm import operators
from hrm.dtypes import DType
from hrm.model import LatentAttention
from tests.machines import model

TOKENS, LENS = st.integers(1, 12), st.integers(1, 50)
QUICK = settings(max_examples=25, deadline=None)
FLOAT32 = DType.FLOAT32


def tensor(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def tensor_bytes(*tensors):
    return sum(one.numel() * one.element_size() for one in tensors)


@st.composite
def models(draw, latent=None):
    """Models of any shape, with latent attention or without, shared experts, and dense layers."""
    kv_heads, group, num_experts = (draw(st.integers(1, high)) for high in (3, 3, 6))
    if latent is None:
        latent = draw(st.booleans())
    widths = st.integers(1, 8)
    attention = LatentAttention(
        q_lora_rank=draw(st.none() | widths),
        kv_lora_rank=draw(widths),
        nope_head_dim=draw(widths),
        rope_head_dim=draw(widths),
        value_head_dim=draw(widths),
    )
    return model(
        hidden_size=draw(st.integers(4, 40)),
        intermediate_size=draw(st.integers(4, 40)),
        num_kv_heads=kv_heads,
        num_query_heads=kv_heads * group,
        head_dim=draw(widths),
        num_experts=num_experts,
        experts_per_token=draw(st.integers(1, num_experts)),
        latent=attention if latent else None,
        dense_layers=(0,),
        dense_intermediate_size=draw(st.integers(1, 60)),
        shared_intermediate_size=draw(st.integers(0, 30)),
    )


def pairs(prompt, window=None):
    """Sum the mask of a prompt: each query sees itself and earlier keys, as far back as the window."""
    query, key = np.arange(prompt)[:, None], np.arange(prompt)
    return int(np.sum((key <= query) & (key > query - (window or prompt))))


# Projections.


def check_product(operator, rows, weight):
    assert operator.flop == counted(lambda: rows @ weight)
    assert operator.weight_bytes == tensor_bytes(weight)
    assert operator.activation_bytes == tensor_bytes(rows, rows @ weight)


@given(models(latent=False), TOKENS)
@QUICK
def test_projections_count_what_torch_counts(spec, tokens):
    heads, hidden = spec.num_query_heads * spec.head_dim, tensor(tokens, spec.hidden_size)
    joint = tensor(spec.hidden_size, heads + 2 * spec.num_kv_heads * spec.head_dim)

    check_product(operators.qkv_proj(spec, tokens, FLOAT32), hidden, joint)
    check_product(operators.o_proj(spec, tokens, FLOAT32), tensor(tokens, heads), tensor(heads, spec.hidden_size))
    check_product(operators.lm_head(spec, tokens, FLOAT32), hidden, tensor(spec.hidden_size, spec.vocab_size))
    if spec.num_experts > 1:
        check_product(operators.router(spec, tokens, FLOAT32), hidden, tensor(spec.hidden_size, spec.num_experts))
    else:
        assert operators.router(spec, tokens, FLOAT32).bytes == 0


# Latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): weights as published, products as they are executed.


class Latents:
    """The weights of latent attention and what they do to `tokens` rows."""

    def __init__(self, spec, tokens):
        at, self.heads = spec.latent, spec.num_query_heads
        self.at, self.tokens = at, tokens
        query, expanded = at.nope_head_dim + at.rope_head_dim, at.nope_head_dim + at.value_head_dim
        bottleneck = at.q_lora_rank or spec.hidden_size
        self.down = tensor(spec.hidden_size, at.kv_lora_rank + at.rope_head_dim)
        self.up_keys = tensor(self.heads, at.kv_lora_rank, at.nope_head_dim)
        self.up_values = tensor(self.heads, at.kv_lora_rank, at.value_head_dim)
        self.queries = [tensor(bottleneck, self.heads * query)]
        if at.q_lora_rank:
            self.queries.insert(0, tensor(spec.hidden_size, bottleneck))
        self.up = tensor(at.kv_lora_rank, self.heads * expanded)
        self.out = tensor(self.heads * at.value_head_dim, spec.hidden_size)
        self.hidden = tensor(tokens, spec.hidden_size)

    def compress(self):
        """Queries of each head, and the latents that the cache keeps."""
        rows = self.hidden
        for weight in self.queries:
            rows = rows @ weight
        return rows.view(self.tokens, self.heads, -1), self.hidden @ self.down

    def decode(self, context):
        """One token per sequence: the up-projections folded into queries and outputs, nothing expanded."""
        at = self.at
        queries, _ = self.compress()
        folded = queries[..., : at.nope_head_dim].transpose(0, 1) @ self.up_keys.mT
        wide = torch.cat((folded.transpose(0, 1), queries[..., at.nope_head_dim :]), dim=-1)
        cache = tensor(self.tokens, context, at.kv_lora_rank + at.rope_head_dim)
        attended = wide @ cache.mT @ cache[..., : at.kv_lora_rank]
        values = attended.transpose(0, 1) @ self.up_values
        return values.transpose(0, 1).reshape(self.tokens, -1) @ self.out

    def expand(self):
        """Keys and values of each head, as in prefill."""
        _, latents = self.compress()
        return latents[:, : self.at.kv_lora_rank] @ self.up


@given(models(latent=True), TOKENS, LENS)
@QUICK
def test_a_decode_step_of_latent_attention_counts_what_torch_counts(spec, tokens, context):
    """Folding the up-projections costs the FLOP of applying them to as many tokens."""
    layer = Latents(spec, tokens)
    parts = (
        operators.qkv_proj(spec, tokens, FLOAT32),
        operators.attention_decode(spec, tokens, context, FLOAT32),
        operators.o_proj(spec, tokens, FLOAT32),
    )

    assert sum(part.flop for part in parts) == counted(lambda: layer.decode(context))


@given(models(latent=True), TOKENS)
@QUICK
def test_projections_of_latent_attention_count_what_torch_counts(spec, tokens):
    layer = Latents(spec, tokens)
    operator = operators.qkv_proj(spec, tokens, FLOAT32)

    assert operator.flop == counted(layer.expand)
    assert operator.weight_bytes == tensor_bytes(*layer.queries, layer.down, layer.up)
    assert operators.o_proj(spec, tokens, FLOAT32).weight_bytes == tensor_bytes(layer.out)
    assert tensor_bytes(layer.up) == tensor_bytes(layer.up_keys, layer.up_values)


@given(models(latent=True), TOKENS, LENS)
@QUICK
def test_bytes_of_latent_decode_are_those_of_its_tensors(spec, sequences, context):
    at, heads = spec.latent, spec.num_query_heads
    cache = tensor(sequences, context + 1, at.kv_lora_rank + at.rope_head_dim)
    query, out = (
        tensor(sequences, heads, at.kv_lora_rank + at.rope_head_dim),
        tensor(sequences, heads, at.kv_lora_rank),
    )
    operator = operators.attention_decode(spec, sequences, context, FLOAT32)

    assert operator.flop == counted(lambda: query @ cache[:, :-1].mT @ cache[:, :-1, : at.kv_lora_rank])
    assert operator.kv_bytes == tensor_bytes(cache)
    assert operator.activation_bytes == tensor_bytes(query, out)


# Attention over keys and values.


@given(models(latent=False), TOKENS, LENS, st.none() | st.integers(1, 60))
@QUICK
def test_decode_attention_counts_both_products(spec, sequences, context, window):
    heads, dim, reach = spec.num_query_heads, spec.head_dim, min(context, window or context)
    group = heads // spec.num_kv_heads
    query = tensor(sequences, spec.num_kv_heads, group, dim)
    keys, values = (tensor(sequences, spec.num_kv_heads, reach, dim) for _ in range(2))
    appended = tensor(2, sequences, spec.num_kv_heads, dim)
    operator = operators.attention_decode(spec, sequences, context, FLOAT32, window)

    assert operator.flop == counted(lambda: query @ keys.mT @ values)
    assert operator.kv_bytes == tensor_bytes(keys, values, appended)
    assert operator.activation_bytes == tensor_bytes(query, query @ keys.mT @ values)


@given(models(), TOKENS, LENS, st.none() | st.integers(1, 60))
@QUICK
def test_causal_prefill_is_the_full_count_times_its_share_of_pairs(spec, sequences, prompt, window):
    heads, at = spec.num_query_heads, spec.latent
    width, value = (at.nope_head_dim + at.rope_head_dim, at.value_head_dim) if at else (spec.head_dim, spec.head_dim)
    query, keys = (tensor(sequences, heads, prompt, width) for _ in range(2))
    values = tensor(sequences, heads, prompt, value)
    full = counted(lambda: query @ keys.mT @ values)
    causal = operators.attention_prefill(spec, sequences, prompt, prompt * (prompt + 1) / 2, FLOAT32)
    windowed = operators.attention_prefill(spec, sequences, prompt, pairs(prompt, window), FLOAT32)

    assert 2 * prompt * causal.flop == full * (prompt + 1)
    assert windowed.flop * prompt**2 == full * pairs(prompt, window)
    assert causal.flop == operators.attention_prefill(spec, sequences, prompt, pairs(prompt), FLOAT32).flop


@given(models(), TOKENS, LENS)
@QUICK
def test_bytes_of_prefill_are_those_of_its_tensors(spec, sequences, prompt):
    heads, at, rows = spec.num_query_heads, spec.latent, (sequences, prompt)
    operator = operators.attention_prefill(spec, sequences, prompt, pairs(prompt), FLOAT32)
    if at is None:
        cached = tensor(2, *rows, spec.num_kv_heads, spec.head_dim)
        activations = [tensor(*rows, heads, spec.head_dim)] * 2
    else:
        cached = tensor(*rows, at.kv_lora_rank + at.rope_head_dim)
        activations = [tensor(*rows, heads, at.nope_head_dim + at.rope_head_dim)] * 2
        activations += [tensor(*rows, heads, at.value_head_dim)] * 2

    assert operator.kv_bytes == tensor_bytes(cached)
    assert operator.activation_bytes == tensor_bytes(*activations)


# SwiGLU.


def swiglu(rows, gate, up, down):
    return ((rows @ gate) * (rows @ up)) @ down


@given(models(), TOKENS, st.integers(0, 2**32))
@QUICK
def test_routed_experts_count_what_torch_counts(spec, tokens, seed):
    """Whatever the routing: each token passes k experts, and the weights of each expert hit are read once."""
    draw = np.random.default_rng(seed)
    chosen = [draw.choice(spec.num_experts, spec.experts_per_token, replace=False) for _ in range(tokens)]
    gate, up = (tensor(spec.num_experts, spec.hidden_size, spec.intermediate_size) for _ in range(2))
    down = tensor(spec.num_experts, spec.intermediate_size, spec.hidden_size)
    hidden = tensor(tokens, spec.hidden_size)
    hit = sorted(set(np.concatenate(chosen).tolist()))

    def layer():
        for expert in hit:
            rows = hidden[[token for token in range(tokens) if expert in chosen[token]]]
            swiglu(rows, gate[expert], up[expert], down[expert])

    operator = operators.experts(spec, tokens, FLOAT32)

    assert operator.flop == counted(layer)
    assert operator.weight_bytes / operator.calls * len(hit) == pytest.approx(
        tensor_bytes(gate[hit], up[hit], down[hit])
    )
    assert operator.activation_bytes == 2 * spec.experts_per_token * tensor_bytes(hidden)


@given(models(), TOKENS)
@QUICK
def test_shared_experts_and_dense_layers_count_what_torch_counts(spec, tokens):
    for count, width in (
        (operators.shared_experts, spec.shared_intermediate_size),
        (operators.dense_ffn, spec.dense_intermediate_size),
    ):
        hidden, operator = tensor(tokens, spec.hidden_size), count(spec, tokens, FLOAT32)
        weights = tensor(spec.hidden_size, width), tensor(spec.hidden_size, width), tensor(width, spec.hidden_size)

        assert operator.weight_bytes == tensor_bytes(*weights)
        if width:
            assert operator.flop == counted(lambda hidden=hidden, weights=weights: swiglu(hidden, *weights))
            assert operator.activation_bytes == 2 * tensor_bytes(hidden)
        else:
            assert operator.flop == operator.bytes == operator.calls == 0
