"""Copies of tensors with gaps: what a link moves is always without."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hrm.errors import DeviceError

if TYPE_CHECKING:
    import torch

__all__ = ["parts"]


def parts(target: torch.Tensor, source: torch.Tensor) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Cut two tensors into pairs without gaps: they themselves, or their entries along the first dimension.

    Raises
    ------
    DeviceError
        When they differ in size or dtype, or an entry has gaps.
    """
    if target.dtype != source.dtype or target.numel() != source.numel():
        raise DeviceError(
            f"copy of {source.numel()} {source.dtype} into {target.numel()} {target.dtype}: sizes and dtypes differ"
        )
    if target.is_contiguous() and source.is_contiguous():
        return ((target, source),)
    pairs = tuple(zip(target, source, strict=True)) if target.shape == source.shape else ()
    if not pairs or not all(part.is_contiguous() for pair in pairs for part in pair):
        raise DeviceError("copy of a tensor with gaps: give two of one shape, each entry of the first dimension whole")
    return pairs
