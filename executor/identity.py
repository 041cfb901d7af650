"""What makes two runs the same job: hashes of the plan, the checkpoint, the prompts and how they are answered."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from executor.engine import Runnable
from executor.sampling import Settings
from hrm.errors import FileError
from hrm.files import to_plain

__all__ = ["identity"]

_SUFFIXES = (".jinja", ".json", ".safetensors")
_EDGE_BYTES = 1 << 16


def identity(plan: Runnable, checkpoint: Path, prompts: Path, settings: Settings) -> dict[str, str]:
    """Return a hash for each thing that answers depend on; of a plan its prediction is none of them."""
    return {
        "plan": _hash_of([to_plain(part) for part in (plan.policy, plan.model, plan.workload)]),
        "checkpoint": _checkpoint_hash(checkpoint),
        "prompt file": hashlib.sha256(prompts.read_bytes()).hexdigest(),
        "choice of --temperature, --top-k, --top-p, --seed, --stop, --max-new-tokens, --ignore-eos": _hash_of(
            to_plain(settings)
        ),
    }


def _hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _checkpoint_hash(folder: Path) -> str:
    """Hash the name, the size, the beginning and the end of each file: a checkpoint is too large to read twice."""
    if not folder.is_dir():
        raise FileError(f"--checkpoint {folder}: no such folder (give a checkpoint folder)")
    hashed = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file()):
        size = path.stat().st_size
        hashed.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            hashed.update(stream.read(_EDGE_BYTES))
            stream.seek(max(size - _EDGE_BYTES, 0))
            hashed.update(stream.read(_EDGE_BYTES))
    return hashed.hexdigest()
