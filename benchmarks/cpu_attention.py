"""Is attention on the CPU better whenever GPU memory is short? Over the zoo, and the boundary where it stops being.

The paper says so of its machines (arXiv 2411.11217, section 6.3). Asked of every bundled model on every bundled machine
whose GPUs do not hold it: the best policy with decode attention on the CPU against the best with it on the GPU, its KV
cache there or fetched from the host, at `ceiling`. With -o the boundary is drawn, around the case study.

    python benchmarks/cpu_attention.py [-o docs/attention_placement.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import hrm
from hrm.dtypes import DType
from hrm.hardware import HardwareProfile, bundled_profiles
from hrm.model import ModelSpec
from hrm.model_config import bundled_models
from hrm.policy import Processor, ScheduleName
from hrm.what_if import Resource, amount
from solver.breakpoints import relaxed_optima, whole_optima
from solver.drawing import draw_map
from solver.pieces import pieces_of
from solver.policy_map import policy_map, read_axes
from solver.problem import Problem
from solver.room import room_for
from solver.space import build_space

SCHEDULES = (ScheduleName.CGOPIPE, ScheduleName.KV_TRANSFER)
JOB = hrm.Workload(mean_prompt_len=512.0, max_prompt_len=512, gen_len=128)
SAME = 0.02
BOUNDARY = "cpu_bandwidth=6.25GB/s..100GB/s,gpu_memory=12GiB..192GiB"


class Pair(NamedTuple):
    """A model on a machine: how short GPU memory and how fast host memory is, and the two throughputs."""

    model: str
    machine: str
    memory_per_weights: float
    host_memory_per_link: float
    cpu_tokens_per_s: float
    gpu_tokens_per_s: float

    @property
    def advantage(self) -> float:
        """Attention on the CPU over attention on the GPU."""
        return self.cpu_tokens_per_s / self.gpu_tokens_per_s


def main() -> None:
    """Print the table; draw the boundary if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="picture of the boundary, .png or .svg")
    output = parser.parse_args().output
    pairs = sorted(compared(), key=lambda pair: pair.advantage)
    print(f"{len(pairs)} pairs of model and machine, prompts of 512 tokens, 128 generated")
    for words, least, most in (
        ("attention on the CPU faster", 1 + SAME, float("inf")),
        ("the same within 2 %", 1 / (1 + SAME), 1 + SAME),
        ("attention on the GPU faster", 0.0, 1 / (1 + SAME)),
    ):
        print(f"{sum(least < pair.advantage <= most for pair in pairs):4d}  {words}")
    print(f"\n{'CPU / GPU':>9} {'host memory / link':>18} {'GPU memory / weights':>20}  where it is not faster")
    for pair in pairs:
        if pair.advantage <= 1 + SAME:
            shares = f"{pair.advantage:9.2f} {pair.host_memory_per_link:18.1f} {pair.memory_per_weights:20.2f}"
            print(f"{shares}  {pair.model} on {pair.machine}")
    if output is not None:
        draw_boundary(output)


def compared() -> Iterator[Pair]:
    """Yield what each pair of a mixture of experts and a machine with too small GPUs reaches in both ways."""
    for name in bundled_models():
        model = hrm.load_model(name)
        for path in bundled_profiles():
            machine = hrm.load_profile(path)
            if model.num_experts > 1 and machine.has_gpu and memory_per_weights(model, machine) < 1.0:
                yield from both_ways(model, machine)


def both_ways(model: ModelSpec, machine: HardwareProfile) -> Iterator[Pair]:
    """Yield the best of the ladder of N and mu with attention on either side, neither refined, where both fit."""
    problem = posed(model, machine, model.dtype)
    best = dict.fromkeys(Processor, 0.0)
    for grid in build_space(problem).grids:
        pieces, device = pieces_of(problem, room_for(problem, grid)), grid.template.attention_device
        least_s = whole_optima(pieces, relaxed_optima(pieces)).objective.min(initial=np.inf)
        best[device] = max(best[device], 1.0 / float(least_s))
    if all(best.values()):
        yield Pair(
            model=model.name,
            machine=machine.name,
            memory_per_weights=memory_per_weights(model, machine),
            host_memory_per_link=amount(machine, Resource.CPU_BANDWIDTH) / amount(machine, Resource.LINK),
            cpu_tokens_per_s=best[Processor.CPU],
            gpu_tokens_per_s=best[Processor.GPU],
        )


def posed(model: ModelSpec, machine: HardwareProfile, dtype: DType) -> Problem:
    """Pose the job for a pair, experts in their published format where the weights are."""
    return Problem(
        model=model,
        hardware=machine,
        workload=JOB,
        weight_dtype=dtype,
        expert_dtype=model.expert_dtype if dtype is model.dtype else None,
        kv_dtype=dtype.activation_dtype,
        schedules=SCHEDULES,
        split_experts=False,
        kv_shares=(0.0,),
    )


def memory_per_weights(model: ModelSpec, machine: HardwareProfile) -> float:
    """Return the usable memory of all GPUs over the bytes of the model's weights."""
    experts = model.num_moe_layers * model.num_experts * model.expert_parameters
    width = (model.expert_dtype or model.dtype).bytes_per_element
    held = experts * width + (model.total_parameters - experts) * model.dtype.bytes_per_element
    gpu = machine.level("gpu")
    return gpu.usable_bytes * gpu.count / held


def draw_boundary(path: Path) -> None:
    """Draw which placement wins over host memory's rate and GPU memory."""
    asked = posed(hrm.load_model("mixtral-8x7b"), hrm.load_profile("l4-case-study"), DType.FLOAT16)
    title = "Mixtral 8x7B around l4-case-study (link 16 GB/s), prompts of 512 tokens, 128 generated"
    draw_map(policy_map(asked, read_axes(BOUNDARY, asked)), asked.model, title, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
