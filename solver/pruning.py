"""Which candidates cannot be the best: what one lane alone has to do says so, for little of what all bounds cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hrm.arrays import Reals
from hrm.estimate import Fidelity, PassShape, cpu_experts_cost, kv_load_cost, page_copy_cost
from hrm.passes import rates_at, stretches
from hrm.policy import Processor, ScheduleName
from hrm.policy_grid import PolicyGrid
from hrm.rates import Rates
from hrm.schedule.task import Phase
from solver.problem import Objective, Problem

__all__ = ["promising"]

ROUNDING = 1e-9
"""Relative error of a bound that is computed in another order than the time it bounds."""


def promising(problem: Problem, grid: PolicyGrid, fidelity: Fidelity, known_s: float) -> NDArray[np.bool_]:
    """Say which candidates of a grid may reach an objective known to be possible.

    Their resident experts are the most that fit. No pass is shorter than what the CPU computes of its experts, nor than
    what streamed experts and KV cache take across the link.
    """
    least: Reals = np.zeros_like(grid.batch_size)
    rates = rates_at(problem.hardware, fidelity)
    if grid.template.cpu_experts or (grid.template.ffn_device is Processor.CPU and not problem.reads_disk):
        least = _experts_s(problem, grid, rates)
    if grid.template.main_device is Processor.GPU:
        least = np.maximum(least, _crossing_s(problem, grid, rates))
    return np.less_equal(_objective_s(problem, grid, least), known_s * (1.0 + ROUNDING))


def _experts_s(problem: Problem, grid: PolicyGrid, rates: Rates) -> Reals:
    """Return what the CPU's experts take in a full wave."""
    model, job = problem.model, problem.workload
    total: Reals = 0.0
    for phase, passes in ((Phase.PREFILL, 1), (Phase.DECODE, job.gen_len - 1)):
        for times, size in _micro_batches(grid):
            shape = PassShape(phase=phase, sequences=size, workload=job)
            total = total + passes * times * cpu_experts_cost(grid, model, rates, shape).seconds
    return model.num_moe_layers * total


def _crossing_s(problem: Problem, grid: PolicyGrid, rates: Rates) -> Reals:
    """Return what streamed experts, and a KV cache that is fetched, take across the link in a full wave."""
    model, job = problem.model, problem.workload
    pages = job.gen_len * model.num_moe_layers * grid.num_pages(model)
    total = pages * page_copy_cost(grid, model, rates).seconds
    if grid.template.schedule is not ScheduleName.KV_TRANSFER:
        return total
    for passes, step in stretches(job.gen_len - 1):
        for times, size in _micro_batches(grid):
            shape = PassShape(phase=Phase.DECODE, sequences=size, step=step, workload=job)
            for layer, layers in model.layer_kinds.items():
                total = total + passes * times * layers * kv_load_cost(grid, model, rates, shape, layer).seconds
    return total


def _micro_batches(grid: PolicyGrid) -> tuple[tuple[Reals, Reals], ...]:
    """Return how many micro-batches of a pass are of which size."""
    return (grid.num_micro_batches - 1.0, grid.micro_batch_size), (1.0, grid.last_micro_batch_size)


def _objective_s(problem: Problem, grid: PolicyGrid, wave_s: Reals) -> Reals:
    """Return the objective of which full waves of so many seconds are a part."""
    if problem.objective is Objective.LATENCY:
        return wave_s
    total = problem.workload.num_sequences
    waves, sequences = (1.0, grid.batch_size) if total is None else (total // grid.batch_size, total)
    return waves * wave_s / (sequences * problem.workload.gen_len)
