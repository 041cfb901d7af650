"""`hrm predict`: how long a given policy, or a plan, takes, and what binds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from hrm.cli import options
from hrm.cli.groups import grouped
from hrm.cli.plans import deliver, pose, problem_of
from hrm.cli.schedules import ALL, show_comparison
from hrm.cli.timelines import GanttFile, TraceFile, check_files, show_preview
from hrm.errors import HrmError
from hrm.estimate import Fidelity
from hrm.policy import Processor, ScheduleName
from hrm.records import record

if TYPE_CHECKING:
    from hrm.policy import Policy
    from solver.problem import Problem

__all__ = ["predict"]

T = TypeVar("T")

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
ExpertsOnDisk = Annotated[
    float, typer.Option("--experts-on-disk", min=0, max=1, help="Share of the experts read from disk in each pass.")
]
KvOnGpu = Annotated[float | None, typer.Option("--kv-on-gpu", min=0, max=1, help="r_c: share of the KV cache.")]
ScheduleOption = Annotated[
    str | None, typer.Option("--schedule", help="Pipeline by name, or all; default cgopipe, host without the GPU.")
]
BestPolicy = Annotated[bool, typer.Option("--best-policy", help="With --schedule all: each at its own best policy.")]


@record
class PolicyOptions:
    """A policy, option by option; what is left open follows from the devices."""

    batch_size: BatchSize = None
    micro_batch_size: MicroBatchSize = None
    weights_on_gpu: WeightsOnGpu = 0.0
    kv_on_gpu: KvOnGpu = None
    attention_device: Annotated[Processor, typer.Option("--attention-device")] = Processor.CPU
    ffn_device: Annotated[Processor, typer.Option("--ffn-device")] = Processor.GPU
    experts_on_cpu: ExpertsOnCpu = None
    experts_on_disk: ExpertsOnDisk = 0.0
    schedule: ScheduleOption = None
    pages_per_layer: Annotated[int | None, typer.Option("--pages-per-layer", min=1)] = None

    def policy(self, problem: Problem) -> Policy:
        """Return the policy, in the formats of a problem; only whole experts have a place."""
        from hrm.policy import Policy

        on_gpu = Processor.GPU in (self.attention_device, self.ffn_device)
        schedule = self._schedule() or (ScheduleName.CGOPIPE if on_gpu else ScheduleName.HOST)
        whole = self.attention_device is Processor.GPU and schedule is not ScheduleName.KV_TRANSFER
        batch_size = _given(self.batch_size, "--batch-size")
        resident, on_cpu = self._experts(problem.model.num_experts)
        policy = Policy(
            batch_size=batch_size,
            micro_batch_size=self.micro_batch_size or batch_size,
            attention_device=self.attention_device,
            ffn_device=self.ffn_device,
            resident_experts=resident,
            cpu_experts=on_cpu,
            disk_experts=_whole_experts("--experts-on-disk", self.experts_on_disk, problem.model.num_experts),
            kv_on_gpu=float(whole) if self.kv_on_gpu is None else self.kv_on_gpu,
            schedule=schedule,
            weight_dtype=problem.weight_dtype,
            expert_dtype=problem.expert_dtype,
            kv_dtype=problem.kv_dtype,
            staging=problem.staging,
            pages_per_layer=self.pages_per_layer,
        )
        policy.check(problem.model)
        return policy

    def _schedule(self) -> ScheduleName | None:
        if self.schedule is None or self.schedule == ALL:
            return None
        try:
            return ScheduleName(self.schedule)
        except ValueError:
            names = ", ".join(ScheduleName)
            raise HrmError(f"--schedule {self.schedule}: no such schedule (one of {names}, {ALL})") from None

    def _experts(self, count: int) -> tuple[int, int]:
        """Return the whole experts resident on the GPU, and those that the CPU computes beside it."""
        resident = _whole_experts("--weights-on-gpu", self.weights_on_gpu, count)
        if self.experts_on_cpu is None:
            return resident, 0
        computed = _whole_experts("--experts-on-cpu", self.experts_on_cpu, count)
        if self.ffn_device is Processor.GPU:
            return resident, computed
        if computed != count - resident:
            raise HrmError(
                f"--experts-on-cpu {self.experts_on_cpu:g}: with --ffn-device cpu it is what --weights-on-gpu leaves, "
                f"{(count - resident) / count:g} (leave it out)"
            )
        return resident, 0


@record
class _Outputs:
    """Files to write."""

    output: Annotated[Path | None, typer.Option("-o", "--output", help="Plan to write.")] = None
    trace: TraceFile = None
    gantt: GanttFile = None


_POLICY = tuple(field.name for field in fields(PolicyOptions) if field.name != "schedule")
_JOB = (
    "model",
    "gen_len",
    *(field.name for kind in (options.JobOptions, options.FormatOptions) for field in fields(kind)),
)


@grouped
def predict(
    context: typer.Context,
    job: options.JobOptions,
    choice: PolicyOptions,
    formats: options.FormatOptions,
    outputs: _Outputs,
    plan: PlanFile = None,
    model: OptionalModel = None,
    hardware: OptionalHardware = None,
    gen_len: OptionalGenLen = None,
    best_policy: BestPolicy = False,
    fidelity: options.FidelityOption = Fidelity.CEILING,
    json: options.Json = False,
) -> None:
    """Predict a given policy, or a plan again: prefill, decode, throughput, and what binds.

    With --plan the policy, model and job are the plan's; without --hardware its own prediction is shown. Lengths that
    are not given are taken as 512 prompt and 128 generated tokens.
    """
    from hrm.files import check_output
    from hrm.hardware import load_profile
    from hrm.model_config import load_model
    from hrm.workload import DEFAULT_GEN_LEN, DEFAULT_PROMPT_LEN

    every = choice.schedule == ALL
    if outputs.output is not None:
        check_output(outputs.output)
    check_files(outputs.trace, outputs.gantt, one_schedule=not every)
    if every:
        _refuse(context, ("output", "fidelity"), f"means nothing with --schedule {ALL}, which shows simulated times")
    if plan is not None:
        _refuse(context, (*_POLICY, *_JOB, "best_policy"), "the plan says what to predict")
        _predict_plan(plan, hardware, fidelity, choice.schedule, outputs, json=json)
        return
    machine, spec = load_profile(_given(hardware, "--hardware")), load_model(_given(model, "--model"))
    if not (job.prompt_len or job.prompts):
        job = replace(job, prompt_len=float(DEFAULT_PROMPT_LEN))
    problem = pose(spec, machine, job.workload(spec, gen_len or DEFAULT_GEN_LEN), formats)
    if best_policy:
        if not every:
            raise HrmError(f"--best-policy: goes with --schedule {ALL} (for one schedule's best plan see hrm solve)")
        _refuse(context, _POLICY, "--best-policy chooses it")
        show_comparison(problem, None, json=json)
    elif every:
        show_comparison(problem, choice.policy(problem), json=json)
    else:
        _predict(problem, choice.policy(problem), fidelity, outputs, json=json)


def _refuse(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse options that would be ignored."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "-o" if name == "output" else f"--{name.replace('_', '-')}"
            raise HrmError(f"{option}: {why} (leave it out)")


def _given(value: T | None, option: str) -> T:
    if value is None:
        raise HrmError(f"{option}: needed (give it, or see hrm predict --help)")
    return value


def _whole_experts(option: str, fraction: float, num_experts: int) -> int:
    count = round(fraction * num_experts)
    if abs(count - fraction * num_experts) > 1e-6:
        raise HrmError(
            f"{option} {fraction}: only whole experts have a place "
            f"(write a multiple of 1/{num_experts}, such as {count / num_experts:g})"
        )
    return count


def _predict_plan(
    path: Path, hardware: str | None, fidelity: Fidelity, schedule: str | None, outputs: _Outputs, *, json: bool
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
            _predict(problem, plan.policy, fidelity, outputs, json=json)
        return
    if outputs.trace or outputs.gantt or schedule == ALL:
        raise HrmError(
            f"--hardware: needed with --trace, --gantt and --schedule {ALL} (a plan lacks its machine's profile)"
        )
    if fidelity not in plan.prediction.by_fidelity:
        raise HrmError(f"--fidelity {fidelity}: the plan was made without (name its machine: --hardware)")
    deliver(replace(plan, prediction=replace(plan.prediction, fidelity=fidelity)), outputs.output, json=json)


def _predict(problem: Problem, policy: Policy, fidelity: Fidelity, outputs: _Outputs, *, json: bool) -> None:
    from hrm.plan import PlanStatus
    from solver.grid import make_plan

    made = make_plan(problem, policy, PlanStatus.GIVEN, fidelity)
    deliver(made, outputs.output, json=json, short=problem.short_of(policy))
    show_preview(policy, problem.model, problem.hardware, problem.workload, (outputs.trace, outputs.gantt))
