"""Kernels compiled for the CPU: decode attention, and products with weight matrices.

Without a C++ compiler the package installs all the same: attention then runs through torch, and products are torch's.
"""

from executor.native.attention import append_kv, decode_attention
from executor.native.library import available, instruction_sets, status_line
from executor.native.products import Experts, experts, linear, packed_bytes

__all__ = [
    "Experts",
    "append_kv",
    "available",
    "decode_attention",
    "experts",
    "instruction_sets",
    "linear",
    "packed_bytes",
    "status_line",
]
