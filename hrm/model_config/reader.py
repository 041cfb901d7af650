"""Typed access to a Hugging Face configuration that notices what nobody read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hrm.errors import ModelError
from hrm.model_config.harmless import is_harmless

__all__ = ["Reader"]

_MISSING = "required field is missing (add it)"

_OFF: tuple[object, ...] = (None, False, 0, "", [], {})
"""Values by which a configuration says that it does without something."""


class Reader:
    """A configuration's fields by name; every error names the source and the field.

    Where several names are given, a family's published files use either; a field that is null counts as missing.
    Names that were asked for are remembered, so that `refuse_unread` can name what was not understood.
    """

    def __init__(self, config: dict[str, Any], where: str, path: str = "") -> None:
        self._config = config
        self._where = where
        self._path = path
        self._asked: set[str] = set()
        self._sections: list[Reader] = []

    def __contains__(self, name: str) -> bool:
        """Whether the configuration has the field, be it null."""
        return name in self._config

    def require(self, *names: str) -> None:
        """Refuse a configuration that leaves a field out; null passes."""
        for name in names:
            if name not in self._config:
                raise self.error(name, _MISSING)

    def error(self, name: str, problem: str) -> ModelError:
        """Build the error that names a field of this configuration."""
        return ModelError(f"{self._where}: {self._path}{name}: {problem}")

    def value(self, *names: str) -> Any:
        """Return a field as it is, None where it is missing; refuse two names of one field that disagree."""
        self._asked.update(names)
        found = {name: self._config[name] for name in names if self._config.get(name) is not None}
        first = next(iter(found), names[0])
        for name, value in found.items():
            if value != found[first]:
                raise self.error(name, f"{value!r} contradicts {first} {found[first]!r} (correct one)")
        return found.get(first)

    def integer(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """Read an integer of at least `least`; without a default it is required."""
        value = self.value(*names)
        if value is None:
            value = default
        if value is None:
            raise self.error(names[0], _MISSING)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
            raise self.error(self._given(names), f"expected {kind}, got {value!r}")
        return value

    def optional_integer(self, name: str) -> int | None:
        """Read a positive integer; null, 0 and a missing field mean None."""
        return self.integer(name) if self.value(name) not in (None, 0) else None

    def number(self, name: str, default: float) -> float:
        """Read a positive number."""
        value = self.value(name)
        if value is None:
            value = default
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.error(name, f"expected a positive number, got {value!r}")
        return float(value)

    def flag(self, name: str, default: bool | None = False) -> bool:
        """Read true or false; without a default it is required."""
        value = self.value(name)
        if value is None:
            value = default
        if value is None:
            raise self.error(name, _MISSING)
        if not isinstance(value, bool):
            raise self.error(name, f"expected true or false, got {value!r}")
        return value

    def list_of(self, kind: type, name: str) -> list[Any] | None:
        """Read a list of one kind; None where it is missing."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not all(type(entry) is kind for entry in value):
            raise self.error(name, f"expected a list of {kind.__name__}, got {value!r}")
        return list(value)

    def same_for_all(self, *names: str) -> int:
        """Read a positive integer that may be written once for each layer; layers that differ are refused."""
        value = self.value(*names)
        if not isinstance(value, list | tuple):
            return self.integer(*names)
        name = self._given(names)
        if len(set(map(repr, value))) != 1:
            raise self.error(name, f"{value!r} is not supported (only one value for all layers)")
        return Reader({name: value[0]}, self._where, self._path).integer(name)

    def only(self, name: str, *allowed: object) -> None:
        """Refuse a field that has another value than those understood; missing and null pass."""
        value = self.value(name)
        if value is not None and value not in allowed:
            values = ", ".join(repr(entry) for entry in allowed)
            raise self.error(name, f"{value!r} is not supported (only {values})")

    def section(self, name: str) -> Reader | None:
        """Read a nested configuration; None where it is missing."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, f"expected a mapping, got {value!r}")
        self._sections.append(Reader(value, self._where, f"{self._path}{name}."))
        return self._sections[-1]

    def required_section(self, name: str) -> Reader:
        """Read a nested configuration that must be there."""
        section = self.section(name)
        if section is None:
            raise self.error(name, _MISSING)
        return section

    def ignore(self, *names: str) -> None:
        """Count fields as read that change nothing that is counted."""
        self._asked.update(names)

    def ignore_all(self) -> None:
        """Count every field as read."""
        self._asked.update(self._config)

    def refuse_unread(self, family: str) -> None:
        """Refuse the first field that nobody asked for, that is not known to be harmless, and that is not off."""
        for name, value in self._config.items():
            if name not in self._asked and not is_harmless(name) and value not in _OFF:
                shown = repr(value) if len(repr(value)) <= 40 else f"a {type(value).__name__}"
                raise self.error(
                    name,
                    f"{shown}: not understood for model_type {family!r}, it might change shapes "
                    f"(remove it where it does not)",
                )
        for section in self._sections:
            section.refuse_unread(family)

    def _given(self, names: Sequence[str]) -> str:
        return next((name for name in names if self._config.get(name) is not None), names[0])
