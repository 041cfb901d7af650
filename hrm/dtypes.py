"""Number formats by name, and what one element costs in bytes, its scales included."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["DType"]


class DType(StrEnum):
    """A storage format of weights, activations or the KV cache."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def bytes_per_element(self) -> float:
        """Bytes of one stored element. int8 and int4 carry one 2-byte scale per group of 32 elements."""
        return _BYTES_PER_ELEMENT[self]


_BYTES_PER_ELEMENT = {
    DType.FLOAT32: 4.0,
    DType.BFLOAT16: 2.0,
    DType.FLOAT16: 2.0,
    DType.INT8: 1.0 + 2.0 / 32,
    DType.INT4: 0.5 + 2.0 / 32,
}
