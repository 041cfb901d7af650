"""What a policy is sought for: machine, model, job, what policies may do, what is best, and limits to keep."""

from __future__ import annotations

import math
from enum import StrEnum

from hrm.dtypes import DType
from hrm.errors import HrmError
from hrm.hardware import HardwareProfile
from hrm.memory import ledger
from hrm.model import ModelSpec
from hrm.plan import Limits
from hrm.policy import Policy, ScheduleName, Staging
from hrm.records import record
from hrm.shortage import Shortage, shortage, usable_bytes
from hrm.workload import Workload

__all__ = ["Objective", "Problem"]

LARGEST_JOB = 10**9
WINNING = (ScheduleName.CGOPIPE, ScheduleName.KV_TRANSFER, ScheduleName.HOST)
"""Schedules searched unless the problem names others: those that win somewhere. The rest are there to compare with."""


class Objective(StrEnum):
    """What is sought."""

    THROUGHPUT = "throughput"
    """Most generated tokens / (prefill + decode)."""
    LATENCY = "latency"
    """Least time from the start of a wave to its last token: what a sequence takes once it is its turn."""


@record
class Problem:
    """What a policy is sought for, and among which.

    Policies may use `schedules`, the formats named and the further ones of `more_weight_dtypes` and `more_kv_dtypes`;
    with `split_experts` the CPU may compute some experts beside the GPU; where a schedule divides the KV cache, it does
    so in `kv_shares`. Limits: of a full wave the time to its first tokens, and per further token on average;
    of the whole job the makespan.
    """

    model: ModelSpec
    hardware: HardwareProfile
    workload: Workload
    weight_dtype: DType
    kv_dtype: DType
    expert_dtype: DType | None = None
    staging: Staging = Staging.PINNED
    ram_limit_bytes: int | None = None
    schedules: tuple[ScheduleName, ...] = WINNING
    split_experts: bool = True
    kv_shares: tuple[float, ...] = (0.0, 0.5)
    more_weight_dtypes: tuple[DType, ...] = ()
    more_kv_dtypes: tuple[DType, ...] = ()
    objective: Objective = Objective.THROUGHPUT
    max_ttft_s: float | None = None
    max_tpot_s: float | None = None
    max_makespan_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that are none, and limits that contradict each other."""
        for name, value in self.time_limits_s.items():
            _refuse_unless_positive(f"--max-{name}-s", value)
        if self.ram_limit_bytes is not None:
            _refuse_unless_positive("--ram-limit", self.ram_limit_bytes)
        _refuse_unless_positive("--prompt-len", self.workload.mean_prompt_len)
        if (self.workload.num_sequences or 0) > LARGEST_JOB:
            raise HrmError(f"--num-sequences {self.workload.num_sequences}: must be at most {LARGEST_JOB} (lower it)")
        for share in self.kv_shares:
            if not 0.0 <= share <= 1.0:
                raise HrmError(f"kv_shares: {share}: must be from 0 to 1 (correct it)")
        for name in ("ttft", "tpot"):
            self._refuse_beyond_makespan(name)

    def _refuse_beyond_makespan(self, name: str) -> None:
        limit, whole = self.time_limits_s.get(name), self.max_makespan_s
        if limit is not None and whole is not None and limit > whole:
            raise HrmError(
                f"--max-{name}-s {limit:g}: exceeds --max-makespan-s {whole:g}, which it is a part of "
                f"(lower it or leave it out)"
            )

    @property
    def limits(self) -> Limits:
        """What a plan has to keep to."""
        return Limits(
            usable_bytes={name: usable_bytes(self.hardware, name) for name in self.hardware.levels},
            ram_limit_bytes=self.ram_limit_bytes,
            max_ttft_s=self.max_ttft_s,
            max_tpot_s=self.max_tpot_s,
            max_makespan_s=self.max_makespan_s,
        )

    @property
    def reads_disk(self) -> bool:
        """Whether experts may lie on disk: on a machine that has one.

        Where a GPU computes, only if host memory has no room for all of them (`solver.room.exceeds_host`).
        """
        return "disk" in self.hardware.levels

    @property
    def time_limits_s(self) -> dict[str, float]:
        """The limits on time that are set, by name."""
        return self.limits.time_s

    def short_of(self, policy: Policy) -> Shortage | None:
        """Return what the policy does not fit into, or None."""
        held = ledger(policy, self.model, self.workload)
        return shortage(held, self.hardware, self.ram_limit_bytes)


def _refuse_unless_positive(option: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise HrmError(f"{option} {value}: must be a positive number (correct it)")
