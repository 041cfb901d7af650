"""The schedule is data: tasks with a lane, what they wait for. Simulator and executor read the same tasks."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from hrm.records import record

IN_FLIGHT = 2
"""Of whatever is double-buffered, how many are in use at once: one is filled while the other is used. Micro-batches in
transfer, device slots of streamed layers, pinned staging pages."""

__all__ = ["IN_FLIGHT", "Lane", "Need", "Phase", "Schedule", "Task", "TaskKey", "TaskKind"]


class Phase(StrEnum):
    """A pass over all layers: the prompts (`prefill`), or one new token per sequence (`decode`)."""

    PREFILL = "prefill"
    DECODE = "decode"


class Lane(StrEnum):
    """A processor or engine that does one task at a time, in the order in which they were given to it."""

    GPU = "gpu"
    CPU = "cpu"
    H2D = "h2d"
    D2H = "d2h"
    DISK = "disk"
    PIN = "pin"


class TaskKind(StrEnum):
    """What a task does; `part` of its key numbers micro-batches, or pages for the two page kinds."""

    PRE_ATTENTION = "pre_attention"
    """Input norm, QKV projection, RoPE; in layer 0 the embedding of the micro-batch's tokens first."""
    QKV_OFFLOAD = "qkv_offload"
    """D1: queries, keys and values of a micro-batch go down; in prefill only keys and values, for the cache."""
    ATTENTION = "attention"
    """Append to the KV cache and attend; on the CPU in decode where the policy says so, else on the GPU."""
    HIDDEN_UPLOAD = "hidden_upload"
    """D2: the attention output of a micro-batch comes up."""
    POST_ATTENTION = "post_attention"
    """O projection, residual, norm, router, experts, residual; in the last layer the head and the next token."""
    PAGE_COPY = "page_copy"
    """D3: a page of a layer's streamed expert weights crosses the link into the double buffer."""
    PAGE_PIN = "page_pin"
    """A page goes from pageable to pinned memory."""


class TaskKey(NamedTuple):
    """Name of a task within a pass."""

    kind: TaskKind
    layer: int
    part: int


class Need(NamedTuple):
    """A dependency: the task `key` of this pass (`passes_ago` 0) or of the one before (1).

    In the first pass a need of the pass before is met by the prologue, or at once where the prologue has no such task.
    """

    key: TaskKey
    passes_ago: int = 0


@record
class Task:
    """One unit of work. `for_next_pass` marks look-ahead that the last pass leaves out."""

    key: TaskKey
    lane: Lane
    needs: tuple[Need, ...] = ()
    for_next_pass: bool = False

    @property
    def kind(self) -> TaskKind:
        """What the task does."""
        return self.key.kind

    @property
    def layer(self) -> int:
        """The layer the task belongs to."""
        return self.key.layer

    @property
    def part(self) -> int:
        """Micro-batch, or page."""
        return self.key.part


@record
class Schedule:
    """What runs: the prologue once, the prefill pass once, the decode pass `gen_len - 1` times.

    Tasks of a lane run in the order of the tuple. A need names a task that stands earlier in the tuple, or in the pass
    before; tasks that pass P lays ahead for pass P + 1 carry `for_next_pass` and are named there with `passes_ago` 1.
    """

    prologue: tuple[Task, ...]
    prefill: tuple[Task, ...]
    decode: tuple[Task, ...]

    def passes(self, gen_len: int) -> tuple[tuple[Phase, tuple[Task, ...]], ...]:
        """List the passes of a whole generation in order, look-ahead of the last one left out."""
        phases = [(Phase.PREFILL, self.prefill)] + [(Phase.DECODE, self.decode)] * (gen_len - 1)
        last_phase, last_tasks = phases[-1]
        phases[-1] = (last_phase, tuple(task for task in last_tasks if not task.for_next_pass))
        return tuple(phases)
