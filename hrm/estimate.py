"""How long tasks take on a machine: every operator under its roofs, at peaks (`roof`) or as measured (`ceiling`)."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from hrm import operators
from hrm.ceilings import CeilingTable
from hrm.hardware import HardwareProfile, Level, Link, Rate
from hrm.memory import page_bytes
from hrm.model import ModelSpec
from hrm.operators import Operator
from hrm.policy import Policy, Processor, Staging
from hrm.records import record
from hrm.roofline import Bound, level_bytes_per_s, level_flop_per_s
from hrm.schedule.task import Phase, TaskKind
from hrm.workload import Workload

__all__ = [
    "Cost",
    "Fidelity",
    "PassShape",
    "TaskCosts",
    "add_costs",
    "decode_shape",
    "operator_cost",
    "prefill_shape",
    "task_costs",
]


class Fidelity(StrEnum):
    """How a prediction is made: peaks and perfect overlap, measured ceilings, or the schedule simulated."""

    ROOF = "roof"
    CEILING = "ceiling"
    SIMULATED = "simulated"


@record
class Cost:
    """Seconds of a piece of work, and how many of them each roof accounts for."""

    seconds: float
    by_bound: dict[Bound, float]

    @property
    def bound(self) -> Bound:
        """The roof that accounts for most of the time."""
        return max(self.by_bound, key=lambda name: self.by_bound[name])


@record
class PassShape:
    """One micro-batch of a pass: sequences, tokens worked on, and the context that decode attends to."""

    phase: Phase
    sequences: float
    tokens: float
    context_len: float
    mean_square_len: float


@record
class TaskCosts:
    """Cost of each kind of task for one micro-batch (or page); `head` is what the last layer adds to post-attention."""

    by_kind: dict[TaskKind, Cost]
    head: Cost


def decode_shape(sequences: float, context_len: float) -> PassShape:
    """Describe a decode micro-batch at a mean context length."""
    return PassShape(
        phase=Phase.DECODE, sequences=sequences, tokens=sequences, context_len=context_len, mean_square_len=0.0
    )


def prefill_shape(workload: Workload, sequences: float) -> PassShape:
    """Describe a prefill micro-batch of prompts of average lengths."""
    return PassShape(
        phase=Phase.PREFILL,
        sequences=sequences,
        tokens=sequences * workload.mean_prompt_len,
        context_len=workload.mean_prompt_len,
        mean_square_len=workload.mean_square_prompt_len,
    )


def task_costs(
    policy: Policy, model: ModelSpec, hardware: HardwareProfile, shape: PassShape, fidelity: Fidelity
) -> TaskCosts:
    """Return what each kind of task of a pass costs, at `roof` or `ceiling` rates."""
    machine = _Machine(hardware=hardware, measured=fidelity is not Fidelity.ROOF)
    ffn, dtype = str(policy.ffn_device), policy.weight_dtype
    elementwise = operators.elementwise(model, shape.tokens, dtype)
    pre = [operators.qkv_proj(model, shape.tokens, dtype)]
    post = [operators.o_proj(model, shape.tokens, dtype), elementwise, operators.experts(model, shape.tokens, dtype)]
    if model.num_experts > 1:
        post.append(operators.router(model, shape.tokens, dtype))
    by_kind = {
        TaskKind.PRE_ATTENTION: machine.work(pre, ffn),
        TaskKind.ATTENTION: machine.work(*_attention(policy, model, shape)),
        TaskKind.POST_ATTENTION: machine.work(post, ffn),
    }
    if policy.ffn_device is Processor.GPU:
        by_kind |= _transfer_costs(policy, model, machine, shape)
    head = machine.work([operators.lm_head(model, shape.sequences, dtype)], ffn)
    return TaskCosts(by_kind=by_kind, head=head)


def _attention(policy: Policy, model: ModelSpec, shape: PassShape) -> tuple[list[Operator], str]:
    if shape.phase is Phase.DECODE:
        operator = operators.attention_decode(model, shape.sequences, shape.context_len, policy.kv_dtype)
        return [operator], str(policy.attention_device)
    mean_len = shape.tokens / shape.sequences
    operator = operators.attention_prefill(model, shape.sequences, shape.mean_square_len, mean_len, policy.weight_dtype)
    return [operator], str(policy.ffn_device)


def _transfer_costs(policy: Policy, model: ModelSpec, machine: _Machine, shape: PassShape) -> dict[TaskKind, Cost]:
    width = policy.weight_dtype.bytes_per_element
    if shape.phase is Phase.DECODE:
        offloaded = shape.tokens * (model.query_size + 2 * model.kv_size) * width
    else:
        offloaded = shape.tokens * 2 * model.kv_size * policy.kv_dtype.bytes_per_element
    page = page_bytes(policy, model)
    costs = {
        TaskKind.QKV_OFFLOAD: machine.transfer("d2h", offloaded),
        TaskKind.HIDDEN_UPLOAD: machine.transfer("h2d", shape.tokens * model.query_size * width),
        TaskKind.PAGE_COPY: machine.transfer("h2d", page),
    }
    if policy.staging is Staging.PAGEABLE:
        costs[TaskKind.PAGE_PIN] = machine.staging_copy(page)
    return costs


@record
class _Machine:
    """A profile read at one fidelity: peaks, or what was measured."""

    hardware: HardwareProfile
    measured: bool

    def rate(self, rate: Rate) -> float:
        return rate.ceiling if self.measured else rate.roof

    def work(self, parts: Iterable[Operator], level: str) -> Cost:
        """Add up operators done one after another on a level's processor."""
        return add_costs(operator_cost(part, self.hardware, level, measured=self.measured) for part in parts)

    def transfer(self, link: str, count: float) -> Cost:
        path: Link = self.hardware.link(link)
        latency = path.latency_s if self.measured and count else 0.0
        seconds = count / self.rate(path.bytes_per_s) + latency
        return Cost(seconds=seconds, by_bound={Bound.CROSS_LEVEL: seconds})

    def staging_copy(self, count: float) -> Cost:
        """Copy from pageable to pinned memory: each byte read and written once in DRAM."""
        level = self.hardware.level("cpu")
        seconds = 2 * count / self.rate(level.copy_bytes_per_s or level.read_bytes_per_s)
        return Cost(seconds=seconds, by_bound={Bound.MEMORY: seconds})


def operator_cost(operator: Operator, hardware: HardwareProfile, level: str, *, measured: bool) -> Cost:
    """Return the time of an operator on a level's processor and the roof that sets it.

    At peaks: max(FLOP / P_peak, bytes / B_peak). As measured: the kernel's ceiling table where the profile has one for
    the level and dtype, else the same maximum at measured rates plus launches; never less than at peaks.
    """
    place = hardware.level(level)
    peak = {
        Bound.COMPUTE: operator.flop / level_flop_per_s(place, operator.dtype),
        Bound.MEMORY: operator.bytes / level_bytes_per_s(place),
    }
    bound = max(peak, key=lambda name: peak[name])
    seconds = peak[bound]
    if measured:
        seconds = max(seconds, _measured_s(operator, hardware, place, level))
    return Cost(seconds=seconds, by_bound={bound: seconds})


def _measured_s(operator: Operator, hardware: HardwareProfile, place: Level, level: str) -> float:
    table = _table(hardware, level, operator)
    if table is not None:
        return operator.calls * table.time_s(operator.size, operator.rows)
    compute = operator.flop / level_flop_per_s(place, operator.dtype, measured=True)
    memory = operator.bytes / level_bytes_per_s(place, measured=True)
    return max(compute, memory) + operator.calls * place.launch_s


def _table(hardware: HardwareProfile, level: str, operator: Operator) -> CeilingTable | None:
    for table in hardware.ceilings:
        if (table.kernel, table.level, table.dtype) == (operator.kernel, level, operator.dtype):
            return table
    return None


def add_costs(costs: Iterable[Cost]) -> Cost:
    """Add up work done one after another."""
    total = 0.0
    by_bound: dict[Bound, float] = {}
    for cost in costs:
        total += cost.seconds
        for bound, seconds in cost.by_bound.items():
            by_bound[bound] = by_bound.get(bound, 0.0) + seconds
    return Cost(seconds=total, by_bound=by_bound)
