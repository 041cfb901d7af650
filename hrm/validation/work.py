"""What the tasks of a job do in all, by phase and kind: FLOP and bytes, to be held against seconds as rates."""

from __future__ import annotations

from hrm import operators
from hrm.hardware import HardwareProfile
from hrm.model import LayerKind, ModelSpec
from hrm.pass_costs import pass_costs
from hrm.policy import Policy
from hrm.policy_grid import PolicyGrid
from hrm.rates import Rates
from hrm.records import record
from hrm.schedule.task import Lane, Phase, TaskKind
from hrm.workload import Workload

__all__ = ["KindWork", "work_of"]


@record
class KindWork:
    """The tasks of a kind in a phase of a whole job: their lane, the bytes they move, the FLOP of their products."""

    lane: Lane
    bytes: float
    flop: float


def work_of(policy: Policy, model: ModelSpec, hardware: HardwareProfile, workload: Workload) -> dict[str, KindWork]:
    """Return the work of each kind as `phase.kind`; decode's is that of its middle step, for it grows evenly."""
    rates, grid = Rates(hardware=hardware, measured=True), PolicyGrid.of(policy)
    waves = (workload.num_sequences or policy.batch_size) / policy.batch_size
    found = {}
    for phase, passes, step in ((Phase.PREFILL, 1, 0.0), (Phase.DECODE, workload.gen_len - 1, workload.gen_len / 2)):
        costs = pass_costs(grid, model, rates, workload, phase, step)
        flop = _flop(policy, model, workload, phase, step)
        for kind, cost in costs.summed.items():
            times = passes * waves
            found[f"{phase}.{kind}"] = KindWork(
                lane=costs.lane_of(kind), bytes=float(cost.bytes) * times, flop=flop.get(kind, 0.0) * times
            )
    return found


def _flop(policy: Policy, model: ModelSpec, workload: Workload, phase: Phase, step: float) -> dict[TaskKind, float]:
    """Count the FLOP of a pass over a full wave; they go with tokens, however these are cut into micro-batches."""
    found: dict[TaskKind, float] = {}
    for layer, count in model.layer_kinds.items():
        for kind, flop in _layer_flop(policy, model, workload, phase, step, layer).items():
            found[kind] = found.get(kind, 0.0) + count * flop
    head = operators.lm_head(model, policy.batch_size, policy.weight_dtype)
    found[TaskKind.POST_ATTENTION] += float(head.flop)
    return found


def _layer_flop(
    policy: Policy, model: ModelSpec, workload: Workload, phase: Phase, step: float, layer: LayerKind
) -> dict[TaskKind, float]:
    sequences, dtype = policy.batch_size, policy.weight_dtype
    if phase is Phase.PREFILL:
        tokens, pairs = sequences * workload.computed_prompt_len, workload.mean_causal_pairs(layer.window)
        attention = operators.attention_prefill(model, sequences, workload.computed_prompt_len, pairs, dtype)
    else:
        tokens, context = float(sequences), workload.mean_context(step, layer.window)
        attention = operators.attention_decode(model, sequences, context, policy.kv_dtype)
    after = float(operators.o_proj(model, tokens, dtype).flop)
    found = {
        TaskKind.PRE_ATTENTION: float(operators.qkv_proj(model, tokens, dtype).flop),
        TaskKind.ATTENTION: float(attention.flop),
    }
    if not layer.moe:
        return found | {TaskKind.POST_ATTENTION: after + float(operators.dense_ffn(model, tokens, dtype).flop)}
    after += float(operators.router(model, tokens, dtype).flop)
    routed = float(operators.experts(model, tokens, policy.expert_dtype or dtype, workload.routing, 1.0).flop)
    on_cpu = policy.experts_on_cpu(model) / model.num_experts if policy.main_device == "gpu" else 0.0
    if not on_cpu:
        return found | {TaskKind.POST_ATTENTION: after + routed}
    split = {TaskKind.CPU_EXPERTS: on_cpu * routed, TaskKind.GPU_EXPERTS: (1.0 - on_cpu) * routed}
    return found | split | {TaskKind.POST_ATTENTION: after}
