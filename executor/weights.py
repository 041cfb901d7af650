"""Where the weights lie: dense ones and resident experts on the FFN's device, streamed experts in host memory."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from executor.decoder import LayerWeights, ModelWeights
from executor.loading import CheckpointReader, load_dense, load_experts
from executor.workspace import Allocate
from hrm.device.backend import Backend
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor, Staging
from hrm.schedule.task import IN_FLIGHT

__all__ = ["ExpertStore", "load_weights", "page_bounds", "torch_dtype"]

_PAGE_ALIGNMENT_BYTES = 64


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype of a `DType` that torch computes with."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def page_bounds(num_elements: int, num_pages: int, itemsize: int) -> tuple[int, ...]:
    """Cut a flat range into nearly equal pages whose boundaries are 64-byte aligned: `num_pages + 1` bounds.

    >>> page_bounds(100, 3, 4)
    (0, 32, 64, 100)
    """
    step = _PAGE_ALIGNMENT_BYTES // itemsize
    inner = (num_elements * page // num_pages // step * step for page in range(1, num_pages))
    return (0, *inner, num_elements)


class ExpertStore:
    """The experts of all layers: resident ones, streamed ones in host memory, and the device slots they stream into.

    `use` numbers the layers over the whole run: pass * num_layers + layer. It decides the slot.
    """

    def __init__(self, policy: Policy, model: ModelSpec, backend: Backend) -> None:
        dtype = torch_dtype(policy.weight_dtype)
        on_gpu = policy.ffn_device is Processor.GPU
        staged = policy.staging is Staging.PAGEABLE
        self._backend = backend
        self._expert = model.expert_parameters
        self._num_pages = policy.num_pages
        self._resident_experts = policy.resident_experts
        streamed = (model.num_experts - policy.resident_experts) * self._expert
        self.bounds = page_bounds(streamed, policy.num_pages, dtype.itemsize)
        self._resident = [
            backend.empty((policy.resident_experts * self._expert,), dtype) for _ in range(model.num_layers)
        ]
        self._host = [
            backend.host_empty((streamed,), dtype, pinned=on_gpu and not staged) for _ in range(model.num_layers)
        ]
        self._slots = [backend.empty((streamed,), dtype).zero_() for _ in range(IN_FLIGHT)] if on_gpu else []
        largest = max(last - first for first, last in pairwise(self.bounds))
        staging_pages = IN_FLIGHT if on_gpu and staged else 0
        self._staging = [backend.host_empty((largest,), dtype, pinned=True).zero_() for _ in range(staging_pages)]

    def home(self, layer: int, expert: int) -> torch.Tensor:
        """Return where an expert's weights lie for good: flat, in device or host memory."""
        streamed = expert - self._resident_experts
        flat, index = (self._host, streamed) if streamed >= 0 else (self._resident, expert)
        return flat[layer][index * self._expert : (index + 1) * self._expert]

    def at_work(self, layer: int, use: int) -> list[torch.Tensor]:
        """Return the layer's experts where the FFN reads them; streamed ones in the slot of this use."""
        streamed = self._slots[use % IN_FLIGHT] if self._slots else self._host[layer]
        flats = (self._resident[layer], streamed)
        return [flat[at : at + self._expert] for flat in flats for at in range(0, flat.numel(), self._expert)]

    def pin_page(self, layer: int, page: int, use: int) -> None:
        """Copy a page from pageable memory into a pinned staging page."""
        source = self._host[layer][self.bounds[page] : self.bounds[page + 1]]
        self._staging_page(page, use)[: source.numel()].copy_(source)

    def copy_page(self, layer: int, page: int, use: int) -> None:
        """Copy a page over the link into the slot of this use."""
        first, last = self.bounds[page : page + 2]
        if first == last:
            return
        staged = self._staging_page(page, use)[: last - first] if self._staging else self._host[layer][first:last]
        self._backend.copy(self._slots[use % IN_FLIGHT][first:last], staged)

    def _staging_page(self, page: int, use: int) -> torch.Tensor:
        return self._staging[(use * self._num_pages + page) % IN_FLIGHT]


def load_weights(policy: Policy, model: ModelSpec, folder: Path, backend: Backend) -> tuple[ModelWeights, ExpertStore]:
    """Read a checkpoint straight to where the policy wants it, in the policy's weight dtype.

    Raises
    ------
    FileError
        When a file or tensor is missing, truncated, or of the wrong shape.
    OutOfMemoryError
        When the device cannot hold what the policy puts there.
    """
    dtype = torch_dtype(policy.weight_dtype)
    allocate: Allocate = backend.empty if policy.ffn_device is Processor.GPU else backend.host_empty

    def place(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        rows = sum(len(tensor) for tensor in tensors)
        target = allocate((rows, *tensors[0].shape[1:]), dtype)
        for part, tensor in zip(torch.split(target, [len(tensor) for tensor in tensors]), tensors, strict=True):
            part.copy_(tensor)
        return target

    reader = CheckpointReader(folder)
    try:
        weights = _model_weights(load_dense(reader, model, place), model)
        store = ExpertStore(policy, model, backend)
        for layer in range(model.num_layers):
            load_experts(reader, model, layer, partial(store.home, layer))
    finally:
        reader.close()
    return weights, store


def _model_weights(placed: dict[str, torch.Tensor], model: ModelSpec) -> ModelWeights:
    layers = tuple(
        LayerWeights(
            input_norm=placed[f"{layer}.input_norm"],
            qkv=placed[f"{layer}.qkv"],
            output=placed[f"{layer}.output"],
            post_norm=placed[f"{layer}.post_norm"],
            router=placed.get(f"{layer}.router"),
        )
        for layer in range(model.num_layers)
    )
    return ModelWeights(
        embedding=placed["embedding"], layers=layers, final_norm=placed["final_norm"], head=placed["head"]
    )
