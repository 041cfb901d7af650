"""What a policy holds in memory: one ledger of bytes per device and class, at the larger of the peaks of both phases.

The solver rejects a policy whose ledger does not fit, and the executor allocates by the same lines.
"""

from __future__ import annotations

from hrm.hardware import HardwareProfile
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor, Staging
from hrm.records import record
from hrm.schedule.task import IN_FLIGHT
from hrm.units import NonNegativeInt, format_bytes
from hrm.workload import Workload
from hrm.workspace import workspace_bytes

__all__ = ["DeviceLedger", "Ledger", "Shortage", "ledger", "page_bytes", "shortage", "streamed_layer_bytes"]


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


@record
class Shortage:
    """A device that a policy does not fit, and by how much."""

    device: str
    needed_bytes: int
    usable_bytes: int

    @property
    def missing_bytes(self) -> int:
        """Bytes that the device is short of."""
        return self.needed_bytes - self.usable_bytes

    def __str__(self) -> str:
        """Say which device is short of how much."""
        return (
            f"{self.device} memory is short by {format_bytes(self.missing_bytes)} "
            f"(needs {format_bytes(self.needed_bytes)} of {format_bytes(self.usable_bytes)})"
        )


def streamed_layer_bytes(policy: Policy, model: ModelSpec) -> int:
    """Expert weight bytes of one layer that cross the link in each pass."""
    if policy.ffn_device is Processor.CPU:
        return 0
    streamed = model.num_experts - policy.resident_experts
    return int(streamed * model.expert_parameters * policy.weight_dtype.bytes_per_element)


def page_bytes(policy: Policy, model: ModelSpec) -> float:
    """Bytes of one page: the layer's streamed bytes in equal parts."""
    return streamed_layer_bytes(policy, model) / policy.num_pages


def ledger(policy: Policy, model: ModelSpec, workload: Workload) -> Ledger:
    """Add up what a policy holds, in bytes, at its peak.

    Counted: weights, both page slots, pinned staging pages, the KV cache of every sequence at its final length, the
    hidden states of all prompts (prefill keeps them between layers), queries, keys, values and attention outputs in
    flight, and the workspace of the largest micro-batch. Ignored: the interpreter and its libraries.
    """
    if policy.ffn_device is Processor.CPU:
        return Ledger(gpu=DeviceLedger(), cpu=_host_only(policy, model, workload))
    streamed = streamed_layer_bytes(policy, model)
    resident = policy.resident_experts * model.expert_parameters * policy.weight_dtype.bytes_per_element
    kv_bytes = _kv_cache_bytes(policy, model, workload)
    on_gpu = policy.attention_device is Processor.GPU
    staged = policy.staging is Staging.PAGEABLE
    gpu = DeviceLedger(
        dense_weights=_dense_weight_bytes(policy, model),
        expert_weights=int(model.num_layers * resident),
        page_buffers=IN_FLIGHT * streamed,
        kv_cache=kv_bytes if on_gpu else 0,
        activations=_activation_bytes(policy, model, workload),
        workspace=_workspace_bytes(policy, model, workload),
    )
    cpu = DeviceLedger(
        expert_weights=model.num_layers * streamed,
        page_buffers=int(IN_FLIGHT * page_bytes(policy, model)) if staged else 0,
        kv_cache=0 if on_gpu else kv_bytes,
        activations=0 if on_gpu else _transfer_bytes(policy, model, workload),
    )
    return Ledger(gpu=gpu, cpu=cpu)


def shortage(demand: Ledger, hardware: HardwareProfile, ram_limit_bytes: int | None = None) -> Shortage | None:
    """Return the device that the ledger does not fit, or None where it fits."""
    needs = {"gpu": demand.gpu.total_bytes, "cpu": demand.cpu.total_bytes}
    for device, needed in needs.items():
        if needed == 0:
            continue
        level = hardware.level(device)
        usable = level.usable_bytes * level.count
        if device == "cpu" and ram_limit_bytes is not None:
            usable = min(usable, ram_limit_bytes)
        if needed > usable:
            return Shortage(device=device, needed_bytes=needed, usable_bytes=usable)
    return None


def _host_only(policy: Policy, model: ModelSpec, workload: Workload) -> DeviceLedger:
    weights = model.num_layers * model.num_experts * model.expert_parameters * policy.weight_dtype.bytes_per_element
    return DeviceLedger(
        dense_weights=_dense_weight_bytes(policy, model),
        expert_weights=int(weights),
        kv_cache=_kv_cache_bytes(policy, model, workload),
        activations=_activation_bytes(policy, model, workload),
        workspace=_workspace_bytes(policy, model, workload),
    )


def _dense_weight_bytes(policy: Policy, model: ModelSpec) -> int:
    parameters = model.num_layers * model.attention_parameters + model.embedding_parameters
    return int(parameters * policy.weight_dtype.bytes_per_element)


def _kv_cache_bytes(policy: Policy, model: ModelSpec, workload: Workload) -> int:
    """Bytes of K and V of a batch, each sequence at its final length."""
    tokens = workload.prompt_tokens(policy.batch_size) + policy.batch_size * (workload.gen_len - 1)
    return int(2 * model.num_layers * tokens * model.kv_size * policy.kv_dtype.bytes_per_element)


def _activation_bytes(policy: Policy, model: ModelSpec, workload: Workload) -> int:
    """Bytes of the hidden states of all prompts of a batch, plus what transfers hold in flight."""
    tokens = workload.prompt_tokens(policy.batch_size)
    hidden = tokens * model.hidden_size * policy.weight_dtype.bytes_per_element
    return int(hidden) + _transfer_bytes(policy, model, workload)


def _transfer_bytes(policy: Policy, model: ModelSpec, workload: Workload) -> int:
    """Bytes of queries, keys, values and attention outputs of the two micro-batches in flight in each phase.

    Decode has buffers of its own: its first micro-batches start while the last ones of prefill still go down.
    """
    tokens = workload.micro_batch_prompt_tokens(policy.micro_batch_size)
    rows, width = tokens + policy.micro_batch_size, policy.weight_dtype.bytes_per_element
    queries = rows * 2 * model.query_size * width
    prefill_kv = tokens * 2 * model.kv_size * policy.kv_dtype.bytes_per_element
    decode_kv = policy.micro_batch_size * 2 * model.kv_size * width
    return int(IN_FLIGHT * (queries + prefill_kv + decode_kv))


def _workspace_bytes(policy: Policy, model: ModelSpec, workload: Workload) -> int:
    """Bytes of the temporaries of the largest micro-batch, at prefill size."""
    tokens = workload.micro_batch_prompt_tokens(policy.micro_batch_size)
    return workspace_bytes(model, tokens, policy.micro_batch_size)
