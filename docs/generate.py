"""Writes the references that the code itself knows: docs/cli.md, and a JSON Schema per file in docs/schemas/.

    python docs/generate.py            write them
    python docs/generate.py --check    exit code 1 and a list of those that no longer say what the code says

`tests/test_docs.py` runs the check.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typer.main import get_command
from typer.testing import CliRunner

from hrm.cli.main import app
from hrm.compare import RunReport
from hrm.hardware import EmulatedSpec, HardwareProfile
from hrm.plan import Plan

FOLDER = Path(__file__).resolve().parent
SCHEMAS: Mapping[str, type] = {
    "emulated-device": EmulatedSpec,
    "hardware-profile": HardwareProfile,
    "plan": Plan,
    "run-report": RunReport,
}
WIDTH = 110
HEADER = "<!-- Made by docs/generate.py from the code: edit there. -->\n\n"


def main() -> int:
    """Write the files, or compare what stands there with what would be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    checks = parser.parse_args().check
    stale = [path for path, text in generated().items() if not path.is_file() or path.read_text() != text]
    if not checks:
        for path in stale:
            path.parent.mkdir(exist_ok=True)
            path.write_text(generated()[path])
    for path in stale:
        print(f"{'stale' if checks else 'wrote'}: {path.relative_to(FOLDER.parent)}")
    return 1 if checks and stale else 0


def generated() -> dict[Path, str]:
    """Return every generated file's path and text."""
    texts = {
        FOLDER / "cli.md": HEADER + "# The command line\n\n" + "\n".join(command_sections(("hrm",), get_command(app)))
    }
    for name, kind in SCHEMAS.items():
        texts[FOLDER / "schemas" / f"{name}.schema.json"] = json.dumps(schema(name, kind), indent=1) + "\n"
    return texts


def schema(name: str, kind: type) -> dict[str, Any]:
    """Return the JSON Schema of a file that holds one record."""
    made = TypeAdapter(kind).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name} | {
        key: value for key, value in made.items() if key != "title"
    }


def command_sections(words: tuple[str, ...], command: Any) -> Iterator[str]:
    """Yield a heading and the help text of a command, then those of the commands below it."""
    said = CliRunner().invoke(app, [*words[1:], "--help"], env={"COLUMNS": str(WIDTH)}, prog_name="hrm").output
    yield f"{'#' * min(1 + len(words), 3)} {' '.join(words)}\n"
    yield "".join(f"    {line}".rstrip() + "\n" for line in said.strip().splitlines())
    for name, below in getattr(command, "commands", {}).items():
        yield from command_sections((*words, name), below)


if __name__ == "__main__":
    sys.exit(main())
