"""Peak memory against the ledger, for a checkpoint of 1 GB: host memory within 5 %, the device's arena within 0 %.

    python benchmarks/ledger.py

Each policy runs in a process of its own, on an emulated device that is just as large as the ledger says. Host memory is
the process's high-water mark, loading included, less what it had before the engine and less the device's arena.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from executor import Engine, Prompt
from hrm.device.backend import Backend
from hrm.device.emulated import EmulatedBackend
from hrm.device.host import HostBackend
from hrm.dtypes import DType
from hrm.hardware import EmulatedSpec
from hrm.memory import ledger
from hrm.model import ModelSpec
from hrm.model_config import load_model
from hrm.policy import Policy, Processor, ScheduleName, Staging
from hrm.records import record
from hrm.units import format_bytes
from hrm.workload import Workload

DIMENSIONS = (
    "--layers 10 --hidden-size 1024 --intermediate-size 2048 --query-heads 16 --kv-heads 4 --experts 8 --top-k 2"
)
JOB = Workload.from_prompt_lens((32,) * 16, 3)
ON_THE_CPU = Policy(
    batch_size=16,
    micro_batch_size=8,
    attention_device=Processor.CPU,
    ffn_device=Processor.CPU,
    resident_experts=0,
    kv_on_gpu=0.0,
    schedule=ScheduleName.HOST,
    weight_dtype=DType.BFLOAT16,
    kv_dtype=DType.BFLOAT16,
)
STREAMED = replace(ON_THE_CPU, ffn_device=Processor.GPU, resident_experts=4, schedule=ScheduleName.CGOPIPE)
POLICIES = {
    "all on the CPU": ON_THE_CPU,
    "half streamed": STREAMED,
    "half streamed, pageable": replace(STREAMED, staging=Staging.PAGEABLE),
    "split with the CPU": replace(STREAMED, cpu_experts=3),
}


@record
class Planned:
    """The part of a plan that the engine needs."""

    policy: Policy
    model: ModelSpec
    workload: Workload


def main() -> None:
    """Run each policy in a process and print what it held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("ledger"), help="folder for the checkpoint")
    parser.add_argument("--policy", choices=POLICIES, help="run this one here and print its numbers")
    options = parser.parse_args()
    checkpoint: Path = options.work / "model"
    if options.policy:
        print(json.dumps(held(POLICIES[options.policy], checkpoint)))
        return
    if not checkpoint.exists():
        options.work.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-P", "-m", "hrm", "checkpoint", "synth", checkpoint, *DIMENSIONS.split()], check=True
        )
    print(f"{'policy':24} {'host ledger':>11} {'peak':>10} {'of it':>6}   {'device ledger':>13} {'of it':>6}   beside")
    for name in POLICIES:
        command = [sys.executable, __file__, "--work", str(options.work), "--policy", name]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        device = f"{row['device_peak'] / row['device']:.3f}" if row["device"] else "-"
        print(
            f"{name:24} {format_bytes(row['host']):>11} {format_bytes(row['host_peak']):>10} "
            f"{row['host_peak'] / row['host']:6.3f}   {format_bytes(row['device']):>13} {device:>6}   "
            f"{format_bytes(row['runtime'])} of interpreter and libraries",
            flush=True,
        )


def held(policy: Policy, checkpoint: Path) -> dict[str, int]:
    """Run a policy and return its ledger's bytes and its peaks."""
    model = load_model(checkpoint)
    planned = ledger(policy, model, JOB)
    backend = _backend(planned.gpu.total_bytes)
    prompts = [Prompt(id=str(at), tokens=(at + 1,) * 32) for at in range(16)]
    try:
        peaks = (
            Engine(Planned(policy=policy, model=model, workload=JOB), checkpoint, backend).generate(prompts).measured
        )
        device_peak = backend.memory_peak_bytes
    finally:
        backend.close()
    # The kernel's own mark also sees what came and went between two looks of the engine.
    high_water = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    runtime = peaks.peak_bytes["runtime"]
    return {
        "host": planned.cpu.total_bytes,
        "host_peak": max(peaks.peak_bytes["cpu"], high_water - runtime - device_peak),
        "device": planned.gpu.total_bytes,
        "device_peak": device_peak,
        "runtime": runtime,
    }


def _backend(device_bytes: int) -> Backend:
    if not device_bytes:
        return HostBackend()
    spec = EmulatedSpec(name="exact", memory_capacity_bytes=device_bytes, h2d_bytes_per_s=4e9, d2h_bytes_per_s=4e9)
    return EmulatedBackend(spec)


if __name__ == "__main__":
    main()
