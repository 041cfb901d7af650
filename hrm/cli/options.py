"""Options that several verbs share, and what is made of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.dtypes import DType
from hrm.errors import HrmError
from hrm.estimate import Fidelity
from hrm.policy import Staging
from hrm.records import record

if TYPE_CHECKING:
    from hrm.model import ModelSpec
    from hrm.routing import Routing
    from hrm.workload import Workload

__all__ = [
    "ExpertDType",
    "FidelityOption",
    "FormatOptions",
    "GenLen",
    "HardwareName",
    "JobOptions",
    "Json",
    "KvDType",
    "MaxPromptLen",
    "ModelName",
    "NumSequences",
    "Padded",
    "PromptLen",
    "Prompts",
    "RamLimit",
    "RoutingOption",
    "SplitExperts",
    "StagingOption",
    "TokenizerFolder",
    "WeightDType",
    "parse_bytes",
]

ModelName = Annotated[str, typer.Option("--model", help="Bundled name, checkpoint folder or Hugging Face config.json.")]
HardwareName = Annotated[str, typer.Option("--hardware", help="Bundled profile, alias, or profile YAML.")]
PromptLen = Annotated[float | None, typer.Option("--prompt-len", min=1, help="Mean prompt length in tokens.")]
MaxPromptLen = Annotated[int | None, typer.Option("--max-prompt-len", min=1, help="Longest prompt in tokens.")]
Prompts = Annotated[Path | None, typer.Option("--prompts", help="Prompts as JSONL, instead of --prompt-len.")]
TokenizerFolder = Annotated[
    Path | None, typer.Option("--tokenizer", help="Checkpoint folder that tokenizes --prompts.")
]
GenLen = Annotated[int, typer.Option("--gen-len", min=1, help="Tokens to generate per sequence.")]
NumSequences = Annotated[int | None, typer.Option("--num-sequences", min=1, help="Sequences in the job.")]
WeightDType = Annotated[
    DType | None, typer.Option("--weight-dtype", case_sensitive=False, help="Format of weights; default the model's.")
]
ExpertDType = Annotated[
    DType | None, typer.Option("--expert-dtype", case_sensitive=False, help="Format of routed experts, if another.")
]
KvDType = Annotated[
    DType | None, typer.Option("--kv-dtype", case_sensitive=False, help="Format of the KV cache; default 16 bits.")
]
Padded = Annotated[bool, typer.Option("--padded", help="Prompts are padded to the longest.")]
RoutingOption = Annotated[
    str | None, typer.Option("--routing", help="uniform, zipf:EXPONENT, or a trace file that a run recorded.")
]
StagingOption = Annotated[Staging, typer.Option("--staging", help="Where streamed weights lie in host memory.")]
FidelityOption = Annotated[Fidelity, typer.Option("--fidelity", help="Which prediction to headline.")]
RamLimit = Annotated[str | None, typer.Option("--ram-limit", help="Host memory to keep to, such as 12GiB.")]
SplitExperts = Annotated[
    bool,
    typer.Option(
        "--split-experts/--whole-experts", help="Whether the CPU may compute some of a layer's experts beside the GPU."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


@record
class JobOptions:
    """The job: by lengths, or by a file of prompts and the tokenizer that reads them."""

    prompt_len: PromptLen = None
    max_prompt_len: MaxPromptLen = None
    num_sequences: NumSequences = None
    prompts: Prompts = None
    tokenizer: TokenizerFolder = None
    padded: Padded = False
    routing: RoutingOption = None

    def workload(self, model: ModelSpec, gen_len: int) -> Workload:
        """Describe the job for a model.

        Raises
        ------
        HrmError
            When both lengths and prompts or neither are given, or the longest sequence exceeds what the model was made
            for.
        """
        if (self.prompt_len is None) == (self.prompts is None):
            raise HrmError("--prompt-len, --prompts: give exactly one of them")
        workload = self._of_prompts(gen_len) if self.prompts is not None else self._of_lengths(gen_len)
        if workload.max_context_len > model.max_position_embeddings:
            raise HrmError(
                f"--gen-len {gen_len}: with prompts up to {workload.max_prompt_len} tokens this exceeds the model's "
                f"{model.max_position_embeddings} positions (shorten one)"
            )
        return replace(workload, padded=self.padded, routing=_routing_of(self.routing, model))

    def _of_lengths(self, gen_len: int) -> Workload:
        from hrm.workload import Workload

        assert self.prompt_len is not None
        if not math.isfinite(self.prompt_len):
            raise HrmError(f"--prompt-len {self.prompt_len}: must be a number of tokens (correct it)")
        return Workload(
            mean_prompt_len=float(self.prompt_len),
            max_prompt_len=self.max_prompt_len or math.ceil(self.prompt_len),
            gen_len=gen_len,
            num_sequences=self.num_sequences,
        )

    def _of_prompts(self, gen_len: int) -> Workload:
        from executor.prompts import read_prompts
        from hrm.workload import Workload

        for option, value in (("--max-prompt-len", self.max_prompt_len), ("--num-sequences", self.num_sequences)):
            if value is not None:
                raise HrmError(f"{option}: not with --prompts, which says it already (leave one out)")
        assert self.prompts is not None
        if self.tokenizer is None:
            raise HrmError("--tokenizer: needed with --prompts (give the checkpoint folder)")
        lens = tuple(len(prompt.tokens) for prompt in read_prompts(self.prompts, self.tokenizer))
        return Workload.from_prompt_lens(lens, gen_len)


@record
class FormatOptions:
    """Formats of weights, experts and KV cache, and where streamed weights lie."""

    weight_dtype: WeightDType = None
    expert_dtype: ExpertDType = None
    kv_dtype: KvDType = None
    staging: StagingOption = Staging.PINNED


_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_bytes(text: str, option: str) -> int:
    """Read a size such as `12GiB`, `800MB` or a plain number of bytes.

    Raises
    ------
    HrmError
        When the text is no such size.
    """
    digits = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = text.strip()[len(digits) :].lower()
    try:
        count = int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        count = 0
    if count < 1:
        raise HrmError(f"{option}: {text!r} is no size (write bytes, or a number with KiB, MiB, GiB, kB, MB or GB)")
    return count


def _routing_of(text: str | None, model: ModelSpec) -> Routing:
    """Read `uniform`, `zipf:EXPONENT`, or the name of a trace file."""
    from hrm.routing import UNIFORM, Routing, RoutingLaw

    if text is None or text == RoutingLaw.UNIFORM:
        return UNIFORM
    if not text.startswith("zipf:"):
        return Routing.from_trace(text, model)
    try:
        exponent = float(text.removeprefix("zipf:"))
    except ValueError:
        exponent = -1.0
    if not 0 <= exponent < 10:
        raise HrmError(f"--routing {text}: no exponent (write a number from 0 to 10, such as zipf:1.0)")
    return Routing(law=RoutingLaw.SKEWED, exponent=exponent)
