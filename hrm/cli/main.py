"""The `hrm` command: its verbs, and how errors reach the user: one line on stderr and an exit code."""

from __future__ import annotations

import sys
from typing import Any, cast

import typer
from typer.main import get_command

from hrm.cli import (
    checkpoint,
    demo,
    explaining,
    machine,
    model,
    planning,
    predicting,
    roofline,
    running,
    selftest,
    validating,
)
from hrm.errors import HrmError

__all__ = ["app", "main"]

app = typer.Typer(
    name="hrm",
    help="How fast can this machine run this mixture-of-experts model, what stops it, and which plan gets there.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("profile")(machine.profile)
app.add_typer(machine.hardware_app, name="hardware")
app.add_typer(model.model_app, name="model")
app.command("roofline")(roofline.roofline)
app.command("solve")(planning.solve)
app.command("predict")(predicting.predict)
app.command("explain")(explaining.explain)
app.command("run")(running.run)
app.command("compare")(running.compare)
app.command("validate")(validating.validate)
app.add_typer(checkpoint.checkpoint_app, name="checkpoint")
app.command("demo")(demo.demo)
app.command("selftest")(selftest.selftest)


INTERRUPTED = 130
"""What a shell reports of a command that Ctrl-C ended; typer returns it too."""
CommandLineError = cast("type[Exception]", typer.BadParameter.__mro__[2])
"""What typer raises for a command line that it cannot read; typer brings its own click or uses click's."""


def main() -> None:
    """Run the command line and exit with 0 (done), 1 (infeasible, comparison failed) or 2 (bad input)."""
    try:
        code = get_command(app)(standalone_mode=False, prog_name="hrm")
        if code == INTERRUPTED:
            _fail("interrupted", code)
    except HrmError as error:
        code = _fail(str(error), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        code = _fail("interrupted", INTERRUPTED)
    except CommandLineError as error:
        code = _misread(error)
    except OSError as error:
        code = _fail(f"{error.filename or 'files'}: {error.strerror or error} (check the path and its permissions)", 2)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(text: str, code: int) -> int:
    sys.stderr.write(f"hrm: {' '.join(text.split())}\n")
    return code


def _misread(error: Any) -> int:
    """Say in one line what could not be read; a verb without arguments shows its help instead."""
    message, context = error.format_message(), getattr(error, "ctx", None)
    if "\n" in message:
        sys.stderr.write(f"{message}\n")
        return 2
    return _fail(f"{message} (see {context.command_path if context else 'hrm'} --help)", 2)
