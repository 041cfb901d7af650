"""`hrm profile` and `hrm hardware`: what a machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli.options import Json

if TYPE_CHECKING:
    from hrm.hardware import HardwareProfile
    from hrm.microbench.kernels import KernelProbe

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
    disk: Annotated[
        Path | None, typer.Option("--disk", help="Measure the disk of this folder too; a file of up to 1 GiB is made.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a profile that was cut short.")] = False,
    check: Annotated[
        Path | None, typer.Option("--check", help="Instead: measure a few roofs of this profile again; 1 = drifted.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure this machine's roofs and kernel ceilings into a profile."""
    if check is not None:
        _check(check, disk, json)
        return
    from executor.native import status_line
    from executor.small_runs import small_runs
    from hrm.device.opening import open_backend, parse_device
    from hrm.files import check_output, to_plain, write_yaml
    from hrm.microbench.journal import finish
    from hrm.microbench.profile import Request, profile_machine
    from hrm.report import progress, show_json
    from hrm.report_profile import show_profile

    check_output(output)
    chosen = parse_device(device)
    command = f"hrm profile --device {device}{' --quick' if quick else ''}{' --disk FOLDER' if disk else ''}"
    request = Request(quick=quick, command=command, name=output.stem, disk=disk, output=output, resume=resume)
    backend = open_backend(chosen.device, chosen.emulated, index=chosen.index)
    try:
        with progress("profiling") as step:
            measured = profile_machine(backend, _probes(quick), request, small_runs=small_runs, progress=step)
    finally:
        backend.close()
    write_yaml(output, measured)
    samples = finish(output)
    if json:
        show_json(to_plain(measured))
    else:
        show_profile(measured)
        typer.echo(f"{status_line()}\nwrote {output}, and every sample to {samples}")


def _probes(quick: bool) -> list[KernelProbe]:
    """Return the kernels to make ceiling tables of."""
    from executor.kernels import kernel_probes
    from hrm.dtypes import DType

    dtypes = (DType.BFLOAT16,) if quick else (DType.BFLOAT16, DType.FLOAT32)
    return [probe for dtype in dtypes for probe in kernel_probes(dtype, quick)]


def _check(path: Path, disk: Path | None, json: bool) -> None:
    """Measure roofs of a profile again; ends with 1 when one drifted beyond its spread."""
    from hrm.device.opening import open_backend
    from hrm.files import to_plain
    from hrm.hardware import load_profile
    from hrm.microbench.check import check_machine
    from hrm.report import progress, show_json
    from hrm.report_profile import show_drift

    found = load_profile(path)
    backend = open_backend(found.device, found.emulated)
    try:
        with progress("checking") as step:
            report = check_machine(backend, found, disk=disk, progress=step)
    finally:
        backend.close()
    show_json(to_plain(report) | {"drifted": list(report.drifted)}) if json else show_drift(report)
    if report.drifted:
        raise typer.Exit(1)


@hardware_app.command("list")
def list_hardware(json: Json = False) -> None:
    """List the profiles that ship with the project."""
    from hrm.hardware import bundled_profiles, load_profile
    from hrm.report import show_json, show_table

    found = [load_profile(path) for path in bundled_profiles()]
    if json:
        more = [{"aliases": machine.aliases, "description": machine.description} for machine in found]
        show_json({"profiles": [_row(machine) | rest for machine, rest in zip(found, more, strict=True)]})
    else:
        show_table("bundled profiles", [_row(machine) for machine in found])


def _row(machine: HardwareProfile) -> dict[str, object]:
    from hrm.units import format_bytes, format_bytes_per_s

    levels, link = machine.levels, machine.links.get("h2d")
    return {
        "name": machine.name,
        "aliases": ", ".join(machine.aliases),
        **{name: _times(at.count, at.description) if (at := levels.get(name)) else "" for name in ("cpu", "gpu")},
        "memory": " + ".join(_times(level.count, format_bytes(level.capacity_bytes)) for level in levels.values()),
        "link": _times(link.paths, format_bytes_per_s(link.bytes_per_s.roof)) if link else "",
    }


def _times(count: int, what: str) -> str:
    return f"{count} x {what}" if count > 1 else what


@hardware_app.command("show")
def show(name: Annotated[str, typer.Argument(help="Bundled name, alias or profile YAML.")], json: Json = False) -> None:
    """Show a profile."""
    from hrm.files import to_plain
    from hrm.hardware import load_profile
    from hrm.report import show_json
    from hrm.report_profile import show_profile

    found = load_profile(name)
    show_json(to_plain(found)) if json else show_profile(found)


@hardware_app.command("validate")
def validate(file: Annotated[Path, typer.Argument(help="Profile YAML.")], json: Json = False) -> None:
    """Check a profile against the schema, and that every number in it has a source."""
    from hrm.hardware import load_profile
    from hrm.provenance import check_provenance
    from hrm.report import show_json

    found = load_profile(file)
    check_provenance(found, str(file))
    show_json({"valid": True, "name": found.name}) if json else typer.echo(f"{file}: valid")
