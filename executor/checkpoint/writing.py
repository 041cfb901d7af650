"""Writing a checkpoint folder: one tensor in memory at a time, and the folder appears whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from executor.checkpoint.content import Content, stored_bytes, stored_dtype
from hrm.errors import FileError
from hrm.files import write_json
from hrm.units import format_bytes

__all__ = ["SHARD_BYTES", "write_checkpoint"]

SHARD_BYTES = 10**9

_SAFETENSORS_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def write_checkpoint(dest: str | Path, content: Content, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a Hugging Face checkpoint folder: config, safetensors shards and their index, and the files beside them.

    Raises
    ------
    FileError
        When `dest` exists and is not an empty folder, its parent is missing, or the disk is too small.
    """
    dest = Path(dest)
    with _atomic_folder(dest, needed_bytes=stored_bytes(content)) as folder:
        for name, data in content.side_files.items():
            (folder / name).write_bytes(data)
        write_json(folder / "config.json", content.config)
        dtype = stored_dtype(content.spec.dtype)
        shards = _split(content.shapes, dtype, shard_bytes)
        names = _shard_names(len(shards))
        for name, shapes in zip(names, shards, strict=True):
            _write_shard(folder / name, shapes, dtype, content.read)
        if len(shards) > 1:
            _write_index(folder, dict(zip(names, shards, strict=True)), stored_bytes(content))


@contextmanager
def _atomic_folder(dest: Path, *, needed_bytes: int) -> Iterator[Path]:
    parent = dest.absolute().parent
    if not parent.is_dir():
        raise FileError(f"{dest}: the folder {parent} does not exist (make it first)")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise FileError(f"{dest}: already exists (remove it, or choose another name)")
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < needed_bytes:
        needed, free = format_bytes(needed_bytes), format_bytes(free_bytes)
        raise FileError(f"{dest}: the checkpoint takes {needed}, the disk has {free} free (choose another disk)")
    temporary: Path | None = None
    try:
        temporary = Path(tempfile.mkdtemp(dir=parent, prefix=f".{dest.name}."))
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(dest)
    except OSError as error:
        raise FileError(f"{dest}: cannot be written: {error.strerror or error} (check the disk)") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _split(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, shard_bytes: int
) -> list[dict[str, tuple[int, ...]]]:
    """Cut the tensors, in order, into shards of at most `shard_bytes` (a larger tensor has a shard of its own)."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    used_bytes = 0
    for name, shape in shapes.items():
        size_bytes = math.prod(shape) * dtype.itemsize
        if shards[-1] and used_bytes + size_bytes > shard_bytes:
            shards.append({})
            used_bytes = 0
        shards[-1][name] = shape
        used_bytes += size_bytes
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]


def _write_shard(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, read: Callable[[str], torch.Tensor]
) -> None:
    """Write one safetensors file; its header needs only names and shapes, so the tensors can follow one by one."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _SAFETENSORS_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = read(name)
            assert tuple(tensor.shape) == shape, name
            stream.write(tensor.to(dtype).contiguous().view(-1).view(torch.uint8).numpy().data)
        stream.flush()
        os.fsync(stream.fileno())


def _write_index(folder: Path, shards: dict[str, dict[str, tuple[int, ...]]], total_bytes: int) -> None:
    weight_map = {name: file for file, shapes in shards.items() for name in shapes}
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
