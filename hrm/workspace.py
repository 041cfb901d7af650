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
_FLOAT32_BYTES = 4
_ALIGNMENT_BYTES = 64
_PACKING_BYTES = 192
"""What the compiled kernels add to a row of float32 at most: 31 numbers to fill a unit, and a cache line."""


def piece_rows(outputs: int, inputs: int) -> int:
    """Return how many rows of a weight [outputs, inputs] are widened at a time."""
    return max(1, min(outputs, PIECE_ELEMENTS // inputs))


def linear_workspace_bytes(rows: Reals, inputs: int, outputs: int) -> Reals:
    """Bound the workspace that a product of `rows` x `inputs` by a weight takes beside its operand and result."""
    rows = np.minimum(rows, ROWS_AT_A_TIME)
    piece = piece_rows(outputs, inputs) * inputs
    return _FLOAT32_BYTES * (rows * (inputs + outputs) + piece) + rows * _PACKING_BYTES + 4 * _ALIGNMENT_BYTES


def experts_workspace_bytes(tokens: Reals, hidden: int, intermediate: int, num_experts: int) -> Reals:
    """Bound the workspace of the experts of a layer: the sum, and one expert's rows, whatever the routing."""
    rows = np.minimum(tokens, ROWS_AT_A_TIME)
    gathered = (_FLOAT32_BYTES * 2 * (hidden + intermediate) + _PACKING_BYTES) * rows
    pieces = np.maximum(
        linear_workspace_bytes(0, hidden, 2 * intermediate), linear_workspace_bytes(0, intermediate, hidden)
    )
    routing = _FLOAT32_BYTES * tokens * num_experts + linear_workspace_bytes(tokens, hidden, num_experts)
    sums = (_FLOAT32_BYTES * 2 * hidden + _PACKING_BYTES) * tokens
    widest: Reals = np.maximum(gathered + pieces, routing)
    return sums + widest + 8 * _ALIGNMENT_BYTES


def gathered_expert_workspace_bytes(tokens: Reals, hidden: int, intermediate: int) -> Reals:
    """Bound the workspace of one expert whose rows are gathered, widened, computed and added to a sum elsewhere."""
    rows = np.minimum(tokens, ROWS_AT_A_TIME)
    pieces = np.maximum(
        linear_workspace_bytes(0, hidden, 2 * intermediate), linear_workspace_bytes(0, intermediate, hidden)
    )
    row_bytes = _FLOAT32_BYTES * (3 * hidden + 2 * intermediate) + 2 * _PACKING_BYTES
    gathered: Reals = row_bytes * rows + pieces + 8 * _ALIGNMENT_BYTES
    return gathered


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
        wide * hidden + experts_workspace_bytes(tokens, hidden, ffn, model.num_experts),
        _FLOAT32_BYTES * sequences * (2 * hidden + model.vocab_size)
        + linear_workspace_bytes(sequences, hidden, 0)
        + linear_workspace_bytes(0, hidden, model.vocab_size),
        wide * (2 * hidden + cache),
    )
    largest: Reals = functools.reduce(np.maximum, stages)
    return largest + 16 * _ALIGNMENT_BYTES
