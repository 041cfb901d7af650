"""A small model run in each way of placing things, for the profiler: what tasks cost when they have little to do."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from executor.checkpoint import synth
from executor.engine import Engine
from executor.prompts import Prompt
from executor.running import Span
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

PROMPT_LEN, GEN_LEN, REPEATS = 16, 4, 3
FEW, MANY, MICRO_BATCHES = 4, 16, 2
"""Sequences of a micro-batch: what the profile does not explain of the difference goes by the sequence. Two such, for
in a job other lanes work beside a task, and wait for the same interpreter."""
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
    """Run the small model by each placement that the backend has room for; no further one when the time is spent.

    First with few sequences, then with many.
    """
    end_s = time.perf_counter() + budget_s
    runs: list[TaskRun] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "small"
        synth(checkpoint, SMALL)
        for sequences, policy in product((FEW, MANY), _policies()):
            batch = MICRO_BATCHES * sequences
            policy = replace(policy, batch_size=batch, micro_batch_size=sequences)
            workload = Workload.from_prompt_lens((PROMPT_LEN,) * batch, GEN_LEN)
            needed_bytes = ledger(policy, SMALL, workload).gpu.total_bytes
            has_room = needed_bytes <= backend.memory_capacity_bytes - backend.memory_used_bytes
            if has_room and (not runs or time.perf_counter() < end_s):
                job = _Job(policy=policy, model=SMALL, workload=workload)
                prompts = [Prompt(id=str(index), tokens=(index + 1,) * PROMPT_LEN) for index in range(batch)]
                spans = _spans(Engine(job, checkpoint, backend), prompts)
                runs.append(_run(job, spans))
    return tuple(runs)


def _policies() -> Iterator[Policy]:
    """Yield attention on the CPU, on the GPU, there with the cache on the host, split experts, all on the CPU.

    The last one again, with half of the experts on disk.
    """
    policy = Policy(
        batch_size=FEW,
        micro_batch_size=FEW,
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
    on_cpu = replace(policy, ffn_device=Processor.CPU, resident_experts=0, schedule=ScheduleName.HOST)
    yield on_cpu
    yield replace(on_cpu, disk_experts=half)


def _spans(engine: Engine, prompts: list[Prompt]) -> list[Span]:
    """Return when tasks ran, of several runs: prefill is short."""
    return [span for _ in range(REPEATS) for wave in engine.generate(prompts).waves for span in wave.spans]


def _run(job: _Job, spans: list[Span]) -> TaskRun:
    """Return the median seconds of a task of each kind by phase; where decode repeats itself, its first pass apart."""
    later = 1 if job.policy.main_device is Processor.CPU else math.inf
    by_phase = {
        phase: _medians(span for span in spans if span.phase is phase and span.pass_index <= later) for phase in Phase
    }
    repeated = _medians(span for span in spans if span.phase is Phase.DECODE and span.pass_index > later)
    return TaskRun(policy=job.policy, model=job.model, workload=job.workload, seconds=by_phase, repeated=repeated)


def _medians(spans: Iterable[Span]) -> dict[TaskKind, float]:
    seconds: dict[TaskKind, list[float]] = {}
    for span in spans:
        seconds.setdefault(span.key.kind, []).append(span.ended_s - span.started_s)
    return {kind: statistics.median(found) for kind, found in seconds.items()}
