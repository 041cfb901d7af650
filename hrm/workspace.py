"""How much room kernels need beside their operands and results: bounds that the ledger counts and the executor takes.

On processors without 16-bit products kernels widen to float32, a piece of weights and some rows at a time, so every
temporary is counted in float32.
"""

from __future__ import annotations

from hrm.model import ModelSpec

__all__ = [
    "PIECE_ELEMENTS",
    "ROWS_AT_A_TIME",
    "experts_workspace_bytes",
    "linear_workspace_bytes",
    "workspace_bytes",
]

PIECE_ELEMENTS = 1 << 20
"""Weight elements widened at a time: 4 MiB in float32. Pieces of a quarter to four times that took within 10 % of the
same time on a Zen 3 core with a share of 32 MiB of last-level cache."""
ROWS_AT_A_TIME = 4096
"""Rows worked on at a time, by an expert or widened, so that the workspace stays bounded."""
_FLOAT32_BYTES = 4
_ALIGNMENT_BYTES = 64


def linear_workspace_bytes(rows: int, inputs: int, outputs: int) -> int:
    """Bound the workspace that a product of `rows` x `inputs` by a weight takes beside its operand and result."""
    rows = min(rows, ROWS_AT_A_TIME)
    piece = max(1, min(outputs, PIECE_ELEMENTS // inputs)) * inputs
    return _FLOAT32_BYTES * (rows * (inputs + outputs) + piece) + 4 * _ALIGNMENT_BYTES


def experts_workspace_bytes(tokens: int, hidden: int, intermediate: int, num_experts: int) -> int:
    """Bound the workspace of the experts of a layer: the sum, and one expert's rows, whatever the routing."""
    rows = min(tokens, ROWS_AT_A_TIME)
    gathered = _FLOAT32_BYTES * 2 * rows * (hidden + intermediate)
    pieces = max(linear_workspace_bytes(0, hidden, 2 * intermediate), linear_workspace_bytes(0, intermediate, hidden))
    routing = _FLOAT32_BYTES * tokens * num_experts + linear_workspace_bytes(tokens, hidden, num_experts)
    sums = _FLOAT32_BYTES * 2 * tokens * hidden
    return sums + max(gathered + pieces, routing) + 8 * _ALIGNMENT_BYTES


def workspace_bytes(model: ModelSpec, tokens: int, sequences: int) -> int:
    """Bound the workspace of a micro-batch of so many tokens and sequences: its largest stage.

    The stages are pre-attention, the output projection, the experts, the head, and prefill's keys and values.
    """
    hidden, query, joint = model.hidden_size, model.query_size, model.query_size + 2 * model.kv_size
    wide = _FLOAT32_BYTES * tokens
    stages = (
        wide * (hidden + joint + query + 2 * model.kv_size) + linear_workspace_bytes(tokens, hidden, joint),
        wide * hidden + linear_workspace_bytes(tokens, query, hidden),
        wide * hidden + experts_workspace_bytes(tokens, hidden, model.intermediate_size, model.num_experts),
        _FLOAT32_BYTES * sequences * (2 * hidden + model.vocab_size)
        + linear_workspace_bytes(0, hidden, model.vocab_size),
        2 * wide * (hidden + model.kv_size),
    )
    return max(stages) + 16 * _ALIGNMENT_BYTES
