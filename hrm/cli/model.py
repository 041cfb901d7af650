"""`hrm model`: what is known about a model."""

from __future__ import annotations

from typing import Annotated

import typer

from hrm.cli.options import Json

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
    """Show a model's dimensions and parameter counts."""
    from hrm.files import to_plain
    from hrm.model_config import load_model
    from hrm.report import show_json, show_mapping

    model = load_model(name)
    document = to_plain(model) | {
        "total_parameters": model.total_parameters,
        "active_parameters": model.active_parameters,
    }
    show_json(document) if json else show_mapping(model.name, document)
