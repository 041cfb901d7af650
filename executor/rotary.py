"""How positions enter: tables of cosines and sines, stretched by YaRN where the model is, and the rotation by them."""

from __future__ import annotations

import torch

from executor import native
from hrm.model import ModelSpec

__all__ = ["RotaryTable", "rotate"]


class RotaryTable:
    """Cosines and sines of every position up to a length: [positions, 1, rotary_dim / 2], computed in float32."""

    def __init__(self, model: ModelSpec, positions: int, dtype: torch.dtype, device: torch.device) -> None:
        angles = torch.outer(torch.arange(positions, dtype=torch.float32), _frequencies(model))
        scale = 1.0 if model.yarn is None else model.yarn.rotary_scale
        self._cos = (angles.cos() * scale).to(device, dtype).unsqueeze(1)
        self._sin = (angles.sin() * scale).to(device, dtype).unsqueeze(1)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines of these positions."""
        return self._cos.index_select(0, positions), self._sin.index_select(0, positions)


def _frequencies(model: ModelSpec) -> torch.Tensor:
    """Return radians per position of each pair of elements [rotary_dim / 2]."""
    dim, yarn = model.rotary_dim, model.yarn
    plain = 1.0 / model.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if yarn is None:
        return plain
    low, high = yarn.ramp(dim, model.rope_theta)
    slowed = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain / yarn.factor * slowed + plain * (1 - slowed)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
    """Rotate x [tokens, heads, rotary_dim] by its positions into `out`, pairing element i with i + rotary_dim / 2."""
    if native.suits_rows(x, cos, sin, out):
        native.rotate(x, cos, sin, out, torch.get_num_threads())
        return
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
