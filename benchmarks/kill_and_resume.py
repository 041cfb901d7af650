"""Kill a job with SIGKILL at random moments, over and over, and check that nothing is lost, doubled or changed.

Run as `python benchmarks/kill_and_resume.py [--rounds 50] [--dtype bfloat16]`. Each round forks a process that
runs, or goes on with, the same job of a tiny random model, and kills it after a random delay; the journal is read
before and after. Jobs are begun anew until there were as many kills. Prints one line and exits with 1 at the first
difference from an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from executor.checkpoint import synth
from executor.job import Job, run_job
from hrm.device.host import HostBackend
from hrm.dtypes import DType
from hrm.model import ModelSpec
from hrm.model_config import load_model
from hrm.policy import Policy, Processor, ScheduleName
from hrm.workload import Workload

GEN_LEN, PROMPTS = 16, 64
SPEC = ModelSpec(
    name="tiny",
    family="mixtral",
    num_layers=2,
    hidden_size=32,
    intermediate_size=48,
    num_query_heads=4,
    num_kv_heads=2,
    head_dim=8,
    num_experts=4,
    experts_per_token=2,
    vocab_size=97,
    max_position_embeddings=64,
    dtype=DType.FLOAT32,
)
POLICY = Policy(
    batch_size=8,
    micro_batch_size=4,
    attention_device=Processor.CPU,
    ffn_device=Processor.CPU,
    resident_experts=0,
    kv_on_gpu=0.0,
    schedule=ScheduleName.HOST,
    weight_dtype=DType.FLOAT32,
    kv_dtype=DType.FLOAT32,
)


@dataclass(frozen=True)
class Plan:
    """What the engine needs of a plan."""

    policy: Policy
    model: ModelSpec
    workload: Workload


def main() -> int:
    """Kill and resume, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of weights and cache")
    options = parser.parse_args()
    draw, dtype = random.Random(options.seed), DType(options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        job = _make(Path(folder), draw, dtype)
        started_s = time.perf_counter()
        _wait(_fork(lambda: _run(job, dtype)))
        whole_s, expected = time.perf_counter() - started_s, job.output.read_bytes()
        job.output.unlink()
        kills = jobs = kept = 0
        while kills < options.rounds:
            before = _journal(job)
            killed = _killed_after(draw.uniform(0, whole_s), lambda: _run(job, dtype))
            kills += killed
            problem = _problem(job, before, expected)
            if problem:
                print(f"after {kills} kills: {problem}")
                return 1
            kept += len(_journal(job)) - len(before) if killed else 0
            if job.output.exists():
                jobs += 1
                job.output.unlink()
        _wait(_fork(lambda: _run(job, dtype)))
        if job.output.read_bytes() != expected or job.journal.exists():
            print("the last job differs from an undisturbed one")
            return 1
    print(
        f"{kills} kills in {jobs + 1} jobs of {PROMPTS} {options.dtype} prompts ({whole_s:.2f} s undisturbed): {kept} "
        f"answers outlived them; every job's output was byte for byte that of the undisturbed one"
    )
    return 0


def _make(folder: Path, draw: random.Random, dtype: DType) -> Job:
    """Write the checkpoint and prompts of ragged lengths and limits, every third of them sampled."""
    _wait(_fork(lambda: synth(folder / "model", replace(SPEC, dtype=dtype), seed=1)))
    lines: list[dict[str, Any]] = [
        {
            "id": f"p{number}",
            "tokens": [draw.randrange(97) for _ in range(draw.randint(1, 16))],
            "max_new_tokens": draw.randint(1, GEN_LEN),
            "temperature": 0.8 * (number % 3 == 0),
        }
        for number in range(PROMPTS)
    ]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Job(checkpoint=folder / "model", prompts=prompts, output=folder / "out.jsonl")


def _run(job: Job, dtype: DType) -> None:
    policy = replace(POLICY, weight_dtype=dtype, kv_dtype=dtype)
    workload = Workload(mean_prompt_len=8.5, max_prompt_len=16, gen_len=GEN_LEN, num_sequences=PROMPTS)
    backend = HostBackend(threads=1)
    run_job(Plan(policy, load_model(job.checkpoint), workload), job, backend)
    backend.close()


def _fork(work: Callable[[], None]) -> int:
    """Run work in a process of its own; this one never computes, so forking it is safe and quick."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def _wait(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert status == 0, f"a run ended with status {status}"


def _killed_after(delay_s: float, run: Callable[[], None]) -> bool:
    """Run the job and kill it after a while; say whether it was killed before it was done."""
    child = _fork(run)
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, f"a run ended with status {status}"
    return os.WIFSIGNALED(status)


def _journal(job: Job) -> list[dict[str, Any]]:
    """Return the answers that the journal holds whole."""
    data = job.journal.read_bytes() if job.journal.exists() else b""
    return [json.loads(line) for line in data.splitlines(keepends=True)[1:] if line.endswith(b"\n")]


def _problem(job: Job, before: list[dict[str, Any]], expected: bytes) -> str | None:
    """Say what is wrong with what a run has left, if anything is."""
    if job.output.exists() and job.output.read_bytes() != expected:
        return "the output differs from that of an undisturbed run"
    after = _journal(job)
    if after and after[: len(before)] != before:
        return "the journal has lost an answer"
    if not after and before and not job.output.exists():
        return "the journal has gone before the output came"
    lines = [entry["line"] for entry in after]
    if len(set(lines)) != len(lines):
        return "the journal holds an answer twice"
    return None


if __name__ == "__main__":
    sys.exit(main())
