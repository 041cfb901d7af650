"""Counts of operators against torch's own counter and against real tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from hrm import operators
from hrm.dtypes import DType
from hrm.model_config import load_model
from tests.machines import model, models

TOKENS = st.integers(1, 12)
QUICK = settings(max_examples=25, deadline=None)


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def tensor_bytes(*tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@given(models(), TOKENS)
@QUICK
def test_projections_count_what_torch_counts(spec, tokens):
    shapes = {
        operators.qkv_proj: (spec.hidden_size, spec.query_size + 2 * spec.kv_size),
        operators.o_proj: (spec.query_size, spec.hidden_size),
        operators.router: (spec.hidden_size, spec.num_experts if spec.num_experts > 1 else 0),
        operators.lm_head: (spec.hidden_size, spec.vocab_size),
    }
    for count, (inputs, outputs) in shapes.items():
        weight, rows = torch.empty(inputs, outputs), torch.empty(tokens, inputs)
        operator = count(spec, tokens, DType.FLOAT32)

        assert operator.flop == counted(lambda rows=rows, weight=weight: rows @ weight)
        assert operator.weight_bytes == tensor_bytes(weight)
        assert operator.activation_bytes == tensor_bytes(rows, rows @ weight)


@given(models(), TOKENS)
@QUICK
def test_experts_count_what_torch_counts(spec, tokens):
    gate, up = (torch.empty(spec.hidden_size, spec.intermediate_size) for _ in range(2))
    down = torch.empty(spec.intermediate_size, spec.hidden_size)
    rows = torch.empty(tokens, spec.hidden_size)

    def every_token_to_k_experts():
        for _ in range(spec.experts_per_token):
            ((rows @ gate) * (rows @ up)) @ down

    operator = operators.experts(spec, tokens, DType.FLOAT32)

    assert operator.flop == counted(every_token_to_k_experts)
    assert operator.weight_bytes == pytest.approx(operator.calls * tensor_bytes(gate, up, down))
    assert operator.activation_bytes == 2 * spec.experts_per_token * tensor_bytes(rows)
    assert operator.calls * operator.rows == pytest.approx(tokens * spec.experts_per_token)


@given(models(), TOKENS, st.integers(1, 50))
@QUICK
def test_decode_attention_counts_both_products(spec, sequences, context):
    heads, dim = spec.num_query_heads, spec.head_dim
    query = torch.empty(sequences * heads, 1, dim)
    keys, values = (torch.empty(sequences * heads, context, dim) for _ in range(2))
    cached = torch.empty(2, sequences, context + 1, spec.num_kv_heads, dim)
    operator = operators.attention_decode(spec, sequences, context, DType.FLOAT32)

    assert operator.flop == counted(lambda: query @ keys.mT @ values)
    assert operator.kv_bytes == tensor_bytes(cached)
    assert operator.activation_bytes == 2 * tensor_bytes(query)


@given(models(), TOKENS, st.integers(1, 50))
@QUICK
def test_causal_prefill_is_the_full_count_times_its_share_of_pairs(spec, sequences, prompt):
    heads, dim = spec.num_query_heads, spec.head_dim
    query, keys, values = (torch.empty(sequences * heads, prompt, dim) for _ in range(3))
    operator = operators.attention_prefill(spec, sequences, prompt**2, prompt, DType.FLOAT32)
    full = counted(lambda: query @ keys.mT @ values)

    assert operator.flop == pytest.approx(full * (prompt + 1) / (2 * prompt))
    assert operator.kv_bytes == tensor_bytes(torch.empty(2, sequences, prompt, spec.num_kv_heads, dim))
    assert operator.activation_bytes == 2 * tensor_bytes(query)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6))
@QUICK
def test_prompts_of_unequal_length_cost_their_sum(lens):
    spec = model()
    count = len(lens)
    mean_square = sum(length**2 for length in lens) / count
    together = operators.attention_prefill(spec, count, mean_square, sum(lens) / count, DType.FLOAT32)
    each = [operators.attention_prefill(spec, 1, length**2, length, DType.FLOAT32) for length in lens]

    assert together.flop == pytest.approx(sum(one.flop for one in each))
    assert together.bytes == pytest.approx(sum(one.bytes for one in each))


@pytest.mark.parametrize("count", [operators.qkv_proj, operators.experts, operators.lm_head])
def test_a_larger_batch_uses_each_weight_byte_more(count):
    intensities = [count(model(), tokens, DType.BFLOAT16).fetched_intensity for tokens in (1, 2, 8, 64, 512)]

    assert intensities == sorted(intensities)
    assert intensities[-1] > intensities[0]


def test_a_larger_batch_does_not_use_kv_bytes_more():
    one, many = (operators.attention_decode(model(), count, 64, DType.BFLOAT16) for count in (1, 512))

    assert one.operational_intensity == many.operational_intensity


@pytest.mark.parametrize(
    ("dtype", "expected"), [(DType.FLOAT16, 4.0), (DType.INT4, 14.2)], ids=["fp16 KV", "int4 KV with a scale per 32"]
)
def test_decode_attention_of_the_case_study(dtype, expected):
    """arXiv 2411.11217, section 3.3: attention of Mixtral 8x7B (GQA 32/8); the int4 figure counts its scales."""
    operator = operators.attention_decode(load_model("mixtral-8x7b"), 64, 4096, dtype)

    assert operator.fetched_intensity == pytest.approx(expected, rel=0.01)


def test_expert_intensity_over_streamed_weights_is_a_quarter_of_the_batch():
    """arXiv 2411.11217, section 3.3: 2 of 8 experts, 2 bytes per weight."""
    for batch_size in (128, 325, 2400):
        operator = operators.experts(load_model("mixtral-8x7b"), batch_size, DType.FLOAT16)

        assert operator.fetched_intensity == pytest.approx(batch_size / 4)


def test_elementwise_work_is_all_memory():
    operator = operators.elementwise(model(), 8, DType.FLOAT32)

    assert operator.flop == 0
    assert operator.operational_intensity == 0
    assert operator.bytes == operator.activation_bytes > 0
