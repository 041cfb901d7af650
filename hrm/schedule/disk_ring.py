"""The ring of buffers that experts are read into from disk, one after the other over a whole run.

A *use* counts the experts read: passes first, then layers with routed experts, then the layer's experts on disk.
"""

from __future__ import annotations

from typing import NamedTuple

from hrm.model import ModelSpec
from hrm.policy import Policy

__all__ = ["DiskRing", "Use"]


class Use(NamedTuple):
    """An expert that is read: the layer's `part`-th on disk, in the pass `passes_ago` before the one in question."""

    layer: int
    part: int
    passes_ago: int = 0


class DiskRing:
    """Which buffer an expert is read into, and what must be done with before."""

    def __init__(self, policy: Policy, model: ModelSpec) -> None:
        self.layers = model.moe_layers
        self.parts = policy.disk_experts
        self.in_pass = self.parts * len(self.layers)
        """Experts read in a pass."""
        self.buffers = min(policy.num_disk_buffers(model), self.in_pass)
        """Buffers used; never more than a pass reads experts, so that a read waits for nothing older than one pass."""
        self._ordinal = {layer: ordinal for ordinal, layer in enumerate(self.layers)}

    def reads(self, layer: int) -> bool:
        """Whether experts of a layer are read."""
        return self.parts > 0 and layer in self._ordinal

    def use(self, pass_index: int, layer: int, part: int) -> int:
        """Return the number of an expert's use over the run."""
        return pass_index * self.in_pass + self._ordinal[layer] * self.parts + part

    def before(self, layer: int, part: int) -> Use:
        """Return the expert that was last in the buffer which this one is read into."""
        return self.at(self.use(0, layer, part) - self.buffers)

    def at(self, use: int) -> Use:
        """Return the expert of a use's number; its pass is minus `passes_ago`."""
        pass_index, place = divmod(use, self.in_pass)
        ordinal, part = divmod(place, self.parts)
        return Use(self.layers[ordinal], part, -pass_index)
