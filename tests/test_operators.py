"""What operators do as their shapes change: parts sum to the whole, arrays agree with numbers, intensities move."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm import operators
from hrm.ceilings import Kernel
from hrm.dtypes import DType
from hrm.model import LatentAttention
from hrm.routing import UNIFORM, Routing, RoutingLaw
from hrm.workload import Workload
from tests.machines import model, models

QUICK = settings(max_examples=25, deadline=None)
COUNTS = ("flop", "elementwise_flop", "weight_bytes", "kv_bytes", "activation_bytes", "calls")
LATENT = LatentAttention(kv_lora_rank=6, nope_head_dim=4, rope_head_dim=2, value_head_dim=3, q_lora_rank=5)
SPECS = {
    "grouped": model(),
    "latent": model(latent=LATENT, shared_intermediate_size=8, dense_intermediate_size=12),
    "dense": model(num_experts=1, experts_per_token=1),
}
ZIPF = Routing(law=RoutingLaw.SKEWED, exponent=1.0)
MIXTRAL = model(
    hidden_size=4096,
    intermediate_size=14336,
    num_query_heads=32,
    num_kv_heads=8,
    head_dim=128,
    num_experts=8,
    experts_per_token=2,
)


def layer(spec, tokens, length, dtype, share=1.0):
    """Count every operator that a layer and the head can have."""
    return [
        operators.qkv_proj(spec, tokens, dtype),
        operators.o_proj(spec, tokens, dtype),
        operators.router(spec, tokens, dtype),
        operators.lm_head(spec, tokens, dtype),
        operators.attention_decode(spec, tokens, length, dtype),
        operators.attention_decode(spec, tokens, length, dtype, 8),
        operators.attention_prefill(spec, tokens, length, length * (length + 1) / 2, dtype),
        operators.experts(spec, tokens, dtype, UNIFORM, share),
        operators.experts(spec, tokens, dtype, ZIPF, share),
        operators.shared_experts(spec, tokens, dtype),
        operators.dense_ffn(spec, tokens, dtype),
        operators.elementwise(spec, tokens, dtype),
    ]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.INT4])
def test_arrays_are_counted_entry_by_entry(name, dtype):
    tokens, lens, shares = np.array([1.0, 3.0, 40.0]), np.array([5.0, 9.0, 300.0]), np.array([0.0, 0.25, 1.0])
    together = layer(SPECS[name], tokens, lens, dtype, shares)
    each = [layer(SPECS[name], t, c, dtype, share) for t, c, share in zip(tokens, lens, shares, strict=True)]

    for operator, *alone in zip(together, *each, strict=True):
        for field in fields(operator)[3:]:
            expected = [getattr(one, field.name) for one in alone]
            assert np.broadcast_to(getattr(operator, field.name), 3) == pytest.approx(expected), field.name
        for name_of in ("bytes", "operational_intensity", "fetched_intensity"):
            expected = [getattr(one, name_of) for one in alone]
            assert np.broadcast_to(getattr(operator, name_of), 3) == pytest.approx(expected), name_of


@given(models(), st.integers(1, 50), st.floats(0, 1), st.sampled_from([UNIFORM, ZIPF]))
@QUICK
def test_experts_in_two_places_cost_what_they_cost_in_one(spec, tokens, share, routing):
    whole, here, there = (
        operators.experts(spec, tokens, DType.INT4, routing, part) for part in (1.0, share, 1 - share)
    )

    for name in COUNTS:
        assert getattr(here, name) + getattr(there, name) == pytest.approx(getattr(whole, name))
    assert here.rows == there.rows == whole.rows
    assert whole.calls * whole.rows == pytest.approx(tokens * spec.experts_per_token)
    assert whole.calls == pytest.approx(routing.distinct_experts(spec, tokens))


@pytest.mark.parametrize("tokens", [0.0, 5.0, np.array([0.0, 5.0])])
def test_no_experts_cost_nothing(tokens):
    for routing in (UNIFORM, ZIPF):
        operator = operators.experts(model(), tokens, DType.BFLOAT16, routing, 0.0)

        assert all(np.all(getattr(operator, name) == 0) for name in COUNTS)
        assert np.all(np.isfinite(operator.rows))


def test_what_a_model_lacks_costs_nothing():
    for operator in (
        operators.router(SPECS["dense"], 4, DType.BFLOAT16),
        operators.shared_experts(SPECS["dense"], 4, DType.BFLOAT16),
        operators.dense_ffn(SPECS["dense"], 4, DType.BFLOAT16),
    ):
        assert all(getattr(operator, name) == 0 for name in COUNTS)
        assert operator.operational_intensity == 0


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.none() | st.integers(1, 60))
@QUICK
def test_prompts_of_unequal_length_cost_their_sum(lens, window):
    spec, count = model(), len(lens)
    job = Workload.from_prompt_lens(tuple(lens), 1)
    together = operators.attention_prefill(
        spec, count, job.mean_prompt_len, job.mean_causal_pairs(window), DType.FLOAT32
    )
    each = []
    for length in lens:
        one = Workload.from_prompt_lens((length,), 1)
        each.append(operators.attention_prefill(spec, 1, length, one.mean_causal_pairs(window), DType.FLOAT32))

    assert together.flop == pytest.approx(sum(one.flop for one in each))
    assert together.bytes == pytest.approx(sum(one.bytes for one in each))


@given(st.integers(1, 1000), st.integers(1, 9))
@QUICK
def test_the_kernel_of_prefill_works_on_prompts_with_as_many_pairs(prompt, sequences):
    spec = model()
    operator = operators.attention_prefill(spec, sequences, prompt, prompt * (prompt + 1) / 2, DType.FLOAT32)

    assert operator.size == pytest.approx(prompt * spec.cache_width)
    assert operator.rows == sequences


def test_a_window_bounds_what_decode_reads():
    spec = model()
    free, windowed = (
        [operators.attention_decode(spec, 2, context, DType.BFLOAT16, window) for context in (8, 16, 64)]
        for window in (None, 16)
    )

    assert windowed[:2] == free[:2]
    assert windowed[2] == free[1]


@pytest.mark.parametrize("count", [operators.qkv_proj, operators.experts, operators.lm_head, operators.router])
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
    operator = operators.attention_decode(MIXTRAL, 64, 4096, dtype)

    assert operator.fetched_intensity == pytest.approx(expected, rel=0.01)


def test_expert_intensity_over_streamed_weights_is_a_quarter_of_the_batch():
    """arXiv 2411.11217, section 3.3: 2 of 8 experts, 2 bytes per weight."""
    for batch_size in (128, 325, 2400):
        operator = operators.experts(MIXTRAL, batch_size, DType.FLOAT16)

        assert operator.fetched_intensity == pytest.approx(batch_size / 4)


@pytest.mark.parametrize(
    ("dtype", "expected"), [(DType.FLOAT32, 4), (DType.FLOAT16, 2), (DType.INT4, 2), (DType.FLOAT8, 2), (DType.Q4_K, 2)]
)
def test_activations_beside_narrow_weights_keep_sixteen_bits(dtype, expected):
    spec = model()
    for operator, elements in (
        (operators.o_proj(spec, 3, dtype), 3 * 2 * 16),
        (operators.experts(spec, 3, dtype), 3 * 2 * 2 * 16),
        (operators.attention_decode(spec, 3, 9, dtype), 3 * 2 * 16),
    ):
        assert operator.activation_bytes == expected * elements


def test_prefill_attention_computes_in_the_format_of_the_activations():
    assert operators.attention_prefill(model(), 1, 4, 10, DType.MXFP4).dtype is DType.BFLOAT16
    assert operators.elementwise(model(), 1, DType.MXFP4).dtype is DType.BFLOAT16
    assert operators.experts(model(), 1, DType.MXFP4).dtype is DType.MXFP4


def test_elementwise_work_is_listed_apart_and_is_small():
    """Its FLOP are no part of the matrix products', and under 1 % of them in Mixtral's layer."""
    parts = layer(MIXTRAL, 64, 512, DType.BFLOAT16)
    work = [part for part in parts if part.kernel is Kernel.ELEMENTWISE]

    assert [part.flop for part in work] == [0]
    assert all(part.operational_intensity == 0 for part in work)
    assert all(part.bytes == part.activation_bytes > 0 for part in work)
    assert 0 < sum(part.elementwise_flop for part in parts) < 0.01 * sum(part.flop for part in parts)


def test_element_wise_work_before_attention_is_the_first_norm_and_what_turns():
    """Of one token in a layer of 16 hidden elements, 4 query heads and 2 KV heads of 4, by the bytes of all passes."""
    whole = float(operators.elementwise(model(), 1, DType.FLOAT32).activation_bytes)

    assert operators.share_before(model()) * whole == pytest.approx((2 * 16 + 2 * (4 + 2) * 4) * 4)


def test_elementwise_flop_are_those_of_the_formulas():
    """Of one token in a layer of 16 hidden elements, 4 query heads and 2 KV heads of 4, 2 of 4 experts of 24."""
    spec = model()
    norms, residuals, rope, softmax_of_router = 2 * 4 * 16, 2 * 16, 3 * (4 + 2) * 4, 4 * 4

    assert operators.elementwise(spec, 1, DType.FLOAT32).elementwise_flop == (
        norms + residuals + rope + softmax_of_router
    )
    assert operators.experts(spec, 1, DType.FLOAT32).elementwise_flop == 2 * 24 * 4
    assert operators.attention_decode(spec, 1, 10, DType.FLOAT32).elementwise_flop == 4 * 10 * 4
