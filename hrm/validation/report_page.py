"""The report as one self-contained page: what was aimed at, pictures, and a table of everything."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from hrm.files import atomic_writer
from hrm.hardware import HardwareProfile
from hrm.model import ModelSpec
from hrm.records import record
from hrm.report_validation import case_rows, decision_rows, error_rows, order_rows, target_rows
from hrm.validation.cases import Run
from hrm.validation.judged_case import JudgedCase
from hrm.validation.judgement import Judgement
from hrm.validation.pictures import error_strips, legend, roof_legend, roofline, scatter, timelines
from hrm.validation.svg import key
from hrm.validation.timelines import predicted_bars
from hrm.views.gantt import STYLES

__all__ = ["Validation", "write_report_page"]

MOST_TIMELINES = 8
SQUARE = "M-7 -7h14v14h-14z"


@record
class Validation:
    """What the page shows: the judgement, and what it was made of."""

    judgement: Judgement
    runs: tuple[Run, ...]
    machines: dict[str, HardwareProfile]
    models: dict[str, ModelSpec]


def write_report_page(path: str | Path, shown: Validation) -> None:
    """Write the page; it appears only when it is whole.

    Raises
    ------
    FileError
        When the folder does not exist.
    """
    template = files("hrm.validation").joinpath("report_page.html").read_text(encoding="utf-8")
    with atomic_writer(path) as stream:
        for name, content in _parts(shown).items():
            template = template.replace(f"@{name}@", content)
        stream.write(template)


def _parts(shown: Validation) -> dict[str, str]:
    judgement = shown.judgement
    machines = [name for name in shown.machines if any(one.case.machine == name for one in judgement.cases)]
    models = [name for name in shown.models if any(one.case.model == name for one in judgement.cases)]
    return {
        "CONDITIONS": html.escape(_conditions(shown)),
        "TARGETS": _table("targets", target_rows(judgement)),
        "LEGEND": legend(machines, models),
        "SCATTER": scatter(judgement.cases, machines, models),
        "STRIPS": error_strips(judgement.cases, machines, models),
        "WORST": _worst(judgement.cases),
        "ROOFLINES": "".join(_roofline(shown, name) for name in machines),
        "TIMELINES": "".join(_timelines(shown)),
        "KINDS": _kinds(shown),
        "ERRORS": _table("errors", error_rows(judgement)),
        "ORDERS": _table("orders", order_rows(judgement)),
        "DECISIONS": _table("decisions", decision_rows(judgement)),
        "CASES": _table("cases", case_rows(judgement)),
        "FAILED": _table("failed", [{"case": name, "why": why} for name, why in judgement.failed.items()]),
    }


def _conditions(shown: Validation) -> str:
    system = next(iter(shown.machines.values())).system
    emulated = [name for name, machine in shown.machines.items() if machine.emulated]
    disturbed = sum(run.disturbed for run in shown.runs)
    parts = [
        f"{len(shown.judgement.cases)} cases, {len(shown.runs)} runs"
        + (f", {disturbed} of them beside other processes" if disturbed else ""),
        ", ".join(system[name] for name in ("processor", "date") if name in system),
        f"emulated: {', '.join(emulated)} (real compute and copies at an imposed pace)" if emulated else "",
    ]
    return ". ".join(part for part in parts if part) + "."


def _worst(cases: Sequence[JudgedCase]) -> str:
    worst = sorted(cases, key=lambda one: -abs(one.error))[:8]
    rows = [
        {"case": one.case.name, "error": f"{one.error:+.1%}", "where it is off": str(one.attribution)} for one in worst
    ]
    return _table("worst", rows)


def _roofline(shown: Validation, name: str) -> str:
    machine = shown.machines[name]
    drawn = roofline(machine, [one for one in shown.judgement.cases if one.case.machine == name])
    caption = f"<figcaption>{html.escape(machine.label)}</figcaption>"
    return f"<figure>{caption}{roof_legend(machine)}{drawn}</figure>" if drawn else ""


def _timelines(shown: Validation) -> Iterator[str]:
    """Yield the timelines of a case of each model on each machine: the one with most lanes at work."""
    kept = {run.case: run.timeline for run in shown.runs if run.timeline}
    chosen: dict[tuple[str, str], JudgedCase] = {}
    for one in shown.judgement.cases:
        place = one.case.machine, one.case.model
        if one.case.name in kept and (place not in chosen or _at_work(one) > _at_work(chosen[place])):
            chosen[place] = one
    for one in list(chosen.values())[:MOST_TIMELINES]:
        case = one.case
        foreseen = predicted_bars(case, shown.models[case.model], shown.machines[case.machine])
        drawn = timelines({"predicted": foreseen, "measured": kept[case.name]})
        words = f"{case.name}: {case.policy.schedule}, N = {case.policy.batch_size}, μ = {case.policy.micro_batch_size}"
        yield f"<figure><figcaption>{html.escape(words)}</figcaption>{drawn}</figure>"


def _at_work(one: JudgedCase) -> float:
    return sum(one.busy.values())


def _kinds(shown: Validation) -> str:
    """Say which colour is which kind of task, of those that ran."""
    ran = {bar.kind for run in shown.runs for bar in run.timeline}
    entries = (key(SQUARE, words, fill=colour) for kind, (colour, _, words) in STYLES.items() if kind in ran)
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write a table of rows that share their keys; nothing where there is no row."""
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{html.escape(key)}</th>' for key in rows[0])
    body = "".join(f"<tr>{''.join(map(_cell, row.values()))}</tr>" for row in rows)
    return f'<div class="scroll"><table id="{name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: object) -> str:
    words = str(value)
    kind = {"yes": "met", "no": "missed"}.get(words, "number" if words[:1] in tuple("+-0123456789") else "words")
    return f'<td class="{kind}">{html.escape(words)}</td>'
