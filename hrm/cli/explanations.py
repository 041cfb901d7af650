"""What `hrm explain` found, as tables for people and as one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hrm.plan import policy_summary
from hrm.report import show_lines, show_table
from hrm.units import format_s

if TYPE_CHECKING:
    from hrm.policy import Policy
    from solver.baselines import Baseline
    from solver.explain import Explanation, PhaseBounds, Price
    from solver.optimum import Found
    from solver.pareto import Point
    from solver.policy_map import Axis, PolicyMap
    from solver.problem import Problem
    from solver.what_if import WhatIf

__all__ = [
    "explanation_document",
    "map_document",
    "point_document",
    "show_explanation",
    "show_front",
    "show_map",
    "show_what_ifs",
    "title",
    "what_if_document",
]

SAME = 0.005
"""Share of the throughput below which solving again is not worth a word."""


def title(problem: Problem) -> str:
    """Return the model, the machine and the job in a line."""
    job = problem.workload
    lengths = f"prompts of {job.mean_prompt_len:.4g} tokens, {job.gen_len} generated"
    return f"{problem.model.name} on {problem.hardware.label}, {lengths}"


def show_explanation(problem: Problem, found: Explanation, others: Sequence[Baseline]) -> None:
    """Print what binds, what stops the policy from growing, prices, and baselines."""
    show_lines([f"{title(problem)}: {found.given.throughput_tokens_per_s:.4g} tokens/s at ceiling"])
    better = found.best.throughput_tokens_per_s / found.given.throughput_tokens_per_s - 1.0
    if better > SAME:
        other = f"At ceiling {_short(found.best.policy, problem)} is {better:.1%} faster"
        show_lines([f"{other}: prices and gains are from there (simulated, or by other means, the plan was chosen)"])
    show_table("what binds: bounds as shares of the pace", [_bounds_row(phase) for phase in found.phases])
    show_table(
        "what stops it from growing", [{"step": one.step, "stopped by": one.stopped_by} for one in found.growths]
    )
    show_table("what more is worth, in tokens/s", [_price_row(problem, price) for price in found.prices])
    show_table("what simpler ways of choosing reach", [_baseline_row(problem, one) for one in others])


def show_what_ifs(problem: Problem, before: Found, effects: Sequence[tuple[str, WhatIf]]) -> None:
    """Print a row for each change, after one for the plan as it is."""
    rows: list[dict[str, Any]] = [
        {
            "what if": "as it is",
            "this policy, tokens/s": f"{before.throughput_tokens_per_s:.4g}",
            "solved again": "",
            "gain": "",
            "best policy then": _short(before.policy, problem),
        }
    ]
    for text, effect in effects:
        gain = effect.solved_gain_tokens_per_s / before.throughput_tokens_per_s
        rows.append(
            {
                "what if": text,
                "this policy, tokens/s": _tokens(effect.kept),
                "solved again": _tokens(effect.solved),
                "gain": f"{gain:+.1%}" if effect.solved else "",
                "best policy then": _short(effect.solved.policy, problem) if effect.solved else "",
            }
        )
    show_table(title(problem), rows)


def show_front(problem: Problem, points: Sequence[Point]) -> None:
    """Print the points of a front, least latency first."""
    rows = [
        {
            "N": point.policy.batch_size,
            "tokens/s": point.throughput_tokens_per_s,
            "time per token": format_s(point.time_per_token_s),
            "to the first token": format_s(point.time_to_first_token_s),
            "one batch": format_s(point.batch_s),
            "policy": _short(point.policy, problem),
        }
        for point in points
    ]
    show_table(f"throughput against latency: {title(problem)}", rows)


def show_map(problem: Problem, found: PolicyMap, given: Policy) -> None:
    """Print a letter and the experts resident for each cell, the letters' meaning, and what wins at the machine."""
    from solver.policy_map import placement_of

    names = [[placement_of(cell.policy, problem.model) if cell else "" for cell in row] for row in found.cells]
    letters = {name: chr(ord("A") + at) for at, name in enumerate(dict.fromkeys(n for row in names for n in row if n))}
    rows = [
        {f"{found.y.resource} \\ {found.x.resource}": found.y.words(factor)}
        | {
            found.x.words(across): f"{letters[name]} {cell.policy.resident_experts}" if cell else "-"
            for across, name, cell in zip(found.x.factors, line, cells, strict=True)
        }
        for factor, line, cells in zip(found.y.factors, names, found.cells, strict=True)
    ]
    show_table(f"{title(problem)}, at {found.fidelity}", rows[::-1])
    show_lines([f"{letter}: {name}" for name, letter in letters.items()])
    show_lines([f"numbers: experts of each layer resident on the GPU, of {problem.model.num_experts}; -: nothing fits"])
    centre = found.at_machine
    if centre is not None and (here := placement_of(centre.policy, problem.model)) != (
        planned := placement_of(given, problem.model)
    ):
        show_lines([f"at the machine itself: {here}; the plan has {planned}, chosen from other schedules or simulated"])


def explanation_document(problem: Problem, found: Explanation, others: Sequence[Baseline]) -> dict[str, Any]:
    """Return an explanation as JSON."""
    return {
        "fidelity": "ceiling",
        "throughput_tokens_per_s": found.given.throughput_tokens_per_s,
        "best": found_document(problem, found.best),
        "phases": [
            {"phase": one.phase, "pass_s": one.pass_s, "binding": one.binding, "roof": one.roof, "shares": one.shares}
            for one in found.phases
        ],
        "growth": [
            {
                "step": one.step,
                "stopped_by": one.stopped_by,
                "device": one.short.device if one.short else None,
                "missing_bytes": one.short.missing_bytes if one.short else None,
            }
            for one in found.growths
        ],
        "prices": [_price_document(problem, price) for price in found.prices],
        "baselines": [_baseline_document(problem, one) for one in others],
    }


def found_document(problem: Problem, found: Found | None) -> dict[str, Any] | None:
    """Return a policy and its throughput as JSON."""
    if found is None:
        return None
    return {
        "throughput_tokens_per_s": found.throughput_tokens_per_s,
        "policy": policy_summary(found.policy, problem.model),
    }


def what_if_document(problem: Problem, effect: WhatIf) -> dict[str, Any]:
    """Return what a change does as JSON: with the policy kept, and solved again."""
    return {
        "factors": {change.resource.value: change.factor for change in effect.changes},
        "kept_tokens_per_s": effect.kept.throughput_tokens_per_s if effect.kept else None,
        "solved": found_document(problem, effect.solved),
        "gain_tokens_per_s": effect.solved_gain_tokens_per_s,
    }


def point_document(problem: Problem, point: Point) -> dict[str, Any]:
    """Return a point of a front as JSON."""
    return {
        "throughput_tokens_per_s": point.throughput_tokens_per_s,
        "time_per_token_s": point.time_per_token_s,
        "time_to_first_token_s": point.time_to_first_token_s,
        "batch_s": point.batch_s,
        "policy": policy_summary(point.policy, problem.model),
    }


def map_document(problem: Problem, found: PolicyMap) -> dict[str, Any]:
    """Return a map as JSON, cell by cell."""
    from solver.policy_map import placement_of

    cells = [
        {"x": across, "y": up, "placement": placement_of(cell.policy, problem.model) if cell else None}
        | (found_document(problem, cell) or {})
        for up, row in zip(found.y.factors, found.cells, strict=True)
        for across, cell in zip(found.x.factors, row, strict=True)
    ]
    return {
        "fidelity": found.fidelity.value,
        "x": _axis_document(found.x),
        "y": _axis_document(found.y),
        "cells": cells,
    }


def _axis_document(axis: Axis) -> dict[str, Any]:
    return {"resource": axis.resource.value, "factors": axis.factors, "base": axis.base}


def _bounds_row(phase: PhaseBounds) -> dict[str, str]:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in phase.shares.items())
    return {
        "phase": phase.phase,
        "a pass takes": format_s(phase.pass_s),
        "binds": phase.binding,
        "roof": phase.roof or "",
        "all bounds": shares,
    }


def _price_row(problem: Problem, price: Price) -> dict[str, str]:
    solved = price.effect.solved
    changed = solved is not None and solved.policy != price.effect.before.policy
    return {
        "resource": price.resource,
        "tried": f"+{price.increment:.3g} {price.unit}",
        "same policy": f"{price.kept_tokens_per_s:.3g} per {price.unit}",
        "solved again": f"{price.solved_tokens_per_s:.3g} per {price.unit}",
        "gain": f"{price.gain:+.1%}",
        "best policy then": _short(solved.policy, problem) if solved and changed and price.gain > SAME else "",
    }


def _price_document(problem: Problem, price: Price) -> dict[str, Any]:
    return {
        "resource": price.resource.value,
        "unit": price.unit,
        "increment": price.increment,
        "kept_tokens_per_s": price.kept_tokens_per_s,
        "solved_tokens_per_s": price.solved_tokens_per_s,
        "gain": price.gain,
        "solved": found_document(problem, price.effect.solved),
    }


def _baseline_row(problem: Problem, one: Baseline) -> dict[str, str]:
    policy = _short(one.found.policy, problem) if one.found else ""
    chosen = f"as chosen {one.short}" if one.short else ""
    return {
        "way": one.name,
        "tokens/s": _tokens(one.found),
        "the optimum's": one.verdict,
        "policy": "; ".join(filter(None, (policy, chosen))),
        "rule": one.rule,
    }


def _baseline_document(problem: Problem, one: Baseline) -> dict[str, Any]:
    return {
        "name": one.name,
        "rule": one.rule,
        "found": found_document(problem, one.found),
        "short": one.short or None,
        "gain": one.gain,
        "verdict": one.verdict,
    }


def _tokens(found: Found | None) -> str:
    return f"{found.throughput_tokens_per_s:.4g}" if found else "does not fit"


def _short(policy: Policy, problem: Problem) -> str:
    """Return a policy in a line: sizes, placement, experts resident."""
    from solver.policy_map import placement_of

    resident = f", {policy.resident_experts} resident" if policy.resident_experts else ""
    sizes = f"N {policy.batch_size}, mu {policy.micro_batch_size}"
    return f"{sizes}, {placement_of(policy, problem.model)}{resident}"
