"""How fast predictions are made: one policy, many at once, and a simulated generation.

    python benchmarks/prediction_speed.py

Mixtral 8x7B on the machine of setting S2 (one L4). Goals: `roof` and `ceiling` of one policy in 5 ms together, 200,000
policies/s over a grid, one simulated decode step in 50 ms and 256 tokens in 200 ms at N = 3,000 and mu = 100.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from hrm.dtypes import DType
from hrm.estimate import Fidelity
from hrm.hardware import load_profile
from hrm.model_config import load_model
from hrm.policy import Policy, Processor, ScheduleName
from hrm.policy_grid import PolicyGrid
from hrm.predict import predict, predict_grid
from hrm.workload import Workload

REPEATS = 9
GRID = 20_000
CHUNK = 2_000
"""Policies evaluated at once: their arrays fit in a core's second-level cache."""
MODEL, MACHINE = load_model("mixtral-8x7b"), load_profile("S2")
POLICY = Policy(
    batch_size=3000,
    micro_batch_size=100,
    attention_device=Processor.CPU,
    ffn_device=Processor.GPU,
    resident_experts=0,
    kv_on_gpu=0.0,
    schedule=ScheduleName.CGOPIPE,
    weight_dtype=DType.FLOAT16,
    kv_dtype=DType.FLOAT16,
)


def timed(work: Callable[[], object]) -> str:
    """Run some work a few times and return the median of its seconds with its range, in ms."""
    work()
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - begun))
    return f"{statistics.median(times):.1f} ms ({min(times):.1f} to {max(times):.1f})"


def job(gen_len: int) -> Workload:
    """Describe the MT-Bench prompts of the published runs."""
    return Workload(mean_prompt_len=76.1, max_prompt_len=418, gen_len=gen_len)


def predicted(gen_len: int, *fidelities: Fidelity) -> Callable[[], object]:
    """Return the work of predicting the policy at some fidelities."""
    return lambda: predict(POLICY, MODEL, MACHINE, job(gen_len), fidelity=fidelities[0], fidelities=fidelities)


def over_a_grid() -> object:
    """Predict many policies of different N, mu and resident experts."""
    share = np.linspace(0.0, 1.0, GRID)
    batches = np.floor(100 + 4900 * share)
    for first in range(0, GRID, CHUNK):
        part = slice(first, first + CHUNK)
        grid = PolicyGrid(
            template=POLICY,
            batch_size=batches[part],
            micro_batch_size=np.floor(8 + 120 * share[part]),
            resident_experts=np.floor(3 * share[part]),
        )
        predict_grid(grid, MODEL, MACHINE, job(64), Fidelity.CEILING)
    return None


def main() -> None:
    """Print each figure beside its goal."""
    print("roof and ceiling of one policy  ", timed(predicted(64, Fidelity.ROOF, Fidelity.CEILING)), "goal 5 ms")
    print(f"ceiling of {GRID:,} policies     ", timed(over_a_grid), f"goal {GRID / 200:.0f} ms")
    one, two = (timed(predicted(gen_len, Fidelity.SIMULATED)) for gen_len in (1, 2))
    print("simulated prefill               ", one)
    print("simulated prefill, one decode   ", two, "goal 50 ms above the line before")
    print("simulated 256 tokens            ", timed(predicted(256, Fidelity.SIMULATED)), "goal 200 ms")


if __name__ == "__main__":
    main()
