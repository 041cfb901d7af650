"""`hrm predict`: how long a given policy, or a plan, takes, and what binds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from hrm.cli import options
from hrm.cli.plans import deliver, pose, problem_of
from hrm.cli.schedules import ALL, show_comparison
from hrm.cli.timelines import GanttFile, TraceFile, check_files, show_preview
from hrm.errors import HrmError
from hrm.estimate import Fidelity
from hrm.policy import Processor, ScheduleName, Staging

if TYPE_CHECKING:
    from hrm.policy import Policy
    from solver.space import Problem

__all__ = ["predict"]

T = TypeVar("T")

_POLICY = (
    "batch_size",
    "micro_batch_size",
    "weights_on_gpu",
    "kv_on_gpu",
    "attention_device",
    "ffn_device",
    "experts_on_cpu",
    "pages_per_layer",
)
_JOB = (
    "model",
    "gen_len",
    "prompt_len",
    "max_prompt_len",
    "num_sequences",
    "prompts",
    "tokenizer",
    "padded",
    "routing",
    "weight_dtype",
    "expert_dtype",
    "kv_dtype",
    "staging",
)
Files = tuple[Path | None, Path | None, Path | None]
"""The plan, the trace and the picture to write."""

PlanFile = Annotated[Path | None, typer.Option("--plan", help="Predict this plan, instead of a policy by options.")]
OptionalModel = Annotated[str | None, typer.Option("--model", help="Bundled name, checkpoint folder or config.json.")]
OptionalHardware = Annotated[str | None, typer.Option("--hardware", help="Bundled profile, alias, or YAML.")]
OptionalGenLen = Annotated[int | None, typer.Option("--gen-len", min=1, help="Tokens per sequence; default 128.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="N: sequences in flight.")]
MicroBatchSize = Annotated[int | None, typer.Option("--micro-batch-size", min=1, help="mu: per launch; default N.")]
WeightsOnGpu = Annotated[float, typer.Option("--weights-on-gpu", min=0, max=1, help="r_w: whole experts.")]
ExpertsOnCpu = Annotated[
    float | None, typer.Option("--experts-on-cpu", min=0, max=1, help="Share of the experts that the CPU computes.")
]
KvOnGpu = Annotated[float | None, typer.Option("--kv-on-gpu", min=0, max=1, help="r_c: share of the KV cache.")]
ScheduleOption = Annotated[
    str | None, typer.Option("--schedule", help="Pipeline by name, or all; default cgopipe, host without the GPU.")
]
BestPolicy = Annotated[bool, typer.Option("--best-policy", help="With --schedule all: each at its own best policy.")]


def predict(
    context: typer.Context,
    plan: PlanFile = None,
    model: OptionalModel = None,
    hardware: OptionalHardware = None,
    gen_len: OptionalGenLen = None,
    batch_size: BatchSize = None,
    micro_batch_size: MicroBatchSize = None,
    prompt_len: options.PromptLen = None,
    max_prompt_len: options.MaxPromptLen = None,
    num_sequences: options.NumSequences = None,
    prompts: options.Prompts = None,
    tokenizer: options.TokenizerFolder = None,
    padded: options.Padded = False,
    routing: options.RoutingOption = None,
    weights_on_gpu: WeightsOnGpu = 0.0,
    kv_on_gpu: KvOnGpu = None,
    attention_device: Annotated[Processor, typer.Option("--attention-device")] = Processor.CPU,
    ffn_device: Annotated[Processor, typer.Option("--ffn-device")] = Processor.GPU,
    experts_on_cpu: ExpertsOnCpu = None,
    schedule: ScheduleOption = None,
    best_policy: BestPolicy = False,
    pages_per_layer: Annotated[int | None, typer.Option("--pages-per-layer", min=1)] = None,
    weight_dtype: options.WeightDType = None,
    expert_dtype: options.ExpertDType = None,
    kv_dtype: options.KvDType = None,
    staging: options.StagingOption = Staging.PINNED,
    fidelity: options.FidelityOption = Fidelity.CEILING,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Plan to write.")] = None,
    trace: TraceFile = None,
    gantt: GanttFile = None,
    json: options.Json = False,
) -> None:
    """Predict a given policy, or a plan again: prefill, decode, throughput, and what binds.

    With --plan the policy, model and job are the plan's; without --hardware its own prediction is shown. Lengths that
    are not given are taken as 512 prompt and 128 generated tokens.
    """
    from hrm.files import check_output
    from hrm.model_config import load_model
    from hrm.workload import DEFAULT_GEN_LEN, DEFAULT_PROMPT_LEN

    if output is not None:
        check_output(output)
    check_files(trace, gantt, one_schedule=schedule != ALL)
    if schedule == ALL:
        _refuse(context, ("output", "fidelity"), f"means nothing with --schedule {ALL}, which shows simulated times")
    if plan is not None:
        _refuse(context, (*_POLICY, *_JOB, "best_policy"), "the plan says what to predict")
        _predict_plan(plan, hardware, fidelity, schedule, (output, trace, gantt), json=json)
        return
    hardware_name, model_name = _given(hardware, "--hardware"), _given(model, "--model")
    workload = options.workload_of(
        load_model(model_name),
        gen_len=gen_len or DEFAULT_GEN_LEN,
        prompt_len=prompt_len if prompt_len or prompts else float(DEFAULT_PROMPT_LEN),
        max_prompt_len=max_prompt_len,
        num_sequences=num_sequences,
        prompts=prompts,
        tokenizer=tokenizer,
        padded=padded,
        routing=routing,
    )
    problem = pose(
        model_name,
        hardware_name,
        workload,
        weight_dtype=weight_dtype,
        expert_dtype=expert_dtype,
        kv_dtype=kv_dtype,
        staging=staging,
        ram_limit=None,
    )
    if best_policy:
        if schedule != ALL:
            raise HrmError(f"--best-policy: goes with --schedule {ALL} (for one schedule's best plan see hrm solve)")
        _refuse(context, _POLICY, "--best-policy chooses it")
        show_comparison(problem, None, json=json)
        return
    policy = _policy(
        problem,
        batch_size=_given(batch_size, "--batch-size"),
        micro_batch_size=micro_batch_size,
        attention_device=attention_device,
        ffn_device=ffn_device,
        schedule=None if schedule == ALL else _schedule_named(schedule),
        kv_on_gpu=kv_on_gpu,
    )
    policy = replace(_with_experts(policy, problem, weights_on_gpu, experts_on_cpu), pages_per_layer=pages_per_layer)
    policy.check(problem.model)
    if schedule == ALL:
        show_comparison(problem, policy, json=json)
        return
    _predict(problem, policy, fidelity, (output, trace, gantt), json=json)


def _refuse(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Refuse options that would be ignored."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "-o" if name == "output" else f"--{name.replace('_', '-')}"
            raise HrmError(f"{option}: {why} (leave it out)")


def _schedule_named(name: str | None) -> ScheduleName | None:
    try:
        return None if name is None else ScheduleName(name)
    except ValueError:
        raise HrmError(f"--schedule {name}: no such schedule (one of {', '.join(ScheduleName)}, {ALL})") from None


def _given(value: T | None, option: str) -> T:
    if value is None:
        raise HrmError(f"{option}: needed (give it, or see hrm predict --help)")
    return value


def _policy(
    problem: Problem,
    *,
    batch_size: int,
    micro_batch_size: int | None,
    attention_device: Processor,
    ffn_device: Processor,
    schedule: ScheduleName | None,
    kv_on_gpu: float | None,
) -> Policy:
    """Return the policy that options name, no expert resident; what they leave open follows from the devices."""
    from hrm.policy import Policy

    on_gpu = Processor.GPU in (attention_device, ffn_device)
    order = schedule or (ScheduleName.CGOPIPE if on_gpu else ScheduleName.HOST)
    whole = attention_device is Processor.GPU and order is not ScheduleName.KV_TRANSFER
    return Policy(
        batch_size=batch_size,
        micro_batch_size=micro_batch_size or batch_size,
        attention_device=attention_device,
        ffn_device=ffn_device,
        resident_experts=0,
        kv_on_gpu=float(whole) if kv_on_gpu is None else kv_on_gpu,
        schedule=order,
        weight_dtype=problem.weight_dtype,
        expert_dtype=problem.expert_dtype,
        kv_dtype=problem.kv_dtype,
        staging=problem.staging,
    )


def _with_experts(policy: Policy, problem: Problem, resident: float, on_cpu: float | None) -> Policy:
    """Place the experts: shares of them become whole ones."""
    count = problem.model.num_experts
    kept = _whole_experts("--weights-on-gpu", resident, count)
    if on_cpu is None:
        return replace(policy, resident_experts=kept)
    computed = _whole_experts("--experts-on-cpu", on_cpu, count)
    if policy.ffn_device is Processor.GPU:
        return replace(policy, resident_experts=kept, cpu_experts=computed)
    if computed != count - kept:
        raise HrmError(
            f"--experts-on-cpu {on_cpu:g}: with --ffn-device cpu it is what --weights-on-gpu leaves, "
            f"{(count - kept) / count:g} (leave it out)"
        )
    return replace(policy, resident_experts=kept)


def _whole_experts(option: str, fraction: float, num_experts: int) -> int:
    count = round(fraction * num_experts)
    if abs(count - fraction * num_experts) > 1e-6:
        raise HrmError(
            f"{option} {fraction}: only whole experts have a place "
            f"(write a multiple of 1/{num_experts}, such as {count / num_experts:g})"
        )
    return count


def _predict_plan(
    path: Path, hardware: str | None, fidelity: Fidelity, schedule: str | None, files: Files, *, json: bool
) -> None:
    """Show the prediction that a plan carries, another fidelity in front.

    With a machine, make it again for that one, or for each schedule.
    """
    from hrm.hardware import load_profile
    from hrm.plan import load_plan

    if schedule not in (None, ALL):
        raise HrmError(f"--schedule {schedule}: the plan names its own (leave it out, or write {ALL})")
    plan = load_plan(path)
    if hardware is not None:
        problem = problem_of(plan, load_profile(hardware))
        if schedule == ALL:
            show_comparison(problem, plan.policy, json=json)
        else:
            _predict(problem, plan.policy, fidelity, files, json=json)
        return
    if any(files[1:]) or schedule == ALL:
        raise HrmError(
            f"--hardware: needed with --trace, --gantt and --schedule {ALL} (a plan lacks its machine's profile)"
        )
    deliver(replace(plan, prediction=replace(plan.prediction, fidelity=fidelity)), files[0], json=json)


def _predict(problem: Problem, policy: Policy, fidelity: Fidelity, files: Files, *, json: bool) -> None:
    from hrm.plan import PlanStatus
    from solver.grid import make_plan

    made = make_plan(problem, policy, PlanStatus.GIVEN, fidelity)
    deliver(made, files[0], json=json, short=problem.short_of(policy))
    show_preview(policy, problem.model, problem.hardware, problem.workload, files[1:])
