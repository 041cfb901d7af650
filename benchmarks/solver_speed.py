"""How long the solver takes, and how close its space comes to every integer (N, mu). Prints two tables.

    python benchmarks/solver_speed.py [--quick]

Times are the least of three, in this process except for `hrm solve`; `--quick` leaves out the exhaustive searches,
which take minutes.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

import hrm
import solver
from hrm.estimate import Fidelity
from hrm.policy import Policy, Processor
from hrm.policy_grid import PolicyGrid
from hrm.predict import predict_grid
from solver.pruning import promising
from solver.room import WHOLE, memory_rows, most_resident, resident_range
from solver.search import search
from solver.space import build_space

REPEATS = 3
PAIRS_AT_A_TIME = 50_000
LARGEST_BATCH = 1500
MIXTRAL = tuple(
    ("mixtral-8x7b", machine, prompt_len, 418, gen_len, None)
    for machine in ("gcp-g2-l4", "gcp-n1-t4")
    for prompt_len in (77, 418)
    for gen_len in (32, 64, 128, 256)
)
LARGE = (("kimi-k2", "xeon-8592-4xl40s", 512, 512, 128, None), ("deepseek-v3", "xeon-8592-4xl40s", 512, 512, 128, None))
TRIPLES = (
    ("mixtral-8x7b", "gcp-g2-l4", 418, 418, 256, None),
    ("mixtral-8x7b", "gcp-g2-l4", 77, 418, 64, 1000),
    ("mixtral-8x7b", "gcp-n1-t4", 418, 418, 128, None),
    ("mixtral-8x7b", "gcp-n1-2xt4", 418, 418, 64, 900),
    ("mixtral-8x7b", "a100-80gb-case-study-2x", 512, 512, 32, 1200),
    ("mixtral-8x7b", "i9-14900k", 512, 512, 128, 64),
    ("mixtral-8x22b", "gcp-n1-4xt4", 418, 418, 128, None),
    ("mixtral-8x22b", "xeon-8380-a40", 1024, 1024, 256, 300),
    ("dbrx", "xeon-8488c-rtx4090-48gb", 1024, 2048, 128, 500),
    ("qwen3-30b-a3b", "ryzen-7950x-rtx4090", 512, 1024, 256, 700),
    ("olmoe-1b-7b", "laptop-ryzen-7840hs-rtx4060", 256, 256, 64, 200),
    ("qwen3-235b-a22b", "xeon-6454s-rtx4090d", 512, 512, 128, 400),
    ("gpt-oss-20b", "ryzen-7950x-rtx4080", 1024, 1024, 512, 512),
    ("gpt-oss-120b", "epyc-9355-rtx5090", 1024, 4096, 256, 1000),
    ("deepseek-v2-lite", "ryzen-5950x-rtx3090", 1024, 1024, 128, 333),
    ("deepseek-v3", "xeon-8592-4xl40s", 512, 512, 128, 800),
    ("kimi-k2", "xeon-8592-4xl40s", 4096, 8192, 256, None),
    ("minimax-m2", "xeon-8480c-h100-sxm", 2048, 2048, 128, 600),
    ("olmoe-1b-7b", "i9-10900x-rtx2080", 128, 512, 128, 1500),
    ("llama-3.1-8b", "gcp-g2-l4", 512, 512, 128, 250),
)
Case = tuple[str, str, int, int, int, int | None]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the times")
    quick = parser.parse_args().quick
    print("seconds: auto without and with simulation, milp, and `hrm solve` as a process without and with")
    print(
        f"{'model':16} {'machine':18} {'s':>5} {'n':>4}  {'auto':>6} {'+sim':>6} {'milp':>6} {'process':>8} {'+sim':>6}"
    )
    for case in (*MIXTRAL, *LARGE):
        model, machine, prompt_len, _, gen_len, _ = case
        seconds = " ".join(f"{one:6.3f}" for one in times(case))
        print(f"{model:16} {machine:18} {prompt_len:5} {gen_len:4}  {seconds}")
    if not quick:
        shares = list(compared())
        print(f"worst of {len(shares)}: {min(shares):.4f}")


def pose(case: Case) -> solver.Problem:
    """Return the problem of a case, in the model's published formats."""
    model, machine, prompt_len, max_prompt_len, gen_len, num_sequences = case
    spec = hrm.load_model(model)
    return solver.Problem(
        model=spec,
        hardware=hrm.load_profile(machine),
        workload=hrm.Workload(
            mean_prompt_len=float(prompt_len),
            max_prompt_len=max(prompt_len, max_prompt_len),
            gen_len=gen_len,
            num_sequences=num_sequences,
        ),
        weight_dtype=spec.dtype,
        expert_dtype=spec.expert_dtype,
        kv_dtype=spec.dtype.activation_dtype,
    )


def times(case: Case) -> Iterator[float]:
    """Yield the seconds of each way to solve a case."""
    problem = pose(case)
    yield least(lambda: solver.solve(problem, simulate=False))
    yield least(lambda: solver.solve(problem))
    yield least(lambda: solver.solve(problem, method=solver.Method.MILP, simulate=False))
    model, machine, prompt_len, max_prompt_len, gen_len, _ = case
    command = [sys.executable, "-P", "-m", "hrm", "solve", "--model", model, "--hardware", machine, "--json"]
    command += ["--prompt-len", str(prompt_len), "--max-prompt-len", str(max_prompt_len), "--gen-len", str(gen_len)]
    yield least(lambda: subprocess.run([*command, "--no-simulate"], check=True, capture_output=True))
    yield least(lambda: subprocess.run(command, check=True, capture_output=True))


def least(call: Callable[[], object]) -> float:
    """Return the least seconds of some calls."""
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)


def compared() -> Iterator[float]:
    """Print and yield the solver's throughput as a share of what every integer (N, mu) reaches."""
    print("\nthroughput at `ceiling`, tokens/s: the solver's plan, and the best of every integer N and mu")
    for case in TRIPLES:
        problem = pose(case)
        own = float(throughput(problem, PolicyGrid.of(search(problem))))
        best, largest = every_pair(problem, own)
        print(f"{case[0]:16} {case[1]:26} N to {largest:5}  {own:10.4f} {best:10.4f}  {own / best:.5f}")
        yield own / best


def throughput(problem: solver.Problem, grid: PolicyGrid) -> np.floating:
    """Return the highest throughput of a grid's policies."""
    found = predict_grid(grid, problem.model, problem.hardware, problem.workload, Fidelity.CEILING)
    return np.max(found.throughput_tokens_per_s)


def every_pair(problem: solver.Problem, own: float) -> tuple[float, int]:
    """Return the highest throughput over every integer (N, mu), as many experts resident as fit, and the largest N.

    Where experts or the cache are divided, in steps, only pairs are predicted of which one lane leaves hope to beat
    the solver's own throughput, which counts too.
    """
    best, largest = own, 0
    for grid in build_space(problem).grids:
        top = int(np.max(grid.batch_size, initial=0.0))
        if top > LARGEST_BATCH:
            print(f"  (N up to {LARGEST_BATCH} of {top} searched through)")
        largest = max(largest, min(top, LARGEST_BATCH))
        for on_cpu, share in itertools.product(np.unique(grid.cpu_experts), np.unique(grid.kv_on_gpu)):
            template = replace(grid.template, cpu_experts=int(on_cpu), kv_on_gpu=float(share))
            for some in pairs(problem, template, min(top, LARGEST_BATCH), 1.0 / best):
                best = max(best, float(throughput(problem, some)))
    return best, largest


def pairs(problem: solver.Problem, template: Policy, top: int, known_s: float) -> Iterator[PolicyGrid]:
    """Yield every (N, mu) up to a largest N that fits and may be within reach, some at a time."""
    sizes = np.arange(1.0, top + 1.0)
    batches, micros = np.repeat(sizes, top), np.tile(sizes, top)
    possible = micros <= batches
    batches, micros = batches[possible], micros[possible]
    for first in range(0, len(batches), PAIRS_AT_A_TIME):
        here = slice(first, first + PAIRS_AT_A_TIME)
        none = np.zeros(len(batches[here]))
        grid = PolicyGrid(
            template=template,
            batch_size=batches[here],
            micro_batch_size=micros[here],
            resident_experts=none,
            cpu_experts=none + template.cpu_experts,
            kv_on_gpu=none + template.kv_on_gpu,
            disk_experts=none,
        )
        grid = within_reach(problem, grid, most_resident(problem, grid), known_s)
        none, most = np.zeros_like(grid.batch_size), most_resident(problem, grid)
        low, high = resident_range(memory_rows(problem, grid, none, most), none, most)
        kept = np.ceil(low - WHOLE) <= np.floor(high + WHOLE)
        grid = within_reach(problem, grid.select(kept), np.floor(high + WHOLE)[kept], known_s)
        if np.size(grid.batch_size):
            yield grid


def within_reach(
    problem: solver.Problem, grid: PolicyGrid, resident: NDArray[np.float64], known_s: float
) -> PolicyGrid:
    """Return the candidates that may reach an objective with so many resident experts, which they then have."""
    if grid.template.main_device is Processor.GPU:
        grid = replace(grid, resident_experts=resident)
    return grid.select(promising(problem, grid, Fidelity.CEILING, known_s))


if __name__ == "__main__":
    main()
