"""Bytes of weights and caches in every format against the tensors that hold them, scales included.

Torch tensors lie on the meta device, which knows sizes and needs no memory; GGUF sizes are those of its own package.
"""

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm import operators
from hrm.dtypes import DType
from tests.machines import model

QUICK = settings(max_examples=25, deadline=None)


def tensor(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def tensor_bytes(*tensors):
    return sum(one.numel() * one.element_size() for one in tensors)


def stored(dtype, outputs, inputs):
    """Make the tensors of a matrix: its elements and their scales."""
    if dtype is DType.INT8:
        parts = [tensor(outputs, inputs, dtype=torch.int8), tensor(outputs, inputs // 32, dtype=torch.float16)]
    elif dtype is DType.INT4:
        parts = [tensor(outputs, inputs // 2, dtype=torch.uint8), tensor(outputs, inputs // 32, dtype=torch.float16)]
    elif dtype is DType.MXFP4:
        parts = [tensor(outputs, inputs // 2, dtype=torch.uint8), tensor(outputs, inputs // 32, dtype=torch.uint8)]
    elif dtype is DType.FLOAT8:
        parts = [tensor(outputs, inputs, dtype=torch.float8_e4m3fn), tensor(outputs // 128, inputs // 128)]
    else:
        parts = [tensor(outputs, inputs, dtype=getattr(torch, dtype))]
    return parts


def gguf_bytes(dtype, outputs, inputs):
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype.name]]
    return outputs * inputs // block * size


TORCH = [DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16, DType.FLOAT8, DType.INT8, DType.INT4, DType.MXFP4]
GGUF = [DType.Q8_0, DType.Q6_K, DType.Q5_K, DType.Q4_K, DType.Q4_0, DType.Q3_K, DType.Q2_K, DType.MXFP4]
WIDTHS = st.integers(1, 5).map(lambda count: 256 * count)


@pytest.mark.parametrize("dtype", TORCH)
@given(hidden=WIDTHS, intermediate=WIDTHS)
@QUICK
def test_weights_with_their_scales_are_as_large_as_their_tensors(dtype, hidden, intermediate):
    spec = model(hidden_size=hidden, intermediate_size=intermediate, shared_intermediate_size=intermediate)
    expert = 2 * [(intermediate, hidden)] + [(hidden, intermediate)]
    expected = sum(tensor_bytes(*stored(dtype, *shape)) for shape in expert)
    routed = operators.experts(spec, 3, dtype)

    assert routed.weight_bytes == pytest.approx(routed.calls * expected, rel=1e-12)
    assert operators.shared_experts(spec, 3, dtype).weight_bytes == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", GGUF)
@given(hidden=WIDTHS, intermediate=WIDTHS)
@QUICK
def test_gguf_weights_are_as_large_as_their_blocks(dtype, hidden, intermediate):
    spec = model(hidden_size=hidden, intermediate_size=intermediate)
    expected = 2 * gguf_bytes(dtype, intermediate, hidden) + gguf_bytes(dtype, hidden, intermediate)
    routed = operators.experts(spec, 3, dtype)

    assert routed.weight_bytes == pytest.approx(routed.calls * expected, rel=1e-12)


def test_the_medium_mixture_keeps_half_of_the_down_projections_in_six_bits():
    """llama.cpp, src/llama-quant.cpp: Q4_K_M gives `ffn_down` q6_k in half of the layers, the other matrices q4_k."""
    spec = model(hidden_size=256, intermediate_size=512)
    layers = [3 * gguf_bytes(DType.Q4_K, 256, 512)] * 2
    layers[0] += gguf_bytes(DType.Q6_K, 256, 512) - gguf_bytes(DType.Q4_K, 256, 512)
    routed = operators.experts(spec, 3, DType.Q4_K_M)

    assert routed.weight_bytes == pytest.approx(routed.calls * sum(layers) / 2, rel=1e-12)


@pytest.mark.parametrize("dtype", [DType.Q8_0, DType.Q4_0, DType.MXFP4])
def test_a_matrix_that_gguf_quantised_is_as_large_as_counted(dtype):
    matrix = np.linspace(-1, 1, 48 * 256, dtype=np.float32).reshape(48, 256)
    packed = quantize(matrix, gguf.GGMLQuantizationType[dtype.name])

    assert packed.nbytes == dtype.bytes_per_element * matrix.size


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16, DType.INT8, DType.INT4])
@given(sequences=st.integers(1, 12), context=st.integers(1, 50), kv_heads=st.integers(1, 4))
@QUICK
def test_a_cache_with_its_scales_is_as_large_as_its_tensors(dtype, sequences, context, kv_heads):
    spec = model(num_kv_heads=kv_heads, num_query_heads=2 * kv_heads, head_dim=64)
    operator = operators.attention_decode(spec, sequences, context, dtype)
    read_and_appended = stored(dtype, 2 * sequences * (context + 1) * kv_heads, 64)
    query = tensor(
        sequences, spec.num_query_heads, 64, dtype=torch.bfloat16 if dtype is not DType.FLOAT32 else torch.float32
    )

    assert operator.kv_bytes == pytest.approx(tensor_bytes(*read_and_appended), rel=1e-12)
    assert operator.activation_bytes == 2 * tensor_bytes(query)
