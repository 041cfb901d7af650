"""`hrm selftest`: whether a device works here, and what to report."""

from __future__ import annotations

from typing import Annotated

import typer

from hrm.cli.options import Json

__all__ = ["selftest"]


def selftest(
    device: Annotated[
        str, typer.Option("--device", help="auto, none, cuda[:N], emulated or emulated:SPEC.yaml.")
    ] = "auto",
    json: Json = False,
) -> None:
    """Try a device from copies to generated tokens, in a minute; exit with 1 when something does not work."""
    from executor.selftest import selftest as checks_of
    from hrm.device.opening import open_backend, parse_device
    from hrm.files import to_plain
    from hrm.report import progress, show_json, show_table

    chosen = parse_device(device)
    backend = open_backend(chosen.device, chosen.emulated, index=chosen.index)
    found = []
    try:
        with progress("trying") as step:
            for check in checks_of(backend):
                step(check.name)
                found.append(check)
    finally:
        backend.close()
    failed = [check.name for check in found if not check.passed]
    if json:
        show_json({"passed": not failed, "checks": to_plain(found)})
    else:
        rows = [
            {"check": check.name, "": "ok" if check.passed else "FAILED", "what was found": check.detail}
            for check in found
        ]
        show_table(f"selftest of --device {device}", rows)
        if failed:
            typer.echo(
                f"{len(failed)} of {len(found)} failed: report what `hrm selftest --device {device} --json` prints"
            )
    if failed:
        raise typer.Exit(1)
