"""What a validation found, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hrm.files import to_plain
from hrm.hardware import HardwareProfile
from hrm.report import show_lines, show_table
from hrm.validation.judged_case import JudgedCase, Quantity
from hrm.validation.judgement import Judgement
from hrm.validation.quantities import END_TO_END
from hrm.validation.targets import targets

__all__ = ["case_rows", "decision_rows", "document", "error_rows", "order_rows", "show_judgement", "target_rows"]

HEADLINES = (END_TO_END, "prefill", "decode")


def show_judgement(judgement: Judgement) -> None:
    """Print what is aimed at and was reached, errors by quantity, and the cases that are off most."""
    show_table("validation", target_rows(judgement))
    show_table("errors", error_rows(judgement))
    worst = sorted(judgement.cases, key=lambda one: -abs(one.error))[:5]
    show_lines(
        ["cases that are off most:", *(f"  {one.case.name}: {one.error:+.1%}; {one.attribution}" for one in worst)]
    )
    show_lines([f"failed: {name}: {why}" for name, why in judgement.failed.items()])


def document(judgement: Judgement, machines: Mapping[str, HardwareProfile]) -> dict[str, Any]:
    """Return everything judged as one JSON document: what follows from the records is written out too."""
    system = next(iter(machines.values())).system
    found: dict[str, Any] = to_plain(judgement)
    for plain, one in zip(found["cases"], judgement.cases, strict=True):
        plain |= {"error": one.error, "where_it_is_off": str(one.attribution)}
        for name, quantity in one.quantities.items():
            plain["quantities"][name] |= {"error": quantity.error, "inside": quantity.inside}
    return {
        "date": system.get("date"),
        "machine": ", cores: ".join(system[name] for name in ("processor", "cores allowed") if name in system),
        "targets": to_plain(list(targets(judgement))),
        "mape": judgement.errors[END_TO_END].mape,
        "regret": max((one.regret for one in judgement.decisions), default=None),
        "held_out_regret": max((one.held_out_regret for one in judgement.decisions), default=None),
    } | found


def target_rows(judgement: Judgement) -> list[dict[str, str]]:
    """Return each aim, what was reached, and whether that is enough."""
    return [
        {
            "aim": one.name,
            "reached": one.reached,
            "wanted": one.wanted,
            "met": "" if one.met is None else "yes" if one.met else "no",
        }
        for one in targets(judgement)
    ]


def error_rows(judgement: Judgement) -> list[dict[str, Any]]:
    """Return a row per quantity: whole phases first, then lanes and kinds of task."""
    names = [name for name in HEADLINES if name in judgement.errors]
    names += sorted(set(judgement.errors) - set(names))
    rows = []
    for name in names:
        error, held = judgement.errors[name], judgement.coverage[name]
        rows.append(
            {
                "seconds of": name,
                "cases": error.count,
                "mean error": f"{error.mean:+.1%}",
                "MAPE": f"{error.mape:.1%}",
                "worst": f"{error.worst:+.1%}",
                "in the 80 % interval": f"{held.share:.0%} ({held.low:.0%} to {held.high:.0%})",
            }
        )
    return rows


def order_rows(judgement: Judgement) -> list[dict[str, str]]:
    """Return a row per model on a machine."""
    return [
        {
            "machine": one.machine,
            "model": one.model,
            "plans": str(one.plans),
            "pairs told apart": str(one.pairs),
            "Kendall tau": "" if one.tau is None else f"{one.tau:.2f}",
            "Spearman rho": "" if one.spearman is None else f"{one.spearman:.2f}",
        }
        for one in judgement.orders
    ]


def decision_rows(judgement: Judgement) -> list[dict[str, str]]:
    """Return a row per job that had several plans."""
    return [
        {
            "job": one.job,
            "plans": str(one.plans),
            "chosen": one.chosen,
            "best": one.best,
            "regret": f"{one.regret:.1%}",
        }
        for one in judgement.decisions
    ]


def case_rows(judgement: Judgement) -> list[dict[str, str]]:
    """Return a row per case."""
    return [_case_row(one) for one in judgement.cases]


def _case_row(one: JudgedCase) -> dict[str, str]:
    policy, workload = one.case.policy, one.case.workload
    busy = sorted(one.busy.items(), key=lambda item: -item[1])
    return {
        "case": one.case.name,
        "schedule": policy.schedule.value,
        "N, μ": f"{policy.batch_size}, {policy.micro_batch_size}",
        "experts kept, on CPU": f"{policy.resident_experts}, {policy.cpu_experts}",
        "prompt, new": f"{workload.mean_prompt_len:.0f}, {workload.gen_len}",
        "runs": str(one.runs),
        "predicted": f"{one.throughput.predicted:.4g}",
        "measured": f"{one.throughput.measured:.4g} ± {one.throughput.spread / 2:.2g}",
        "error": f"{one.error:+.1%}",
        "prefill": _signed(one.quantities.get("prefill")),
        "decode": _signed(one.quantities.get("decode")),
        "busy": ", ".join(f"{lane} {share:.0%}" for lane, share in busy if share >= 0.05),
        "where it is off": str(one.attribution),
    }


def _signed(quantity: Quantity | None) -> str:
    return f"{quantity.error:+.1%}" if quantity else ""
