"""`hrm roofline`: where the operators of a model stand under the roofs of a machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli import options
from hrm.errors import HrmError
from hrm.schedule.task import Phase

if TYPE_CHECKING:
    from hrm.hardware import HardwareProfile
    from hrm.model import ModelSpec
    from hrm.views.placement import RooflineView

__all__ = ["roofline"]


def roofline(
    model: options.ModelName,
    hardware: options.HardwareName,
    phase: Annotated[Phase, typer.Option("--phase")] = Phase.DECODE,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="N.")] = 1024,
    micro_batch_size: Annotated[int, typer.Option("--micro-batch-size", min=1, help="mu.")] = 128,
    context_len: Annotated[int, typer.Option("--context-len", min=1, help="Tokens attended to, or prompt.")] = 512,
    weight_dtype: options.WeightDType = None,
    expert_dtype: options.ExpertDType = None,
    kv_dtype: options.KvDType = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Picture or page: .png, .svg, .html.")] = None,
    json: options.Json = False,
) -> None:
    """Place each operator under the roofs of a machine: what binds it, and where to compute it.

    As .html, a page with sliders for N and mu.
    """
    from hrm.hardware import load_profile
    from hrm.model_config import load_model
    from hrm.report import show_json, show_roofline
    from hrm.views.layer_operators import Shape
    from hrm.views.placement import place_operators

    spec, machine = load_model(model), load_profile(hardware)
    if micro_batch_size > batch_size:
        raise HrmError(f"--micro-batch-size {micro_batch_size}: exceeds --batch-size {batch_size} (lower it)")
    weights = weight_dtype or spec.dtype
    shape = Shape(
        phase=phase,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        context_len=context_len,
        weight_dtype=weights,
        kv_dtype=kv_dtype or weights.activation_dtype,
        expert_dtype=expert_dtype or (None if weight_dtype else spec.expert_dtype),
    )
    view = place_operators(spec, machine, shape)
    if output is not None:
        _draw(view, spec, machine, output)
    show_json(view) if json else show_roofline(view)
    if output is not None and not json:
        typer.echo(f"wrote {output}")


def _draw(view: RooflineView, model: ModelSpec, machine: HardwareProfile, output: Path) -> None:
    from hrm.views.plot import draw_roofline
    from hrm.views.roofline_page import write_roofline_page

    if output.suffix.lower() == ".html":
        write_roofline_page(model, machine, view.shape, output)
    else:
        draw_roofline(view, output)
