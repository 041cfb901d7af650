"""How positions enter: the rotary embedding of a configuration, under each of the names it has had."""

from __future__ import annotations

import math
from typing import Any

from hrm.model_config.reader import Reader
from hrm.variants import Yarn

__all__ = ["rope", "yarn_gain"]

_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "su", "llama3", "mrope", "proportional")
_SECTIONS = ("rope_parameters", "rope_scaling")


def rope(read: Reader, theta: float = 1e4) -> dict[str, Any]:
    """Read the base of the rotary embedding (by default `theta`), and how it is stretched.

    It is plain where it turns all of each head in all layers alike, at its own pace or by YaRN.
    """
    theta = read.number("rope_theta", theta)
    plain = read.number("partial_rotary_factor", 1.0) == 1.0 and read.value("rotary_dim") is None
    yarn: Yarn | None = None
    for name in _SECTIONS:
        section = read.section(name)
        if section is None:
            continue
        by_kind = [part for kind in ("full_attention", "sliding_attention") if (part := section.section(kind))]
        for part in by_kind or [section]:
            kind = _type(part)
            plain = kind in (None, "default", "yarn") and not by_kind and plain
            plain &= part.number("partial_rotary_factor", 1.0) == 1.0
            yarn = _yarn(read, part) if kind == "yarn" and plain else yarn
            part.ignore_all()
        theta = (by_kind or [section])[0].number("rope_theta", theta)
    return {"rope_theta": theta, "plain_rope": plain, "yarn": yarn if plain else None}


def _type(section: Reader) -> Any:
    section.only("rope_type", *_TYPES)
    section.only("type", *_TYPES)
    return section.value("rope_type", "type")


def _yarn(read: Reader, section: Reader) -> Yarn:
    """Read YaRN's parameters; where its factor is missing it is that of the context over the original one."""
    context = read.integer("max_position_embeddings")
    original = section.integer("original_max_position_embeddings", default=context)
    factor = section.number("factor", context / original)
    part, whole = (section.value(name) for name in ("mscale", "mscale_all_dim"))
    usual = yarn_gain(factor, part) / yarn_gain(factor, whole) if part and whole else yarn_gain(factor)
    return Yarn(
        factor=factor,
        original_context_len=original,
        beta_fast=section.number("beta_fast", 32.0),
        beta_slow=section.number("beta_slow", 1.0),
        truncate=section.flag("truncate", True),
        rotary_scale=section.number("attention_factor", usual),
    )


def yarn_gain(factor: float, weight: float = 1.0) -> float:
    """Return how much longer contexts make attention sharper (arXiv 2309.00071, eq. 22)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
