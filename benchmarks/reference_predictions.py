"""What is predicted for bundled models on bundled machines, against what was predicted before.

    python benchmarks/reference_predictions.py            # lists what moved; exit code 1 when something did
    python benchmarks/reference_predictions.py --write    # takes today's predictions as the reference

A change that moves a prediction says so in CHANGELOG.md. Each policy is the one that was best when the reference was
written; `best` is what a search finds now.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hrm.dtypes import DType
from hrm.files import from_plain, read_yaml, to_plain, write_yaml
from hrm.hardware import load_profile
from hrm.model_config import load_model
from hrm.policy import Policy
from hrm.predict import predict
from hrm.records import record
from hrm.workload import Workload
from solver.optimum import optimum
from solver.problem import Problem
from solver.search import search

REFERENCE = Path(__file__).parents[1] / "tests" / "data" / "reference_predictions.yaml"
MOVED = 1e-3
"""Relative change from which on a number has moved."""


@record
class Triple:
    """A model, a machine and a job; weights in the model's published format unless one is named."""

    model: str
    machine: str
    prompt_len: int
    max_prompt_len: int
    gen_len: int
    num_sequences: int
    weight_dtype: DType | None = None

    @property
    def name(self) -> str:
        """Model and machine, of which no two triples share both."""
        return f"{self.model} on {self.machine}"

    def problem(self) -> Problem:
        """Pose it."""
        model = load_model(self.model)
        weights = self.weight_dtype or model.dtype
        return Problem(
            model=model,
            hardware=load_profile(self.machine),
            workload=Workload(
                mean_prompt_len=float(self.prompt_len),
                max_prompt_len=self.max_prompt_len,
                gen_len=self.gen_len,
                num_sequences=self.num_sequences,
            ),
            weight_dtype=weights,
            expert_dtype=None if self.weight_dtype else model.expert_dtype,
            kv_dtype=weights.activation_dtype,
        )


@record
class Reference:
    """What was predicted for a triple: a policy, its numbers by name, and the words for what binds it."""

    policy: Policy
    numbers: dict[str, float]
    binds: dict[str, str]


def _triple(model: str, machine: str, job: tuple[int, int, int, int], weight_dtype: DType | None = None) -> Triple:
    prompt_len, max_prompt_len, gen_len, num_sequences = job
    return Triple(
        model=model,
        machine=machine,
        prompt_len=prompt_len,
        max_prompt_len=max_prompt_len,
        gen_len=gen_len,
        num_sequences=num_sequences,
        weight_dtype=weight_dtype,
    )


MT_BENCH = (77, 418, 32, 4096)
TRIPLES = (
    _triple("mixtral-8x7b", "l4-case-study", MT_BENCH, DType.FLOAT16),
    _triple("mixtral-8x7b", "gcp-n1-t4", MT_BENCH, DType.FLOAT16),
    _triple("mixtral-8x7b", "gcp-g2-l4", MT_BENCH, DType.FLOAT16),
    _triple("mixtral-8x22b", "gcp-n1-4xt4", MT_BENCH, DType.FLOAT16),
    _triple("dbrx", "a100-80gb-case-study-2x", (242, 1693, 64, 1024)),
    _triple("gpt-oss-120b", "ryzen-9950x-rtx5090", (512, 512, 128, 1)),
    _triple("gpt-oss-20b", "laptop-ryzen-7840hs-rtx4060", (512, 2048, 128, 16)),
    _triple("qwen3-30b-a3b", "ryzen-7950x-rtx4090", (256, 1024, 128, 256)),
    _triple("deepseek-v2-lite", "ryzen-5950x-rtx3090", (256, 1024, 64, 512)),
    _triple("deepseek-v3", "xeon-6454s-rtx4090", (512, 512, 128, 1), DType.INT4),
    _triple("phi-3.5-moe", "xeon-8592-4xl40s", (128, 512, 64, 2048)),
    _triple("olmoe-1b-7b", "epyc-zen3-vm-2-cores", (64, 256, 32, 64)),
    _triple("olmoe-1b-7b", "epyc-zen5-vm-2-cores", (64, 256, 32, 64)),
)


def written(triple: Triple) -> Reference:
    """Search the best policy of a triple and predict it."""
    return current(triple, search(triple.problem()))


def current(triple: Triple, policy: Policy) -> Reference:
    """Predict a policy of a triple, and what a search finds."""
    problem = triple.problem()
    prediction = predict(policy, problem.model, problem.hardware, problem.workload)
    numbers = {
        f"{name} at {level}": float(f"{getattr(times, name):.6g}")
        for level, times in prediction.by_fidelity.items()
        for name in ("prefill_s", "decode_s")
    }
    best = optimum(problem)
    numbers["best tokens/s at ceiling"] = float(f"{best.throughput_tokens_per_s:.6g}") if best else 0.0
    binds = {
        phase.value: f"{found.lane} by its {found.bound} roof, limit {found.limit}"
        for phase, found in prediction.bottleneck.items()
    }
    return Reference(policy=policy, numbers=numbers, binds=binds)


def moved(name: str, was: Reference, now: Reference) -> list[str]:
    """Say which numbers of a triple moved, and where something else binds."""
    lines = []
    for key in sorted(was.numbers.keys() | now.numbers.keys()):
        old, new = was.numbers.get(key), now.numbers.get(key)
        if old is None or new is None:
            lines.append(f"{name}: {key}: {'is new' if old is None else 'is gone'}")
        elif abs(new - old) > MOVED * abs(old):
            lines.append(
                f"{name}: {key}: {old:g} -> {new:g} ({new / old - 1:+.2%})" if old else f"{name}: {key}: {new:g}"
            )
    for phase in was.binds.keys() | now.binds.keys():
        if was.binds.get(phase) != now.binds.get(phase):
            lines.append(f"{name}: {phase} is bound by {now.binds.get(phase)}, was {was.binds.get(phase)}")
    return lines


def load_references(path: Path = REFERENCE) -> dict[str, Reference]:
    """Read what was predicted before.

    Raises
    ------
    FileError
        When the file is missing or holds something else.
    """
    entries: dict[str, Any] = read_yaml(path)
    return {name: from_plain(Reference, entry, where=f"{path}: {name}") for name, entry in entries.items()}


def all_moved(references: dict[str, Reference]) -> list[str]:
    """List what moved in all triples."""
    names = {triple.name for triple in TRIPLES}
    lines = [f"{name}: is no triple any more" for name in references if name not in names]
    for triple in TRIPLES:
        was = references.get(triple.name)
        lines += [f"{triple.name}: is new"] if was is None else moved(triple.name, was, current(triple, was.policy))
    return lines


def main() -> None:
    """List what moved, or write the reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="take today's predictions as the reference")
    options = parser.parse_args()
    lines = all_moved(load_references()) if REFERENCE.exists() else [f"{REFERENCE.name}: is not there yet"]
    print("\n".join(lines) if lines else "nothing moved")
    if options.write:
        write_yaml(REFERENCE, {triple.name: to_plain(written(triple)) for triple in TRIPLES})
        print(f"wrote {REFERENCE} (say in CHANGELOG.md what moved, and why)")
    elif lines:
        sys.exit(1)


if __name__ == "__main__":
    main()
