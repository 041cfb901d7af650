"""What `bigger_than_ram.py` measured, as tables and as a picture; each ratio is of two numbers from one turn."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hrm.units import format_bytes

__all__ = ["Crossing", "crossing", "draw", "show_pairs", "show_rounds"]

MEASURED, BOUND, SAID = "#D55E00", "#222222", "#0072B2"


class Crossing(NamedTuple):
    """Where reading and computing take the same time: a pass of `batch_size` sequences.

    Below, a pass takes `reading_s`, however many sequences, and tokens/s are a straight line through the origin; above
    they stay at a plateau.
    """

    batch_size: float
    reading_s: float
    plateau_tokens_per_s: float


def crossing(points: Sequence[tuple[int, float]], turn: float) -> Crossing | None:
    """Fit (sequences, decode tokens/s): those up to 0.75 of `turn` and those from 1.5 times on, each side by itself.

    None where either side has less than two points: the fit says nothing then.
    """
    below = [count / rate for count, rate in points if count <= 0.75 * turn]
    above = [rate for count, rate in points if count >= 1.5 * turn]
    if min(len(below), len(above)) < 2:
        return None
    reading_s, plateau = statistics.fmean(below), statistics.fmean(above)
    return Crossing(plateau * reading_s, reading_s, plateau)


def show_rounds(name: str, found: dict[str, Any]) -> None:
    """Print each tool's median, its spread, how many times as fast ours is, and how near its predictions ours comes."""
    rounds = [one for one in found.get("rounds", ()) if one]
    if not rounds:
        return
    print(f"\n{name}: {len(rounds)} rounds")
    for tool in dict.fromkeys(tool for one in rounds for tool in one):
        runs = [one[tool]["tokens_per_s"] for one in rounds if tool in one]
        errors = {one[tool]["error"] for one in rounds if "error" in one.get(tool, {})}
        both = [one for one in rounds if one.get(tool, {}).get("tokens_per_s") and "ours" in one]
        times = [one["ours"]["tokens_per_s"] / one[tool]["tokens_per_s"] for one in both]
        beside = f", ours is {_spread(times)} times" if times and tool != "ours" else ""
        print(f"  {tool:11} {_spread(runs)} tokens/s{beside}{''.join(f'; {error}' for error in errors)}")
    ours = [one["ours"] for one in rounds if one.get("ours", {}).get("tokens_per_s")]
    for fidelity in ("roof", "ceiling", "simulated"):
        if shares := [run["tokens_per_s"] / run["predicted"][fidelity]["tokens_per_s"] for run in ours]:
            print(f"  measured / {fidelity}: {_spread(shares, 3)}")
    for run in ours:
        print(f"  disk {run['disk_bytes_per_s'] / 1e9:.2f} GB/s, held {format_bytes(run['peak_bytes'] or 0)} at most")


def _spread(numbers: Sequence[float], digits: int = 2) -> str:
    middle, low, high = statistics.median(numbers), min(numbers), max(numbers)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def show_pairs(name: str, found: dict[str, Any]) -> None:
    """Print predicted beside measured for each pair of memory limit and sequences, and where the disk stops binding."""
    pairs = [one for one in found.get("pairs", ()) if "predicted" in one]
    if not pairs:
        return
    print(f"\n{name}: tokens/s\n{'memory':>10} {'N':>5} {'on disk':>8} {'disk GB/s':>10}", end="")
    print("".join(f"{title:>11}" for title in ("measured", "simulated", "ratio", "roof", "ratio", "decode", "said")))
    for one in sorted(pairs, key=lambda one: (one["limit_bytes"], one["sequences"])):
        simulated, roof = (one["predicted"][fidelity] for fidelity in ("simulated", "roof"))
        measured = one["tokens_per_s"]
        numbers = [measured, simulated["tokens_per_s"], measured / simulated["tokens_per_s"], roof["tokens_per_s"]]
        numbers += [measured / roof["tokens_per_s"], one["decode_tokens_per_s"], simulated["decode_tokens_per_s"]]
        print(
            f"{format_bytes(one['limit_bytes']):>10} {one['sequences']:5} {one['policy']['disk_experts']:8} "
            f"{one['disk_bytes_per_s'] / 1e9:10.2f}" + "".join(f"{number:11.3f}" for number in numbers)
        )
    ratios = [one["tokens_per_s"] / one["predicted"]["simulated"]["tokens_per_s"] for one in pairs]
    near = sum(abs(ratio - 1) <= 0.1 for ratio in ratios)
    print(f"  measured / simulated: {_spread(ratios, 3)}; {near} of {len(ratios)} within 10 %")
    if found.get("turning_point"):
        _show_turn(pairs, found["turning_point"])


def _show_turn(pairs: list[dict[str, Any]], turn: float) -> None:
    print(f"  the disk is said to stop binding at N = {turn:.0f}")
    for limit in sorted({one["limit_bytes"] for one in pairs}):
        mine = [one for one in pairs if one["limit_bytes"] == limit]
        met = crossing([(one["sequences"], one["decode_tokens_per_s"]) for one in mine], turn)
        if met is not None:
            print(
                f"  {format_bytes(limit)}: {met.reading_s:.3f} s a pass below, {met.plateau_tokens_per_s:.0f} tokens/s "
                f"above: they meet at N = {met.batch_size:.0f}, {met.batch_size / turn:.2f} of that"
            )


def draw(name: str, found: dict[str, Any], path: Path) -> None:
    """Draw decode throughput over N at the last memory limit: measured, simulated, the disk's roof and P2."""
    import matplotlib.pyplot as plt

    limit = found["pairs"][-1]["limit_bytes"]
    pairs = [one for one in found["pairs"] if one["limit_bytes"] == limit and "predicted" in one]
    counts = np.array(sorted({one["sequences"] for one in pairs}))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    slope = statistics.median(disk_tokens_per_s(one) / one["sequences"] for one in pairs)
    axes.plot(counts, slope * counts, color=BOUND, linewidth=1, label="roof of the disk")
    for fidelity, style in (("roof", ":"), ("simulated", "-")):
        said = [_median_said(pairs, fidelity, count) for count in counts]
        axes.plot(counts, said, style, color=SAID, label=fidelity)
    measured = [(one["sequences"], one["decode_tokens_per_s"]) for one in pairs]
    axes.plot(*zip(*measured, strict=True), "o", color=MEASURED, label="measured")
    if turn := found.get("turning_point"):
        axes.axvline(turn, color="#777777", linestyle="--", linewidth=1, label=f"P2: N = {turn}")
    axes.set(xscale="log", yscale="log", xlabel="sequences N", ylabel="decode, tokens/s")
    axes.set_xticks(counts, [str(count) for count in counts], minor=False)
    axes.minorticks_off()
    axes.tick_params(axis="x", rotation=45)
    axes.set_title(f"{name} with {format_bytes(limit)} of memory", loc="left", fontsize=10)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _median_said(pairs: list[dict[str, Any]], fidelity: str, count: int) -> float:
    said = [one["predicted"][fidelity]["decode_tokens_per_s"] for one in pairs if one["sequences"] == count]
    return float(statistics.median(said))


def disk_tokens_per_s(pair: dict[str, Any]) -> float:
    """Return the decode rate that reading alone allows: `reading_s` is that of a pass."""
    return float(pair["sequences"] / pair["predicted"]["reading_s"])
