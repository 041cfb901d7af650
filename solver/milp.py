"""The search as one mixed-integer linear program, in PuLP, solved by HiGHS: the paper's policy search (§4.2), proved.

Candidate p is one choice of devices, schedule, formats, N and mu; y_p = 1 chooses it, and r_p of its experts per layer
are resident. Pass s lasts T_s, no less than any lane, chain or shared rate l (the paper's Eq. 12: T is the longest of
transfer, CPU and GPU), each affine in r:

    minimise    sum_s T_s
    subject to  T_s >= sum_p (a_psl y_p + b_psl r_p)      decode_2_h2d, prefill_gpu, ...
                sum_p (bytes_p y_p + more_p r_p) <= room  gpu_memory, cpu_memory
                sum_p y_p = 1                             one_policy
                least_p y_p <= r_p <= most_p y_p          least_p, most_p

The product r·y needs no variable of its own: r_p is 0 where y_p is, and the y_p add up to 1. Coefficients are those of
`solver.pieces`, weighted so that the T_s add up to the objective: seconds per generated token, or of a wave, in units
of what is known to be possible. Memory is counted as a share of what there is: both keep tolerances harmless.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pulp

from hrm.errors import HrmError
from hrm.records import record
from solver.breakpoints import relaxed_optima
from solver.pieces import Pieces
from solver.room import Affine

__all__ = ["Proved", "solve_milp"]

TOLERANCE = 1e-9
"""HiGHS's tolerances on constraints and whole numbers; all rows are scaled to about 1."""


@record
class Proved:
    """The optimum: part, index and resident experts of its candidate; in seconds the objective and HiGHS's bound.

    `gap` is relative. `pruned` candidates were left out, for not even their relaxed bound reaches what was known.
    """

    part: int
    index: int
    resident: float
    objective_s: float
    bound_s: float
    gap: float
    pruned: int


@record
class _Columns:
    """Variables of the candidates of one part that are left, y and r, and where they stand in it."""

    part: int
    pieces: Pieces
    places: tuple[int, ...]
    ends: tuple[tuple[float, float], ...]
    chosen: tuple[pulp.LpVariable, ...]
    resident: tuple[pulp.LpVariable, ...]

    def weighed(self, coefficients: Affine) -> Iterator[tuple[pulp.LpVariable, float]]:
        """Yield the terms a_p y_p + b_p r_p of a row."""
        for place, chosen, resident in zip(self.places, self.chosen, self.resident, strict=True):
            yield chosen, float(coefficients.intercept[place])
            if coefficients.slope[place]:
                yield resident, float(coefficients.slope[place])


def solve_milp(
    parts: Sequence[Pieces], *, known_s: float, presolve: bool = True, whole: bool = True, write_lp: Path | None = None
) -> Proved:
    """Solve the program over all candidates; `known_s` is the objective of some policy that is allowed.

    With `presolve`, candidates whose least objective over real numbers of experts exceeds it are left out first: none
    of them can be the optimum; the file holds them all. Without `whole` the resident experts are real numbers.

    Raises
    ------
    HrmError
        When HiGHS does not return an optimum, or the file cannot be written.
    """
    if write_lp is not None:
        _write(
            _posed(parts, [_promising(pieces, known_s, False, whole) for pieces in parts], known_s, whole)[0], write_lp
        )
    left = [_promising(pieces, known_s, presolve, whole) for pieces in parts]
    program, columns = _posed(parts, left, known_s, whole)
    bound, gap = _run(program)
    part, index, resident = _chosen(columns)
    return Proved(
        part=part,
        index=index,
        resident=resident,
        objective_s=float(pulp.value(program.objective)) * known_s,
        bound_s=bound * known_s,
        gap=gap,
        pruned=sum(pieces.room.size - len(places) for pieces, places in zip(parts, left, strict=True)),
    )


def _posed(
    parts: Sequence[Pieces], left: Sequence[tuple[int, ...]], known_s: float, whole: bool
) -> tuple[pulp.LpProblem, list[_Columns]]:
    """Pose the program over some candidates of each part."""
    program = pulp.LpProblem("policy", pulp.LpMinimize)
    columns = [
        _columns(program, part, pieces, places, whole=whole)
        for part, (pieces, places) in enumerate(zip(parts, left, strict=True))
    ]
    columns = [one for one in columns if one.places]
    _add_objective(program, columns, known_s)
    _add_candidates(program, columns)
    _add_memory(program, columns)
    for limit in columns[0].pieces.weights:
        if limit != "objective":
            _add_limit(program, columns, limit)
    return program, columns


def _promising(pieces: Pieces, known_s: float, presolve: bool, whole: bool) -> tuple[int, ...]:
    """Return the candidates that may be the optimum."""
    kept = np.ones(pieces.room.size, dtype=bool)
    if whole:
        fewest, most = pieces.room.whole
        kept &= fewest <= most
    if presolve:
        kept &= relaxed_optima(pieces).objective <= known_s * (1.0 + TOLERANCE)
    return tuple(int(place) for place in np.flatnonzero(kept))


def _columns(program: pulp.LpProblem, part: int, pieces: Pieces, places: tuple[int, ...], *, whole: bool) -> _Columns:
    """Make the variables of a part's candidates; whole ones with whole bounds (HiGHS 1.15 errs on others)."""
    least, most = (
        (np.ceil(pieces.room.least), np.floor(pieces.room.most)) if whole else (pieces.room.least, pieces.room.most)
    )
    kind = pulp.LpInteger if whole else pulp.LpContinuous
    names = [_name(part, pieces, place) for place in places]
    return _Columns(
        part=part,
        pieces=pieces,
        places=places,
        ends=tuple((float(least[place]), float(most[place])) for place in places),
        chosen=tuple(program.add_variable(f"y_{name}", cat=pulp.LpBinary) for name in names),
        resident=tuple(
            program.add_variable(f"r_{name}", 0, float(most[place]), kind)
            for name, place in zip(names, places, strict=True)
        ),
    )


def _name(part: int, pieces: Pieces, place: int) -> str:
    policy = pieces.policy(place, 0)
    devices = f"{policy.schedule}_{policy.attention_device}_{policy.ffn_device}".replace("-", "_")
    split = f"_x{policy.cpu_experts}" if policy.cpu_experts else ""
    return f"{part}_{place}_{devices}_N{policy.batch_size}_mu{policy.micro_batch_size}{split}"


def _add_objective(program: pulp.LpProblem, columns: list[_Columns], known_s: float) -> None:
    program += _total(program, columns, "objective", 1.0 / known_s)


def _total(program: pulp.LpProblem, columns: list[_Columns], name: str, scale: float) -> pulp.LpAffineExpression:
    """Return a weighted sum of pass times: a variable for each pass, no less than any of its bounds."""
    prefix = "" if name == "objective" else f"{name}_"
    lasting = []
    for pass_name in dict.fromkeys(one for column in columns for one in column.pieces.pass_names):
        rows = {
            bound: [
                (variable, -value)
                for column in columns
                for variable, value in column.weighed(_weighted(column.pieces, name, pass_name, bound, scale))
                if value
            ]
            for bound in dict.fromkeys(one for column in columns for one in column.pieces.bound_names)
        }
        if not any(rows.values()):
            continue
        longest = program.add_variable(f"T_{prefix}{pass_name}", 0)
        lasting.append(longest)
        for bound, terms in rows.items():
            if terms:
                program += pulp.LpAffineExpression([(longest, 1.0), *terms]) >= 0, f"{prefix}{pass_name}_{bound}"
    return pulp.lpSum(lasting)


def _weighted(pieces: Pieces, name: str, pass_name: str, bound: str, scale: float) -> Affine:
    """Return a bound of a pass as it enters a sum; nothing where a part has no such pass or bound."""
    if pass_name not in pieces.pass_names or bound not in pieces.bound_names:
        none = np.zeros(pieces.room.size)
        return Affine(intercept=none, slope=none)
    place, line = pieces.pass_names.index(pass_name), pieces.bound_names.index(bound)
    weight = pieces.weights[name][place] * scale
    return Affine(
        intercept=weight * pieces.bounds.intercept[place, line], slope=weight * pieces.bounds.slope[place, line]
    )


def _add_candidates(program: pulp.LpProblem, columns: list[_Columns]) -> None:
    """One policy is chosen; only its resident experts may differ from 0."""
    program += pulp.lpSum(chosen for column in columns for chosen in column.chosen) == 1, "one_policy"
    for column in columns:
        for (least, most), chosen, resident in zip(column.ends, column.chosen, column.resident, strict=True):
            name = chosen.name.removeprefix("y_")
            program += resident <= most * chosen, f"most_{name}"
            if least:
                program += resident >= least * chosen, f"least_{name}"


def _add_memory(program: pulp.LpProblem, columns: list[_Columns]) -> None:
    for device in dict.fromkeys(row.device for column in columns for row in column.pieces.room.memory):
        terms = [
            (variable, value / row.limit_bytes)
            for column in columns
            for row in column.pieces.room.memory
            if row.device == device
            for variable, value in column.weighed(row.held)
        ]
        program += pulp.LpAffineExpression(terms) <= 1, f"{device}_memory"


def _add_limit(program: pulp.LpProblem, columns: list[_Columns], limit: str) -> None:
    program += _total(program, columns, limit, 1.0) <= 1, limit


def _write(program: pulp.LpProblem, path: Path) -> None:
    try:
        program.writeLP(str(path), max_length=250)
    except OSError as error:
        raise HrmError(f"--write-lp {path}: cannot be written: {error.strerror} (check the path)") from None


def _run(program: pulp.LpProblem) -> tuple[float, float]:
    """Solve to proven optimality and return HiGHS's bound and relative gap."""
    solver = pulp.HiGHS(
        msg=False,
        gapRel=0.0,
        gapAbs=0.0,
        threads=1,
        mip_feasibility_tolerance=TOLERANCE,
        primal_feasibility_tolerance=TOLERANCE,
        dual_feasibility_tolerance=TOLERANCE,
    )
    program.solve(solver)
    if program.status != pulp.LpStatusOptimal:
        raise HrmError(f"--method milp: HiGHS ended with {pulp.LpStatus[program.status]} (use --method auto)")
    info = program.solverModel.getInfo()
    return float(info.mip_dual_bound), float(info.mip_gap)


def _chosen(columns: list[_Columns]) -> tuple[int, int, float]:
    """Return the candidate chosen, and its resident experts."""
    found = [
        (pulp.value(chosen), column.part, place, pulp.value(resident))
        for column in columns
        for place, chosen, resident in zip(column.places, column.chosen, column.resident, strict=True)
    ]
    _, part, place, resident = max(found)
    return part, place, float(resident)
