"""A plan: the policy, what it was made for, what it holds and how long it should take. What is in it is what runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hrm.arrays import Reals
from hrm.errors import PolicyError, SchemaError
from hrm.estimate import Fidelity
from hrm.files import from_plain, read_yaml, to_plain, write_yaml
from hrm.hardware import EmulatedSpec, HardwareProfile
from hrm.memory import DeviceLedger, Ledger, ledger
from hrm.model import ModelSpec
from hrm.policy import Policy
from hrm.predict import GridTimes, Prediction, Times
from hrm.records import record
from hrm.units import NonNegative, NonNegativeInt, Positive, PositiveInt, format_bytes
from hrm.workload import Workload

__all__ = [
    "Limits",
    "Machine",
    "Plan",
    "PlanStatus",
    "Search",
    "load_plan",
    "machine_of",
    "policy_summary",
    "save_plan",
    "summary",
]


class PlanStatus(StrEnum):
    """How the policy was found."""

    OPTIMAL = "optimal"
    """The best of the candidates searched."""
    GIVEN = "given"
    """The user named it; it was predicted, not searched."""


@record
class Machine:
    """The machine a plan is for, as much as is needed to run it; and what its host holds beside the plan's ledger."""

    name: str
    device: Literal["none", "cuda", "emulated", "unspecified"]
    emulated: EmulatedSpec | None = None
    runtime_bytes: NonNegativeInt = 0


@record
class Limits:
    """What a plan was to keep to: the bytes that each device has room for, and what its user limited.

    `ram_limit_bytes` goes before the room of the host. Of a full wave the seconds to its first tokens, and per further
    token on average; of the whole job the makespan.
    """

    usable_bytes: dict[str, PositiveInt]
    ram_limit_bytes: PositiveInt | None = None
    max_ttft_s: Positive | None = None
    max_tpot_s: Positive | None = None
    max_makespan_s: Positive | None = None

    def exceeded(self, held: Ledger, runtime_bytes: int) -> str | None:
        """Return the first limit on bytes that a ledger exceeds, in words, or None.

        `--ram-limit` is the whole process's, what interpreter and libraries hold included.
        """
        for device, classes in to_plain(held).items():
            name, total, room = f"usable_bytes.{device}", sum(classes.values()), self.usable_bytes.get(device, 0)
            if device == "cpu" and self.ram_limit_bytes is not None and self.ram_limit_bytes < total + runtime_bytes:
                name, total, room = "ram_limit_bytes", total + runtime_bytes, self.ram_limit_bytes
            if total > room:
                return f"{name}: {room} is {format_bytes(total - room)} less than the {total} that it takes"
        return None

    @property
    def time_s(self) -> dict[str, float]:
        """The limits on time that are set, by name."""
        limits = {"ttft": self.max_ttft_s, "tpot": self.max_tpot_s, "makespan": self.max_makespan_s}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def shares(self, times: Times | GridTimes) -> dict[str, Reals]:
        """Return predicted times as shares of the limits that are set: kept where at most 1."""
        reached = {
            "ttft": times.time_to_first_token_s,
            "tpot": times.time_per_token_s,
            "makespan": times.prefill_s + times.decode_s,
        }
        return {name: np.asarray(reached[name]) / limit for name, limit in self.time_s.items()}

    def missed(self, times: Times) -> str | None:
        """Return the first limit on time that predicted times miss, in words, or None."""
        for name, share in self.shares(times).items():
            if share > 1.0 + _ROUNDING:
                limit = self.time_s[name]
                return f"max_{name}_s: {limit:g} is less than the {share * limit:.6g} predicted"
        return None


_ROUNDING = 1e-9
"""Relative error of sums that are made in another order."""


@record
class Search:
    """How the policy was searched: candidates ranked, those of which some policy is allowed, and the seconds it took.

    `bound` is what no policy of the space beats at `ceiling`: tokens/s, or the seconds of a wave where the objective is
    latency; `gap` how far the plan is from it, as a share. `pruned` candidates were shown to be worse before the MILP
    was posed. `binding` names the constraints that bind, `ties` policies that are as good, though less simple.
    """

    method: str
    candidates: NonNegativeInt
    feasible: NonNegativeInt
    solve_s: NonNegative
    objective: str = "throughput"
    pruned: NonNegativeInt = 0
    bound: NonNegative | None = None
    gap: NonNegative | None = None
    binding: tuple[str, ...] = ()
    ties: tuple[Policy, ...] = ()


@record
class Plan:
    """Policy + prediction + byte ledger + status, and the limits that the policy was to keep."""

    schema_version: Literal[1] = 1
    status: PlanStatus
    policy: Policy
    machine: Machine
    model: ModelSpec
    workload: Workload
    limits: Limits
    memory: Ledger
    prediction: Prediction
    search: Search | None = None


def machine_of(hardware: HardwareProfile) -> Machine:
    """Return the part of a profile that a plan carries."""
    held = hardware.levels["cpu"].runtime_bytes if "cpu" in hardware.levels else 0
    return Machine(name=hardware.name, device=hardware.device, emulated=hardware.emulated, runtime_bytes=held)


def save_plan(path: str | Path, plan: Plan) -> None:
    """Write a plan as YAML, atomically."""
    write_yaml(path, plan)


def load_plan(path: str | Path) -> Plan:
    """Read a plan and check that it can be run as written.

    Raises
    ------
    FileError
        When the file is missing or breaks the schema.
    PolicyError
        When the policy cannot be run as written.
    SchemaError
        When the ledger is not the one that follows from the policy, or exceeds a limit (the file was edited by hand).
    """
    plan = from_plain(Plan, read_yaml(path), where=str(path))
    try:
        plan.policy.check(plan.model)
    except PolicyError as error:
        raise PolicyError(f"{path}: policy.{error}") from error
    for needed in (Fidelity.CEILING, plan.prediction.fidelity):
        if needed not in plan.prediction.by_fidelity:
            raise SchemaError(f"{path}: prediction.by_fidelity: holds no {needed} (solve again instead of editing)")
    _check_ledger(plan, path)
    _check_limits(plan, path)
    return plan


def _check_ledger(plan: Plan, path: str | Path) -> None:
    expected = to_plain(ledger(plan.policy, plan.model, plan.workload))
    for device, classes in to_plain(plan.memory).items():
        for name, count in classes.items():
            if count != expected[device][name]:
                raise SchemaError(
                    f"{path}: memory.{device}.{name}: {count} does not follow from the policy, which needs "
                    f"{expected[device][name]} (solve again instead of editing)"
                )


def _check_limits(plan: Plan, path: str | Path) -> None:
    broken = plan.limits.exceeded(plan.memory, plan.machine.runtime_bytes)
    if plan.status is PlanStatus.OPTIMAL:
        broken = broken or plan.limits.missed(_searched_times(plan))
    if broken:
        raise SchemaError(f"{path}: limits.{broken} (solve again instead of editing)")


def _searched_times(plan: Plan) -> Times:
    """Return the times by which the search judged: simulated ones where it simulated, else those at `ceiling`."""
    made = plan.prediction.by_fidelity
    simulated = plan.search is not None and plan.search.method == "auto" and Fidelity.SIMULATED in made
    return made[Fidelity.SIMULATED if simulated else Fidelity.CEILING]


def summary(plan: Plan) -> dict[str, Any]:
    """Return the plan as the flat JSON document that `solve` and `predict` print."""
    return {
        "status": plan.status.value,
        "policy": policy_summary(plan.policy, plan.model),
        "machine": plan.machine.name,
        "emulated": plan.machine.emulated is not None,
        "model": plan.model.name,
        "fidelity": plan.prediction.fidelity.value,
        **to_plain(plan.prediction.times),
        "by_fidelity": to_plain(plan.prediction.by_fidelity),
        "interval": to_plain(plan.prediction.interval),
        "routing": plan.prediction.routing,
        "workload": _workload(plan.workload),
        "limits": to_plain(plan.limits),
        "bottleneck": to_plain(plan.prediction.bottleneck),
        "task_s": to_plain(plan.prediction.task_s),
        "memory": {"gpu": _with_total(plan.memory.gpu), "cpu": _with_total(plan.memory.cpu)},
        "search": to_plain(plan.search),
        "solve_s": plan.search.solve_s if plan.search else None,
    }


def policy_summary(policy: Policy, model: ModelSpec) -> dict[str, Any]:
    """Return a policy with what follows from it for a model."""
    fields: dict[str, Any] = to_plain(policy)
    return fields | {
        "num_micro_batches": policy.num_micro_batches,
        "weights_on_gpu": policy.weights_on_gpu(model),
        "experts_on_cpu": policy.experts_on_cpu(model) / model.num_experts,
        "experts_on_disk": policy.share_on_disk(model),
    }


def _workload(workload: Workload) -> dict[str, Any]:
    """Return the job without the long list of its prompts."""
    return {name: value for name, value in to_plain(workload).items() if name not in ("prompt_lens", "routing")}


def _with_total(device: DeviceLedger) -> dict[str, int]:
    classes: dict[str, int] = to_plain(device)
    return classes | {"total_bytes": device.total_bytes}
