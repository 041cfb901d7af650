"""Reading Hugging Face `config.json` files: the only package that knows their key names and their families.

    reader    typed access to a configuration; refuses what nobody read
    harmless  the fields that change nothing that is counted
    parts     what many families describe alike
    dense, moe, mixed, latent     one short function for each family
    formats   number formats and quantisation

What is not understood is refused by the name of the field: an unknown `model_type`, a value beyond those a family's
reader knows, and any field that is neither read nor known to be harmless, unless it is off. A missing field takes the
default of the family's configuration class in transformers where that is a rule (as many key heads as query heads) or
off; where it is a size, the field is required. Published code is never executed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hrm.errors import FileError, ModelError
from hrm.files import read_json
from hrm.model import ModelSpec
from hrm.model_config.dense import DENSE
from hrm.model_config.formats import formats
from hrm.model_config.harmless import is_harmless
from hrm.model_config.latent import LATENT
from hrm.model_config.mixed import MIXED
from hrm.model_config.moe import MOE
from hrm.model_config.parts import Fields
from hrm.model_config.reader import Reader

__all__ = ["bundled_models", "from_hf_config", "load_model", "supported_families"]

_FAMILIES: dict[str, Callable[[Reader], Fields]] = {**DENSE, **MOE, **MIXED, **LATENT}

_TEXT_OF = {"gemma3": "gemma3_text", "glm4v_moe": "glm4v_moe_text", "llama4": "llama4_text"}
"""Families of a `text_config` without `model_type`, by that of the model around it."""

_NOT_MODELLED = {
    "linear_": "linear attention",
    "mamba_": "state-space layers",
    "ssm_": "state-space layers",
    "index_": "sparse attention with an indexer",
}
"""What the fields of families that are not supported are about, by how their names begin."""


def supported_families() -> list[str]:
    """Values of `model_type` that can be read; a model around one of them (`text_config`) can be too."""
    return sorted(_FAMILIES)


def _bundled_folder() -> Path:
    return Path(__file__).resolve().parent.parent / "model_configs"


def bundled_models() -> list[str]:
    """Names of the models that ship with the project."""
    return sorted(path.stem for path in _bundled_folder().glob("*.json"))


def load_model(name_or_path: str | Path) -> ModelSpec:
    """Load a model by bundled name, or from a checkpoint folder or a Hugging Face `config.json`.

    >>> load_model("mixtral-8x7b").total_parameters
    46702792704

    Raises
    ------
    FileError
        When nothing answers to the name.
    ModelError
        When the configuration is not understood, or contradicts itself.
    """
    path = Path(name_or_path)
    bundled = _bundled_folder() / f"{name_or_path}.json"
    if not path.exists() and bundled.is_file():
        return from_hf_config(read_json(bundled), name=str(name_or_path), where=bundled.name)
    if path.is_dir():
        path = path / "config.json"
        if not path.exists():
            raise FileError(f"{path.parent}: has no config.json (give a checkpoint folder)")
    if not path.exists():
        known = ", ".join(bundled_models())
        raise FileError(f"model {name_or_path}: no bundled model and no such file or folder (bundled: {known})")
    name = path.stem if path.name != "config.json" else path.resolve().parent.name
    return from_hf_config(read_json(path), name=name, where=str(path))


def from_hf_config(config: dict[str, Any], *, name: str, where: str) -> ModelSpec:
    """Turn a Hugging Face configuration into a `ModelSpec`; of a multimodal model, into that of its language model.

    Raises
    ------
    ModelError
        When the model type is not supported, or a field is missing, of the wrong kind, contradicted by another, or
        not understood.
    """
    text, path = _text_config(config, where)
    family = text.get("model_type")
    if family is None:
        raise ModelError(f"{where}: {path}model_type: required field is missing (add it)")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise ModelError(f"{where}: {path}model_type: {family!r} is not supported{_explain(family, text)}")
    read = Reader(text, where, path)
    fields = _FAMILIES[family](read) | formats(read)
    read.refuse_unread(family)
    return ModelSpec(name=name, family=family, **fields)


_OF_BOTH = ("dtype", "quantization_config", "tie_word_embeddings", "torch_dtype")
"""Fields that a multimodal model may give for its language model."""


def _text_config(config: dict[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """Find the configuration of the language model, and the path of its fields."""
    if "text_config" not in config:
        return config, ""
    text = config["text_config"]
    if not isinstance(text, dict):
        raise ModelError(f"{where}: text_config: expected a mapping, got {text!r}")
    given = {key: value for key, value in text.items() if value is not None}
    for key in given.keys() & config.keys():
        if not is_harmless(key) and config[key] not in (None, given[key]):
            raise ModelError(
                f"{where}: text_config.{key}: {given[key]!r} contradicts {key} {config[key]!r} (correct one)"
            )
    inherited = {key: config[key] for key in _OF_BOTH if key in config}
    family = {"model_type": _TEXT_OF.get(str(config.get("model_type")))}
    return {**text, **family, **inherited, **given}, "text_config."


def _explain(family: object, config: dict[str, Any]) -> str:
    """Say what a model has that is not modelled, where its fields tell, and which families are nearest."""
    reasons = (
        f"; {key} tells of {what}, which is not modelled"
        for key in config
        for prefix, what in _NOT_MODELLED.items()
        if key.startswith(prefix)
    )
    nearest = difflib.get_close_matches(str(family), _FAMILIES, cutoff=0.5)
    hint = f"nearest supported: {', '.join(nearest)}" if nearest else f"supported: {', '.join(supported_families())}"
    return f"{next(reasons, '')} ({hint})"
