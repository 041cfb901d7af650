"""`hrm roofline`, `hrm solve` and `hrm predict`: from a machine and a model to a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from hrm.cli import options
from hrm.errors import HrmError
from hrm.estimate import Fidelity
from hrm.policy import Processor, Staging
from hrm.schedule.task import Phase

if TYPE_CHECKING:
    from hrm.plan import Plan
    from hrm.policy import Policy
    from hrm.workload import Workload
    from solver.space import Problem

__all__ = ["predict", "roofline", "solve"]

T = TypeVar("T")

OptionalName = Annotated[str | None, typer.Option("--model", help="Bundled name, checkpoint folder or config.json.")]
FidelityOption = Annotated[Fidelity, typer.Option("--fidelity", help="Which prediction to headline.")]
StagingOption = Annotated[Staging, typer.Option("--staging", help="Where streamed weights lie in host memory.")]


def roofline(
    model: options.ModelName,
    hardware: options.HardwareName,
    phase: Annotated[Phase, typer.Option("--phase")] = Phase.DECODE,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="N.")] = 1024,
    micro_batch_size: Annotated[int, typer.Option("--micro-batch-size", min=1, help="mu.")] = 128,
    context_len: Annotated[int, typer.Option("--context-len", min=1, help="Tokens attended to, or prompt.")] = 512,
    weight_dtype: options.WeightDType = None,
    kv_dtype: options.KvDType = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Picture: .png or .svg.")] = None,
    json: options.Json = False,
) -> None:
    """Place each operator under the roofs of a machine: what binds it, and where to compute it."""
    from hrm.hardware import load_profile
    from hrm.model_config import load_model
    from hrm.placement import place_operators
    from hrm.report import show_json, show_roofline

    spec, machine = load_model(model), load_profile(hardware)
    if micro_batch_size > batch_size:
        raise HrmError(f"--micro-batch-size {micro_batch_size}: exceeds --batch-size {batch_size} (lower it)")
    placed = place_operators(
        spec,
        machine,
        phase,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        context_len=context_len,
        weight_dtype=weight_dtype or spec.dtype,
        kv_dtype=kv_dtype or weight_dtype or spec.dtype,
    )
    if output is not None:
        from hrm.plot import draw_roofline

        draw_roofline(placed, output)
    show_json(placed) if json else show_roofline(placed)
    if output is not None and not json:
        typer.echo(f"wrote {output}")


def solve(
    model: options.ModelName,
    hardware: options.HardwareName,
    gen_len: options.GenLen,
    prompt_len: options.PromptLen = None,
    max_prompt_len: options.MaxPromptLen = None,
    num_sequences: options.NumSequences = None,
    prompts: options.Prompts = None,
    tokenizer: options.TokenizerFolder = None,
    weight_dtype: options.WeightDType = None,
    kv_dtype: options.KvDType = None,
    staging: StagingOption = Staging.PINNED,
    ram_limit: options.RamLimit = None,
    fidelity: FidelityOption = Fidelity.CEILING,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Plan to write.")] = None,
    json: options.Json = False,
) -> None:
    """Find the policy with the highest predicted throughput that fits in memory."""
    from hrm.files import check_output
    from hrm.model_config import load_model
    from hrm.report import progress
    from solver.grid import solve as search

    if output is not None:
        check_output(output)
    workload = options.workload_of(
        load_model(model),
        gen_len=gen_len,
        prompt_len=prompt_len,
        max_prompt_len=max_prompt_len,
        num_sequences=num_sequences,
        prompts=prompts,
        tokenizer=tokenizer,
    )
    problem = _problem(model, hardware, workload, weight_dtype, kv_dtype, staging, ram_limit)
    with progress("solving"):
        plan = search(problem, fidelity=fidelity)
    _deliver(plan, output, json=json)


def predict(
    plan: Annotated[
        Path | None, typer.Option("--plan", help="Predict this plan, instead of a policy by options.")
    ] = None,
    model: OptionalName = None,
    hardware: Annotated[str | None, typer.Option("--hardware", help="Bundled profile, alias, or YAML.")] = None,
    gen_len: Annotated[int | None, typer.Option("--gen-len", min=1, help="Tokens per sequence.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="N: sequences in flight.")] = None,
    micro_batch_size: Annotated[int | None, typer.Option("--micro-batch-size", min=1, help="mu: per launch.")] = None,
    prompt_len: options.PromptLen = None,
    max_prompt_len: options.MaxPromptLen = None,
    num_sequences: options.NumSequences = None,
    prompts: options.Prompts = None,
    tokenizer: options.TokenizerFolder = None,
    weights_on_gpu: Annotated[float, typer.Option("--weights-on-gpu", min=0, max=1, help="r_w: whole experts.")] = 0.0,
    attention_device: Annotated[Processor, typer.Option("--attention-device")] = Processor.CPU,
    ffn_device: Annotated[Processor, typer.Option("--ffn-device")] = Processor.GPU,
    pages_per_layer: Annotated[int | None, typer.Option("--pages-per-layer", min=1)] = None,
    weight_dtype: options.WeightDType = None,
    kv_dtype: options.KvDType = None,
    staging: StagingOption = Staging.PINNED,
    fidelity: FidelityOption = Fidelity.CEILING,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Plan to write.")] = None,
    json: options.Json = False,
) -> None:
    """Predict a given policy, or a plan again: prefill, decode, throughput, and what binds.

    With --plan the policy, model and job are the plan's; without --hardware its own prediction is shown.
    """
    from hrm.files import check_output
    from hrm.model_config import load_model
    from hrm.policy import Policy, ScheduleName

    if output is not None:
        check_output(output)
    if plan is not None and hardware is None:
        _deliver(_headlined(plan, fidelity), output, json=json)
        return
    hardware_name = _given(hardware, "--hardware")
    if plan is not None:
        problem, policy = _planned(plan, hardware_name)
    else:
        model_name = _given(model, "--model")
        workload = options.workload_of(
            load_model(model_name),
            gen_len=_given(gen_len, "--gen-len"),
            prompt_len=prompt_len,
            max_prompt_len=max_prompt_len,
            num_sequences=num_sequences,
            prompts=prompts,
            tokenizer=tokenizer,
        )
        problem = _problem(model_name, hardware_name, workload, weight_dtype, kv_dtype, staging, None)
        policy = Policy(
            batch_size=_given(batch_size, "--batch-size"),
            micro_batch_size=_given(micro_batch_size, "--micro-batch-size"),
            attention_device=attention_device,
            ffn_device=ffn_device,
            resident_experts=_whole_experts(weights_on_gpu, problem.model.num_experts),
            kv_on_gpu=1.0 if attention_device is Processor.GPU else 0.0,
            schedule=ScheduleName.CGOPIPE if ffn_device is Processor.GPU else ScheduleName.HOST,
            weight_dtype=problem.weight_dtype,
            kv_dtype=problem.kv_dtype,
            staging=staging,
            pages_per_layer=pages_per_layer,
        )
        policy.check(problem.model)
    _predict(problem, policy, fidelity, output, json=json)


def _given(value: T | None, option: str) -> T:
    if value is None:
        raise HrmError(f"{option}: needed (give it, or see hrm predict --help)")
    return value


def _headlined(path: Path, fidelity: Fidelity) -> Plan:
    """Return a plan with the prediction that it carries, another fidelity in front."""
    from hrm.plan import load_plan

    plan = load_plan(path)
    return replace(plan, prediction=replace(plan.prediction, fidelity=fidelity))


def _planned(path: Path, hardware: str) -> tuple[Problem, Policy]:
    """Take the problem and the policy from a plan, for a machine of the user's choice."""
    from hrm.hardware import load_profile
    from hrm.plan import load_plan
    from solver.space import Problem

    plan = load_plan(path)
    problem = Problem(
        model=plan.model,
        hardware=load_profile(hardware),
        workload=plan.workload,
        weight_dtype=plan.policy.weight_dtype,
        kv_dtype=plan.policy.kv_dtype,
        staging=plan.policy.staging,
    )
    return problem, plan.policy


def _predict(problem: Problem, policy: Policy, fidelity: Fidelity, output: Path | None, *, json: bool) -> None:
    from hrm.plan import PlanStatus
    from solver.grid import make_plan

    made = make_plan(problem, policy, PlanStatus.GIVEN, fidelity)
    _deliver(made, output, json=json, short=problem.short_of(policy))


def _whole_experts(fraction: float, num_experts: int) -> int:
    count = round(fraction * num_experts)
    if abs(count - fraction * num_experts) > 1e-6:
        raise HrmError(
            f"--weights-on-gpu {fraction}: only whole experts stay on the GPU "
            f"(write a multiple of 1/{num_experts}, such as {count / num_experts:g})"
        )
    return count


def _problem(
    model: str,
    hardware: str,
    workload: Workload,
    weight_dtype: options.WeightDType,
    kv_dtype: options.KvDType,
    staging: Staging,
    ram_limit: str | None,
) -> Problem:
    from hrm.hardware import load_profile
    from hrm.model_config import load_model
    from solver.space import Problem

    spec = load_model(model)
    return Problem(
        model=spec,
        hardware=load_profile(hardware),
        workload=workload,
        weight_dtype=weight_dtype or spec.dtype,
        kv_dtype=kv_dtype or weight_dtype or spec.dtype,
        staging=staging,
        ram_limit_bytes=options.parse_bytes(ram_limit, "--ram-limit") if ram_limit else None,
    )


def _deliver(plan: Plan, output: Path | None, *, json: bool, short: object = None) -> None:
    """Show the plan, write it if asked, and fail when it does not fit."""
    from hrm.errors import InfeasibleError
    from hrm.plan import save_plan, summary
    from hrm.report import show_json, show_plan

    if json:
        show_json(summary(plan) | ({"status": "infeasible", "short": str(short)} if short else {}))
    else:
        show_plan(plan)
    if short is not None:
        raise InfeasibleError(f"the policy does not fit: {short} (lower --batch-size, --weights-on-gpu or the dtype)")
    if output is not None:
        save_plan(output, plan)
        if not json:
            typer.echo(f"wrote {output}")
