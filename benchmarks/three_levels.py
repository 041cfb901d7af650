"""Three levels: an emulated device, host memory that is too small, and a real disk; measured over predicted.

    python benchmarks/three_levels.py [--work FOLDER] [--rounds 3]

A random model of 1 GB is streamed to a device posed on this machine, whose link does 4 GB/s. Host memory is limited to
shares of the experts, and what it does not hold is read from the disk of the work folder, which was profiled together
with the device. The plans are the solver's; reads are direct, past the page cache. The engine holds each run against
its ledger.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from executor import Engine, Prompt
from hrm.compare import Measured
from hrm.device.opening import load_spec, open_backend
from hrm.dtypes import DType
from hrm.files import write_yaml
from hrm.hardware import HardwareProfile, load_profile
from hrm.model_config import load_model
from hrm.plan import Plan
from hrm.policy import ScheduleName
from hrm.schedule.task import Phase
from hrm.units import MIB, format_bytes
from hrm.workload import Workload
from solver import Problem, solve

DIMENSIONS = (
    "--layers 5 --hidden-size 1024 --intermediate-size 2048 --query-heads 16 --kv-heads 4 --experts 16 --top-k 2"
)
PROMPT_LEN, NUM_SEQUENCES, GEN_LEN = 8, 96, 13
SHARES = (0.7, 0.35, 0.0)
"""Shares of all experts that host memory holds, beside the ring and what else a plan needs there."""
LINK_BYTES_PER_S = 4e9
DEVICE_BYTES = 540 * MIB
BESIDE_BYTES = 112 * MIB


def main() -> None:
    """Run each share and print what was measured over what was predicted."""
    options = _options()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "model").exists():
        _hrm("checkpoint", "synth", work / "model", *DIMENSIONS.split())
    profile = _profile(work)
    rows = [_row(share, profile, work, options.rounds) for share in SHARES]
    document = {"date": date.today().isoformat(), "emulated": True, "rows": rows}
    (work / "three_levels.json").write_text(json.dumps(document, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("three_levels"), help="folder for everything, on the disk")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each share")
    return parser.parse_args()


def _hrm(*arguments: object) -> None:
    subprocess.run([sys.executable, "-P", "-m", "hrm", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def _profile(work: Path) -> HardwareProfile:
    """Profile the device and the disk, unless that was done in this folder before."""
    path, device = work / "machine.yaml", work / "device.yaml"
    if not path.exists():
        spec = replace(
            load_spec("mini-l4"),
            name="fast-link",
            description="mini-l4 with another link and memory, beside a host that is not slowed",
            memory_capacity_bytes=DEVICE_BYTES,
            h2d_bytes_per_s=LINK_BYTES_PER_S,
            d2h_bytes_per_s=LINK_BYTES_PER_S,
            host_slowdown=1.0,
        )
        write_yaml(device, spec)
        _hrm("profile", "--device", f"emulated:{device}", "--disk", work, "--quick", "-o", path)
    return load_profile(path)


def _problem(share: float, profile: HardwareProfile, work: Path) -> Problem:
    model = load_model(work / "model")
    experts = model.num_moe_layers * model.num_experts * model.expert_parameters * 2
    ring = 6 * model.expert_parameters * 2
    limit = profile.level("cpu").runtime_bytes + int(share * experts) + ring + BESIDE_BYTES
    return Problem(
        model=model,
        hardware=profile,
        workload=Workload.from_prompt_lens((PROMPT_LEN,) * NUM_SEQUENCES, GEN_LEN),
        weight_dtype=DType.BFLOAT16,
        kv_dtype=DType.BFLOAT16,
        ram_limit_bytes=limit,
        schedules=(ScheduleName.CGOPIPE,),
        split_experts=False,
    )


def _row(share: float, profile: HardwareProfile, work: Path, rounds: int) -> dict[str, Any]:
    problem = _problem(share, profile, work)
    plan = solve(problem)
    draw = random.Random(0)
    prompts = [
        Prompt(id=str(at), tokens=tuple(draw.randrange(4096) for _ in range(PROMPT_LEN))) for at in range(NUM_SEQUENCES)
    ]
    runs = [_run(plan, work / "model", prompts) for _ in range(rounds)]
    measured = sorted(one.decode_throughput_tokens_per_s for one in runs)
    at = {str(key): one.decode_throughput_tokens_per_s for key, one in plan.prediction.by_fidelity.items()}
    median, binds = statistics.median(measured), plan.prediction.bottleneck[Phase.DECODE].lane
    busy = {str(lane): busy for lane, busy in runs[-1].busy[Phase.DECODE].items()}
    policy = plan.policy
    print(
        f"host {format_bytes(problem.ram_limit_bytes or 0)}: N {policy.batch_size}, mu {policy.micro_batch_size}, "
        f"of {problem.model.num_experts} experts {policy.resident_experts} on the GPU, {policy.disk_experts} on disk; "
        f"decode {median:.1f} ({measured[0]:.1f} to {measured[-1]:.1f}) tokens/s, {median / at['simulated']:.2f} of "
        f"simulated, {median / at['ceiling']:.2f} of ceiling, {median / at['roof']:.2f} of roof; {binds} binds; busy "
        + ", ".join(f"{lane} {of:.0%}" for lane, of in sorted(busy.items(), key=lambda one: -one[1])),
        flush=True,
    )
    return {
        "ram_limit_bytes": problem.ram_limit_bytes,
        "peak_over_ledger": max(one.peak_bytes["cpu"] for one in runs) / plan.memory.cpu.total_bytes,
        "experts_on_disk": policy.disk_experts,
        "resident_experts": policy.resident_experts,
        "measured": measured,
        "predicted": at,
        "binds": str(binds),
        "busy": busy,
    }


def _run(plan: Plan, checkpoint: Path, prompts: list[Prompt]) -> Measured:
    backend = open_backend(plan.machine.device, plan.machine.emulated)
    try:
        return Engine(plan, checkpoint, backend).generate(prompts).measured
    finally:
        backend.close()


if __name__ == "__main__":
    main()
