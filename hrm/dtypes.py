"""Number formats by name, and what one element costs in bytes, its scales included."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["DType"]


class DType(StrEnum):
    """A storage format of weights, activations or the KV cache."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT8 = "float8"
    INT8 = "int8"
    INT4 = "int4"
    MXFP4 = "mxfp4"
    Q8_0 = "q8_0"
    Q6_K = "q6_k"
    Q5_K = "q5_k"
    Q4_K = "q4_k"
    Q4_K_M = "q4_k_m"
    Q4_0 = "q4_0"
    Q3_K = "q3_k"
    Q2_K = "q2_k"

    @property
    def bytes_per_element(self) -> float:
        """Bytes of one stored element, its share of the scales included."""
        return _BYTES_PER_ELEMENT[self]

    @property
    def is_quantized(self) -> bool:
        """Whether elements share scales, so that kernels widen them before they multiply."""
        return self not in (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16, DType.FLOAT8)

    @property
    def activation_dtype(self) -> DType:
        """Format of the activations beside weights or a cache of this one: 16 bits where it is narrower."""
        return self if self in (DType.FLOAT32, DType.FLOAT16) else DType.BFLOAT16


_Q4_K, _Q6_K = 144 / 256, 210 / 256

_BYTES_PER_ELEMENT = {
    DType.FLOAT32: 4.0,
    DType.BFLOAT16: 2.0,
    DType.FLOAT16: 2.0,
    # float8 with one float32 scale per block of 128 x 128 (DeepSeek-V3, arXiv 2412.19437 §3.3).
    DType.FLOAT8: 1.0 + 4.0 / 128**2,
    # int8 and int4 with one 2-byte scale per group of 32.
    DType.INT8: 1.0 + 2.0 / 32,
    DType.INT4: 0.5 + 2.0 / 32,
    # OCP Microscaling Formats v1.0: 32 elements of 4 bits share one 8-bit exponent.
    DType.MXFP4: 17 / 32,
    # GGUF blocks, bytes per elements of a block: ggml-common.h of llama.cpp.
    DType.Q8_0: 34 / 32,
    DType.Q6_K: _Q6_K,
    DType.Q5_K: 176 / 256,
    DType.Q4_K: _Q4_K,
    # The mixture "medium": of an expert's three matrices the down projection is q6_k in half of the layers.
    DType.Q4_K_M: (2 * _Q4_K + (_Q4_K + _Q6_K) / 2) / 3,
    DType.Q4_0: 18 / 32,
    DType.Q3_K: 110 / 256,
    DType.Q2_K: 84 / 256,
}
