"""Where tensors are put: on the device that does most of the work, or in host memory that copies leave from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hrm.device.backend import Backend
from hrm.policy import Policy, Processor

__all__ = ["Allocate", "main_device", "main_memory", "pinned_memory", "torch_dtype"]

Allocate = Callable[[Sequence[int], torch.dtype], torch.Tensor]


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype of a `DType` that torch computes with."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def main_device(policy: Policy, backend: Backend) -> torch.device:
    """Return the device that runs all but attention over a cache on the host and the CPU's experts."""
    return backend.device if policy.main_device is Processor.GPU else torch.device("cpu")


def main_memory(policy: Policy, backend: Backend) -> Allocate:
    """Return what allocates on that device."""
    return backend.empty if policy.main_device is Processor.GPU else backend.host_empty


def pinned_memory(backend: Backend) -> Allocate:
    """Return what allocates host memory that the link reads and writes at its full pace."""

    def pinned(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return backend.host_empty(shape, dtype, pinned=True)

    return pinned
