"""Which tensors a checkpoint of any family that is run holds: those that loading it asks for."""

from __future__ import annotations

import torch

from executor.parameters import experts_of, load_dense
from hrm.model import ModelSpec

__all__ = ["tensors_of"]


def tensors_of(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """List every tensor by name with its shape: experts one by one, or fused where the family has them so."""
    asked = _Asked()
    load_dense(asked, model, lambda tensors, _kept=None: tensors[0])
    for layer in model.moe_layers:
        for _ in experts_of(asked, model, layer):
            pass
    return asked.shapes


class _Asked:
    """Notes what is read; matrices that it returns have a shape but no memory."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __contains__(self, name: str) -> bool:
        return False

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        self.shapes[name] = shape
        return torch.empty(shape, device="meta" if len(shape) > 1 else "cpu")

    def release(self, tensor: torch.Tensor) -> None:
        """Hold nothing in the first place."""
