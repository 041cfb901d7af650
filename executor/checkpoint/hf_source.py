"""Reading a dense Hugging Face checkpoint folder, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from executor.checkpoint.content import TOKEN_IDS, Content, check_tensors
from executor.supported import check_model
from hrm.dtypes import DType
from hrm.errors import FileError, ModelError
from hrm.files import read_json
from hrm.model_config import from_hf_config

__all__ = ["open_hf_folder"]

SIDE_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


@contextmanager
def open_hf_folder(folder: Path) -> Iterator[Content]:
    """Open a dense Llama-family checkpoint folder of safetensors files.

    Raises
    ------
    FileError
        When a file is missing or truncated, or a tensor is missing.
    ModelError
        When the model is not a plain dense Llama (Mistral without a sliding window is one).
    """
    config = read_json(folder / "config.json")
    spec = from_hf_config(config, name=folder.name, where=str(folder / "config.json"))
    if spec.family == "mistral":
        spec = replace(spec, family="llama")
    check_model(spec)
    if spec.family != "llama":
        raise ModelError(f"{folder}: is a {spec.family} checkpoint already (give a dense Llama-family one)")
    with ExitStack() as stack:
        holders = _open_shards(folder, stack)
        shapes = {name: tuple(holder.get_slice(name).get_shape()) for name, holder in holders.items()}
        check_tensors(spec, shapes, folder)

        def read(name: str) -> torch.Tensor:
            tensor: torch.Tensor = holders[name].get_tensor(name)
            return tensor

        yield Content(
            spec=replace(spec, dtype=_held_dtype(read("model.embed_tokens.weight"), folder)),
            read=read,
            token_ids={key: config.get(key) for key in TOKEN_IDS},
            side_files={name: (folder / name).read_bytes() for name in SIDE_FILES if (folder / name).is_file()},
        )


def _held_dtype(tensor: torch.Tensor, folder: Path) -> DType:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16):
        raise ModelError(f"{folder}: tensors are {name} (give a float32, bfloat16 or float16 checkpoint)")
    return DType(name)


def _open_shards(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Map each tensor's name to the open file that holds it."""
    holders: dict[str, Any] = {}
    for path in _shard_paths(folder):
        try:
            holder = stack.enter_context(safe_open(path, framework="pt"))
        except FileNotFoundError:
            raise FileError(f"{path}: no such file (fetch the checkpoint again)") from None
        except (SafetensorError, OSError) as error:
            raise FileError(f"{path}: not a whole safetensors file: {error} (fetch it again)") from None
        holders.update(dict.fromkeys(holder.keys(), holder))
    return holders


def _shard_paths(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise FileError(f"{index}: weight_map: required field is missing (fetch the checkpoint again)")
    return [folder / name for name in sorted(set(weight_map.values()))]
