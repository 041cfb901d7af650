"""Reading Hugging Face safetensors checkpoints: one file or shards, tensors by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from executor.mapped import drop_cache, let_go
from hrm.errors import FileError
from hrm.files import read_json

__all__ = ["CheckpointReader"]

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
        """Let go of the files, and of what the page cache holds of them."""
        paths = list(self._files)
        self._files.clear()
        for path in paths:
            drop_cache(path)

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
