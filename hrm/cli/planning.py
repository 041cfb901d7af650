"""`hrm solve`: from a machine, a model and a job to the plan that does it best."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hrm.cli import options
from hrm.cli.plans import deliver, pose
from hrm.dtypes import DType
from hrm.estimate import Fidelity
from hrm.policy import Staging

__all__ = ["solve"]


class _Method(StrEnum):
    """`solver.Method`, without importing the solver."""

    AUTO = "auto"
    MILP = "milp"
    GRID = "grid"


class _Objective(StrEnum):
    """`solver.Objective`, likewise."""

    THROUGHPUT = "throughput"
    LATENCY = "latency"


MethodOption = Annotated[
    _Method, typer.Option("--method", help="Breakpoints and simulation, HiGHS, or every candidate predicted.")
]
ObjectiveOption = Annotated[
    _Objective, typer.Option("--objective", help="Most tokens/s, or least time from a wave's start to its last token.")
]
MaxTtft = Annotated[float | None, typer.Option("--max-ttft-s", help="Most seconds to a wave's first tokens.")]
MaxTpot = Annotated[float | None, typer.Option("--max-tpot-s", help="Most seconds per further token, on average.")]
MaxMakespan = Annotated[float | None, typer.Option("--max-makespan-s", help="Most seconds for the whole job.")]
NoSimulate = Annotated[
    bool, typer.Option("--no-simulate", help="At once: rank by ceilings, with neither simulation nor interval.")
]
WriteLp = Annotated[Path | None, typer.Option("--write-lp", help="Write the program of --method milp to this file.")]
AlsoWeights = Annotated[
    list[DType] | None,
    typer.Option("--also-weight-dtype", case_sensitive=False, help="A further format that weights may have."),
]
AlsoKv = Annotated[
    list[DType] | None,
    typer.Option("--also-kv-dtype", case_sensitive=False, help="A further format that the KV cache may have."),
]


def solve(
    model: options.ModelName,
    hardware: options.HardwareName,
    gen_len: options.GenLen,
    prompt_len: options.PromptLen = None,
    max_prompt_len: options.MaxPromptLen = None,
    num_sequences: options.NumSequences = None,
    prompts: options.Prompts = None,
    tokenizer: options.TokenizerFolder = None,
    padded: options.Padded = False,
    routing: options.RoutingOption = None,
    weight_dtype: options.WeightDType = None,
    expert_dtype: options.ExpertDType = None,
    kv_dtype: options.KvDType = None,
    staging: options.StagingOption = Staging.PINNED,
    ram_limit: options.RamLimit = None,
    also_weight_dtype: AlsoWeights = None,
    also_kv_dtype: AlsoKv = None,
    objective: ObjectiveOption = _Objective.THROUGHPUT,
    max_ttft_s: MaxTtft = None,
    max_tpot_s: MaxTpot = None,
    max_makespan_s: MaxMakespan = None,
    method: MethodOption = _Method.AUTO,
    no_simulate: NoSimulate = False,
    write_lp: WriteLp = None,
    fidelity: options.FidelityOption = Fidelity.CEILING,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Plan to write.")] = None,
    json: options.Json = False,
) -> None:
    """Find the best policy that fits in memory and keeps the limits on time."""
    from hrm.files import check_output
    from hrm.model_config import load_model
    from hrm.report import progress, show_json
    from solver.infeasible import NoPlanError
    from solver.problem import Objective
    from solver.search import Method
    from solver.search import solve as search

    for path in filter(None, (output, write_lp)):
        check_output(path)
    workload = options.workload_of(
        load_model(model),
        gen_len=gen_len,
        prompt_len=prompt_len,
        max_prompt_len=max_prompt_len,
        num_sequences=num_sequences,
        prompts=prompts,
        tokenizer=tokenizer,
        padded=padded,
        routing=routing,
    )
    problem = pose(
        model,
        hardware,
        workload,
        weight_dtype=weight_dtype,
        expert_dtype=expert_dtype,
        kv_dtype=kv_dtype,
        staging=staging,
        ram_limit=ram_limit,
    )
    problem = replace(
        problem,
        more_weight_dtypes=tuple(also_weight_dtype or ()),
        more_kv_dtypes=tuple(also_kv_dtype or ()),
        objective=Objective(objective),
        max_ttft_s=max_ttft_s,
        max_tpot_s=max_tpot_s,
        max_makespan_s=max_makespan_s,
    )
    try:
        with progress("solving"):
            plan = search(
                problem, method=Method(method), fidelity=fidelity, simulate=not no_simulate, write_lp=write_lp
            )
    except NoPlanError as error:
        if json:
            show_json(error.document())
        raise
    deliver(plan, output, json=json)
