"""Reading Hugging Face safetensors checkpoints: one file or shards, experts one by one or fused, tied embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from executor.mapped import let_go
from hrm.errors import FileError
from hrm.files import read_json
from hrm.model import ModelSpec

__all__ = ["CheckpointReader", "load_dense", "load_experts"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


class CheckpointReader:
    """The tensors of a checkpoint folder by name; files stay open (memory-mapped) until `close`.

    Whoever has copied a tensor, or a slice of one, releases it, so that a file's pages do not pile up in memory.

    Raises
    ------
    FileError
        When a file is missing, truncated or no safetensors file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files: dict[Path, Any] = {}
        self._path_of: dict[str, Path] = {}
        self._mapped: set[int] = set()
        index = self.folder / _INDEX
        if index.is_file():
            for name, file in _weight_map(index).items():
                self._path_of[name] = self.folder / str(file)
        elif (self.folder / _SINGLE).is_file():
            path = self.folder / _SINGLE
            self._path_of = dict.fromkeys(self._open(path).keys(), path)
        else:
            raise FileError(f"{self.folder}: holds neither {_SINGLE} nor {_INDEX} (is it a checkpoint folder?)")

    def __contains__(self, name: str) -> bool:
        """Whether the checkpoint lists a tensor of this name."""
        return name in self._path_of

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a tensor as stored (memory-mapped, any dtype).

        Raises
        ------
        FileError
            When it is missing or has another shape; the text names the file and the tensor.
        """
        path = self._path_of.get(name)
        if path is None:
            raise FileError(f"{self.folder}: tensor {name} is missing (the checkpoint is incomplete)")
        try:
            tensor: torch.Tensor = self._open(path).get_tensor(name)
        except SafetensorError as error:
            raise FileError(f"{path}: tensor {name} cannot be read: {error} (fetch the file again)") from None
        if tuple(tensor.shape) != shape:
            raise FileError(
                f"{path}: tensor {name} has shape {list(tensor.shape)}, expected {list(shape)} from config.json"
            )
        self._mapped.add(tensor.untyped_storage().data_ptr())
        return tensor

    def release(self, tensor: torch.Tensor) -> None:
        """Let go of the memory of a tensor that was read, or of a slice of it; another tensor's is left alone."""
        if tensor.untyped_storage().data_ptr() in self._mapped:
            let_go(tensor)

    def close(self) -> None:
        """Let go of the files."""
        self._files.clear()

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            try:
                self._files[path] = safe_open(path, framework="pt")
            except FileNotFoundError:
                raise FileError(f"{path}: no such file, though {_INDEX} names it (fetch it)") from None
            except (SafetensorError, OSError) as error:
                raise FileError(f"{path}: not a whole safetensors file: {error} (fetch it again)") from None
        return self._files[path]


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise FileError(f"{index}: weight_map: missing, expected a mapping of tensor names to files")
    return weight_map


def load_experts(reader: CheckpointReader, model: ModelSpec, layer: int, target: Callable[[int], torch.Tensor]) -> None:
    """Copy a layer's experts into place: `target(expert)` is flat, gate, up and down one behind the other."""
    split = 2 * model.intermediate_size * model.hidden_size
    for expert, parts in enumerate(_experts(reader, model, f"model.layers.{layer}")):
        flat = target(expert)
        for part, tensors in ((flat[:split], parts[:-1]), (flat[split:], parts[-1:])):
            for place, tensor in zip(part.chunk(len(tensors)), tensors, strict=True):
                place.view(tensor.shape).copy_(tensor)
                reader.release(tensor)


def _experts(reader: CheckpointReader, model: ModelSpec, prefix: str) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield each expert's matrices: gate, up, down, or gate and up in one, then down."""
    up, down = (model.intermediate_size, model.hidden_size), (model.hidden_size, model.intermediate_size)
    if model.family == "llama":
        names = (("gate_proj", up), ("up_proj", up), ("down_proj", down))
        yield tuple(reader.read(f"{prefix}.mlp.{name}.weight", shape) for name, shape in names)
    elif f"{prefix}.mlp.experts.gate_up_proj" in reader:
        fused = reader.read(f"{prefix}.mlp.experts.gate_up_proj", (model.num_experts, 2 * up[0], up[1]))
        downs = reader.read(f"{prefix}.mlp.experts.down_proj", (model.num_experts, *down))
        yield from zip(fused, downs, strict=True)
    else:
        for expert in range(model.num_experts):
            names = (("w1", up), ("w3", up), ("w2", down))
            stem = f"{prefix}.block_sparse_moe.experts.{expert}"
            yield tuple(reader.read(f"{stem}.{name}.weight", shape) for name, shape in names)


def load_dense(
    reader: CheckpointReader, model: ModelSpec, place: Callable[[tuple[torch.Tensor, ...]], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Read what is no expert; `place` stores tensors one behind the other as one tensor where they are to lie.

    Keys are `embedding`, `final_norm`, `head`, and per layer `L.input_norm`, `L.qkv`, `L.output`, `L.post_norm` and,
    in a mixture, `L.router`.
    """
    hidden, vocab = model.hidden_size, (model.vocab_size, model.hidden_size)
    placed = {"embedding": place((reader.read("model.embed_tokens.weight", vocab),))}
    for layer in range(model.num_layers):
        for name, sources in _layer_sources(reader, model, f"model.layers.{layer}").items():
            placed[f"{layer}.{name}"] = place(tuple(reader.read(source, shape) for source, shape in sources.items()))
    placed["final_norm"] = place((reader.read("model.norm.weight", (hidden,)),))
    tied = model.tie_word_embeddings
    placed["head"] = placed["embedding"] if tied else place((reader.read("lm_head.weight", vocab),))
    return placed


def _layer_sources(reader: CheckpointReader, model: ModelSpec, prefix: str) -> dict[str, dict[str, tuple[int, ...]]]:
    hidden = model.hidden_size
    attention = f"{prefix}.self_attn"
    sources: dict[str, dict[str, tuple[int, ...]]] = {
        "input_norm": {f"{prefix}.input_layernorm.weight": (hidden,)},
        "qkv": {
            f"{attention}.q_proj.weight": (model.query_size, hidden),
            f"{attention}.k_proj.weight": (model.kv_size, hidden),
            f"{attention}.v_proj.weight": (model.kv_size, hidden),
        },
        "output": {f"{attention}.o_proj.weight": (hidden, model.query_size)},
        "post_norm": {f"{prefix}.post_attention_layernorm.weight": (hidden,)},
    }
    if model.family == "mixtral":
        fused = f"{prefix}.mlp.gate.weight"
        name = fused if fused in reader else f"{prefix}.block_sparse_moe.gate.weight"
        sources["router"] = {name: (model.num_experts, hidden)}
    return sources
