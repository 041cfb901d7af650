"""Everything on the CPU: one lane, the micro-batches of a layer one after another."""

from __future__ import annotations

from collections.abc import Iterator

from hrm.model import ModelSpec
from hrm.policy import Policy
from hrm.schedule.task import Lane, Need, Schedule, Task, TaskKey, TaskKind

__all__ = ["host"]

_STAGES = (TaskKind.PRE_ATTENTION, TaskKind.ATTENTION, TaskKind.POST_ATTENTION)


def host(policy: Policy, model: ModelSpec) -> Schedule:
    """Order the tasks of a policy that runs on the CPU alone; prefill and decode walk alike."""
    tasks = tuple(_one_pass(policy.num_micro_batches, model.num_layers))
    return Schedule(prologue=(), prefill=tasks, decode=tasks)


def _one_pass(num_micro_batches: int, num_layers: int) -> Iterator[Task]:
    for layer in range(num_layers):
        for micro_batch in range(num_micro_batches):
            before: tuple[Need, ...] = ()
            for kind in _STAGES:
                key = TaskKey(kind, layer, micro_batch)
                yield Task(key=key, lane=Lane.CPU, needs=before)
                before = (Need(key),)
