"""`@record`: the one kind of value that flows between the stages.

A record is a frozen, slotted, keyword-only dataclass. It holds no logic beyond derived properties and saves to YAML or
JSON; read back from a file it is checked strictly (`hrm.files`): no unknown key, no string where a number belongs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")

__all__ = ["record"]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, slotted, keyword-only dataclass whose file form is validated strictly."""
    made = dataclass(frozen=True, slots=True, kw_only=True)(cls)
    made.__pydantic_config__ = {"extra": "forbid", "strict": True, "allow_inf_nan": False}  # type: ignore[attr-defined]
    return made
