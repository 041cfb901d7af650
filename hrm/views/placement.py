"""Where each operator of a layer stands under the roofs, on each processor and for each place its data may lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hrm.cost import operator_cost
from hrm.dtypes import DType
from hrm.hardware import HardwareProfile, Link
from hrm.model import ModelSpec
from hrm.operators import Operator
from hrm.rates import Rates
from hrm.records import record
from hrm.roofline import Attainable, Bound, TurningPoint, TurningPoints, attainable, balance_point, turning_points
from hrm.views.intensity_lines import IntensityLine, attention_lines, batch_lines, batch_ratio
from hrm.views.ladder import computing_levels, upward_links
from hrm.views.layer_operators import Shape, attention_counters, weight_counters

__all__ = [
    "MAIN_OPERATOR",
    "KernelCeiling",
    "LevelRoofs",
    "LinkRoof",
    "PlacedOperator",
    "RooflineView",
    "place_operators",
]

MAIN_OPERATOR = "experts"
"""The operator whose weights are streamed: the turning points of a view are its own."""


@record
class LevelRoofs:
    """Roofs of a level, all its `processors` together: memory, compute, and where the two meet (Eq. 3).

    Without a processor there is no compute. `flop_per_s` and the ridge point are for data in the weights' format;
    `flop_per_s_by_dtype` has every format that an operator or line of the view is in.
    """

    processors: int
    bytes_per_s: float
    flop_per_s: float | None
    flop_per_s_by_dtype: dict[DType, float]
    ridge_point_flop_per_byte: float | None


@record
class LinkRoof:
    """A link, over all its paths; the points are those of the experts fetched over it, and absent on the way down."""

    source: str
    target: str
    bytes_per_s: float
    turning_points: TurningPoints | None = None
    balance_point: TurningPoint | None = None


@record
class PlacedOperator:
    """An operator computed on `device` for one micro-batch; with a `source`, its weights or KV are fetched from there.

    `bytes` and `operational_intensity_flop_per_byte` go by level and by link. What crosses the link once for the whole
    batch counts here in the micro-batch's share.
    """

    name: str
    dtype: DType
    device: str
    source: str | None = None
    flop: float
    bytes: dict[str, float]
    operational_intensity_flop_per_byte: dict[str, float]
    attainable_flop_per_s: float
    bound: Bound


@record
class KernelCeiling:
    """What a level attains in one kernel call at the micro-batch, its data there: the height at which N stops helping.

    `attainable_flop_per_s` is by the roofs; `ceiling_flop_per_s` what the kernel achieves at this shape: `measured`
    where the machine's profile has a table of it, else by the defaults of `hrm.achievable`.
    """

    operator: str
    device: str
    operational_intensity_flop_per_byte: float
    attainable_flop_per_s: float
    bound: Bound
    ceiling_flop_per_s: float
    measured: bool


@record
class RooflineView:
    """A model under the roofs of a machine: levels, links, turning points and every placement of every operator.

    `turning_points` and `balance_point` (Eq. 11) belong to the experts and to the link into the fastest level;
    `turning_points_by_operator` holds those of every operator whose data can be fetched over it. All are absent on a
    machine with one level.
    """

    model: str
    hardware: str
    shape: Shape
    levels: dict[str, LevelRoofs]
    links: dict[str, LinkRoof]
    turning_points: TurningPoints | None = None
    balance_point: TurningPoint | None = None
    turning_points_by_operator: dict[str, TurningPoints]
    operators: tuple[PlacedOperator, ...]
    kernel_ceilings: tuple[KernelCeiling, ...]
    lines: tuple[IntensityLine, ...]


def place_operators(model: ModelSpec, hardware: HardwareProfile, shape: Shape) -> RooflineView:
    """Place the matrix operators of a model's layers, and the head, under a machine's roofs."""
    return _Placing(model, hardware, shape).view()


class _Placing:
    """One model on one machine, its operators counted and the links found that lead upwards."""

    def __init__(self, model: ModelSpec, hardware: HardwareProfile, shape: Shape) -> None:
        self.model, self.hardware, self.shape = model, hardware, shape
        self.counters = attention_counters(model, shape) | weight_counters(model, shape)
        self.kernels = {name: counter(shape.micro_batch_size) for name, counter in self.counters.items()}
        self.upward = upward_links(hardware)

    def view(self) -> RooflineView:
        """Gather everything."""
        links = {name: self._link_roof(name, link) for name, link in (self.upward | self.hardware.links).items()}
        top = links[next(iter(self.upward))] if self.upward else None
        turns = top.turning_points if top else None
        reach = max(self.shape.batch_size, turns.p2.batch_size or 0.0 if turns else 0.0)
        counter = self.counters[MAIN_OPERATOR]
        batches = batch_lines(MAIN_OPERATOR, counter, self.hardware, self.shape, up_to=4 * reach)
        lines = (*attention_lines(self.model, self.hardware, self.shape), *batches)
        formats = {self.shape.weight_dtype, *(kernel.dtype for kernel in self.kernels.values())}
        formats |= {line.dtype for line in lines}
        return RooflineView(
            model=self.model.name,
            hardware=self.hardware.label,
            shape=self.shape,
            levels={name: self._level_roofs(name, formats) for name in self.hardware.levels},
            links=links,
            turning_points=turns,
            balance_point=top.balance_point if top else None,
            turning_points_by_operator=self._turns_by_operator(),
            operators=tuple(self._placements()),
            kernel_ceilings=tuple(self._kernel_ceilings()),
            lines=lines,
        )

    def _level_roofs(self, name: str, formats: set[DType]) -> LevelRoofs:
        level, rates = self.hardware.level(name), Rates(hardware=self.hardware, measured=False)
        memory = rates.read_bytes_per_s(name)
        computes = bool(level.compute_flop_per_s)
        compute = {dtype: rates.flop_per_s(name, dtype) for dtype in sorted(formats) if computes}
        peak = compute.get(self.shape.weight_dtype)
        return LevelRoofs(
            processors=level.count if computes else 0,
            bytes_per_s=memory,
            flop_per_s=peak,
            flop_per_s_by_dtype=compute,
            ridge_point_flop_per_byte=None if peak is None else peak / memory,
        )

    def _link_roof(self, name: str, link: Link) -> LinkRoof:
        rate = Rates(hardware=self.hardware, measured=False).link_bytes_per_s(name)
        roof = LinkRoof(source=link.source, target=link.target, bytes_per_s=rate)
        if name not in self.upward:
            return roof
        kernel, counter = self.kernels[MAIN_OPERATOR], self.counters[MAIN_OPERATOR]
        return replace(
            roof,
            turning_points=self._turns(MAIN_OPERATOR, link),
            balance_point=balance_point(kernel, self.hardware, fast=link.target, slow=link.source, for_batch=counter),
        )

    def _turns(self, name: str, link: Link) -> TurningPoints:
        kernel, counter = self.kernels[name], self.counters[name]
        return turning_points(kernel, self.hardware, fast=link.target, slow=link.source, for_batch=counter)

    def _turns_by_operator(self) -> dict[str, TurningPoints]:
        fetched = [name for name, kernel in self.kernels.items() if self.shape.fetches(kernel)]
        return {name: self._turns(name, link) for link in list(self.upward.values())[:1] for name in fetched}

    def _placements(self) -> Iterator[PlacedOperator]:
        """Yield each operator on each level that computes: its data there, and fetched over each link that leads up."""
        sizes = self.shape.batch_size, self.shape.micro_batch_size
        for name, kernel in self.kernels.items():
            for level in computing_levels(self.hardware):
                yield _placed(name, level, kernel, attainable(kernel, self.hardware, level))
            if not self.shape.fetches(kernel):
                continue
            ratio = batch_ratio(self.counters[name], *sizes)
            for crossing, link in self.upward.items():
                reached = attainable(kernel, self.hardware, link.target, source=link.source, batch_ratio=ratio)
                here = _placed(name, link.target, kernel, reached)
                yield _fetched(here, link.source, crossing, float(kernel.fetched_bytes / ratio))

    def _kernel_ceilings(self) -> Iterator[KernelCeiling]:
        rates = Rates(hardware=self.hardware, measured=True)
        for name, kernel in self.kernels.items():
            for level in computing_levels(self.hardware):
                reached = attainable(kernel, self.hardware, level)
                yield KernelCeiling(
                    operator=name,
                    device=level,
                    operational_intensity_flop_per_byte=float(kernel.operational_intensity),
                    attainable_flop_per_s=float(reached.flop_per_s),
                    bound=reached.bound,
                    ceiling_flop_per_s=float(kernel.flop / operator_cost(kernel, rates, level).seconds),
                    measured=rates.table(level, kernel.kernel, kernel.dtype) is not None,
                )


def _placed(name: str, level: str, kernel: Operator, reached: Attainable) -> PlacedOperator:
    return PlacedOperator(
        name=name,
        dtype=kernel.dtype,
        device=level,
        flop=float(kernel.flop),
        bytes={level: float(kernel.bytes)},
        operational_intensity_flop_per_byte={level: float(kernel.operational_intensity)},
        attainable_flop_per_s=float(reached.flop_per_s),
        bound=reached.bound,
    )


def _fetched(here: PlacedOperator, source: str, link: str, count: float) -> PlacedOperator:
    """Add what crosses a link to an operator placed at the link's end."""
    intensities = here.operational_intensity_flop_per_byte | {link: here.flop / count}
    return replace(
        here, source=source, bytes=here.bytes | {link: count}, operational_intensity_flop_per_byte=intensities
    )
