"""Where each operator of a layer stands under the roofs, on each processor and for each place its data may lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hrm import operators
from hrm.dtypes import DType
from hrm.hardware import HardwareProfile, Level
from hrm.model import ModelSpec
from hrm.operators import Operator
from hrm.records import record
from hrm.roofline import (
    Attainable,
    Bound,
    TurningPoint,
    TurningPoints,
    attainable,
    balance_point,
    level_bytes_per_s,
    level_flop_per_s,
    ridge_point,
    turning_points,
)
from hrm.schedule.task import Phase

__all__ = ["LevelRoofs", "PlacedOperator", "RooflineView", "place_operators"]

LINK = "h2d"
MAIN_OPERATOR = "experts"
"""The operator whose weights are streamed: the turning points of a view are its own."""

Counter = Callable[[float], Operator]
"""An operator as a function of the sequences worked on."""


@record
class LevelRoofs:
    """Roofs of a level that has a processor, at the weights' format: compute, memory, and where they meet (Eq. 3)."""

    flop_per_s: float
    bytes_per_s: float
    ridge_point_flop_per_byte: float


@record
class PlacedOperator:
    """An operator computed on `device` for one micro-batch; with a `source`, its weights or KV are fetched from there.

    `bytes` and `operational_intensity_flop_per_byte` go by level and by link. What crosses the link once for the whole
    batch counts here in the micro-batch's share.
    """

    name: str
    device: str
    source: str | None = None
    flop: float
    bytes: dict[str, float]
    operational_intensity_flop_per_byte: dict[str, float]
    attainable_flop_per_s: float
    bound: Bound


@record
class RooflineView:
    """A model under the roofs of a machine: levels, links, turning points and every placement of every operator.

    `turning_points` and `balance_point` (Eq. 11) belong to the experts; `turning_points_by_operator` holds those of
    every operator whose data can be fetched. All are absent on a machine without a GPU.
    """

    model: str
    hardware: str
    phase: Phase
    batch_size: int
    micro_batch_size: int
    context_len: int
    weight_dtype: DType
    kv_dtype: DType
    levels: dict[str, LevelRoofs]
    links: dict[str, float]
    turning_points: TurningPoints | None = None
    balance_point: TurningPoint | None = None
    turning_points_by_operator: dict[str, TurningPoints]
    operators: tuple[PlacedOperator, ...]


def place_operators(  # noqa: PLR0913 -- model, machine, and the six numbers that fix the operators' shapes
    model: ModelSpec,
    hardware: HardwareProfile,
    phase: Phase,
    *,
    batch_size: int,
    micro_batch_size: int,
    context_len: int,
    weight_dtype: DType,
    kv_dtype: DType,
) -> RooflineView:
    """Place the matrix operators of a layer, and the head, under a machine's roofs.

    `context_len` is what decode attends to, or the length of every prompt in prefill.
    """
    counters = _counters(model, phase, context_len, weight_dtype, kv_dtype)
    sizes = _Sizes(batch=batch_size, micro_batch=micro_batch_size, prefill=phase is Phase.PREFILL)
    placed = [place for counter in counters for place in _placements(counter, hardware, sizes)]
    turns, balance = _turns(counters, hardware, sizes) if hardware.has_gpu else ({}, None)
    return RooflineView(
        model=model.name,
        hardware=hardware.label,
        phase=phase,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        context_len=context_len,
        weight_dtype=weight_dtype,
        kv_dtype=kv_dtype,
        levels={name: _roofs(level, weight_dtype) for name, level in hardware.levels.items() if _computes(level)},
        links={name: link.bytes_per_s.roof for name, link in hardware.links.items()},
        turning_points=turns.get(MAIN_OPERATOR),
        balance_point=balance,
        turning_points_by_operator=turns,
        operators=tuple(placed),
    )


@record
class _Sizes:
    batch: int
    micro_batch: int
    prefill: bool

    def fetches(self, operator: Operator) -> bool:
        """Whether anything is fetched: prefill itself makes the K and V that it attends to."""
        return bool(operator.weight_bytes) or not self.prefill


def _counters(
    model: ModelSpec, phase: Phase, context_len: int, weight_dtype: DType, kv_dtype: DType
) -> tuple[Counter, ...]:
    prefill = phase is Phase.PREFILL
    tokens = context_len if prefill else 1

    def attention(sequences: float) -> Operator:
        if prefill:
            return operators.attention_prefill(model, sequences, context_len**2, context_len, weight_dtype)
        return operators.attention_decode(model, sequences, context_len, kv_dtype)

    router: tuple[Counter, ...] = (lambda sequences: operators.router(model, sequences * tokens, weight_dtype),)
    return (
        lambda sequences: operators.qkv_proj(model, sequences * tokens, weight_dtype),
        attention,
        lambda sequences: operators.o_proj(model, sequences * tokens, weight_dtype),
        *(router if model.num_experts > 1 else ()),
        lambda sequences: operators.experts(model, sequences * tokens, weight_dtype),
        lambda sequences: operators.lm_head(model, sequences, weight_dtype),
    )


def _computes(level: Level) -> bool:
    return bool(level.compute_flop_per_s)


def _roofs(level: Level, dtype: DType) -> LevelRoofs:
    return LevelRoofs(
        flop_per_s=level_flop_per_s(level, dtype),
        bytes_per_s=level_bytes_per_s(level),
        ridge_point_flop_per_byte=ridge_point(level, dtype),
    )


def _placements(counter: Counter, hardware: HardwareProfile, sizes: _Sizes) -> Iterator[PlacedOperator]:
    """Yield the operator on the CPU, and where there is a GPU on it: its data resident, and fetched."""
    operator = counter(sizes.micro_batch)
    yield _placed(operator, attainable(operator, hardware, "cpu"), "cpu")
    if not hardware.has_gpu:
        return
    yield _placed(operator, attainable(operator, hardware, "gpu"), "gpu")
    if sizes.fetches(operator):
        # One fetch serves the whole batch: N/mu for shared weights once every expert is hit, 1 for a sequence's own KV.
        ratio = counter(sizes.batch).fetched_intensity / operator.fetched_intensity
        reached = attainable(operator, hardware, "gpu", source="cpu", batch_ratio=ratio)
        yield _placed(operator, reached, "gpu", fetched_bytes=operator.fetched_bytes / ratio)


def _placed(
    operator: Operator, reached: Attainable, device: str, *, fetched_bytes: float | None = None
) -> PlacedOperator:
    crossing = {} if fetched_bytes is None else {LINK: fetched_bytes}
    counts = {device: operator.bytes} | crossing
    return PlacedOperator(
        name=operator.name,
        device=device,
        source="cpu" if crossing else None,
        flop=operator.flop,
        bytes=counts,
        operational_intensity_flop_per_byte={where: operator.flop / count for where, count in counts.items()},
        attainable_flop_per_s=reached.flop_per_s,
        bound=reached.bound,
    )


def _turns(
    counters: tuple[Counter, ...], hardware: HardwareProfile, sizes: _Sizes
) -> tuple[dict[str, TurningPoints], TurningPoint | None]:
    """Return the turning points by operator, and the balance point of the experts."""
    turns: dict[str, TurningPoints] = {}
    balance = None
    for counter in counters:
        operator = counter(sizes.micro_batch)
        if not sizes.fetches(operator):
            continue
        turns[operator.name] = turning_points(operator, hardware, for_batch=counter)
        if operator.name == MAIN_OPERATOR:
            balance = balance_point(operator, hardware, for_batch=counter)
    return turns, balance
