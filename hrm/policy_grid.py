"""Many policies at once: grids of those that differ in numbers alone, over which all formulas go."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from hrm.arrays import Reals
from hrm.model import ModelSpec
from hrm.policy import Policy, Processor, ScheduleName
from hrm.records import record

__all__ = ["PolicyGrid"]


@record
class PolicyGrid:
    """Policies that share devices, schedule and formats (those of `template`) and differ in numbers: one per entry.

    Costs and ledgers are formulas over a grid, so that one policy and 100,000 take the same path. Numbers and arrays of
    one shape may be mixed; the CPU computes experts in all entries or in none.
    """

    template: Policy
    batch_size: Reals
    micro_batch_size: Reals
    resident_experts: Reals
    cpu_experts: Reals = 0.0
    kv_on_gpu: Reals = 0.0
    disk_experts: Reals = 0.0
    fuller_layers: Reals = 0.0

    @classmethod
    def of(cls, policy: Policy) -> PolicyGrid:
        """Return the grid of one policy."""
        return cls(
            template=policy,
            batch_size=float(policy.batch_size),
            micro_batch_size=float(policy.micro_batch_size),
            resident_experts=float(policy.resident_experts),
            cpu_experts=float(policy.cpu_experts),
            kv_on_gpu=policy.kv_on_gpu,
            disk_experts=float(policy.disk_experts),
            fuller_layers=float(policy.fuller_layers),
        )

    @property
    def reads_disk(self) -> bool:
        """Whether any policy of the grid keeps experts on disk."""
        return bool(np.any(self.disk_experts))

    @property
    def num_micro_batches(self) -> Reals:
        """Micro-batches in one pass; the last may be smaller."""
        count: Reals = np.ceil(self.batch_size / self.micro_batch_size)
        return count

    @property
    def last_micro_batch_size(self) -> Reals:
        """Sequences of the last micro-batch."""
        return self.batch_size - (self.num_micro_batches - 1) * self.micro_batch_size

    @property
    def computes_from_disk(self) -> bool:
        """Whether any policy of the grid does, as `Policy.computes_from_disk`."""
        return self.reads_disk and self.template.main_device is Processor.CPU

    def num_pages(self, model: ModelSpec) -> Reals:
        """Pages in which a layer's streamed weights cross, as `Policy.num_pages`."""
        pages: Reals = 1.0
        if self.template.schedule is ScheduleName.CGOPIPE:
            pages = self.template.pages_per_layer or self.num_micro_batches
        if self.template.main_device is Processor.GPU and self.reads_disk:
            return np.where(self.disk_experts > 0, self.streamed_experts(model), pages)
        return pages

    def pages_in_memory(self, model: ModelSpec) -> Reals:
        """Return how many of a layer's pages cross from host memory, as `Policy.pages_in_memory`."""
        return self.num_pages(model) - self.disk_experts

    def experts_on_cpu(self, model: ModelSpec) -> Reals:
        """Experts per MoE layer that the CPU computes."""
        on_cpu = self.template.ffn_device is Processor.CPU
        return model.num_experts - self.resident_experts if on_cpu else self.cpu_experts

    def streamed_experts(self, model: ModelSpec) -> Reals:
        """Experts per MoE layer whose weights cross the link in each pass."""
        return model.num_experts - self.resident_experts - self.experts_on_cpu(model)

    def select(self, places: NDArray[np.bool_] | NDArray[np.int64]) -> PolicyGrid:
        """Return some of the entries, or some repeatedly, of a grid whose numbers are all arrays."""
        return replace(self, **{name: getattr(self, name)[places] for name in _NUMBERS})

    def take(self, index: int) -> Policy:
        """Return entry `index` as a policy."""
        return replace(
            self.template,
            batch_size=_entry(self.batch_size, index),
            micro_batch_size=_entry(self.micro_batch_size, index),
            resident_experts=_entry(self.resident_experts, index),
            cpu_experts=_entry(self.cpu_experts, index),
            kv_on_gpu=float(np.ravel(self.kv_on_gpu)[index if np.ndim(self.kv_on_gpu) else 0]),
            disk_experts=_entry(self.disk_experts, index),
            fuller_layers=_entry(self.fuller_layers, index),
        )


_NUMBERS = tuple(field.name for field in fields(PolicyGrid) if field.name != "template")


def _entry(numbers: Reals, index: int) -> int:
    return int(np.ravel(numbers)[index if np.ndim(numbers) else 0])
