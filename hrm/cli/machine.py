"""`hrm profile` and `hrm hardware`: what a machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hrm.cli.options import Json

__all__ = ["hardware_app", "profile"]

hardware_app = typer.Typer(help="List, show or validate hardware profiles.", no_args_is_help=True)


def profile(
    output: Annotated[Path, typer.Option("-o", "--output", help="Profile to write.")] = Path("machine.yaml"),
    device: Annotated[
        str, typer.Option("--device", help="auto, none, cuda[:N], emulated or emulated:SPEC.yaml.")
    ] = "auto",
    quick: Annotated[
        bool, typer.Option("--quick", help="Seconds, not minutes: fewer repeats and shapes, kernels in bfloat16 only.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure this machine's roofs and kernel ceilings into a profile."""
    from executor.kernels import kernel_probes
    from executor.native import status_line
    from hrm.device.opening import open_backend, parse_device
    from hrm.dtypes import DType
    from hrm.files import check_output, to_plain, write_yaml
    from hrm.microbench.profile import profile_machine
    from hrm.report import progress, show_json, show_profile

    check_output(output)
    chosen = parse_device(device)
    command = f"hrm profile --device {device}{' --quick' if quick else ''}"
    dtypes = (DType.BFLOAT16,) if quick else (DType.BFLOAT16, DType.FLOAT32)
    probes = [probe for dtype in dtypes for probe in kernel_probes(dtype, quick)]
    backend = open_backend(chosen.device, chosen.emulated, index=chosen.index)
    try:
        with progress("profiling") as step:
            measured = profile_machine(backend, probes, quick=quick, progress=step, command=command, name=output.stem)
    finally:
        backend.close()
    write_yaml(output, measured)
    if json:
        show_json(to_plain(measured))
    else:
        show_profile(measured)
        typer.echo(f"{status_line()}\nwrote {output}")


@hardware_app.command("list")
def list_hardware(json: Json = False) -> None:
    """List the profiles that ship with the project."""
    from hrm.hardware import bundled_profiles, load_profile
    from hrm.report import show_json, show_table

    rows = [
        {"name": found.name, "aliases": ", ".join(found.aliases), "description": found.description}
        for found in (load_profile(path) for path in bundled_profiles())
    ]
    show_json({"profiles": rows}) if json else show_table("bundled profiles", rows)


@hardware_app.command("show")
def show(name: Annotated[str, typer.Argument(help="Bundled name, alias or profile YAML.")], json: Json = False) -> None:
    """Show a profile."""
    from hrm.files import to_plain
    from hrm.hardware import load_profile
    from hrm.report import show_json, show_profile

    found = load_profile(name)
    show_json(to_plain(found)) if json else show_profile(found)


@hardware_app.command("validate")
def validate(file: Annotated[Path, typer.Argument(help="Profile YAML.")], json: Json = False) -> None:
    """Check a profile against the schema."""
    from hrm.hardware import load_profile
    from hrm.report import show_json

    found = load_profile(file)
    show_json({"valid": True, "name": found.name}) if json else typer.echo(f"{file}: valid")
