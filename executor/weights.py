"""Where the weights lie: dense ones and resident experts on the main device, all other experts in host memory."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from executor.decoder import ModelWeights
from executor.disk import DiskStore
from executor.loading import CheckpointReader
from executor.memory import main_memory, pinned_memory, torch_dtype
from executor.parameters import load_dense, load_experts
from hrm.device.backend import Backend
from hrm.model import ModelSpec
from hrm.policy import Policy, Staging
from hrm.schedule.task import IN_FLIGHT

__all__ = ["ExpertStore", "load_weights", "page_bounds"]

_PAGE_ALIGNMENT_BYTES = 64


def page_bounds(num_elements: int, num_pages: int, itemsize: int) -> tuple[int, ...]:
    """Cut a flat range into nearly equal pages whose boundaries are 64-byte aligned: `num_pages + 1` bounds.

    >>> page_bounds(100, 3, 4)
    (0, 32, 64, 100)
    """
    step = _PAGE_ALIGNMENT_BYTES // itemsize
    inner = (num_elements * page // num_pages // step * step for page in range(1, num_pages))
    return (0, *inner, num_elements)


class ExpertStore:
    """The experts of all layers: resident ones, streamed ones in host memory, and at last those that the CPU computes.

    `use` numbers the layers with experts over the whole run. It decides the slot of a layer's streamed experts.
    """

    def __init__(self, policy: Policy, model: ModelSpec, backend: Backend) -> None:
        dtype = torch_dtype(policy.weight_dtype)
        staged = policy.staging is Staging.PAGEABLE
        self._backend = backend
        self._expert = model.expert_parameters
        self._num_pages = policy.num_pages
        counts = (policy.resident_experts, policy.streamed_experts(model))
        resident, streamed = ((count * self._expert,) for count in counts)
        pinned = backend.host_empty if staged else pinned_memory(backend)
        self._resident = {layer: backend.empty(resident, dtype) for layer in model.moe_layers}
        self._streamed = {layer: pinned(streamed, dtype) for layer in model.moe_layers}
        on_cpu = policy.experts_on_cpu(model)
        self._on_cpu = {
            layer: backend.host_empty(((on_cpu - on_disk) * self._expert,), dtype)
            for layer, on_disk in policy.disk_experts_of(model).items()
        }
        self.bounds = page_bounds(*streamed, policy.num_pages, dtype.itemsize)
        self._slots = [backend.empty(streamed, dtype).zero_() for _ in range(IN_FLIGHT if counts[1] else 0)]
        largest = max(last - first for first, last in pairwise(self.bounds))
        staging_pages = IN_FLIGHT if self._slots and staged else 0
        self._staging = [pinned_memory(backend)((largest,), dtype).zero_() for _ in range(staging_pages)]

    def home(self, layer: int, expert: int) -> torch.Tensor:
        """Return where an expert's weights lie for good: flat, in device or host memory."""
        flats = (self._resident[layer], self._streamed[layer], self._on_cpu[layer])
        return self._each(flats)[expert]

    def on_gpu(self, layer: int, use: int) -> list[torch.Tensor]:
        """Return the experts that the GPU computes, the first ones; streamed ones lie in the slot of this use."""
        slot = self._slots[use % IN_FLIGHT] if self._slots else self._streamed[layer]
        return self._each((self._resident[layer], slot))

    def on_cpu(self, layer: int) -> list[torch.Tensor]:
        """Return the experts in host memory that the CPU computes: the last ones, but for those on disk."""
        return self._each((self._on_cpu[layer],))

    def _each(self, flats: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        return [flat[at : at + self._expert] for flat in flats for at in range(0, flat.numel(), self._expert)]

    def pin_page(self, layer: int, page: int, use: int) -> None:
        """Copy a page from pageable memory into a pinned staging page."""
        source = self._streamed[layer][self.bounds[page] : self.bounds[page + 1]]
        self._staging_page(page, use)[: source.numel()].copy_(source)

    def copy_page(self, layer: int, page: int, use: int) -> None:
        """Copy a page over the link into the slot of this use."""
        first, last = self.bounds[page : page + 2]
        if first == last:
            return
        staged = self._staging_page(page, use)[: last - first] if self._staging else self._streamed[layer][first:last]
        self._backend.copy(self._slots[use % IN_FLIGHT][first:last], staged)

    def _staging_page(self, page: int, use: int) -> torch.Tensor:
        return self._staging[(use * self._num_pages + page) % IN_FLIGHT]


def load_weights(
    policy: Policy, model: ModelSpec, folder: Path, backend: Backend, disk: DiskStore | None = None
) -> tuple[ModelWeights, ExpertStore]:
    """Read a checkpoint straight to where the policy wants it, in the policy's weight dtype.

    With some experts on disk, the others come from there too.

    Raises
    ------
    FileError
        When a file or tensor is missing, truncated, or of the wrong shape.
    OutOfMemoryError
        When the device cannot hold what the policy puts there.
    """
    dtype = torch_dtype(policy.weight_dtype)
    allocate = main_memory(policy, backend)
    reader = CheckpointReader(folder)

    def place(tensors: tuple[torch.Tensor, ...], kept: torch.dtype | None = None) -> torch.Tensor:
        rows = sum(len(tensor) for tensor in tensors)
        target = allocate((rows, *tensors[0].shape[1:]), kept or dtype)
        for part, tensor in zip(torch.split(target, [len(tensor) for tensor in tensors]), tensors, strict=True):
            part.copy_(tensor)
            reader.release(tensor)
        return target

    try:
        weights = load_dense(reader, model, place)
    finally:
        reader.close()
    store = ExpertStore(policy, model, backend)
    if disk is not None:
        for layer in model.moe_layers:
            for expert in range(disk.kept(layer)):
                disk.load(layer, expert, store.home(layer, expert))
        return weights, store
    reader = CheckpointReader(folder)
    try:
        for layer in model.moe_layers:
            load_experts(reader, model, layer, partial(store.home, layer))
    finally:
        reader.close()
    return weights, store
