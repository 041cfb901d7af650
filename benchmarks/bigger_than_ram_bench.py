"""The runs of `bigger_than_ram.py`: each in a process of its own, under a memory limit, ours beside the disk alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from executor.expert_file import open_expert_file
from hrm.dtypes import DType
from hrm.errors import InfeasibleError
from hrm.files import from_plain, to_plain
from hrm.hardware import HardwareProfile, Level, Link, Measurement, Rate, load_profile
from hrm.memory import disk_expert_bytes, disk_read_bytes
from hrm.model import ModelSpec
from hrm.model_config import load_model
from hrm.plan import Plan
from hrm.policy import Policy, ScheduleName
from hrm.predict import predict
from hrm.units import MIB, format_bytes
from hrm.workload import Workload
from solver import Problem, solve
from solver.disk_turn import disk_turn
from solver.space import placements

__all__ = ["CASES", "QWEN3", "SEQUENCES", "Bench", "Case"]

TOOLS = Path(__file__).parent / "bigger_than_ram_tools.py"
UNPLANNED_BYTES, SEQUENCE_BYTES = 60 * MIB, 8 << 10
"""Left for what no ledger counts, beside the libraries, and for each sequence's prompt and answer: runs of 64 sequences
held 37 to 48 MiB more than ledger and libraries, one of 3,328 held 76."""
PEER_BYTES, PEER_LEAST_BYTES = 500 * MIB, 64 * MIB
"""Left to accelerate for its further libraries, activations and buffers: with less it spends its time on reclaiming.
What it may hold of the weights is the rest, but it refuses to hold none."""
LONGEST_S = 300.0
"""What a run may take: a tool that spends its time on reclaiming may not end in an hour."""
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
    """A checkpoint, the memory that the tools may have, and the pairs of memory and sequences that are swept.

    Prompts are shorter in a sweep where many sequences must fit: what it looks at is decode.
    """

    checkpoint: str
    limit_bytes: int
    limits: tuple[int, ...]
    sequences: tuple[int, ...]
    swept_prompt_len: int = PROMPT_LEN


CASES = {
    "smollm2": Case("smollm2", 700 * MIB, (800 * MIB, 1000 * MIB), (16, 32, 64, 128, 256)),
    "smollm2-roomy": Case("smollm2", 900 * MIB, (), ()),
    "qwen3": Case("qwen3", 1600 * MIB, (1600 * MIB,), (128, 384, 768, 1024, 2304, 2816, 3328), 2),
}


class Bench:
    """One checkpoint's measurements."""

    def __init__(self, case: Case, work: Path, hardware: str, checkpoint: Path) -> None:
        self.case, self.work, self.checkpoint = case, work, checkpoint
        self.model, self.profile = load_model(checkpoint), load_profile(hardware)
        policy = replace(next(iter(placements(self._problem(case.limit_bytes, _workload(8), 1e9)))), disk_experts=1)
        open_expert_file(policy, self.model, checkpoint)
        self._job = {
            "checkpoint": str(checkpoint),
            "expert_file": str(checkpoint / "experts-bfloat16.hrm-pages"),
            "expert_bytes": disk_expert_bytes(policy, self.model),
            "vocab_size": self.model.vocab_size,
            "gen_len": GEN_LEN,
            "gguf": str(work / f"{case.checkpoint}.gguf"),
            "offload_folder": str(work / "offload"),
            "threads": os.cpu_count(),
        }

    def turns(self, found: dict[str, Any], tools: list[str], rounds: int) -> Iterator[float]:
        """Let the tools take turns until there are so many rounds, all in `found`.

        Before each run, and after the last, yields how long the next one may take.
        """
        self._look(found)
        limit, runs = self.case.limit_bytes, found.setdefault("rounds", [])
        workload = _workload(SEQUENCES)
        plan = self._plan(limit, workload, found)
        for number in range(rounds):
            if number == len(runs):
                runs.append({})
            for tool in tools:
                if tool in runs[number]:
                    continue
                yield max((one[tool]["wall_s"] for one in runs if tool in one), default=0.0)
                run = self._between_looks(tool, limit, plan.policy, workload, found)
                runs[number][tool] = run
                print(f"  {tool:11} {run['tokens_per_s']:8.2f} tokens/s {run.get('error', '')}", flush=True)
        yield 0.0

    def pairs(self, found: dict[str, Any], rounds: int) -> Iterator[float]:
        """Run ours so often over memory limits and numbers of sequences; yields as `turns`.

        All of one limit keep as many experts on disk as the most sequences need: only their number changes.
        """
        self._look(found)
        rows = found.setdefault("pairs", [])
        fewest = {limit: self._most_on_disk(limit, found) for limit in self.case.limits}
        for number, limit, sequences in product(range(rounds), self.case.limits, self.case.sequences):
            if sum((row["limit_bytes"], row["sequences"]) == (limit, sequences) for row in rows) > number:
                continue
            yield max((row["wall_s"] for row in rows if row["sequences"] <= 2 * sequences), default=0.0)
            workload = _workload(sequences, self.case.swept_prompt_len)
            run = self._between_looks("ours", limit, _with(fewest[limit], sequences), workload, found)
            said = run.get("error", f"{run['tokens_per_s']:.2f} tokens/s")
            print(f"  {format_bytes(limit)}, N {sequences}: {said}", flush=True)
            if "error" not in run:
                rows.append(run | {"limit_bytes": limit})
        yield 0.0

    def judge(self, found: dict[str, Any]) -> None:
        """Put beside each of our runs in `found` what is predicted, given the disk's rate around it."""
        rows = [row["ours"] for row in found.get("rounds", ()) if "ours" in row]
        for row in [*rows, *found.get("pairs", ())]:
            if "policy" in row:
                row["predicted"] = self._predicted(row)
        if pairs := found.get("pairs"):
            last = pairs[-1]
            problem = self._problem(last["limit_bytes"], _workload_of(last), last["disk_bytes_per_s"])
            turn = disk_turn(problem, from_plain(Policy, last["policy"], where="policy"))
            found["turning_point"] = None if turn is None else turn.batch_size

    def _predicted(self, row: dict[str, Any]) -> dict[str, Any]:
        policy = from_plain(Policy, row["policy"], where="policy")
        hardware = _with_disk(self.profile, row["disk_bytes_per_s"])
        made = predict(policy, self.model, hardware, _workload_of(row))
        read_bytes = disk_read_bytes(policy, self.model)
        return {"task_s": to_plain(made.task_s), "reading_s": read_bytes / row["disk_bytes_per_s"]} | {
            str(fidelity): {
                "tokens_per_s": times.throughput_tokens_per_s,
                "decode_tokens_per_s": times.decode_throughput_tokens_per_s,
                "prefill_s": times.prefill_s,
                "decode_s": times.decode_s,
            }
            for fidelity, times in made.by_fidelity.items()
        }

    def _look(self, found: dict[str, Any]) -> None:
        """See, once, how fast the disk is and what the libraries take: plans are made with it."""
        if "libraries_bytes" not in found:
            found["libraries_bytes"] = int(self._run("libraries", None)["bytes"])
            found["disk_bytes_per_s"] = self._run("roof", None)["bytes_per_s"]

    def _most_on_disk(self, limit: int, found: dict[str, Any]) -> Policy:
        """Plan for as many sequences as the memory limit allows at once."""
        for sequences in reversed(self.case.sequences):
            with suppress(InfeasibleError):
                policy = self._plan(limit, _workload(sequences, self.case.swept_prompt_len), found).policy
                if policy.batch_size == sequences:
                    return policy
        raise SystemExit(f"{self.case.checkpoint}: {format_bytes(limit)} is too little (raise the limit of the case)")

    def _plan(self, limit_bytes: int, workload: Workload, found: dict[str, Any]) -> Plan:
        unplanned_bytes = UNPLANNED_BYTES + SEQUENCE_BYTES * (workload.num_sequences or 0)
        room = limit_bytes - found["libraries_bytes"] - unplanned_bytes
        return solve(self._problem(room, workload, found["disk_bytes_per_s"]))

    def _problem(self, room_bytes: int, workload: Workload, disk_bytes_per_s: float) -> Problem:
        """Pose the planning of a job with so much memory beside the libraries."""
        return Problem(
            model=self.model,
            hardware=_with_disk(self.profile, disk_bytes_per_s),
            workload=workload,
            weight_dtype=DType.BFLOAT16,
            kv_dtype=DType.BFLOAT16,
            schedules=(ScheduleName.HOST,),
            ram_limit_bytes=room_bytes,
        )

    def _between_looks(
        self, tool: str, limit: int, policy: Policy, workload: Workload, found: dict[str, Any]
    ) -> dict[str, Any]:
        """Run a tool, and the disk alone before and after where it is ours."""
        asked = {"sequences": workload.num_sequences, "prompt_len": workload.max_prompt_len}
        changes = asked | {"weights_bytes": max(PEER_LEAST_BYTES, limit - found["libraries_bytes"] - PEER_BYTES)}
        if tool != "ours":
            return self._run(tool, limit, **changes)
        before = self._run("roof", None)["bytes_per_s"]
        done = self._run(tool, limit, **changes, policy=to_plain(policy))
        looks = [before, self._run("roof", None)["bytes_per_s"]]
        return (
            done | asked | {"policy": to_plain(policy), "disk_bytes_per_s": sum(looks) / 2, "looks_bytes_per_s": looks}
        )

    def _run(self, tool: str, limit_bytes: int | None, **changes: Any) -> dict[str, Any]:
        """Run a tool in a process of its own, the page cache empty."""
        subprocess.run(["sync"], check=True)
        with suppress(OSError):
            Path("/proc/sys/vm/drop_caches").write_text("1\n")
        job = self._job | changes | {"limit_bytes": limit_bytes}
        group, begun_s = _Group(limit_bytes), time.monotonic()
        command = [sys.executable, str(TOOLS), tool, json.dumps(job)]
        try:
            done = subprocess.run(command, preexec_fn=group.enter, capture_output=True, text=True, timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            tokens = changes.get("sequences", 0) * GEN_LEN
            error = f"not done after {LONGEST_S:.0f} s: less than {tokens / LONGEST_S:.2f} tokens/s"
            return {"wall_s": LONGEST_S, "error": error, "tokens_per_s": 0.0}
        wall = {"wall_s": time.monotonic() - begun_s}
        if done.returncode:
            killed = done.returncode == -signal.SIGKILL
            error = (
                "killed: more memory than the limit" if killed else (done.stderr.strip().splitlines() or ["failed"])[-1]
            )
            return wall | {"error": error, "tokens_per_s": 0.0}
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found | wall | {"peak_bytes": group.peak_bytes()}


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


def _with(policy: Policy, batch_size: int) -> Policy:
    return replace(policy, batch_size=batch_size, micro_batch_size=min(policy.micro_batch_size, batch_size))


def _workload(sequences: int, prompt_len: int = PROMPT_LEN) -> Workload:
    return Workload(
        mean_prompt_len=float(prompt_len), max_prompt_len=prompt_len, gen_len=GEN_LEN, num_sequences=sequences
    )


def _workload_of(row: dict[str, Any]) -> Workload:
    return _workload(row["sequences"], row["prompt_len"])


def _with_disk(profile: HardwareProfile, bytes_per_s: float) -> HardwareProfile:
    """Return the machine with a disk that reads so fast, whatever its profile says, and its libraries left out.

    What they hold is measured by itself, before each plan.
    """
    rate = Rate(measured=Measurement(median=bytes_per_s, iqr=0.0, count=3))
    disk = Level(
        description="the disk of the work folder", capacity_bytes=1 << 40, usable_bytes=1 << 40, read_bytes_per_s=rate
    )
    link = Link(source="disk", target="cpu", bytes_per_s=rate, latency_s=0.0)
    levels = {"cpu": replace(profile.levels["cpu"], runtime_bytes=0), "disk": disk}
    return replace(profile, levels=profile.levels | levels, links=profile.links | {"disk": link})
