"""Reading Hugging Face `config.json` files: the only module that knows their key names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hrm.dtypes import DType
from hrm.errors import FileError, ModelError
from hrm.files import read_json
from hrm.model import ModelSpec

__all__ = ["bundled_models", "from_hf_config", "load_model"]

SUPPORTED = ("llama", "mixtral")


def _bundled_folder() -> Path:
    return Path(__file__).resolve().parent / "model_configs"


def bundled_models() -> list[str]:
    """Names of the models that ship with the project."""
    return sorted(path.stem for path in _bundled_folder().glob("*.json"))


def load_model(name_or_path: str | Path) -> ModelSpec:
    """Load a model by bundled name, or from a checkpoint folder or a Hugging Face `config.json`.

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
    """Turn a Hugging Face configuration into a `ModelSpec`.

    Raises
    ------
    ModelError
        When the model type is not supported, or a field is missing, of the wrong kind, or not understood.
    """
    family = config.get("model_type")
    if family not in SUPPORTED:
        raise ModelError(f"{where}: model_type: {family!r} is not supported (supported: {', '.join(SUPPORTED)})")
    read = _Reader(config, where)
    read.refuse("sliding_window", None)
    read.refuse("hidden_act", "silu")
    read.refuse("rope_scaling", None)
    read.refuse("attention_bias", False)
    read.refuse("mlp_bias", False)
    hidden_size, heads = read.integer("hidden_size"), read.integer("num_attention_heads")
    kv_heads = read.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ModelError(
            f"{where}: num_key_value_heads: {kv_heads} does not divide num_attention_heads {heads} (correct one)"
        )
    num_experts = read.integer("num_local_experts") if family == "mixtral" else 1
    experts_per_token = read.integer("num_experts_per_tok") if family == "mixtral" else 1
    if experts_per_token > num_experts:
        raise ModelError(
            f"{where}: num_experts_per_tok: {experts_per_token} exceeds num_local_experts {num_experts} (correct one)"
        )
    return ModelSpec(
        name=name,
        family=family,
        num_layers=read.integer("num_hidden_layers"),
        hidden_size=hidden_size,
        intermediate_size=read.integer("intermediate_size"),
        num_query_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=read.integer("head_dim", hidden_size // heads),
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        vocab_size=read.integer("vocab_size"),
        max_position_embeddings=read.integer("max_position_embeddings"),
        rms_norm_eps=read.number("rms_norm_eps", 1e-5),
        rope_theta=read.rope_theta(),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        dtype=read.dtype(),
    )


class _Reader:
    """Typed access to a configuration, with errors that name the file and the field."""

    def __init__(self, config: dict[str, Any], where: str) -> None:
        self.config = config
        self.where = where

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"{self.where}: {key}: required field is missing (add it)")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"{self.where}: {key}: expected a positive integer, got {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.config.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise ModelError(f"{self.where}: {key}: expected a positive number, got {value!r}")
        return float(value)

    def refuse(self, key: str, allowed: object) -> None:
        value = self.config.get(key, allowed)
        if value is not None and value != allowed:
            raise ModelError(f"{self.where}: {key}: {value!r} is not supported (only {allowed!r})")

    def rope_theta(self) -> float:
        parameters = self.config.get("rope_parameters")
        if parameters is None:
            return self.number("rope_theta", 1e4)
        if not isinstance(parameters, dict):
            raise ModelError(f"{self.where}: rope_parameters: expected a mapping, got {parameters!r}")
        if parameters.get("rope_type", "default") != "default":
            raise ModelError(
                f"{self.where}: rope_parameters.rope_type: {parameters['rope_type']!r} is unsupported (only 'default')"
            )
        return _Reader(parameters, f"{self.where}: rope_parameters").number("rope_theta", 1e4)

    def dtype(self) -> DType:
        name = self.config.get("dtype") or self.config.get("torch_dtype") or "bfloat16"
        try:
            return DType(name)
        except ValueError:
            allowed = ", ".join(DType)
            raise ModelError(f"{self.where}: torch_dtype: {name!r} is not supported (one of {allowed})") from None
