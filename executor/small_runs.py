"""A small model run in each way of placing things, for the profiler: what tasks cost when they have little to do."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from executor.checkpoint import synth
from executor.engine import Engine
from executor.prompts import Prompt
from hrm.device.backend import Backend
from hrm.dtypes import DType
from hrm.memory import ledger
from hrm.microbench.overheads import TaskRun
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor, ScheduleName
from hrm.records import record
from hrm.schedule.task import Phase, TaskKind
from hrm.workload import Workload

__all__ = ["small_runs"]

PROMPT_LEN, GEN_LEN, SEQUENCES = 16, 10, 4
SMALL = ModelSpec(
    name="small",
    family="mixtral",
    num_layers=2,
    hidden_size=256,
    intermediate_size=1024,
    num_query_heads=4,
    num_kv_heads=4,
    head_dim=64,
    num_experts=8,
    experts_per_token=2,
    vocab_size=512,
    max_position_embeddings=64,
    dtype=DType.BFLOAT16,
)
"""Of the smallest shapes that the kernels' tables have."""


@record
class _Job:
    policy: Policy
    model: ModelSpec
    workload: Workload


def small_runs(backend: Backend, budget_s: float = math.inf) -> tuple[TaskRun, ...]:
    """Run the small model by each placement that the backend has room for; no further one when the time is spent."""
    end_s = time.perf_counter() + budget_s
    workload = Workload.from_prompt_lens((PROMPT_LEN,) * SEQUENCES, GEN_LEN)
    prompts = [Prompt(id=str(index), tokens=(index + 1,) * PROMPT_LEN) for index in range(SEQUENCES)]
    runs: list[TaskRun] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "small"
        synth(checkpoint, SMALL)
        for policy in _policies():
            needed_bytes = ledger(policy, SMALL, workload).gpu.total_bytes
            has_room = needed_bytes <= backend.memory_capacity_bytes - backend.memory_used_bytes
            if has_room and (not runs or time.perf_counter() < end_s):
                job = _Job(policy=policy, model=SMALL, workload=workload)
                seconds = _task_seconds(Engine(job, checkpoint, backend), prompts)
                runs.append(TaskRun(policy=policy, model=SMALL, workload=workload, seconds=seconds))
    return tuple(runs)


def _policies() -> Iterator[Policy]:
    """Yield attention on the CPU, on the GPU, there with the cache on the host, split experts, all on the CPU."""
    policy = Policy(
        batch_size=SEQUENCES,
        micro_batch_size=SEQUENCES,
        attention_device=Processor.CPU,
        ffn_device=Processor.GPU,
        resident_experts=SMALL.num_experts,
        kv_on_gpu=0.0,
        schedule=ScheduleName.CGOPIPE,
        weight_dtype=SMALL.dtype,
        kv_dtype=SMALL.dtype,
    )
    yield policy
    yield replace(policy, attention_device=Processor.GPU, kv_on_gpu=1.0)
    yield replace(policy, attention_device=Processor.GPU, schedule=ScheduleName.KV_TRANSFER)
    half = SMALL.num_experts // 2
    yield replace(policy, resident_experts=half, cpu_experts=half)
    yield replace(policy, ffn_device=Processor.CPU, resident_experts=0, schedule=ScheduleName.HOST)


def _task_seconds(engine: Engine, prompts: list[Prompt]) -> dict[TaskKind, float]:
    """Return the median seconds of a decode task of each kind."""
    by_kind: dict[TaskKind, list[float]] = {}
    for wave in engine.generate(prompts).waves:
        for span in wave.spans:
            if span.phase is Phase.DECODE:
                by_kind.setdefault(span.key.kind, []).append(span.ended_s - span.started_s)
    return {kind: statistics.median(seconds) for kind, seconds in by_kind.items()}
