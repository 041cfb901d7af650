"""MXFP4 (OCP Microscaling Formats v1.0): 32 elements of 4 bits, two a byte, share an exponent of 8 bits."""

from __future__ import annotations

import torch

__all__ = ["BLOCK", "from_mxfp4", "to_mxfp4"]

BLOCK = 32
_BIAS = 127
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def from_mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return float32 [..., 32 * n] of blocks [..., n, 16], lower half of each byte first, and scales [..., n]."""
    table = torch.tensor([*_MAGNITUDES, *(-value for value in _MAGNITUDES)])
    halves = torch.stack((blocks & 0x0F, blocks >> 4), dim=-1).flatten(-2)
    values = table[halves.to(torch.int32)]
    return torch.ldexp(values, scales.to(torch.int32).unsqueeze(-1) - _BIAS).flatten(-2)


def to_mxfp4(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return blocks and scales, as `from_mxfp4` takes them, of values [..., 32 * n], rounded to the nearest.

    The exponent is that of the block's largest magnitude, less two, as the format recommends: larger ones saturate.
    """
    grouped = values.float().unflatten(-1, (-1, BLOCK))  # type: ignore[no-untyped-call]
    _, exponents = torch.frexp(grouped.abs().amax(dim=-1))
    scales = (exponents - 3 + _BIAS).clamp(0, 254)
    scaled = torch.ldexp(grouped, (_BIAS - scales).unsqueeze(-1))
    steps = (scaled.abs().unsqueeze(-1) - torch.tensor(_MAGNITUDES)).abs().argmin(dim=-1)
    codes = (steps + 8 * torch.signbit(scaled)).to(torch.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, scales.to(torch.uint8)
