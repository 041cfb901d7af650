"""`hrm model`: what is known about a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrm.cli.options import Json

if TYPE_CHECKING:
    from hrm.model import ModelSpec

__all__ = ["model_app"]

model_app = typer.Typer(help="List the bundled models, or show one.", no_args_is_help=True)


@model_app.command("list")
def list_models(json: Json = False) -> None:
    """List the models that ship with the project."""
    from hrm.model_config import bundled_models
    from hrm.report import show_json, show_lines

    names = bundled_models()
    show_json({"models": names}) if json else show_lines(names)


@model_app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Bundled name, checkpoint folder or config.json.")], json: Json = False
) -> None:
    """Show a model's parameter counts, bytes and layers, and its dimensions."""
    from hrm.files import to_plain
    from hrm.model_config import load_model
    from hrm.report import show_json, show_mapping

    model = load_model(name)
    summary, dimensions = _summary(model), to_plain(model)
    if json:
        show_json(dimensions | summary)
        return
    kinds = ", ".join(_kind_line(kind) for kind in summary["layer_kinds"])
    show_mapping(model.name, summary | {"layer_kinds": kinds})
    show_mapping("dimensions", dimensions)


def _summary(model: ModelSpec) -> dict[str, Any]:
    """Collect what follows from a model's dimensions; bytes are in the formats of its checkpoint."""
    kinds = [
        {"moe": kind.moe and model.num_experts > 1, "window": kind.window, "layers": layers}
        for kind, layers in model.layer_kinds.items()
    ]
    expert_dtype = model.expert_dtype or model.dtype
    return {
        "total_parameters": model.total_parameters,
        "active_parameters": model.active_parameters,
        "expert_parameters": model.expert_parameters,
        "expert_bytes": model.expert_parameters * expert_dtype.bytes_per_element,
        "kv_bytes_per_token": model.num_layers * model.cache_width * model.dtype.activation_dtype.bytes_per_element,
        "layer_kinds": kinds,
    }


def _kind_line(kind: dict[str, Any]) -> str:
    window = "all tokens" if kind["window"] is None else f"the last {kind['window']:,} tokens"
    return f"{kind['layers']} {'MoE' if kind['moe'] else 'dense'} attending to {window}"
