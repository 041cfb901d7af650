"""The policy that the paper's own planner chooses: its formulation, to be compared with, in formulas of its own.

After arXiv 2411.11217, Eqs. 12 to 14, as its published optimizer solves them: attention on the CPU, experts on the GPU;
the decode of one layer alone, at peaks; of the layer's work attention over the cache and the experts, no projections;
r_w continuous, which its runtime rounds down to whole experts when it runs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hrm.policy import Policy, Processor, ScheduleName
from hrm.rates import Rates
from hrm.records import record
from solver.problem import Problem

__all__ = ["PublishedPlan", "published_plan"]

GPU_MEMORY_SHARE = 0.86
"""Share of the GPU's memory that the published optimizer plans with."""
RATIO = 1.1
"""Between neighbouring N, and numbers of micro-batches, of the scan."""
LARGEST_BATCH = 1 << 16

Array = NDArray[np.float64]


@record
class PublishedPlan:
    """What the planner promises, and what its runtime makes of it: `policy` keeps whole experts."""

    policy: Policy
    weights_on_gpu: float
    decode_tokens_per_s: float


def published_plan(problem: Problem) -> PublishedPlan | None:
    """Maximise N / (layers · T) over N, mu and r_w within the planner's memory limits; None where nothing fits."""
    batches, micros = _candidates(problem)
    shares = _largest_share(problem, batches, micros)
    fitting = (shares >= 0.0) & _fits_host(problem, batches, np.maximum(shares, 0.0))
    if not fitting.any():
        return None
    batches, micros, shares = batches[fitting], micros[fitting], np.minimum(shares[fitting], 1.0)
    tokens_per_s = batches / (problem.model.num_layers * layer_s(problem, batches, micros, shares))
    best = int(np.argmax(tokens_per_s))
    share = float(shares[best])
    policy = Policy(
        batch_size=int(batches[best]),
        micro_batch_size=int(micros[best]),
        attention_device=Processor.CPU,
        ffn_device=Processor.GPU,
        resident_experts=int(problem.model.num_experts * share),
        kv_on_gpu=0.0,
        schedule=ScheduleName.CGOPIPE,
        weight_dtype=problem.weight_dtype,
        expert_dtype=problem.expert_dtype,
        kv_dtype=problem.kv_dtype,
        staging=problem.staging,
    )
    return PublishedPlan(policy=policy, weights_on_gpu=share, decode_tokens_per_s=float(tokens_per_s[best]))


def layer_s(problem: Problem, batches: Array, micros: Array, weights_on_gpu: Array) -> Array:
    """Return the decode time of one layer: T = max(T_comm, T_cpu, T_gpu), Eq. 12, at the middle of the generation.

    T_comm: streamed weights and hidden states over the link. T_cpu: attention over the cache, the longer of its bytes
    and its FLOP (Eq. 14). T_gpu: the experts alike, whose weights each micro-batch reads again.
    """
    model, job = problem.model, problem.workload
    peaks = Rates(hardware=problem.hardware, measured=False)
    width, context = _width(problem), job.mean_prompt_len + job.gen_len / 2
    experts = model.num_experts * _expert_bytes(problem)

    comm = ((1.0 - weights_on_gpu) * experts + batches * model.hidden_size * width) / peaks.link_bytes_per_s("h2d")

    cache = batches * context * model.cache_width * problem.kv_dtype.bytes_per_element
    attention = 4.0 * batches * context * model.query_size
    cpu = np.maximum(cache / peaks.read_bytes_per_s("cpu"), attention / peaks.flop_per_s("cpu", problem.kv_dtype))

    ffn = 6.0 * batches * model.experts_per_token * model.hidden_size * model.intermediate_size
    dtype = problem.expert_dtype or problem.weight_dtype
    gpu = np.maximum(
        np.ceil(batches / micros) * experts / peaks.read_bytes_per_s("gpu"), ffn / peaks.flop_per_s("gpu", dtype)
    )
    longest: Array = np.maximum(np.maximum(comm, cpu), gpu)
    return longest


def _largest_share(problem: Problem, batches: Array, micros: Array) -> Array:
    """Return the largest r_w that fits the GPU, possibly above 1, negative where even 0 does not fit.

    Held: dense weights, resident experts, two layers' streamed experts, and a micro-batch's activations in prefill.
    """
    model, gpu = problem.model, problem.hardware.level("gpu")
    dense = (model.dense_parameters + model.embedding_parameters) * problem.weight_dtype.bytes_per_element
    layer = model.num_experts * _expert_bytes(problem)
    tokens = np.minimum(micros, batches) * problem.workload.mean_prompt_len
    row = 2 * model.hidden_size + model.query_size + model.cache_width + 2 * model.intermediate_size
    room = GPU_MEMORY_SHARE * gpu.capacity_bytes * gpu.count - dense - tokens * row * _width(problem) - 2 * layer
    share: Array = room / ((model.num_moe_layers - 2) * layer) if model.num_moe_layers > 2 else np.sign(room)
    return share


def _fits_host(problem: Problem, batches: Array, weights_on_gpu: Array) -> NDArray[np.bool_]:
    """Say where the host holds the streamed experts and the cache of all sequences."""
    model, job, cpu = problem.model, problem.workload, problem.hardware.level("cpu")
    usable = min(cpu.usable_bytes * cpu.count, problem.ram_limit_bytes or np.inf)
    tokens = batches * (job.mean_prompt_len + job.gen_len)
    cache = tokens * model.num_layers * model.cache_width * problem.kv_dtype.bytes_per_element
    experts = model.num_moe_layers * model.num_experts * _expert_bytes(problem)
    held: Array = cache + (1.0 - np.minimum(weights_on_gpu, 1.0)) * experts
    return held <= usable


def _candidates(problem: Problem) -> tuple[Array, Array]:
    """Return pairs of N and mu: N on a ladder up to the job's size, cut into a ladder of equal parts."""
    limit = problem.workload.num_sequences or LARGEST_BATCH
    steps = np.arange(int(np.log(limit) / np.log(RATIO)) + 1)
    ladder = np.unique(np.append(np.floor(RATIO**steps), limit))
    batches, parts = (axis.ravel() for axis in np.meshgrid(ladder, ladder))
    useful = parts <= batches
    return batches[useful], np.ceil(batches[useful] / parts[useful])


def _expert_bytes(problem: Problem) -> float:
    dtype = problem.expert_dtype or problem.weight_dtype
    return problem.model.expert_parameters * dtype.bytes_per_element


def _width(problem: Problem) -> float:
    return problem.weight_dtype.activation_dtype.bytes_per_element
