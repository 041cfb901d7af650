"""What the user sees: tables for people, one JSON document for programs, both from the same records."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hrm.files import to_plain
from hrm.units import format_bytes, format_flop_per_s, format_s

if TYPE_CHECKING:
    from rich.console import Console

    from hrm.compare import RunReport
    from hrm.plan import Plan
    from hrm.predict import Bottleneck
    from hrm.views.placement import RooflineView
    from hrm.workload import Workload

__all__ = [
    "progress",
    "show_json",
    "show_lines",
    "show_mapping",
    "show_plan",
    "show_roofline",
    "show_run",
    "show_table",
]


QUIET_S = 2.0
"""How long work may last without a word."""


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else 120)


def show_json(value: Any) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(to_plain(value), indent=2) + "\n")


def show_lines(lines: Sequence[str]) -> None:
    """Print lines as they are."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def show_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that share their keys; the keys are the header."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, name in enumerate(rows[0] if rows else ()):
        numeric = all(isinstance(row[name], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    _console().print(table)


def show_mapping(title: str, values: Mapping[str, Any]) -> None:
    """Print keys and values."""
    show_table(title, [{"field": key, "value": str(value)} for key, value in values.items()])


@contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """Say on stderr what is being done while the block runs; call the yielded function with each new step.

    On a terminal one line changes; elsewhere each step is a line, and work without steps says its title after 2 s.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if console.is_terminal:
        with console.status(title) as status:
            yield lambda step: status.update(f"{title}: {step}")
        return
    late = threading.Timer(QUIET_S, console.print, [f"{title} ..."])
    late.daemon = True
    late.start()

    def say(step: str) -> None:
        late.cancel()
        console.print(f"{title}: {step}")

    try:
        yield say
    finally:
        late.cancel()


def show_plan(plan: Plan) -> None:
    """Print a plan: policy, memory, prediction, and what binds."""
    policy, times = plan.policy, plan.prediction.by_fidelity
    show_mapping(
        f"plan: {plan.model.name} on {plan.machine.name}{_emulated(plan.machine.emulated)}",
        {
            "batch size N": policy.batch_size,
            "micro-batch size": f"{policy.micro_batch_size} ({policy.num_micro_batches} micro-batches)",
            "attention on": policy.attention_device,
            "expert FFN on": policy.ffn_device,
            "experts resident per layer": f"{policy.resident_experts} of {plan.model.num_experts}",
            "experts computed on the CPU": policy.experts_on_cpu(plan.model),
            **({"experts on disk": _on_disk(plan)} if policy.disk_experts else {}),
            "schedule": policy.schedule,
            "weights, experts, KV cache": ", ".join(
                (policy.weight_dtype, policy.expert_dtype or policy.weight_dtype, policy.kv_dtype)
            ),
            "job": _job(plan.workload),
            "routing taken": plan.prediction.routing,
            "found by": _found_by(plan),
        },
    )
    show_table("memory", _memory_rows(plan))
    show_table(
        "prediction",
        [
            {
                "fidelity": f"{name}{' *' if name is plan.prediction.fidelity else ''}",
                "prefill": format_s(at.prefill_s),
                "decode": format_s(at.decode_s),
                "generated tokens/s": at.throughput_tokens_per_s,
                "decode tokens/s": at.decode_throughput_tokens_per_s,
            }
            for name, at in times.items()
        ],
    )
    show_lines([f"{phase}: {_binds(bottleneck)}" for phase, bottleneck in plan.prediction.bottleneck.items()])
    show_lines(_search_lines(plan))
    interval = plan.prediction.interval
    if interval is not None:
        show_lines([f"80 % interval of the throughput: {interval.low:.3g} to {interval.high:.3g} tokens/s"])


def _on_disk(plan: Plan) -> str:
    from hrm.memory import disk_read_bytes

    policy, model = plan.policy, plan.model
    fuller = f", one fewer in {policy.fuller_layers} of {model.num_moe_layers} layers" if policy.fuller_layers else ""
    here = f"{policy.disk_experts} of {model.num_experts} per layer{fuller}"
    return f"{here}; {format_bytes(disk_read_bytes(policy, model))} read in each pass"


def _job(workload: Workload) -> str:
    count = workload.num_sequences or "as many sequences as the batch"
    padded = ", padded to the longest" if workload.padded else ""
    return (
        f"{count}, prompts of {workload.mean_prompt_len:.4g} tokens (longest {workload.max_prompt_len}{padded}), "
        f"{workload.gen_len} generated"
    )


def _emulated(spec: object | None) -> str:
    return " (emulated)" if spec is not None else ""


def _found_by(plan: Plan) -> str:
    if plan.search is None:
        return plan.status.value
    found = plan.search
    gap = "" if found.gap is None else f", within {found.gap:.2%} of their bound"
    return (
        f"{found.method}: {plan.status} of {found.candidates} candidates, {found.feasible} allowed{gap} "
        f"({found.solve_s:.2g} s)"
    )


def _search_lines(plan: Plan) -> list[str]:
    """Return what the search says beside the policy: what binds, and what is as good."""
    if plan.search is None:
        return []
    lines = [f"binding: {', '.join(plan.search.binding)}"] if plan.search.binding else []
    for other in plan.search.ties:
        sizes = f"N {other.batch_size}, micro-batches of {other.micro_batch_size}"
        where = f"attention on {other.attention_device}, experts on {other.ffn_device}"
        lines.append(f"a tie, though less simple: {sizes}, {where}, {other.resident_experts} experts resident")
    return lines


def _memory_rows(plan: Plan) -> list[dict[str, str]]:
    gpu, cpu = to_plain(plan.memory.gpu), to_plain(plan.memory.cpu)
    gpu["total"], cpu["total"] = plan.memory.gpu.total_bytes, plan.memory.cpu.total_bytes
    rows = [{"class": name, "gpu": format_bytes(gpu[name]), "cpu": format_bytes(cpu[name])} for name in gpu]
    if plan.machine.runtime_bytes:
        rows.append({"class": "beside it: runtime", "gpu": "", "cpu": format_bytes(plan.machine.runtime_bytes)})
    return rows


def _binds(bottleneck: Bottleneck) -> str:
    others = sorted(bottleneck.busy.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{lane} {share:.0%}" for lane, share in others)
    lane = f"the {bottleneck.lane} lane, by its {bottleneck.bound} roof"
    if bottleneck.limit == "lane":
        return f"{lane}, binds (busy: {shares})"
    if bottleneck.limit == "chain":
        return f"waiting binds: one micro-batch's way through all layers, longest in {lane} (busy: {shares})"
    return f"what lanes draw on {bottleneck.limit} together binds, before {lane} (busy: {shares})"


def show_roofline(view: RooflineView) -> None:
    """Print where each operator stands under the roofs, and the turning points."""
    from hrm.views.roofline_scene import FFN, marks

    rows = [
        {
            "operator": placed.name,
            "on": placed.device,
            "data from": placed.source or placed.device,
            "FLOP/byte": ", ".join(f"{k} {v:.3g}" for k, v in placed.operational_intensity_flop_per_byte.items()),
            "attainable": format_flop_per_s(placed.attainable_flop_per_s),
            "bound": placed.bound,
        }
        for placed in view.operators
    ]
    show_table(f"{view.model} on {view.hardware}, {view.shape.phase}", rows)
    show_lines(
        [
            f"{mark.name}: {mark.at.operational_intensity_flop_per_byte:.4g} FLOP/byte, "
            f"{format_flop_per_s(mark.at.attainable_flop_per_s)}"
            + (f", N = {mark.at.batch_size:.0f}" if mark.at.batch_size else "")
            for mark in marks(view, FFN)
        ]
    )


def show_run(reports: Sequence[RunReport]) -> None:
    """Print predicted beside measured, and what bound each phase."""
    for report in reports:
        found, expected = to_plain(report.measured), report.predicted
        rows = [
            {"": name, "predicted": _shown(name, expected[name]), "measured": _shown(name, found[name])}
            | {"measured / predicted": f"{report.ratio[name]:.2f}" if name in report.ratio else ""}
            for name in ("prefill_s", "decode_s", "throughput_tokens_per_s", "decode_throughput_tokens_per_s")
        ]
        show_table(f"{report.model} on {report.machine}{_emulated(report.emulated)}", rows)
        show_table("task kinds, seconds", _kind_rows(expected["task_s"], found["task_s"]))
        for phase, lanes in found["busy"].items():
            bottleneck = expected["bottleneck"].get(phase)
            busy = ", ".join(f"{lane} {share:.0%}" for lane, share in sorted(lanes.items(), key=lambda at: -at[1]))
            predicted = f"predicted {bottleneck['lane']} ({bottleneck['bound']})" if bottleneck else ""
            show_lines([f"{phase}: {predicted}; measured busy: {busy}"])
        peaks = report.measured.peak_bytes
        allowed = expected["peak_bytes"]
        show_lines(
            [
                f"peak gpu: {format_bytes(peaks['gpu'])} (ledger {format_bytes(allowed['gpu'])})",
                f"peak cpu: {format_bytes(peaks['cpu'])} (ledger {format_bytes(allowed['cpu'])}), beside "
                f"{format_bytes(peaks.get('runtime', 0))} of interpreter and libraries",
                *report.notes,
            ]
        )


def _kind_rows(predicted: Any, measured: Any) -> list[dict[str, Any]]:
    return [
        {
            "phase": phase,
            "task": kind,
            "count": times["count"],
            "predicted": predicted[phase].get(kind, 0.0),
            "measured": times["seconds"],
        }
        for phase, kinds in measured.items()
        for kind, times in kinds.items()
    ]


def _shown(name: str, value: float) -> str:
    return format_s(value) if name.endswith("_s") and "per" not in name else f"{value:.1f}"
