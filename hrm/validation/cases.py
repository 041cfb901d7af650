"""What is run to judge predictions: cases, each a plan for a job on a machine, and what running one measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from hrm.compare import Measured
from hrm.files import from_plain, read_json
from hrm.hardware import HardwareProfile
from hrm.memory import ledger
from hrm.model import ModelSpec
from hrm.policy import Policy
from hrm.records import record
from hrm.schedule.task import Lane, TaskKind
from hrm.shortage import shortage
from hrm.units import NonNegative, NonNegativeInt, Share
from hrm.workload import Workload

__all__ = ["Bar", "Case", "Cases", "Draw", "Origin", "Run", "draws", "fitted", "load_cases", "load_runs"]


class Origin(StrEnum):
    """Why a case was taken in."""

    BEST = "best"
    """One of the best plans for the job."""
    SCHEDULE = "schedule"
    """A schedule at the policy that is best for it."""
    SPREAD = "spread"
    """Drawn from everywhere."""


@record
class Case:
    """A policy for a job on a machine; cases of one `job` are what a decision is made among."""

    name: str
    machine: str
    model: str
    job: str
    origin: Origin
    policy: Policy
    workload: Workload


@record
class Cases:
    """All cases of a validation, what it was asked for, and the checkpoint folder of each model."""

    asked: dict[str, str]
    checkpoints: dict[str, str]
    cases: tuple[Case, ...]


@record
class Bar:
    """A task of a drawn timeline."""

    lane: Lane
    kind: TaskKind
    part: NonNegativeInt
    start_s: float
    end_s: float


@record
class Run:
    """One run of a case: what was measured, and a stretch of its timeline where one was kept; or why it failed.

    `disturbed` says that other processes used the cores meanwhile, or that two threads got much less than two cores
    just before or after it: `cores_kept` is the smaller of what `hrm.microbench.measure.cores_kept` found.
    """

    case: str
    round: NonNegativeInt
    took_s: NonNegative
    disturbed: bool = False
    cores_kept: Share = 1.0
    measured: Measured | None = None
    timeline: tuple[Bar, ...] = ()
    failed: str | None = None


@record
class Draw:
    """A point of the space from which spread plans come; shares are of the range that is possible."""

    placement: Share
    batch: Share
    micro_batches: Share
    weights_on_gpu: Share
    kv_on_gpu: Share
    prompt_len: Share
    gen_len: Share


def draws(count: int, seed: int) -> Iterator[Draw]:
    """Draw points of a Latin hypercube without end, `count` at a time: each stratum of each axis is met once."""
    from scipy.stats import qmc

    names = tuple(Draw.__dataclass_fields__)
    sampler = qmc.LatinHypercube(d=len(names), seed=seed)
    while True:
        for point in sampler.random(count):
            yield Draw(**{name: float(share) for name, share in zip(names, point, strict=True)})


def fitted(
    placement: Policy, draw: Draw, model: ModelSpec, hardware: HardwareProfile, workload: Workload
) -> Policy | None:
    """Return the policy that a draw means for a placement and a job, experts taken off the device until it fits.

    N and the number of micro-batches are drawn in logarithms; None where nothing fits even without resident experts.
    """
    most = workload.num_sequences or 1
    batch = round(most**draw.batch)
    micro_batches = round(min(batch, 16) ** draw.micro_batches)
    divides = placement.kv_on_gpu if placement.schedule != "kv-transfer" else round(draw.kv_on_gpu * 4) / 4
    wanted = round(draw.weights_on_gpu * model.num_experts) if placement.main_device == "gpu" else 0
    for resident in range(wanted, -1, -1):
        policy = replace(
            placement,
            batch_size=batch,
            micro_batch_size=math.ceil(batch / micro_batches),
            resident_experts=resident,
            cpu_experts=min(placement.cpu_experts, model.num_experts - resident),
            kv_on_gpu=divides,
        )
        if shortage(ledger(policy, model, workload), hardware, None) is None:
            return policy
    return None


def load_cases(path: Path) -> Cases:
    """Read the cases of a validation.

    Raises
    ------
    FileError
        When the file is missing or holds something else.
    """
    return from_plain(Cases, read_json(path), where=str(path))


def load_runs(path: Path) -> Sequence[Run]:
    """Read the runs that have been made, one a line; a last line that was cut off counts as not made."""
    import json

    if not path.exists():
        return ()
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [
        from_plain(Run, json.loads(line), where=f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.endswith("\n")
    ]
