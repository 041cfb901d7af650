"""How many distinct experts the tokens of a micro-batch hit: what decides how many expert weights are read.

Tokens are taken as independent of each other, each choosing an expert e of a layer with probability p_e; the p_e of a
layer add up to k. Expected distinct experts of t tokens: the sum over experts of 1 - (1 - p_e)^t.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.arrays import Reals
from hrm.errors import FileError, HrmError
from hrm.model import ModelSpec
from hrm.records import record
from hrm.units import NonNegative, Share

__all__ = ["UNIFORM", "Routing", "RoutingLaw"]

_OCTAVES, _STEPS = 20, 4
"""Laws without a closed form are tabulated at four token counts per octave, from one token to a million."""
_LEAST_MISSED = 1e-16
_MOST_TOKENS = 2**53
"""More than any run has, and counts that floating point still tells apart."""


class RoutingLaw(StrEnum):
    """Where the probabilities p_e come from."""

    UNIFORM = "uniform"
    """Every expert is as likely: k/n_e."""
    SKEWED = "skewed"
    """Zipf's law: proportional to 1/(e+1)^exponent, none above 1."""
    TRACE = "trace"
    """As often as each expert was chosen in a recorded run."""


@record
class Routing:
    """A routing law. It is part of the workload: which experts are hit depends on the text.

    `exponent` belongs to `skewed`. A `trace` carries its `source` and what was made of it: `missed[i]`, the mean share
    of a layer's experts that 2^(i/4) tokens leave out.
    """

    law: RoutingLaw = RoutingLaw.UNIFORM
    exponent: NonNegative = 0.0
    source: str = ""
    missed: tuple[Share, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a trace without its table, and a table or an exponent under another law."""
        if (self.law is RoutingLaw.TRACE) != bool(self.missed):
            raise HrmError(
                f"routing {self.law}: `missed` belongs to a trace, and to nothing else (read one from a file)"
            )
        if self.exponent and self.law is not RoutingLaw.SKEWED:
            raise HrmError(f"routing {self.law}: exponent {self.exponent:g} belongs to law skewed (choose that)")

    @classmethod
    def from_trace(cls, path: str | Path, model: ModelSpec) -> Routing:
        """Take the law from the choices recorded in a run, as JSON lines.

        `{"layer": i, "tokens": t, "chosen": [...]}` counts for each expert of layer i how often t tokens chose it, as
        `hrm run --record-routing` does; `{"layer": i, "experts": [[e, ...], ...]}` holds the k experts of each token. A
        layer may have several lines: its tokens add up. All layers weigh the same. Probabilities are the measured
        frequencies.

        Raises
        ------
        FileError
            When the file is missing or a line is broken or does not fit the model; with the line's number.
        """
        path = Path(path)
        counts: dict[int, NDArray[np.int64]] = {}
        for layer, chosen in _read_trace(path, model):
            counts.setdefault(layer, np.zeros(model.num_experts, np.int64))
            counts[layer] += chosen
        if not counts:
            raise FileError(f"{path}: holds no choices (write one JSON object a line)")
        chosen_by_layer = np.stack(list(counts.values()))
        tokens = chosen_by_layer.sum(axis=1, keepdims=True) / model.experts_per_token
        return cls(
            law=RoutingLaw.TRACE,
            source=f"{path.name}: {len(counts)} layers, {int(tokens.min())} tokens or more in each",
            missed=_missed(chosen_by_layer / tokens),
        )

    def describe(self) -> str:
        """Say which law this is, in a few words."""
        detail = {RoutingLaw.SKEWED: f" (Zipf exponent {self.exponent:g})", RoutingLaw.TRACE: f" ({self.source})"}
        return f"{self.law}{detail.get(self.law, '')}"

    def distinct_experts(self, model: ModelSpec, tokens: Reals) -> Reals:
        """Return the expected number of a layer's experts that at least one of `tokens` tokens is routed to.

        Uniform: n_e·(1 - (1 - k/n_e)^t). The other laws are read off a table, between whose points ln(-ln missed)
        runs straight over ln t; a uniform law would be exact there. From k at one token to n_e at most, growing with
        t, never above the uniform law; below one token in proportion to it.

        Raises
        ------
        HrmError
            When a trace was recorded with another model.
        """
        experts, chosen = model.num_experts, model.experts_per_token
        if self.law is RoutingLaw.UNIFORM:
            return experts * (1.0 - (1.0 - chosen / experts) ** tokens)
        missed = self.missed or _skewed_missed(experts, chosen, self.exponent)
        if abs(missed[0] - (1.0 - chosen / experts)) > 1e-6:
            raise HrmError(
                f"routing {self.describe()}: recorded with a model that uses {1.0 - missed[0]:.3g} of its experts per "
                f"token, {model.name} uses {chosen} of {experts} (record a trace with this model)"
            )
        step = _STEPS * np.log2(np.maximum(tokens, 1.0))
        decay = np.exp(np.interp(step, np.arange(len(missed)), _log_decay(missed)))
        found: Reals = experts * (1.0 - np.exp(-decay)) * np.minimum(tokens, 1.0)
        return found


UNIFORM = Routing()


def _missed(probabilities: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the mean share of experts left out, step by step; `probabilities` is layers x experts."""
    left_out = np.clip(1.0 - probabilities, 0.0, 1.0)
    return tuple(float(np.mean(left_out**2.0 ** (step / _STEPS))) for step in range(_OCTAVES * _STEPS + 1))


@lru_cache(maxsize=64)
def _log_decay(missed: tuple[float, ...]) -> NDArray[np.float64]:
    decay: NDArray[np.float64] = np.log(-np.log(np.clip(missed, _LEAST_MISSED, 1.0 - _LEAST_MISSED)))
    return decay


@lru_cache(maxsize=64)
def _skewed_missed(experts: int, chosen: int, exponent: float) -> tuple[float, ...]:
    """Tabulate p_e proportional to 1/(e+1)^exponent: the likeliest are held at 1, the rest share what is left of k."""
    weights = np.arange(1.0, experts + 1.0) ** -exponent
    certain = 0
    while certain < chosen and (chosen - certain) * weights[certain] > weights[certain:].sum():
        certain += 1
    probabilities = (chosen - certain) * weights / weights[certain:].sum()
    probabilities[:certain] = 1.0
    return _missed(probabilities)


def _read_trace(path: Path, model: ModelSpec) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield the layer of each line, and how often each of its experts was chosen there."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"{path}: cannot be read: {reason} (check the path)") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _choices(line, model, f"{path}, line {number}")


def _choices(line: str, model: ModelSpec, where: str) -> tuple[int, NDArray[np.int64]]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise FileError(f"{where}: not valid JSON at column {error.colno}: {error.msg}") from None
    keys = set(entry) if isinstance(entry, dict) else set()
    if keys not in ({"layer", "experts"}, {"layer", "tokens", "chosen"}):
        raise FileError(f"{where}: expected an object with the keys layer, tokens and chosen, or layer and experts")
    layer = entry["layer"]
    if not _is_index(layer, model.num_layers):
        raise FileError(f"{where}: layer: expected 0 to {model.num_layers - 1}, got {layer!r}")
    return layer, _of_each(entry["experts"], model, where) if "experts" in keys else _counted(entry, model, where)


def _of_each(tokens: Any, model: ModelSpec, where: str) -> NDArray[np.int64]:
    """Count the choices that are listed token by token."""
    if not isinstance(tokens, list) or not tokens or not all(_is_choice(token, model) for token in tokens):
        raise FileError(
            f"{where}: experts: expected for each token a list of {model.experts_per_token} different experts "
            f"from 0 to {model.num_experts - 1}"
        )
    return np.bincount([expert for token in tokens for expert in token], minlength=model.num_experts)


def _counted(entry: dict[str, Any], model: ModelSpec, where: str) -> NDArray[np.int64]:
    """Return choices that are counted already."""
    tokens, chosen = entry["tokens"], entry["chosen"]
    if not _is_index(tokens, _MOST_TOKENS) or not tokens:
        raise FileError(f"{where}: tokens: expected a positive integer, got {tokens!r}")
    total = tokens * model.experts_per_token
    whole = isinstance(chosen, list) and len(chosen) == model.num_experts
    if not whole or not all(_is_index(count, tokens + 1) for count in chosen) or sum(chosen) != total:
        raise FileError(
            f"{where}: chosen: expected {model.num_experts} counts from 0 to {tokens} that add up to {total} "
            f"({model.experts_per_token} experts a token)"
        )
    return np.array(chosen, np.int64)


def _is_index(value: Any, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end


def _is_choice(token: Any, model: ModelSpec) -> bool:
    if not isinstance(token, list) or not all(_is_index(expert, model.num_experts) for expert in token):
        return False
    return len(token) == len(set(token)) == model.experts_per_token
