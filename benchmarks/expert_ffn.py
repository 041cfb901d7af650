"""How close experts' FFNs on the CPU come to their roofs, by tokens per expert, with the roofs measured beside them.

Rounds alternate the DRAM read roof (a sum over a tensor far larger than any cache), the GEMM roof (the best of a matrix
library's products, of float32 or of bfloat16, whichever are faster here), the executor's experts, all of a layer in a
call as it computes them, and the same FFNs by `F.linear`, over experts that no cache holds. Each round gives the share
reached of min(GEMM roof, intensity x read roof); the median is printed with the smallest and the largest. The intensity
counts an expert's weights once, and nothing else.

    python benchmarks/expert_ffn.py [--tokens 1 8 64] [--threads 1 2] [--rounds 5] [--experts 4] [--dtype float32]
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from executor import native
from executor.experts import weighted_sum
from executor.linear import is_native
from executor.workspace import host_workspace
from hrm.device.huge_pages import huge_paged
from hrm.workspace import experts_workspace_bytes

HIDDEN, INTERMEDIATE = 1024, 3584
ROOF_BYTES, COPIES_BYTES = 256 * 10**6, 128 * 10**6
GEMM_ROWS = (256, 1024)
FLOP_PER_TOKEN = 6 * HIDDEN * INTERMEDIATE

Work = Callable[[], object]


class Round(NamedTuple):
    """Rates of one round, and which roof binds."""

    read_bytes_per_s: float
    gemm_flop_per_s: float
    ours_flop_per_s: float
    library_flop_per_s: float
    intensity_flop_per_byte: float

    @property
    def roof_flop_per_s(self) -> float:
        """The lower of both roofs."""
        return min(self.gemm_flop_per_s, self.intensity_flop_per_byte * self.read_bytes_per_s)


def main() -> None:
    """Print one line per number of tokens and threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--experts", type=int, default=4, help="of a layer, computed in one call")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of weights and tokens")
    options = parser.parse_args()
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[options.dtype]
    size = 3 * HIDDEN * INTERMEDIATE
    copies = -(-COPIES_BYTES // (size * dtype.itemsize))
    # In one piece of memory, as the executor holds those of a layer.
    experts = list(torch.split(huge_paged((copies * size,), dtype), size))
    for expert in experts:
        expert.copy_(torch.randn(size).mul_(0.02))
    print(
        f"{native.status_line()}; experts of {HIDDEN} x {INTERMEDIATE} in {options.dtype}, {options.experts} a call, "
        f"{copies} in turn"
    )
    print("threads tokens  read GB/s  GEMM  roof  ours  F.linear GFLOP/s  ours / roof (least-most)  F.linear / roof")
    with torch.inference_mode():
        for num_threads, tokens in itertools.product(options.threads, options.tokens):
            torch.set_num_threads(num_threads)
            rounds = measure(experts, (options.experts, tokens), options.rounds)
            print(line(num_threads, tokens, rounds), flush=True)


def measure(experts: list[torch.Tensor], layer: tuple[int, int], num_rounds: int) -> list[Round]:
    """Alternate both roofs, the executor and the library; what runs first is warmed up."""
    stream, squares = torch.ones(ROOF_BYTES // 4), gemm_operands()
    ours, library = executor_ffn(experts, layer), library_ffn(experts, layer)
    for work in (stream.sum, ours, library):
        work()
    count, tokens = layer
    flop = count * tokens * FLOP_PER_TOKEN
    return [
        Round(
            read_bytes_per_s=ROOF_BYTES / seconds(stream.sum),
            gemm_flop_per_s=max(gemm_flop_per_s(square[:rows], square) for square in squares for rows in GEMM_ROWS),
            ours_flop_per_s=flop / seconds(ours),
            library_flop_per_s=flop / seconds(library),
            intensity_flop_per_byte=flop / (count * experts[0].nbytes),
        )
        for _ in range(num_rounds)
    ]


def gemm_operands() -> list[torch.Tensor]:
    """Return the matrices of the GEMM roof, warmed up: no bfloat16 where they would take ten times as long."""
    square = torch.ones(1024, 1024)
    squares = [square, square.to(torch.bfloat16)] if is_native(torch.bfloat16, "cpu") else [square]
    for each in squares:
        each @ each
    return squares


def gemm_flop_per_s(left: torch.Tensor, right: torch.Tensor) -> float:
    """Time one product."""
    return 2 * len(left) * right.numel() / seconds(lambda: left @ right)


def seconds(work: Work) -> float:
    """Time `work`, as often as it takes to last 40 ms: layer follows layer in a run, too."""
    begun_s, count = time.perf_counter(), 0
    while True:
        work()
        count += 1
        if (taken_s := time.perf_counter() - begun_s) > 0.04:
            return taken_s / count


def executor_ffn(experts: list[torch.Tensor], layer: tuple[int, int]) -> Work:
    """Return a call of the executor's experts: so many, each chosen by so many tokens, with the weighted sum."""
    count, tokens = layer
    workspace = host_workspace(int(experts_workspace_bytes(count * tokens, HIDDEN, INTERMEDIATE, count, 1)))
    x, turn = torch.randn(count * tokens, HIDDEN).to(experts[0].dtype), itertools.cycle(experts)
    shares = torch.full((len(x), 1), 0.5)
    chosen = torch.arange(len(x)).remainder_(count).unsqueeze(1)

    def run() -> None:
        with workspace.frame():
            weighted_sum(x, shares, chosen, [next(turn) for _ in range(count)], 0, workspace)

    return run


def library_ffn(experts: list[torch.Tensor], layer: tuple[int, int]) -> Work:
    """Return the same FFNs by three calls of `F.linear` each, on the weights as they are."""
    count, tokens = layer
    x, turn = torch.randn(tokens, HIDDEN).to(experts[0].dtype), itertools.cycle(experts)

    def run() -> None:
        for _ in range(count):
            gate, up, down = next(turn).view(3, -1)
            gate, up = gate.view(-1, HIDDEN), up.view(-1, HIDDEN)
            F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down.view(HIDDEN, -1))

    return run


def line(num_threads: int, tokens: int, rounds: list[Round]) -> str:
    """Format the medians of one configuration with the spread of the share of the roof."""
    read, gemm, ours, library, _ = (statistics.median(column) / 1e9 for column in zip(*rounds, strict=True))
    roof = statistics.median(taken.roof_flop_per_s for taken in rounds) / 1e9
    shares = sorted(taken.ours_flop_per_s / taken.roof_flop_per_s for taken in rounds)
    others = statistics.median(taken.library_flop_per_s / taken.roof_flop_per_s for taken in rounds)
    return (
        f"{num_threads:7d} {tokens:6d} {read:10.1f} {gemm:5.0f} {roof:5.0f} {ours:5.0f} {library:17.1f}"
        f"  {statistics.median(shares):11.2f} ({shares[0]:.2f}-{shares[-1]:.2f}) {others:16.2f}"
    )


if __name__ == "__main__":
    main()
