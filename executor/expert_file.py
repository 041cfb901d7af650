"""All routed experts of a checkpoint in one file, one behind the other as the engine computes with them.

A block of JSON says what is in the file; then, layer by layer, each expert as `load_experts` lays it out, in the
policy's weight format, rounded up to whole blocks. It is made once per checkpoint and format, beside the checkpoint,
and made again when the checkpoint has changed.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from executor.direct import DirectFile, Reading, finish
from executor.loading import CheckpointReader
from executor.memory import torch_dtype
from executor.parameters import load_experts
from hrm.device.huge_pages import aligned_memory
from hrm.errors import FileError
from hrm.memory import DISK_BLOCK_BYTES, disk_expert_bytes
from hrm.model import ModelSpec
from hrm.policy import Policy
from hrm.units import format_bytes

__all__ = ["ExpertFile", "open_expert_file"]

_FORMAT = 1
_SYNC_BYTES = 64 << 20
"""Written bytes after which the disk is waited for and the page cache let go of: making the file holds no more."""


class ExpertFile:
    """The file, open; `read` fetches one expert.

    Raises
    ------
    FileError
        When the file is shorter than it should be.
    """

    def __init__(self, path: Path, policy: Policy, model: ModelSpec) -> None:
        self._model = model
        self.expert_bytes = disk_expert_bytes(policy, model)
        found, wanted = path.stat().st_size, _file_bytes(policy, model)
        if found != wanted:
            raise FileError(f"{path}: ends at byte {found}, expected {wanted} (delete it, it is made again)")
        self._file = DirectFile(path)

    def read(self, layer: int, expert: int, target: torch.Tensor) -> None:
        """Read an expert into `target`, `expert_bytes` of aligned memory."""
        finish(self.begin(layer, expert, target))

    def begin(self, layer: int, expert: int, target: torch.Tensor) -> Reading:
        """Ask for what `read` reads."""
        number = self._model.moe_layers.index(layer) * self._model.num_experts + expert
        return self._file.begin(DISK_BLOCK_BYTES + number * self.expert_bytes, target)


def open_expert_file(policy: Policy, model: ModelSpec, checkpoint_dir: Path) -> ExpertFile:
    """Open the file beside a checkpoint, made first where there is none or where it is another checkpoint's.

    Raises
    ------
    FileError
        When it cannot be made: no room (the text says how much is missing), or the disk fails (at which byte).
    """
    path = checkpoint_dir / f"experts-{policy.weight_dtype}.hrm-pages"
    header = _header(policy, model, checkpoint_dir)
    if not path.exists() or _header_of(path) != header:
        _make(path, header, policy, model, checkpoint_dir)
    return ExpertFile(path, policy, model)


def _header(policy: Policy, model: ModelSpec, folder: Path) -> dict[str, Any]:
    """Say what a file holds: format, shapes, and size and date of what it was made from."""
    sources = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    return {
        "format": _FORMAT,
        "dtype": str(policy.weight_dtype),
        "layers": list(model.moe_layers),
        "experts": model.num_experts,
        "expert_parameters": model.expert_parameters,
        "made_from": {source.name: [source.stat().st_size, source.stat().st_mtime_ns] for source in sources},
    }


def _header_of(path: Path) -> object:
    """Return what a file says of itself; None where that cannot be read."""
    try:
        with path.open("rb") as file:
            return json.loads(file.read(DISK_BLOCK_BYTES).rstrip(b"\0"))
    except (OSError, ValueError):
        return None


def _file_bytes(policy: Policy, model: ModelSpec) -> int:
    return DISK_BLOCK_BYTES + model.num_moe_layers * model.num_experts * disk_expert_bytes(policy, model)


def _make(path: Path, header: dict[str, Any], policy: Policy, model: ModelSpec, folder: Path) -> None:
    """Write the file under another name and give it its own when it is whole."""
    needed, free = _file_bytes(policy, model), shutil.disk_usage(folder).free
    if needed > free:
        raise FileError(
            f"{path}: needs {format_bytes(needed)}, {format_bytes(free)} are free "
            f"({format_bytes(needed - free)} missing: make room)"
        )
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb", buffering=0) as file:
            writing = _Writing(unfinished, file.fileno(), policy, model)
            text = json.dumps(header).encode()
            assert len(text) <= DISK_BLOCK_BYTES, "the header takes one block"
            writing.write(memoryview(text.ljust(DISK_BLOCK_BYTES, b"\0")))
            writing.experts(folder)
            writing.sync()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


class _Writing:
    """Writes experts one behind the other from one buffer."""

    def __init__(self, path: Path, handle: int, policy: Policy, model: ModelSpec) -> None:
        self._path, self._handle, self._model = path, handle, model
        self._buffer = aligned_memory(disk_expert_bytes(policy, model))
        dtype = torch_dtype(policy.weight_dtype)
        self._expert = self._buffer[: model.expert_parameters * dtype.itemsize].view(dtype)
        self._written = self._synced = 0
        self._filled = False

    def experts(self, folder: Path) -> None:
        """Write the experts of a checkpoint."""
        reader = CheckpointReader(folder)
        try:
            for layer in self._model.moe_layers:
                load_experts(reader, self._model, layer, self._next)
            self._flush()
        finally:
            reader.close()

    def _next(self, expert: int) -> torch.Tensor:  # noqa: ARG002
        """Write the expert in the buffer, if there is one, and make room for the next."""
        self._flush()
        self._filled = True
        return self._expert

    def _flush(self) -> None:
        if self._filled:
            self.write(self._buffer.numpy().data)
        self._filled = False

    def write(self, data: memoryview) -> None:
        """Write all of it."""
        while data:
            try:
                count = os.write(self._handle, data)
            except OSError as error:
                raise FileError(
                    f"{self._path}: cannot be written at byte {self._written}: {error.strerror} (make room)"
                ) from None
            self._written += count
            data = data[count:]
        if self._written - self._synced >= _SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        """See what was written through to the disk, and let the page cache go of it."""
        try:
            os.fsync(self._handle)
        except OSError as error:
            raise FileError(
                f"{self._path}: cannot be written before byte {self._written}: {error.strerror} (check the disk)"
            ) from None
        os.posix_fadvise(self._handle, 0, 0, os.POSIX_FADV_DONTNEED)
        self._synced = self._written
