"""Predict runs that others published and print predicted over measured for each, with nothing adjusted per run.

    python benchmarks/published_runs.py [RUNS.yaml] [--json FILE]

Also printed: the typical factor, exp of the mean |log ratio|, how many rows lie inside their 80 % interval, and how far
each row moves when a default of `hrm.achievable` moves by 20 % up and down.

What a row does not say is read as follows. Lengths: the default workload (512 prompt, 128 generated tokens).
Micro-batch: 128 sequences, or the batch if that is less. MoE-Lightning: CGOPipe, weights staged from pageable memory.
Other systems: experts on the CPU are computed there; formats as the row's `weight_dtype` names them.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from hrm.achievable import Trait, default
from hrm.dtypes import DType
from hrm.estimate import Fidelity
from hrm.hardware import HardwareProfile, load_profile
from hrm.interval import Interval, interval_around, with_assumed
from hrm.model import ModelSpec
from hrm.model_config import load_model
from hrm.policy import Policy, Processor, ScheduleName, Staging
from hrm.predict import predict
from hrm.rates import class_of
from hrm.workload import DEFAULT_GEN_LEN, DEFAULT_PROMPT_LEN, Workload

RUNS = Path(__file__).parent / "data" / "published_runs.yaml"
METRICS = {
    "e2e_generation_throughput": "throughput_tokens_per_s",
    "decode_throughput": "decode_throughput_tokens_per_s",
    "prefill_throughput": "prefill_throughput_tokens_per_s",
}
MODELS = {"deepseek-v3-671b": "deepseek-v3", "deepseek-v2-236b": "deepseek-v2", "minimax-m2.1": "minimax-m2"}
"""Names in the published table that differ from the bundled ones."""
FORMATS = (
    (r"q4_k_m|q4_k_xl|ud-q4", DType.Q4_K_M),
    (r"iq4|q4_0|int4|awq|gptq", DType.INT4),
    (r"q8_0", DType.Q8_0),
    (r"q6_k", DType.Q6_K),
    (r"q5_k", DType.Q5_K),
    (r"q3_k", DType.Q3_K),
    (r"q2_k", DType.Q2_K),
    (r"mxfp4", DType.MXFP4),
    (r"fp8|float8", DType.FLOAT8),
    (r"bfloat16|bf16", DType.BFLOAT16),
    (r"float16|fp16", DType.FLOAT16),
)
DEFAULT_MICRO_BATCH = 128


@dataclass(frozen=True)
class Run:
    """A published run as this project describes it, and what was measured of it."""

    name: str
    policy: Policy
    model: ModelSpec
    hardware: HardwareProfile
    workload: Workload
    metric: str
    measured: float

    def predicted(self, hardware: HardwareProfile, fidelity: Fidelity = Fidelity.CEILING) -> float:
        """Predict the measured quantity on a machine."""
        made = predict(self.policy, self.model, hardware, self.workload, fidelity=fidelity, fidelities=(fidelity,))
        return float(getattr(made.times, self.metric))


def read_runs(path: Path) -> Iterator[Run]:
    """Yield the runs of a table whose machine is known."""
    for row in yaml.safe_load(path.read_text())["runs"]:
        model = load_model(MODELS.get(row["model"], row["model"]))
        policy = _policy(row, model)
        yield Run(
            name=row["id"],
            policy=policy,
            model=model,
            hardware=load_profile(row["hardware"]),
            workload=_workload(row, policy),
            metric=METRICS[row["measured"]["metric"]],
            measured=row["measured"]["tokens_per_s"],
        )


def _workload(row: dict[str, Any], policy: Policy) -> Workload:
    said = row["workload"]
    mean = said.get("prompt_len") or DEFAULT_PROMPT_LEN
    return Workload(
        mean_prompt_len=float(mean),
        max_prompt_len=max(said.get("prompt_len_max") or 0, math.ceil(mean)),
        gen_len=said.get("gen_len") or DEFAULT_GEN_LEN,
        num_sequences=said.get("n_sequences") or policy.batch_size,
        padded=bool(said.get("padded_to_max")),
    )


def _policy(row: dict[str, Any], model: ModelSpec) -> Policy:
    said, batch = row["policy"], row["workload"].get("n_sequences") or row["policy"]["batch"]
    attention, ffn = (Processor(said[name].split()[0]) for name in ("attention_device", "ffn_device"))
    parts = said.get("n_micro_batches")
    micro_batch = math.ceil(batch / parts) if parts else min(said.get("micro_batch") or DEFAULT_MICRO_BATCH, batch)
    dense, experts = _formats(row["weight_dtype"])
    on_cpu = Processor.GPU not in (attention, ffn)
    return Policy(
        batch_size=batch,
        micro_batch_size=micro_batch,
        attention_device=attention,
        ffn_device=ffn,
        resident_experts=int((said.get("gpu_expert_fraction_effective") or 0.0) * model.num_experts),
        kv_on_gpu=1.0 if attention is Processor.GPU else 0.0,
        schedule=ScheduleName.HOST if on_cpu else ScheduleName.CGOPIPE,
        weight_dtype=dense,
        expert_dtype=experts,
        kv_dtype=DType.FLOAT16,
        staging=Staging.PAGEABLE if row["system"] == "MoE-Lightning" else Staging.PINNED,
    )


def _formats(text: str) -> tuple[DType, DType]:
    """Return the formats of the dense weights and of the experts: the first named is the experts'."""
    found = [(match.start(), dtype) for pattern, dtype in FORMATS if (match := re.search(pattern, text.lower()))]
    if not found:
        raise ValueError(f"weight_dtype: {text!r} names no known format")
    formats = [dtype for _, dtype in sorted(found)]
    return formats[-1], formats[0]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", type=Path, default=RUNS)
    parser.add_argument("--json", type=Path, help="write everything here as well")
    asked = parser.parse_args()
    runs = list(read_runs(asked.runs))
    console = Console(width=150)
    rows = [_row(run) for run in runs]
    _print_rows(rows, console)
    moves = {run.name: _moves(run) for run in runs}
    _print_moves(moves, console)
    if asked.json:
        asked.json.write_text(json.dumps({"runs": rows, "moved_by_20_percent": moves}, indent=2))


def _row(run: Run) -> dict[str, Any]:
    by_fidelity = {fidelity: run.predicted(run.hardware, fidelity) for fidelity in Fidelity}
    best = by_fidelity[Fidelity.SIMULATED]
    interval: Interval = interval_around(best, run.hardware, run.predicted)
    return {
        "run": run.name,
        "measured": run.measured,
        **{fidelity.value: value for fidelity, value in by_fidelity.items()},
        "ratio": best / run.measured,
        "low": interval.low,
        "high": interval.high,
    }


def _print_rows(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table("run", "measured", "roof", "ceiling", "simulated", "80 % interval", "predicted/measured")
    for row in rows:
        numbers = [f"{row[name]:.1f}" for name in ("measured", "roof", "ceiling", "simulated")]
        table.add_row(row["run"], *numbers, f"{row['low']:.1f} to {row['high']:.1f}", f"{row['ratio']:.2f}")
    console.print(table)
    logs = [abs(math.log(row["ratio"])) for row in rows]
    inside = sum(row["low"] <= row["measured"] <= row["high"] for row in rows)
    console.print(
        f"typical factor {math.exp(sum(logs) / len(logs)):.3f}, largest {math.exp(max(logs)):.3f}; "
        f"{inside} of {len(rows)} inside the interval"
    )


def _moves(run: Run) -> dict[str, tuple[float, float]]:
    """Return by what factor a run's prediction moves when a default moves by 20 % down and up."""
    base, found = run.predicted(run.hardware), {}
    for name, level in run.hardware.levels.items():
        for trait in Trait:
            try:
                value = default(trait, class_of(name, level)).value
            except KeyError:
                continue
            moved = [run.predicted(with_assumed(run.hardware, name, trait, value * by)) / base for by in (0.8, 1.2)]
            found[f"{name} {trait}"] = (moved[0], moved[1])
    return found


def _print_moves(moves: dict[str, dict[str, tuple[float, float]]], console: Console) -> None:
    names = sorted({name for of_run in moves.values() for name in of_run})
    told = [
        name for name in names if any(abs(move - 1) > 0.005 for of in moves.values() for move in of.get(name, (1.0,)))
    ]
    table = Table("default moved by -20 % / +20 %", *moves, title="prediction moves by, %")
    for name in told:
        cells = [of_run.get(name, (1.0, 1.0)) for of_run in moves.values()]
        table.add_row(name, *(f"{100 * low - 100:+.0f} / {100 * high - 100:+.0f}" for low, high in cells))
    console.print(table)


if __name__ == "__main__":
    main()
