"""The journal of a profiling run: one JSON line per finished section, so that a run that was killed can go on.

While a profile is made its journal is `FILE.partial`; when it is done the journal becomes `STEM.samples.jsonl` beside
the profile and holds every sample: each round with its CPU time, those left out too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hrm.errors import SchemaError
from hrm.files import from_plain, to_plain

T = TypeVar("T")

__all__ = ["Journal", "finish", "partial_path", "samples_path"]


def partial_path(output: Path) -> Path:
    """Return where the journal of an unfinished profile lies."""
    return output.with_name(f"{output.name}.partial")


def samples_path(output: Path) -> Path:
    """Return where the samples of a finished profile lie."""
    return output.with_name(f"{output.stem}.samples.jsonl")


class Journal:
    """Sections by name: measured now, or taken from an earlier run that had the same `key` (machine, command, date).

    Without a path nothing is written and every section is measured.
    """

    def __init__(self, path: Path | None = None, key: dict[str, str] | None = None, *, resume: bool = False) -> None:
        self._path = path
        self._found: dict[str, Any] = {}
        self._measured: dict[str, Any] = {}
        self.resumed: list[str] = []
        if path is None:
            return
        lines = _read_lines(path) if resume else []
        if lines and lines[0] == {"key": key}:
            self._found = {line["section"]: line for line in lines[1:]}
        else:
            lines = [{"key": key}]
        # Written anew: a line that a kill cut short must not stay before the next one.
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")

    def section(
        self, name: str, kind: type[T], measure: Callable[[], T], log: Callable[[], list[dict[str, Any]]] | None = None
    ) -> T:
        """Return a section's result, of type `kind`; `log` gives the rounds that were measured for it.

        A section asked for twice is measured once.
        """
        if name in self._measured:
            known: T = self._measured[name]
            return known
        if name in self._found:
            try:
                value = from_plain(kind, self._found[name]["value"], where=f"{self._path}: {name}")
            except (SchemaError, KeyError):
                pass  # Of another version of this program: measured again.
            else:
                self.resumed.append(name)
                return value
        value = self._measured[name] = measure()
        if self._path is not None:
            line = {"section": name, "value": to_plain(value), "rounds": log() if log else []}
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(f"{json.dumps(line)}\n")
        return value


def finish(output: Path) -> Path:
    """Turn the journal of a profile that was written into the samples beside it; return where they lie."""
    return partial_path(output).replace(samples_path(output))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a journal; nothing where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
