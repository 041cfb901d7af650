"""The schedule is data: tasks with a lane, what they wait for. Simulator and executor read the same tasks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import chain
from typing import NamedTuple

from hrm.records import record

IN_FLIGHT = 2
"""Of whatever is double-buffered, how many are in use at once: one is filled while the other is used. Micro-batches in
transfer, device slots of streamed layers, pinned staging pages."""

__all__ = ["IN_FLIGHT", "Lane", "Need", "Phase", "Schedule", "Task", "TaskKey", "TaskKind", "Walk"]


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
    """What a task does; `part` of its key numbers micro-batches, or pages or experts for the kinds that handle them."""

    PRE_ATTENTION = "pre_attention"
    """Input norm, QKV projection, RoPE; in layer 0 the embedding of the micro-batch's tokens first."""
    QKV_OFFLOAD = "qkv_offload"
    """D1: queries, keys and values of a micro-batch go down; in prefill only keys and values, for the cache."""
    ATTENTION = "attention"
    """Append to the KV cache and attend; on the CPU in decode where the policy says so, else on the GPU."""
    HIDDEN_UPLOAD = "hidden_upload"
    """D2: the attention output of a micro-batch comes up."""
    POST_ATTENTION = "post_attention"
    """O projection, residual, norm, router, shared experts; the routed experts unless the CPU computes some of them; in
    the last layer the head and the next token, unless there is a HEAD. With experts on disk on the CPU alone, none."""
    KV_LOAD = "kv_load"
    """D4: the part of a micro-batch's KV cache that lies in host memory comes up for attention on the GPU."""
    EXPERT_OFFLOAD = "expert_offload"
    """With experts on the CPU: the normed hidden states and the routing of a micro-batch go down."""
    CPU_EXPERTS = "cpu_experts"
    """The experts that the CPU computes."""
    GPU_EXPERTS = "gpu_experts"
    """With experts on the CPU: the experts that the GPU computes meanwhile."""
    EXPERT_UPLOAD = "expert_upload"
    """The CPU's share of the experts' sum comes up, and is added to what GPU_EXPERTS left: it waits for that too."""
    HEAD = "head"
    """Head and next token, where POST_ATTENTION comes too early: before the last layer's experts are complete."""
    PAGE_COPY = "page_copy"
    """D3: a page of a layer's streamed expert weights crosses the link into the double buffer, the last from the ring
    that experts are read into from disk."""
    PAGE_PIN = "page_pin"
    """A page goes from pageable to pinned memory."""
    DISK_READ = "disk_read"
    """An expert is read from disk into a buffer of the ring; `part` numbers the layer's experts on disk."""
    KEPT_EXPERTS = "kept_experts"
    """With experts on disk, all on the CPU: those in memory compute, for the tokens of all micro-batches."""
    DISK_EXPERTS = "disk_experts"
    """The CPU computes with an expert that was read, for tokens of all micro-batches; a layer's last completes it."""


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


@dataclass(frozen=True, kw_only=True)
class Walk:
    """The tasks of one pass, made layer by layer, so that a simulator need not make those of layers that repeat.

    `layer(i)` makes what is given to the lanes while the main lane works on layer i, look-ahead for layers behind it
    included; a pass is all of them in order. `like(i)` is equal for layers whose tasks are the same but for the layer
    number, relative to which all their needs in the pass are the same too, and whose tasks cost the same.
    No task given during layer i, or after it, starts before `main` has finished all that it was given during the layer
    `reach(i)` before; a pass follows on the one before it.
    """

    num_layers: int
    layer: Callable[[int], Iterable[Task]]
    like: Callable[[int], Hashable]
    main: Lane
    reach: Callable[[int], int]

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks of the pass in the order in which lanes take them."""
        return tuple(chain.from_iterable(map(self.layer, range(self.num_layers))))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What runs: the prologue once, the prefill pass once, the decode pass `gen_len - 1` times.

    Tasks of a lane run in the order of the tuple. A need names a task that stands earlier in the tuple, or in the pass
    before; tasks that pass P lays ahead for pass P + 1 carry `for_next_pass` and are named there with `passes_ago` 1.
    """

    prologue: tuple[Task, ...]
    walks: dict[Phase, Walk]

    @property
    def prefill(self) -> tuple[Task, ...]:
        """The tasks of the prefill pass."""
        return self.walks[Phase.PREFILL].tasks

    @property
    def decode(self) -> tuple[Task, ...]:
        """The tasks of a decode pass."""
        return self.walks[Phase.DECODE].tasks

    def passes(self, gen_len: int) -> tuple[tuple[Phase, tuple[Task, ...]], ...]:
        """List the passes of a whole generation in order, look-ahead of the last one left out."""
        phases = [(Phase.PREFILL, self.prefill)] + [(Phase.DECODE, self.decode)] * (gen_len - 1)
        last_phase, last_tasks = phases[-1]
        phases[-1] = (last_phase, tuple(task for task in last_tasks if not task.for_next_pass))
        return tuple(phases)
