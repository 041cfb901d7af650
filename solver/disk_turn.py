"""Where the disk stops binding: the turning point P2 (Eq. 10) of a plan that reads experts from disk, in sequences."""

from __future__ import annotations

from dataclasses import replace

from hrm.estimate import Fidelity
from hrm.passes import job_passes
from hrm.policy import Policy
from hrm.policy_grid import PolicyGrid
from hrm.records import record
from hrm.schedule.task import Lane, Phase
from hrm.shortage import Shortage
from hrm.units import PositiveInt
from solver.problem import LARGEST_JOB, Problem

__all__ = ["DiskTurn", "disk_turn"]


@record
class DiskTurn:
    """The fewest sequences with which a decode pass keeps another lane busy for as long as the disk.

    More sequences make each expert that is read serve more tokens up to there, and hardly help beyond. `decode_...` is
    the rate there, at `ceiling`; `short` what host memory lacks for so many at once.
    """

    batch_size: PositiveInt
    decode_tokens_per_s: float
    short: Shortage | None = None

    def __str__(self) -> str:
        """Say it in a line."""
        reached = f"the disk stops binding at N = {self.batch_size} ({self.decode_tokens_per_s:.4g} tokens/s in decode)"
        return reached + (f", for which {self.short}" if self.short else ", which fits")


def disk_turn(problem: Problem, policy: Policy) -> DiskTurn | None:
    """Find where the disk stops binding decode, micro-batches and experts on disk as they are; None without a disk."""
    if not policy.disk_experts or problem.workload.gen_len == 1:
        return None
    enough = 1
    while not _decode(problem, _with(policy, enough))[1]:
        if enough > LARGEST_JOB:
            return None
        enough *= 2
    low = enough // 2
    while enough - low > 1:
        middle = (low + enough) // 2
        low, enough = (low, middle) if _decode(problem, _with(policy, middle))[1] else (middle, enough)
    there = _with(policy, enough)
    return DiskTurn(
        batch_size=enough,
        decode_tokens_per_s=enough / _decode(problem, there)[0],
        short=problem.short_of(there),
    )


def _with(policy: Policy, batch_size: int) -> Policy:
    return replace(policy, batch_size=batch_size, micro_batch_size=min(policy.micro_batch_size, batch_size))


def _decode(problem: Problem, policy: Policy) -> tuple[float, bool]:
    """Return how long a decode pass in the middle takes, and whether something else takes as long as the disk.

    Each at its own rate: roofs cross there, whatever lanes keep of them when both are busy.
    """
    workload, alone = replace(problem.workload, num_sequences=None), replace(problem.hardware, contention={})
    passes = job_passes(PolicyGrid.of(policy), problem.model, alone, workload, Fidelity.CEILING)
    decode = [one.work for one in passes if one.phase is Phase.DECODE]
    work = decode[len(decode) // 2]
    others = [float(seconds) for lane, seconds in work.seconds.items() if lane is not Lane.DISK]
    return float(work.lower_s), max(others) >= float(work.seconds[Lane.DISK])
