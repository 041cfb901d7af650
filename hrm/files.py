"""Reading and writing the project's files: YAML and JSON checked strictly, outputs that appear whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from hrm.errors import FileError, SchemaError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

__all__ = [
    "atomic_writer",
    "check_output",
    "from_plain",
    "read_json",
    "read_yaml",
    "to_plain",
    "write_json",
    "write_yaml",
]


def to_plain(value: Any) -> Any:
    """Turn a record (and what it holds) into dicts, lists and scalars, as YAML and JSON want them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: to_plain(entry) for name, entry in fields}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(to_plain(key)): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def from_plain(kind: type[T], data: Any, *, where: str) -> T:
    """Check plain data against a record type and build it.

    `where` names the source in errors: a path, or a command line option.

    Raises
    ------
    SchemaError
        For the first field that is unknown, missing or of the wrong kind, with the field's dotted path.
    """
    from pydantic import ValidationError

    try:
        built: T = _adapter(cast(Any, kind)).validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise SchemaError(_first_problem(error, where)) from None
    return built


_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


def _first_problem(error: ValidationError, where: str) -> str:
    # An unknown key comes first: where it is a misspelling, it explains the missing one.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] not in _UNKNOWN_KEY)
    first = problems[0]
    field = ".".join(str(part) for part in first["loc"]) or "the document"
    message = first["msg"][0].lower() + first["msg"][1:]
    if first["type"] in _UNKNOWN_KEY:
        text = f"{where}: {field}: unknown key (remove it, or check its spelling)"
    elif first["type"].startswith("missing"):
        text = f"{where}: {field}: required field is missing (add it)"
    else:
        text = f"{where}: {field}: {message}, got {first['input']!r}{_remedy(first)}"
    return text + (f"; and {len(problems) - 1} more" if len(problems) > 1 else "")


def _remedy(problem: Mapping[str, Any]) -> str:
    """Say how a number is written that YAML took for text."""
    value, wanted = problem["input"], problem["type"]
    if not isinstance(value, str) or not wanted.startswith(("int", "float")):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    written = "a finite number"
    if math.isfinite(number):
        written = f"{number:.0f}" if wanted.startswith("int") else f"{number:e}"
    return f" (YAML reads this as text: write {written})"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileError(f"{path}: no such file (check the path)") from None
    except IsADirectoryError:
        raise FileError(f"{path}: is a directory, expected a file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: cannot be read: {error}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises
    ------
    FileError
        When the file is missing, is not YAML, or does not hold a mapping.
    """
    import yaml

    path = Path(path)
    try:
        data = yaml.safe_load(_read_text(path))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise FileError(f"{path}: not valid YAML: {reason}") from None
    return _mapping(data, path)


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises
    ------
    FileError
        When the file is missing, is not JSON, or does not hold an object.
    """
    path = Path(path)
    try:
        data = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise FileError(f"{path}: not valid JSON at line {error.lineno}: {error.msg}") from None
    return _mapping(data, path)


def _mapping(data: Any, path: Path) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise FileError(f"{path}: holds {type(data).__name__}, expected a mapping of keys to values")
    return data


def check_output(path: str | Path) -> None:
    """Refuse an output path that could not be written, before any work is spent on it.

    Raises
    ------
    FileError
        When the folder does not exist or may not be written to, or the path is a folder itself.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileError(f"{path}: the folder {path.parent} does not exist (make it first)")
    if path.is_dir():
        raise FileError(f"{path}: is a folder, expected the name of a file to write")
    if not os.access(path.parent, os.W_OK):
        raise FileError(f"{path}: the folder {path.parent} may not be written to (choose another)")


@contextmanager
def atomic_writer(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears under `path` only when the block ends without an error."""
    path = Path(path)
    check_output(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write a record or plain data as indented JSON, atomically."""
    with atomic_writer(path) as stream:
        json.dump(to_plain(value), stream, indent=2, allow_nan=False)
        stream.write("\n")


def write_yaml(path: str | Path, value: Any) -> None:
    """Write a record or plain data as YAML, atomically; floats are written so that YAML reads them as numbers."""
    import yaml

    with atomic_writer(path) as stream:
        yaml.dump(to_plain(value), stream, Dumper=_dumper(), sort_keys=False, width=120, allow_unicode=True)


@cache
def _dumper() -> type[Any]:
    import yaml

    class Dumper(yaml.SafeDumper):
        """SafeDumper whose floats carry a point and a signed exponent, which YAML 1.1 needs to see a number."""

    def represent_float(dumper: yaml.SafeDumper, number: float) -> yaml.ScalarNode:
        text = repr(number)
        if "e" in text:
            mantissa, exponent = text.split("e")
            text = f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent):+03d}"
        return dumper.represent_scalar("tag:yaml.org,2002:float", text)

    def represent_list(dumper: yaml.SafeDumper, entries: list[Any]) -> yaml.SequenceNode:
        flat = all(not isinstance(entry, list | dict) for entry in entries)
        return dumper.represent_sequence("tag:yaml.org,2002:seq", entries, flow_style=flat)

    Dumper.add_representer(float, represent_float)
    Dumper.add_representer(list, represent_list)
    return Dumper
