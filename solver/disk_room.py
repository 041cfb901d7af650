"""Host memory beside experts on disk, used to the last expert: the search's steps are whole experts of every layer.

What the search leaves over keeps one expert more in the first layers. A smaller ring of buffers makes room for experts
too, a larger one keeps the disk busy while the CPU does something else; micro-batches that are small for the sake of
memory take longer. Perfect overlap sees nothing of either, so the schedule is simulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from hrm.device.direct_memory import REQUESTS
from hrm.memory import ledger
from hrm.policy import Policy
from hrm.predict import Prediction
from hrm.shortage import usable_bytes
from solver.problem import Problem

__all__ = ["filled", "finished"]

_LEAST_BUFFERS = 2 + REQUESTS
"""One expert is computed with, one has come, and those behind keep all requests in flight."""
_RING_FACTORS = (0.75, 0.5, 0.375, 0.25, 0.125, 2.0)
_Judge = Callable[[Prediction], float]
_Predict = Callable[[Policy], Prediction]


def filled(problem: Problem, policy: Policy) -> Policy | None:
    """Return a policy with as many experts in memory as fit, though each layer reads one; None where nothing fits."""
    model, layers = problem.model, problem.model.num_moe_layers
    room, step = (
        _room_bytes(problem, replace(policy, disk_experts=model.num_experts - one, fuller_layers=0)) for one in (0, 1)
    )
    expert_bytes = (room - step) / layers
    if room < 0:
        return None
    on_disk = max(layers, layers * model.num_experts - math.floor(room / expert_bytes))
    return replace(policy, disk_experts=-(-on_disk // layers), fuller_layers=-on_disk % layers)


def _room_bytes(problem: Problem, policy: Policy) -> int:
    held = ledger(policy, problem.model, problem.workload).cpu.total_bytes
    return usable_bytes(problem.hardware, "cpu", problem.ram_limit_bytes) - held


def finished(
    problem: Problem, policy: Policy, prediction: Prediction, predict: _Predict, objective: _Judge
) -> tuple[Policy, Prediction]:
    """Return the best of a policy that reads experts from disk and those near it, memory filled, and its prediction.

    Near are larger micro-batches, then other sizes of the ring. `objective` is infinite where limits are missed.
    """
    best = policy, prediction
    for near in (_micro_batches, _rings):
        for other in near(problem, best[0]):
            full = filled(problem, other)
            if full is None or full == best[0]:
                continue
            made = predict(full)
            if objective(made) < objective(best[1]):
                best = full, made
    return best


def _rings(problem: Problem, policy: Policy) -> Iterator[Policy]:
    """Yield the policy with half the ring that it has, and so on, and with double."""
    usual = policy.num_disk_buffers(problem.model)
    for size in dict.fromkeys(max(_LEAST_BUFFERS, int(usual * factor)) for factor in _RING_FACTORS):
        yield replace(policy, disk_buffers=size)


def _micro_batches(problem: Problem, policy: Policy) -> Iterator[Policy]:  # noqa: ARG001
    """Yield the policy as it is, with half as many micro-batches, a quarter, and so on."""
    yield policy
    count = policy.num_micro_batches
    while count > 1:
        count = -(-count // 2)
        yield replace(policy, micro_batch_size=math.ceil(policy.batch_size / count))
