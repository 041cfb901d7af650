"""What a pass does as the pass before did, on the same memory: its calls of kernels, without what led to them.

What Python does around a kernel, shapes, checks and views, takes 10 to 20 us; a small layer has a dozen kernels of that
length. As a CUDA graph, a list of calls is made once and run again; unlike one, only where torch computed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from executor import native

__all__ = ["Repeated"]

_aten = torch.ops.aten
_VIEWS = frozenset(
    getattr(_aten, name)
    for name in ("detach", "select", "slice", "split", "split_with_sizes", "t", "transpose", "unsqueeze", "view")
)
_ALLOCATIONS = frozenset((_aten.empty, _aten.new_empty))


class Repeated:
    """Remembers the calls of each piece of work, by a key, and repeats them.

    Work under a key must do the same each time: take the same operands from the same memory, and leave what it makes
    there. Where torch computes a part of it, which no list of calls holds, it is done anew each time.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[native.Call, ...] | None] = {}
        self._alive: list[object] = []

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do the work, or repeat its calls."""
        if key not in self._known:
            self._known[key] = self._first(work)
        elif (calls := self._known[key]) is None:
            work()
        else:
            for kernel, arguments in calls:
                kernel(*arguments)

    def _first(self, work: Callable[[], None]) -> tuple[native.Call, ...] | None:
        with native.recording() as calls, _Watch() as watch:
            work()
        if watch.computed:
            return None
        self._alive += watch.allocated
        return tuple(calls)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices whether torch computes anything: all but views and allocations, which are kept."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.computed = False
        self.allocated: list[torch.Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _ALLOCATIONS:
            self.allocated.append(result)
        elif func.overloadpacket not in _VIEWS:
            self.computed = True
        return result
