"""How long the tasks of a pass take: which operators and transfers a task is made of, for a micro-batch of a layer.

Formulas run over a `PolicyGrid`: one policy and many take the same path.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum

import numpy as np

from hrm import operators
from hrm.arrays import Reals
from hrm.cost import Cost, add_costs, operator_cost, transfer_cost
from hrm.dtypes import DType
from hrm.memory import disk_expert_bytes, page_bytes
from hrm.model import LayerKind, ModelSpec
from hrm.operators import Operator
from hrm.policy import Processor, ScheduleName, Staging
from hrm.policy_grid import PolicyGrid
from hrm.rates import Rates
from hrm.records import record
from hrm.schedule.task import Phase, TaskKind
from hrm.workload import Workload

__all__ = [
    "Fidelity",
    "PassShape",
    "attention_cost",
    "cpu_experts_cost",
    "head_cost",
    "kv_load_cost",
    "page_copy_cost",
    "splits_experts",
    "task_costs",
]


class Fidelity(StrEnum):
    """How a prediction is made: peaks and perfect overlap, measured ceilings, or the schedule simulated."""

    ROOF = "roof"
    CEILING = "ceiling"
    SIMULATED = "simulated"


@record
class PassShape:
    """One micro-batch of a pass; in decode `step` counts the tokens already made (from 1), in prefill it is 0."""

    phase: Phase
    sequences: Reals
    step: float = 0.0
    workload: Workload

    @property
    def tokens(self) -> Reals:
        """Tokens worked on."""
        return self.sequences * (self.workload.computed_prompt_len if self.phase is Phase.PREFILL else 1.0)


def task_costs(
    grid: PolicyGrid, model: ModelSpec, rates: Rates, shape: PassShape, layer: LayerKind
) -> dict[TaskKind, Cost]:
    """Return what each kind of task costs for one micro-batch (or page) in a layer of a kind; without the head."""
    choices = grid.template
    costs = {
        TaskKind.PRE_ATTENTION: _pre_attention(grid, model, rates, shape),
        TaskKind.ATTENTION: attention_cost(grid, model, rates, shape, layer),
        TaskKind.POST_ATTENTION: _post_attention(grid, model, rates, shape, layer),
    }
    if layer.moe and grid.reads_disk:
        costs |= _disk_costs(grid, model, rates, shape)
    if choices.main_device is Processor.GPU:
        costs |= _transfers(grid, model, rates, shape, layer)
        if layer.moe:
            costs |= _pages(grid, model, rates)
        if layer.moe and splits_experts(grid, model):
            costs |= _split_experts(grid, model, rates, shape)
    return costs


def splits_experts(grid: PolicyGrid, model: ModelSpec) -> bool:
    """Say whether the CPU computes experts beside a GPU that does the rest."""
    return grid.template.main_device is Processor.GPU and bool(np.any(grid.experts_on_cpu(model)))


def attention_cost(grid: PolicyGrid, model: ModelSpec, rates: Rates, shape: PassShape, layer: LayerKind) -> Cost:
    """Return the cost of attention of a micro-batch: in prefill on the main device, in decode where the policy says."""
    choices, workload = grid.template, shape.workload
    if shape.phase is Phase.DECODE:
        context = workload.mean_context(shape.step, layer.window)
        decode = operators.attention_decode(model, shape.sequences, context, choices.kv_dtype)
        return operator_cost(decode, rates, str(choices.attention_device))
    prefill = operators.attention_prefill(
        model,
        shape.sequences,
        workload.computed_prompt_len,
        workload.mean_causal_pairs(layer.window),
        choices.weight_dtype,
    )
    return operator_cost(prefill, rates, str(choices.main_device))


def kv_load_cost(grid: PolicyGrid, model: ModelSpec, rates: Rates, shape: PassShape, layer: LayerKind) -> Cost:
    """Return the cost of fetching the part of a micro-batch's cache that lies on the host (D4)."""
    context = shape.workload.mean_context(shape.step, layer.window)
    return transfer_cost(rates, "h2d", shape.sequences * context * _host_kv_bytes(grid, model))


def _host_kv_bytes(grid: PolicyGrid, model: ModelSpec) -> Reals:
    """Bytes that a token of one layer's cache holds on the host."""
    return model.cache_width * grid.template.kv_dtype.bytes_per_element * (1.0 - grid.kv_on_gpu)


def head_cost(grid: PolicyGrid, model: ModelSpec, rates: Rates, sequences: Reals) -> Cost:
    """Return the cost of the head for one micro-batch: logits of one position of each sequence."""
    head = operators.lm_head(model, sequences, grid.template.weight_dtype)
    return operator_cost(head, rates, str(grid.template.main_device))


def _work(parts: Iterable[Operator], rates: Rates, level: str) -> Cost:
    return add_costs(operator_cost(part, rates, level) for part in parts)


def _pre_attention(grid: PolicyGrid, model: ModelSpec, rates: Rates, shape: PassShape) -> Cost:
    """Count the projections, and of the element-wise work the norm before them and the rotation behind."""
    dtype, main = grid.template.weight_dtype, str(grid.template.main_device)
    projections = operator_cost(operators.qkv_proj(model, shape.tokens, dtype), rates, main)
    return add_costs([projections, _elementwise(grid, model, rates, shape).times(operators.share_before(model))])


def _elementwise(grid: PolicyGrid, model: ModelSpec, rates: Rates, shape: PassShape) -> Cost:
    """Count all of a layer's element-wise work, which is measured as one chain."""
    choices = grid.template
    work = operators.elementwise(model, shape.tokens, choices.weight_dtype)
    return operator_cost(work, rates, str(choices.main_device))


def _post_attention(grid: PolicyGrid, model: ModelSpec, rates: Rates, shape: PassShape, layer: LayerKind) -> Cost:
    """Count the output projection, later element-wise work and the FFN, its routed experts unless the CPU has some."""
    choices, tokens, main = grid.template, shape.tokens, str(grid.template.main_device)
    parts = [operators.o_proj(model, tokens, choices.weight_dtype)]
    if not layer.moe:
        parts.append(operators.dense_ffn(model, tokens, choices.weight_dtype))
    elif model.num_experts > 1:
        parts.append(operators.router(model, tokens, choices.weight_dtype))
    if layer.moe and model.shared_intermediate_size:
        parts.append(operators.shared_experts(model, tokens, choices.weight_dtype))
    behind = _elementwise(grid, model, rates, shape).times(1.0 - operators.share_before(model))
    work = add_costs([_work(parts, rates, main), behind])
    if layer.moe and not splits_experts(grid, model):
        routed = operator_cost(_experts(grid, model, shape, share=1.0), rates, main)
        work = add_costs(
            [work, routed.times(np.where(grid.disk_experts > 0, 0.0, 1.0)) if grid.computes_from_disk else routed]
        )
    return add_costs([work, _all_reduce(model, rates, tokens, choices.weight_dtype, main)])


def _disk_costs(grid: PolicyGrid, model: ModelSpec, rates: Rates, shape: PassShape) -> dict[TaskKind, Cost]:
    """Return the cost of reading an expert from disk; the CPU computes with it, or those kept, for the whole batch."""
    reads = np.where(grid.disk_experts > 0, 1.0, 0.0)
    read = transfer_cost(rates, "disk", float(disk_expert_bytes(grid.template, model))).times(reads)
    if not grid.computes_from_disk:
        return {TaskKind.DISK_READ: read}
    batch = replace(shape, sequences=grid.batch_size)
    one = operator_cost(_experts(grid, model, batch, share=1.0 / model.num_experts), rates, "cpu")
    return {
        TaskKind.DISK_READ: read,
        TaskKind.KEPT_EXPERTS: one.times(reads * (model.num_experts - grid.disk_experts)),
        TaskKind.DISK_EXPERTS: one.times(reads),
    }


def _experts(grid: PolicyGrid, model: ModelSpec, shape: PassShape, *, share: Reals) -> Operator:
    dtype = grid.template.expert_dtype or grid.template.weight_dtype
    return operators.experts(model, shape.tokens, dtype, shape.workload.routing, share)


def cpu_experts_cost(grid: PolicyGrid, model: ModelSpec, rates: Rates, shape: PassShape) -> Cost:
    """Return the cost of the experts of a micro-batch that the CPU computes beside the GPU."""
    on_cpu = grid.experts_on_cpu(model) / model.num_experts
    return operator_cost(_experts(grid, model, shape, share=on_cpu), rates, "cpu")


def _split_experts(grid: PolicyGrid, model: ModelSpec, rates: Rates, shape: PassShape) -> dict[TaskKind, Cost]:
    """Count the experts on both sides, and the hidden states that go down and the sums that come up."""
    on_gpu = 1.0 - grid.experts_on_cpu(model) / model.num_experts
    width = grid.template.weight_dtype.activation_dtype.bytes_per_element
    payload = shape.tokens * model.hidden_size * width
    return {
        TaskKind.EXPERT_OFFLOAD: transfer_cost(rates, "d2h", payload),
        TaskKind.CPU_EXPERTS: cpu_experts_cost(grid, model, rates, shape),
        TaskKind.GPU_EXPERTS: operator_cost(_experts(grid, model, shape, share=on_gpu), rates, "gpu"),
        TaskKind.EXPERT_UPLOAD: transfer_cost(rates, "h2d", payload),
    }


def _all_reduce(model: ModelSpec, rates: Rates, tokens: Reals, dtype: DType, main: str) -> Cost:
    """Count tensor parallelism's two sums of hidden states a layer.

    Of the t·h1 elements each of g GPUs passes on 2·(g-1)/g (a ring: Patarasuk and Yuan, JPDC 2009): over a link of its
    own where the machine has a link `peer`, else all g over the host's. The GPUs wait meanwhile; the host link's own
    lane is not charged.
    """
    count = rates.hardware.level(main).count if main == "gpu" else 1
    if count == 1:
        return Cost()
    passed_on = 2.0 * (count - 1) * tokens * model.hidden_size * dtype.activation_dtype.bytes_per_element
    apart = "peer" in rates.hardware.links
    sums = transfer_cost(rates, "peer", passed_on / count) if apart else transfer_cost(rates, "h2d", passed_on)
    sums = sums.times(2.0)
    return Cost(seconds=sums.seconds, latency_s=sums.seconds)


def _transfers(
    grid: PolicyGrid, model: ModelSpec, rates: Rates, shape: PassShape, layer: LayerKind
) -> dict[TaskKind, Cost]:
    """Count what a micro-batch sends down and fetches up around attention."""
    choices = grid.template
    width = choices.weight_dtype.activation_dtype.bytes_per_element
    new_kv = shape.tokens * _host_kv_bytes(grid, model)
    if choices.attention_device is Processor.GPU:
        if choices.schedule is not ScheduleName.KV_TRANSFER:
            return {}
        costs = {TaskKind.QKV_OFFLOAD: transfer_cost(rates, "d2h", new_kv)}
        if shape.phase is Phase.DECODE:
            costs[TaskKind.KV_LOAD] = kv_load_cost(grid, model, rates, shape, layer)
        return costs
    if shape.phase is Phase.PREFILL:
        return {TaskKind.QKV_OFFLOAD: transfer_cost(rates, "d2h", new_kv)}
    queries = shape.tokens * (model.query_size + model.cache_width) * width
    return {
        TaskKind.QKV_OFFLOAD: transfer_cost(rates, "d2h", queries),
        TaskKind.HIDDEN_UPLOAD: transfer_cost(rates, "h2d", shape.tokens * model.attended_size * width),
    }


def page_copy_cost(grid: PolicyGrid, model: ModelSpec, rates: Rates) -> Cost:
    """Return the cost of a page's way across the link (D3)."""
    return transfer_cost(rates, "h2d", page_bytes(grid, model))


def _pages(grid: PolicyGrid, model: ModelSpec, rates: Rates) -> dict[TaskKind, Cost]:
    costs = {TaskKind.PAGE_COPY: page_copy_cost(grid, model, rates)}
    if grid.template.staging is Staging.PAGEABLE:
        page = page_bytes(grid, model)
        seconds = page / rates.staging_bytes_per_s
        costs[TaskKind.PAGE_PIN] = Cost(seconds=seconds, bytes=page)
    return costs
