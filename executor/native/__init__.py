"""Kernels compiled for the CPU: attention, products with weight matrices, norms, rotations and sums.

Without a C++ compiler the package installs all the same, and all of it runs through torch.
"""

from executor.native.attention import append_kv, decode_attention
from executor.native.choices import largest, route
from executor.native.elementwise import Move, add, add_rms_norm, copy_rows, move_rows, rms_norm, rotate, suits_rows
from executor.native.library import Recording, available, instruction_sets, keep, recording, status_line
from executor.native.prefill import Prompts, prefill_attention
from executor.native.products import Experts, experts, linear, packed_bytes

__all__ = [
    "Experts",
    "Move",
    "Prompts",
    "Recording",
    "add",
    "add_rms_norm",
    "append_kv",
    "available",
    "copy_rows",
    "decode_attention",
    "experts",
    "instruction_sets",
    "keep",
    "largest",
    "linear",
    "move_rows",
    "packed_bytes",
    "prefill_attention",
    "recording",
    "rms_norm",
    "rotate",
    "route",
    "status_line",
    "suits_rows",
]
