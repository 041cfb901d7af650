"""The pipeline against its own roofs: measured over `ceiling` decode throughput, and CGOPipe over each other schedule.

    python benchmarks/pipeline.py [CASE...]

Every case is an emulated device, with the turning points of a bundled one, that holds a part of a small random model.
It is profiled (quickly), each schedule is given the policy that is best for it, and the schedules run in alternation.
Goals: 0.95 of the ceiling where the link binds and 0.90 where compute binds, if two lanes are 60 % busy; each gain over
another schedule at least 0.8 of what was predicted; 1 % of the time for recording the tasks'.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from executor import Engine, Generation, Prompt
from executor.running import Spans
from hrm.device.opening import load_spec, open_backend
from hrm.dtypes import DType
from hrm.estimate import Fidelity
from hrm.files import to_plain, write_yaml
from hrm.hardware import HardwareProfile, load_profile
from hrm.memory import ledger
from hrm.model_config import load_model
from hrm.plan import Plan, PlanStatus
from hrm.policy import Policy, ScheduleName
from hrm.records import record
from hrm.roofline import Bound
from hrm.schedule.task import Lane, Phase
from hrm.workload import Workload
from solver import Problem, make_plan
from solver.ablation import ScheduleResult, compare_schedules

DIMENSIONS = "--layers 5 --hidden-size 768 --intermediate-size 1536 --query-heads 12 --kv-heads 4 --experts 8 --top-k 2"
PROMPT_LENS = (8, 12, 16, 24, 32, 40)
GOALS = {Bound.CROSS_LEVEL: 0.95, Bound.COMPUTE: 0.90, Bound.MEMORY: 0.90}
BUSY = 0.6


class Case(NamedTuple):
    """A device with a bundled one's ratios, `pace` times as fast a link and host, and a job for it.

    It holds `share` of the model's weights.
    """

    spec: str
    pace: float
    share: float
    num_sequences: int
    gen_len: int


CASES = {
    "l4-like": Case("mini-l4", 4.0, 0.5, 192, 9),
    "t4-like": Case("mini-t4", 4.0, 0.5, 192, 9),
    "device-bound": Case("mini-device-bound", 0.5, 0.5, 192, 9),
}


def main() -> None:
    """Run the cases and print their tables."""
    options = _options()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "model").exists():
        _hrm("checkpoint", "synth", work / "model", *DIMENSIONS.split())
    found = {}
    for name in options.cases or CASES:
        found[name] = _run_case(name, CASES[name], work, options)
    document = {"date": date.today().isoformat(), "emulated": True, "cases": found}
    (work / "pipeline.json").write_text(json.dumps(document, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default all")
    parser.add_argument("--work", type=Path, default=Path("pipeline"), help="folder for everything made")
    parser.add_argument("--rounds", type=int, default=3, help="alternating runs of each schedule")
    parser.add_argument("--schedules", nargs="+", type=ScheduleName, default=None, help="only these")
    return parser.parse_args()


def _hrm(*arguments: object) -> None:
    command = ["hrm", *map(str, arguments)]
    print("$", *command, flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)


def _profile(name: str, case: Case, work: Path) -> HardwareProfile:
    """Profile a case's device, unless that was done in this folder before."""
    path = work / f"{name}.yaml"
    if not path.exists():
        base, model = load_spec(case.spec), load_model(work / "model")
        spec = replace(
            base,
            name=name,
            description=f"{base.name} with a link and a host {case.pace:g} times as fast",
            memory_capacity_bytes=int(case.share * model.total_parameters * model.dtype.bytes_per_element),
            h2d_bytes_per_s=case.pace * base.h2d_bytes_per_s,
            d2h_bytes_per_s=case.pace * base.d2h_bytes_per_s,
            host_slowdown=max(1.0, base.host_slowdown / case.pace),
        )
        write_yaml(work / f"{name}-device.yaml", spec)
        _hrm("profile", "--device", f"emulated:{work / f'{name}-device.yaml'}", "--quick", "-o", path)
    return load_profile(path)


def _run_case(name: str, case: Case, work: Path, options: argparse.Namespace) -> Any:
    profile, draw = _profile(name, case, work), random.Random(0)
    lens = tuple(PROMPT_LENS[at % len(PROMPT_LENS)] for at in range(case.num_sequences))
    prompts = [
        Prompt(id=str(at), tokens=tuple(draw.randrange(4096) for _ in range(size))) for at, size in enumerate(lens)
    ]
    problem = Problem(
        model=load_model(work / "model"),
        hardware=profile,
        workload=Workload.from_prompt_lens(lens, case.gen_len),
        weight_dtype=DType.BFLOAT16,
        kv_dtype=DType.BFLOAT16,
    )
    results = [
        result
        for result in compare_schedules(problem)
        if result.prediction is not None and (not options.schedules or result.schedule in options.schedules)
    ]
    plans = {result.schedule: _plan(problem, result) for result in results}
    runs: dict[ScheduleName, list[Generation]] = {schedule: [] for schedule in plans}
    for _ in range(options.rounds):
        for schedule, plan in plans.items():
            runs[schedule].append(_run(plan, work / "model", prompts))
            rate, row = runs[schedule][-1].measured.decode_throughput_tokens_per_s, _row(plan, runs[schedule])
            print(f"{name}, {schedule}: {rate:.1f} tokens/s, {rate / row.ceiling:.3f} of its ceiling", flush=True)
    rows = {schedule: _row(plan, runs[schedule]) for schedule, plan in plans.items()}
    _show(name, rows)
    return to_plain(rows)


def _plan(problem: Problem, result: ScheduleResult) -> Plan:
    assert result.policy is not None
    return make_plan(problem, result.policy, PlanStatus.GIVEN, Fidelity.CEILING)


def _run(plan: Plan, checkpoint: Path, prompts: list[Prompt]) -> Generation:
    backend = open_backend(plan.machine.device, plan.machine.emulated)
    try:
        return Engine(plan, checkpoint, backend).generate(prompts)
    finally:
        backend.close()


@record
class Row:
    """A schedule's plan and runs: decode throughput in generated tokens/s, predicted and measured (sorted)."""

    policy: Policy
    ceiling: float
    simulated: float
    measured: tuple[float, ...]
    binds: str
    bound: Bound
    busy: dict[Lane, float]
    recording: float
    of_ledger: dict[str, float]

    @property
    def median(self) -> float:
        """The median run."""
        return statistics.median(self.measured)


def _row(plan: Plan, runs: list[Generation]) -> Row:
    measured = [run.measured for run in runs]
    at = {fidelity: times.decode_throughput_tokens_per_s for fidelity, times in plan.prediction.by_fidelity.items()}
    bottleneck = plan.prediction.bottleneck[Phase.DECODE]
    held = ledger(plan.policy, plan.model, plan.workload)
    planned = {"gpu": held.gpu.total_bytes, "cpu": held.cpu.total_bytes}
    return Row(
        policy=plan.policy,
        ceiling=at[Fidelity.CEILING],
        simulated=at[Fidelity.SIMULATED],
        measured=tuple(sorted(one.decode_throughput_tokens_per_s for one in measured)),
        binds=bottleneck.lane,
        bound=bottleneck.bound,
        busy={
            lane: statistics.median(one.busy[Phase.DECODE][lane] for one in measured)
            for lane in measured[0].busy[Phase.DECODE]
        },
        recording=max(map(_recording_share, runs)),
        of_ledger={device: max(one.peak_bytes[device] for one in measured) / planned[device] for device in planned},
    )


def _recording_share(run: Generation) -> float:
    """Repeat the recording of a run's tasks, two looks at the clock each and keeping them; its share of the run."""
    events = list(run.waves[0].spans)
    begun_s = time.perf_counter()
    for _ in events:
        time.perf_counter()
        time.perf_counter()
    Spans().add(Phase.DECODE, 1, (), events)
    took_s = time.perf_counter() - begun_s
    return took_s / (run.measured.prefill_s + run.measured.decode_s)


def _show(name: str, rows: dict[ScheduleName, Row]) -> None:
    print(f"\n{name} (emulated): decode, generated tokens/s")
    print(f"{'schedule':12} {'N':>5} {'mu':>4} {'kept':>4} {'ceiling':>8} {'simulated':>9} {'measured':>22} of ceiling")
    for schedule, row in rows.items():
        spread = f"{row.median:.1f} ({row.measured[0]:.1f}-{row.measured[-1]:.1f})"
        busy = ", ".join(f"{lane} {share:.0%}" for lane, share in sorted(row.busy.items(), key=lambda one: -one[1]))
        print(
            f"{schedule:12} {row.policy.batch_size:5} {row.policy.micro_batch_size:4} {row.policy.resident_experts:4} "
            f"{row.ceiling:8.1f} {row.simulated:9.1f} {spread:>22} {row.median / row.ceiling:10.3f}"
            f"  {row.binds} ({row.bound}); busy {busy}"
        )
    best = rows[ScheduleName.CGOPIPE]
    seconds = sorted(best.busy.values())[-2:]
    share, goal = best.median / best.ceiling, GOALS[best.bound]
    judged = "met" if share >= goal else "MISSED"
    if len(seconds) < 2 or seconds[0] < BUSY:
        judged = "not judged: the second lane is not busy"
    print(f"cgopipe: {share:.3f} of its ceiling (goal {goal:.2f}, {best.bound} binds): {judged}")
    for schedule, row in rows.items():
        if row is not best:
            gain, expected = best.median / row.median, best.simulated / row.simulated
            judged = "met" if gain >= 0.8 * expected else "MISSED"
            print(f"cgopipe over {schedule}: {gain:.2f} times, predicted {expected:.2f}: {judged}")
    print(f"recording task times: at most {max(row.recording for row in rows.values()):.2%} of a run (goal 1 %)")
    held = (f"{device} {max(row.of_ledger[device] for row in rows.values()):.3f}" for device in best.of_ledger)
    print(f"peak memory over its ledger: {', '.join(held)}", flush=True)


if __name__ == "__main__":
    main()
