"""What a policy holds in memory: one ledger of bytes per device and class, at the larger of the peaks of both phases.

The solver rejects a policy whose ledger does not fit, and the executor allocates by the same lines.
"""

from __future__ import annotations

import math

import numpy as np

from hrm.arrays import Reals
from hrm.dtypes import DType
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor, ScheduleName, Staging
from hrm.policy_grid import PolicyGrid
from hrm.records import record
from hrm.schedule.task import IN_FLIGHT
from hrm.units import NonNegativeInt
from hrm.workload import Workload
from hrm.workspace import experts_workspace_bytes, gathered_expert_workspace_bytes, workspace_bytes

__all__ = [
    "DISK_BLOCK_BYTES",
    "DeviceLedger",
    "Ledger",
    "demand",
    "disk_expert_bytes",
    "disk_read_bytes",
    "ledger",
    "page_bytes",
    "streamed_layer_bytes",
]

DISK_BLOCK_BYTES = 4096
"""Experts begin on disk, and are read, at multiples of this: what reads past the page cache ask for."""
_SUM_BYTES = 4
"""Experts are summed up in float32 at most."""
_ROUTING_BYTES = 4 + 4
"""Bytes that say which expert a token goes to, and with what share."""


@record
class DeviceLedger:
    """Bytes of one device by class."""

    dense_weights: NonNegativeInt = 0
    expert_weights: NonNegativeInt = 0
    page_buffers: NonNegativeInt = 0
    kv_cache: NonNegativeInt = 0
    activations: NonNegativeInt = 0
    workspace: NonNegativeInt = 0

    @property
    def total_bytes(self) -> int:
        """All classes together."""
        return (
            self.dense_weights
            + self.expert_weights
            + self.page_buffers
            + self.kv_cache
            + self.activations
            + self.workspace
        )


@record
class Ledger:
    """Bytes held on the GPU and in host memory."""

    gpu: DeviceLedger
    cpu: DeviceLedger


def streamed_layer_bytes(grid: PolicyGrid, model: ModelSpec) -> Reals:
    """Expert weight bytes of one MoE layer that cross the link in each pass."""
    return grid.streamed_experts(model) * _expert_bytes(grid, model)


def page_bytes(grid: PolicyGrid, model: ModelSpec) -> Reals:
    """Bytes of one page: the layer's streamed bytes in equal parts."""
    return streamed_layer_bytes(grid, model) / grid.num_pages(model)


def disk_expert_bytes(choices: Policy, model: ModelSpec) -> int:
    """Bytes that an expert takes on disk, in a buffer, and of every read: its weights, rounded up to whole blocks."""
    dtype = choices.expert_dtype or choices.weight_dtype
    weights = model.expert_parameters * dtype.bytes_per_element
    return math.ceil(weights / DISK_BLOCK_BYTES) * DISK_BLOCK_BYTES


def disk_read_bytes(policy: Policy, model: ModelSpec) -> int:
    """Bytes that a pass reads from disk: of every layer the experts that lie there, each once."""
    return sum(policy.disk_experts_of(model).values()) * disk_expert_bytes(policy, model)


def ledger(policy: Policy, model: ModelSpec, workload: Workload) -> Ledger:
    """Add up what a policy holds, in bytes, at its peak.

    Counted: weights, both page slots, pinned staging pages, the ring behind a disk, the KV cache of every sequence at
    its final length, the hidden states of all prompts (prefill keeps them between layers), queries, keys, values and
    attention outputs in flight, and the workspace of the largest micro-batch. Not counted: interpreter and libraries,
    which a profile measures (`Level.runtime_bytes`) and a plan names beside its ledger (`Machine.runtime_bytes`).
    """
    classes = demand(PolicyGrid.of(policy), model, workload)
    return Ledger(
        gpu=DeviceLedger(**{name: math.ceil(count) for name, count in classes["gpu"].items()}),
        cpu=DeviceLedger(**{name: math.ceil(count) for name, count in classes["cpu"].items()}),
    )


def demand(grid: PolicyGrid, model: ModelSpec, workload: Workload) -> dict[str, dict[str, Reals]]:
    """Return the bytes of a ledger by device and class, for each policy of a grid."""
    choices = grid.template
    held = {
        "dense_weights": _dense_weight_bytes(choices, model),
        "activations": _activation_bytes(grid, model, workload),
        "workspace": _workspace_bytes(grid, model, workload),
    }
    kv_bytes = _kv_cache_bytes(grid, model, workload)
    on_cpu = model.num_moe_layers * _expert_bytes(grid, model) * (model.num_experts - grid.resident_experts)
    on_cpu = on_cpu - (model.num_moe_layers * grid.disk_experts - grid.fuller_layers) * _expert_bytes(grid, model)
    if choices.main_device is Processor.CPU:
        cpu = held | {"expert_weights": on_cpu, "kv_cache": kv_bytes}
        return {"gpu": {}, "cpu": _with_disk(cpu, grid, model, workload) if grid.reads_disk else cpu}
    streamed = streamed_layer_bytes(grid, model)
    loads = choices.schedule is ScheduleName.KV_TRANSFER
    splits = np.any(grid.experts_on_cpu(model))
    around_experts = _split_bytes(grid, model, workload) if splits else {"gpu": 0.0, "cpu": 0.0}
    rounding = model.num_layers * _divided_sequence_bytes(grid, model, workload)
    gpu = held | {
        "activations": held["activations"] + around_experts["gpu"],
        "expert_weights": model.num_moe_layers * _expert_bytes(grid, model) * grid.resident_experts,
        "page_buffers": IN_FLIGHT * streamed,
        "kv_cache": grid.kv_on_gpu * kv_bytes + (_kv_in_flight_bytes(grid, model, workload) if loads else 0.0),
    }
    cpu = {
        "expert_weights": on_cpu,
        "page_buffers": _staging_bytes(grid, model) + _ring_bytes(grid, model),
        "kv_cache": (1.0 - grid.kv_on_gpu) * kv_bytes + rounding,
        "activations": around_experts["cpu"] + _landing_bytes(grid, model, workload),
        "workspace": _cpu_experts_workspace_bytes(grid, model, workload) if splits else 0.0,
    }
    return {"gpu": gpu, "cpu": cpu}


def _with_disk(held: dict[str, Reals], grid: PolicyGrid, model: ModelSpec, workload: Workload) -> dict[str, Reals]:
    """Add what experts on disk need in host memory, where a policy has some.

    The ring of buffers; normed hidden states, routing and sums of all tokens of the batch, for an expert computes for
    all of them at once; and the workspace of so many tokens.
    """
    tokens = workload.prompt_tokens(grid.batch_size)
    row_bytes = model.hidden_size * (_activation_width(grid) + _SUM_BYTES) + model.experts_per_token * _ROUTING_BYTES
    sizes = model.hidden_size, model.intermediate_size, model.experts_per_token
    room = gathered_expert_workspace_bytes(tokens, *sizes)
    reads = grid.disk_experts > 0
    return held | {
        "page_buffers": _ring_bytes(grid, model),
        "activations": held["activations"] + np.where(reads, tokens * row_bytes, 0.0),
        "workspace": np.where(reads, np.maximum(held["workspace"], room), held["workspace"]),
    }


def _ring_bytes(grid: PolicyGrid, model: ModelSpec) -> Reals:
    """Bytes of the ring of buffers that experts are read into from disk, where some are."""
    if not grid.reads_disk:
        return 0.0
    buffers = grid.template.num_disk_buffers(model) * disk_expert_bytes(grid.template, model)
    return np.where(grid.disk_experts > 0, float(buffers), 0.0)


def _staging_bytes(grid: PolicyGrid, model: ModelSpec) -> Reals:
    """Bytes of the pinned pages that pageable weights in host memory pass on their way."""
    if grid.template.staging is not Staging.PAGEABLE:
        return 0.0
    return np.where(grid.pages_in_memory(model) > 0, IN_FLIGHT * page_bytes(grid, model), 0.0)


def _split_bytes(grid: PolicyGrid, model: ModelSpec, workload: Workload) -> dict[str, Reals]:
    """Bytes around experts that the CPU computes beside the GPU, of the two micro-batches in flight in each phase.

    Both sides hold hidden states with the number and the share of each chosen expert; the host holds sums too, and the
    device room for one that comes up.
    """
    tokens = workload.micro_batch_prompt_tokens(grid.micro_batch_size)
    rows = IN_FLIGHT * (tokens + grid.micro_batch_size)
    hidden, routing = model.hidden_size * _activation_width(grid), model.experts_per_token * _ROUTING_BYTES
    return {"gpu": rows * (hidden + routing) + tokens * hidden, "cpu": rows * (2 * hidden + routing)}


def _cpu_experts_workspace_bytes(grid: PolicyGrid, model: ModelSpec, workload: Workload) -> Reals:
    tokens = workload.micro_batch_prompt_tokens(grid.micro_batch_size)
    sizes = model.hidden_size, model.intermediate_size, model.num_experts, model.experts_per_token
    return experts_workspace_bytes(tokens, *sizes)


def _expert_bytes(grid: PolicyGrid, model: ModelSpec) -> float:
    dtype = grid.template.expert_dtype or grid.template.weight_dtype
    return model.expert_parameters * dtype.bytes_per_element


def _activation_width(grid: PolicyGrid) -> float:
    return grid.template.weight_dtype.activation_dtype.bytes_per_element


def _dense_weight_bytes(choices: Policy, model: ModelSpec) -> float:
    corrections = model.num_moe_layers * model.num_experts if model.router.correction else 0
    parameters = model.dense_parameters + model.embedding_parameters
    return parameters * choices.weight_dtype.bytes_per_element + corrections * DType.FLOAT32.bytes_per_element


def _kv_cache_bytes(grid: PolicyGrid, model: ModelSpec, workload: Workload) -> Reals:
    """Bytes of K and V of a batch, each sequence at its final length, or its window in layers that have one."""
    tokens = workload.prompt_tokens(grid.batch_size) + grid.batch_size * (workload.gen_len - 1)
    cached: Reals = 0.0
    for layer, count in model.layer_kinds.items():
        held = tokens if layer.window is None else np.minimum(tokens, grid.batch_size * layer.window)
        cached = cached + count * held
    return cached * model.cache_width * grid.template.kv_dtype.bytes_per_element


def _kv_in_flight_bytes(grid: PolicyGrid, model: ModelSpec, workload: Workload) -> Reals:
    """Bytes of the double buffer into which the part of a micro-batch's cache that lies on the host is fetched.

    Whole sequences lie there, in a divided cache perhaps one more than the policy's share.
    """
    tokens = workload.micro_batch_prompt_tokens(grid.micro_batch_size) + grid.micro_batch_size * (workload.gen_len - 1)
    width = model.cache_width * grid.template.kv_dtype.bytes_per_element
    return IN_FLIGHT * ((1.0 - grid.kv_on_gpu) * tokens * width + _divided_sequence_bytes(grid, model, workload))


def _divided_sequence_bytes(grid: PolicyGrid, model: ModelSpec, workload: Workload) -> Reals:
    """Bytes of one layer's K and V of the longest sequence, where the cache is divided: it may be the one too many."""
    longest = workload.max_context_len * model.cache_width * grid.template.kv_dtype.bytes_per_element
    return np.where((grid.kv_on_gpu > 0.0) & (grid.kv_on_gpu < 1.0), longest, 0.0)


def _landing_bytes(grid: PolicyGrid, model: ModelSpec, workload: Workload) -> Reals:
    """Bytes of host memory in which arrives what comes down for attention, or only for the cache, on the CPU."""
    choices = grid.template
    if choices.attention_device is Processor.CPU:
        return _transfer_bytes(grid, model, workload)
    if choices.schedule is not ScheduleName.KV_TRANSFER:
        return 0.0
    tokens = workload.micro_batch_prompt_tokens(grid.micro_batch_size)
    width = tokens * choices.kv_dtype.bytes_per_element + grid.micro_batch_size * _activation_width(grid)
    return width * model.cache_width


def _activation_bytes(grid: PolicyGrid, model: ModelSpec, workload: Workload) -> Reals:
    """Bytes of the hidden states of all prompts of a batch, plus what transfers hold in flight."""
    tokens = workload.prompt_tokens(grid.batch_size)
    return tokens * model.hidden_size * _activation_width(grid) + _transfer_bytes(grid, model, workload)


def _transfer_bytes(grid: PolicyGrid, model: ModelSpec, workload: Workload) -> Reals:
    """Bytes of queries, keys, values and attention outputs of the two micro-batches in flight in each phase.

    Decode has buffers of its own: its first micro-batches start while the last ones of prefill still go down.
    """
    tokens = workload.micro_batch_prompt_tokens(grid.micro_batch_size)
    width = _activation_width(grid)
    in_prefill = model.num_query_heads * model.head_dim + model.output_projection[0]
    in_decode = model.query_size + model.attended_size
    queries = (tokens * in_prefill + grid.micro_batch_size * in_decode) * width
    prefill_kv = tokens * model.cache_width * grid.template.kv_dtype.bytes_per_element
    decode_kv = grid.micro_batch_size * model.cache_width * width
    return IN_FLIGHT * (queries + prefill_kv + decode_kv)


def _workspace_bytes(grid: PolicyGrid, model: ModelSpec, workload: Workload) -> Reals:
    """Bytes of the temporaries of the largest micro-batch, at prefill size."""
    tokens = workload.micro_batch_prompt_tokens(grid.micro_batch_size)
    return workspace_bytes(model, tokens, grid.micro_batch_size)
