"""Where the weights lie: dense ones and resident experts on the main device, all other experts in host memory."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from executor.decoder import ModelWeights
from executor.disk import DiskStore
from executor.loading import CheckpointReader
from executor.memory import Allocate, main_memory, pinned_memory, torch_dtype
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

    `use` numbers the layers with experts over the whole run. It decides the slot of a layer's streamed experts, of
    which the last ones may lie on `disk`; with everything on the CPU, the last ones of all.
    """

    def __init__(self, policy: Policy, model: ModelSpec, backend: Backend, disk: DiskStore | None = None) -> None:
        dtype = torch_dtype(policy.weight_dtype)
        self._backend, self._disk = backend, disk
        self._expert = model.expert_parameters
        self._resident = self._flats(dict.fromkeys(model.moe_layers, policy.resident_experts), backend.empty, dtype)
        on_disk, none = policy.disk_experts_of(model), dict.fromkeys(model.moe_layers, 0)
        of_cpu, of_link = (on_disk, none) if policy.computes_from_disk else (none, on_disk)
        on_cpu, streamed = policy.experts_on_cpu(model), policy.streamed_experts(model)
        staged = policy.staging is Staging.PAGEABLE
        pinned = backend.host_empty if staged else pinned_memory(backend)
        self._streamed = self._flats({layer: streamed - of_link[layer] for layer in of_link}, pinned, dtype)
        self._on_cpu = self._flats({layer: on_cpu - of_cpu[layer] for layer in of_cpu}, backend.host_empty, dtype)
        self._of_cpu = {layer: self._each((flat,)) for layer, flat in self._on_cpu.items()}
        self.bounds = self._bounds(streamed, policy.num_pages(model), dtype.itemsize)
        self._pages_in_memory = policy.pages_in_memory(model)
        slot = (streamed * self._expert,)
        self._slots = [backend.empty(slot, dtype).zero_() for _ in range(IN_FLIGHT if streamed else 0)]
        largest = max(last - first for first, last in pairwise(self.bounds))
        staging_pages = IN_FLIGHT if self._slots and staged and self._pages_in_memory else 0
        self._staging = [pinned_memory(backend)((largest,), dtype).zero_() for _ in range(staging_pages)]

    def _flats(self, counts: dict[int, int], allocate: Allocate, dtype: torch.dtype) -> dict[int, torch.Tensor]:
        """Allocate so many experts of each layer."""
        return {layer: allocate((count * self._expert,), dtype) for layer, count in counts.items()}

    def _bounds(self, streamed: int, num_pages: int, itemsize: int) -> tuple[int, ...]:
        """Cut a layer's streamed experts into pages; with some on disk, into the experts themselves."""
        if self._disk is not None and streamed:
            return tuple(range(0, streamed * self._expert + 1, self._expert))
        return page_bounds(streamed * self._expert, num_pages, itemsize)

    def home(self, layer: int, number: int) -> torch.Tensor:
        """Return where the so-many-th expert that is not on disk lies for good: flat, in device or host memory."""
        flats = (self._resident[layer], self._streamed[layer], self._on_cpu[layer])
        return self._each(flats)[number]

    def on_gpu(self, layer: int, use: int) -> list[torch.Tensor]:
        """Return the experts that the GPU computes, the first ones; streamed ones lie in the slot of this use."""
        slot = self._slots[use % IN_FLIGHT] if self._slots else self._streamed[layer]
        return self._each((self._resident[layer], slot))

    def on_cpu(self, layer: int) -> list[torch.Tensor]:
        """Return the experts in host memory that the CPU computes: the last ones, but for those on disk."""
        return self._of_cpu[layer]

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
        target = self._slots[use % IN_FLIGHT][first:last]
        if self._disk is not None and page >= self._pages_in_memory:
            self._copy_from_disk(target, self._disk)
            return
        staged = self._staging_page(page, use)[: last - first] if self._staging else self._streamed[layer][first:last]
        self._backend.copy(target, staged)

    def _copy_from_disk(self, target: torch.Tensor, disk: DiskStore) -> None:
        """Copy the expert that has come, and let its buffer be filled again once that has crossed."""
        self._backend.copy(target, disk.expert())
        self._backend.await_copies()
        disk.used()

    def _staging_page(self, page: int, use: int) -> torch.Tensor:
        return self._staging[(use * self._pages_in_memory + page) % IN_FLIGHT]


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
    store = ExpertStore(policy, model, backend, disk)
    if disk is not None:
        for layer in model.moe_layers:
            for number, expert in enumerate(disk.kept(layer)):
                disk.load(layer, expert, store.home(layer, number))
        return weights, store
    reader = CheckpointReader(folder)
    try:
        for layer in model.moe_layers:
            load_experts(reader, model, layer, partial(store.home, layer))
    finally:
        reader.close()
    return weights, store
