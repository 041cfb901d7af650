"""Everything on the CPU: one lane, the micro-batches of a layer one after another."""

from __future__ import annotations

from collections.abc import Iterator

from hrm.model import ModelSpec
from hrm.policy import Policy
from hrm.schedule.task import Lane, Need, Phase, Schedule, Task, TaskKey, TaskKind, Walk

__all__ = ["host"]

_STAGES = (TaskKind.PRE_ATTENTION, TaskKind.ATTENTION, TaskKind.POST_ATTENTION)


def host(policy: Policy, model: ModelSpec) -> Schedule:
    """Order the tasks of a policy that runs on the CPU alone; prefill and decode walk alike."""

    def layer(index: int) -> Iterator[Task]:
        for micro_batch in range(policy.num_micro_batches):
            before: tuple[Need, ...] = ()
            for kind in _STAGES:
                key = TaskKey(kind, index, micro_batch)
                yield Task(key=key, lane=Lane.CPU, needs=before)
                before = (Need(key),)

    walk = Walk(
        num_layers=model.num_layers,
        layer=layer,
        like=lambda index: (model.layer_kind(index), index == model.num_layers - 1),
        main=Lane.CPU,
        reach=lambda _: 1,
    )
    return Schedule(prologue=(), walks=dict.fromkeys(Phase, walk))
