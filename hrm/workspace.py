"""How much room kernels need beside their operands and results: bounds that the ledger counts and the executor takes.

On processors without 16-bit products kernels widen to float32, a piece of weights and some rows at a time, so every
temporary is counted in float32.
"""

from __future__ import annotations

import functools

import numpy as np

from hrm.arrays import Reals
from hrm.model import ModelSpec

__all__ = [
    "COMPILED_ROWS",
    "PIECE_ELEMENTS",
    "ROWS_AT_A_TIME",
    "experts_workspace_bytes",
    "gathered_expert_workspace_bytes",
    "linear_workspace_bytes",
    "piece_rows",
    "workspace_bytes",
]

PIECE_ELEMENTS = 1 << 20
"""Weight elements widened at a time: 4 MiB in float32. Pieces of a quarter to four times that took within 10 % of the
same time on a Zen 3 core with a share of 32 MiB of last-level cache."""
ROWS_AT_A_TIME = 4096
"""Rows worked on at a time, by an expert or widened, so that the workspace stays bounded."""
COMPILED_ROWS = 512
"""Rows that the compiled kernels take at a time: as many as leave what lies between an expert's products in the cache.
On a Zen 5 core eight experts of 512 x 3584, 960 rows each, reach 415 GFLOP/s with 128 to 1,024 rows, 360 with 4,096."""
_FLOAT32_BYTES = 4
_ALIGNMENT_BYTES = 64
_PACKING_BYTES = 192
"""What the compiled kernels add to a row of float32 at most: 31 numbers to fill a unit, and a cache line."""


def piece_rows(outputs: int, inputs: int) -> int:
    """Return how many rows of a weight [outputs, inputs] are widened at a time."""
    return max(1, min(outputs, PIECE_ELEMENTS // inputs))


def linear_workspace_bytes(rows: Reals, inputs: int, outputs: int) -> Reals:
    """Bound the workspace that a product of `rows` x `inputs` by a weight takes beside its operand and result.

    Rows that are filled up for a library (`executor.linear`) are narrow: they take what narrow operands leave of this,
    and of the piece at most 14 bytes an output, up to 290,000 of them.
    """
    rows = np.minimum(rows, ROWS_AT_A_TIME)
    piece = piece_rows(outputs, inputs) * inputs
    return _FLOAT32_BYTES * (rows * (inputs + outputs) + piece) + rows * _PACKING_BYTES + 4 * _ALIGNMENT_BYTES


def _compiled_rows_bytes(tokens: Reals, intermediate: int, experts_per_token: int) -> Reals:
    """Bound what lies between the products of the rows that the compiled kernels take at a time."""
    rows = np.minimum(tokens * experts_per_token, COMPILED_ROWS)
    packed: Reals = (_FLOAT32_BYTES * intermediate + _PACKING_BYTES) * rows
    return packed


def experts_workspace_bytes(
    tokens: Reals, hidden: int, intermediate: int, num_experts: int, experts_per_token: int
) -> Reals:
    """Bound the workspace of the experts of a layer: the sum, and the rows that are worked on at a time.

    Those are one expert's, whatever the routing, or with the compiled kernels as many as COMPILED_ROWS of any.
    """
    rows = np.minimum(tokens, ROWS_AT_A_TIME)
    gathered = (_FLOAT32_BYTES * 2 * (hidden + intermediate) + _PACKING_BYTES) * rows
    pieces = np.maximum(
        linear_workspace_bytes(0, hidden, 2 * intermediate), linear_workspace_bytes(0, intermediate, hidden)
    )
    routing = _FLOAT32_BYTES * tokens * num_experts + linear_workspace_bytes(tokens, hidden, num_experts)
    sums = (_FLOAT32_BYTES * 2 * hidden + _PACKING_BYTES) * tokens
    compiled = _compiled_rows_bytes(tokens, intermediate, experts_per_token)
    widest: Reals = np.maximum(np.maximum(gathered + pieces, routing), compiled)
    return sums + widest + 8 * _ALIGNMENT_BYTES


def gathered_expert_workspace_bytes(tokens: Reals, hidden: int, intermediate: int, experts_per_token: int) -> Reals:
    """Bound the workspace of one expert whose rows are gathered, widened, computed and added to a sum elsewhere."""
    rows = np.minimum(tokens, ROWS_AT_A_TIME)
    pieces = np.maximum(
        linear_workspace_bytes(0, hidden, 2 * intermediate), linear_workspace_bytes(0, intermediate, hidden)
    )
    row_bytes = _FLOAT32_BYTES * (3 * hidden + 2 * intermediate) + 2 * _PACKING_BYTES
    packed = (_FLOAT32_BYTES * hidden + _PACKING_BYTES) * rows
    compiled = packed + _compiled_rows_bytes(tokens, intermediate, experts_per_token)
    widest: Reals = np.maximum(row_bytes * rows + pieces, compiled)
    return widest + 8 * _ALIGNMENT_BYTES


def workspace_bytes(model: ModelSpec, tokens: Reals, sequences: Reals) -> Reals:
    """Bound the workspace of a micro-batch of so many tokens and sequences: its largest stage.

    The stages are pre-attention, the output projection, the FFN, the head, and prefill's keys and values.
    """
    hidden, query, cache = model.hidden_size, model.query_size, model.cache_width
    joint = sum(outputs for _, outputs in model.attention_projections)
    ffn = max(model.intermediate_size, model.dense_intermediate_size, model.shared_intermediate_size)
    wide = _FLOAT32_BYTES * tokens
    stages = (
        wide * (hidden + joint + query + cache) + linear_workspace_bytes(tokens, hidden, joint),
        wide * hidden + linear_workspace_bytes(tokens, model.output_projection[0], hidden),
        wide * hidden + experts_workspace_bytes(tokens, hidden, ffn, model.num_experts, model.experts_per_token),
        _FLOAT32_BYTES * sequences * (2 * hidden + model.vocab_size)
        + linear_workspace_bytes(sequences, hidden, 0)
        + linear_workspace_bytes(0, hidden, model.vocab_size),
        wide * (2 * hidden + cache),
    )
    largest: Reals = functools.reduce(np.maximum, stages)
    return largest + 16 * _ALIGNMENT_BYTES
