"""The ring of buffers that experts are read into from disk, one after the other over a whole run.

A buffer is free again when the CPU has computed with the expert in it, or when that has crossed the link to a GPU. A
*use* counts the experts read: passes first, then layers with routed experts, then the layer's experts on disk.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
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
        self._parts = policy.disk_experts_of(model)
        *self._firsts, self.in_pass = accumulate(self._parts.values(), initial=0)
        """Experts read in a pass."""
        self.buffers = min(policy.num_disk_buffers(model), self.in_pass)
        """Buffers used; never more than a pass reads experts, so that a read waits for nothing older than one pass."""
        self._first_of = dict(zip(self.layers, self._firsts, strict=True))

    def parts(self, layer: int) -> int:
        """Return how many experts of a layer are read."""
        return self._parts.get(layer, 0)

    def use(self, pass_index: int, layer: int, part: int) -> int:
        """Return the number of an expert's use over the run."""
        return pass_index * self.in_pass + self._first_of[layer] + part

    def before(self, layer: int, part: int) -> Use:
        """Return the expert that was last in the buffer which this one is read into."""
        return self.at(self.use(0, layer, part) - self.buffers)

    def at(self, use: int) -> Use:
        """Return the expert of a use's number; its pass is minus `passes_ago`."""
        pass_index, place = divmod(use, self.in_pass)
        ordinal = bisect_right(self._firsts, place) - 1
        return Use(self.layers[ordinal], place - self._firsts[ordinal], -pass_index)
