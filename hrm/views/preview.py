"""A look at a policy's pipeline before it runs: its first passes simulated task by task, as a trace or a picture."""

from __future__ import annotations

from dataclasses import replace

from hrm.hardware import HardwareProfile
from hrm.model import ModelSpec
from hrm.pass_costs import pass_costs
from hrm.policy import Policy
from hrm.policy_grid import PolicyGrid
from hrm.rates import Rates
from hrm.schedule.catalog import build_schedule
from hrm.schedule.simulator import PassLoad
from hrm.schedule.task import Phase, TaskKind
from hrm.schedule.timeline import Timeline, simulate_timeline
from hrm.workload import Workload

__all__ = ["middle_layers", "preview"]

DECODE_PASSES = 3
"""Decode passes that are looked at: the first begins while prefill ends, the others follow their like."""
MOST_TASKS = 40_000
"""Tasks of a preview, about; they take a second."""
LAYERS = 2
"""Layers of a picture: one that follows its like, and how the next one follows it."""
MOST_MICRO_BATCHES = 24
"""Micro-batches of a picture, at most: of more no bar could carry its number."""


def preview(policy: Policy, model: ModelSpec, hardware: HardwareProfile, workload: Workload) -> Timeline:
    """Simulate prefill and a few decode passes of a wave, at measured rates; fewer where a pass has very many tasks."""
    batch = min(policy.batch_size, workload.num_sequences or policy.batch_size)
    policy = replace(policy, batch_size=batch, micro_batch_size=min(policy.micro_batch_size, batch))
    rates, schedule = Rates(hardware=hardware, measured=True), build_schedule(policy, model)
    affordable = max(MOST_TASKS // len(schedule.decode) - 1, 1)
    steps = [(Phase.PREFILL, 0.0)]
    steps += [(Phase.DECODE, step + 1.0) for step in range(min(workload.gen_len - 1, DECODE_PASSES, affordable))]
    costs = [pass_costs(PolicyGrid.of(policy), model, rates, workload, phase, step) for phase, step in steps]
    loads = [PassLoad(phase=one.phase, work_of=one.remembered()) for one in costs]
    return simulate_timeline(schedule, loads, rates.shared, rates.kept)


def middle_layers(timeline: Timeline) -> tuple[Timeline, str]:
    """Cut out a few layers in the middle of the last pass, or as many of their micro-batches as a picture can show.

    Returns
    -------
    tuple
        The stretch from the post-attention of the first micro-batch on, and words for what it is.
    """
    last = len(timeline.pass_end_s) - 1
    posts = [one for one in timeline.tasks if one.pass_index == last and one.task.kind is TaskKind.POST_ATTENTION]
    num_layers = posts[-1].task.layer + 1
    micro_batches = len(posts) // num_layers
    layers = min(LAYERS, num_layers)
    layer = (num_layers - layers) // 2
    count = min(layers * micro_batches, MOST_MICRO_BATCHES)
    starts = [one.start_s for one in posts] + [timeline.pass_end_s[last]]
    first = layer * micro_batches
    words = f"layers {layer + 1} to {layer + layers} of {num_layers}"
    if count < layers * micro_batches:
        words = f"{count} micro-batches of {micro_batches}, layer {layer + 1} of {num_layers}"
    phase = Phase.DECODE if last else Phase.PREFILL
    return timeline.between(starts[first], starts[first + count]), f"{phase}, {words}"
