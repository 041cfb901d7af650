"""What a pass does as the pass before did, on the same memory: its calls of kernels, without what led to them.

What Python does around a kernel, shapes, checks and views, takes 10 to 20 us; a small layer has a dozen kernels of that
length. As a CUDA graph, a list of calls is made once and run again; unlike one, only where torch computed nothing.
Watching torch takes longer than the work (a layer of SmolLM2 took 1.2 ms, 0.5 without), so it is done for one layer of
each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from executor import native

__all__ = ["Repeated"]

_READS = ("__get__", "__len__", "data_ptr", "dim", "element_size", "is_contiguous", "numel", "size", "stride")
_VIEWS = ("split", "t", "transpose", "unbind", "unsqueeze", "view")
_ALLOCATIONS = ("empty", "new_empty")


class Repeated:
    """Remembers the calls of each piece of work, by a key, and repeats them.

    Work under a key must do the same each time: take the same operands from the same memory, and leave what it makes
    there. Where torch computes a part of it, which no list of calls holds, it is done anew each time.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, native.Recording | None] = {}
        self._computed: dict[Hashable, bool] = {}

    def run(self, key: Hashable, alike: Hashable, work: Callable[[], None]) -> None:
        """Do the work, or repeat its calls; of work that is `alike` in all but its operands, the first is watched."""
        if key not in self._known:
            self._known[key] = self._first(alike, work)
        elif (recording := self._known[key]) is None:
            work()
        else:
            for kernel, arguments in recording.calls:
                refused = kernel(*arguments)
                assert not refused, "the same kernel on the same memory was not refused before"

    def _first(self, alike: Hashable, work: Callable[[], None]) -> native.Recording | None:
        with native.recording() as recording:
            if alike in self._computed:
                work()
            else:
                with _Watch() as watch:
                    work()
                kept = {id(memory) for memory in recording.kept}
                lost = any(id(memory) not in kept for memory in watch.allocated)
                self._computed[alike] = watch.computed or lost or not recording.calls
        return None if self._computed[alike] else recording


class _Watch(TorchFunctionMode):
    """Notices whether torch computes anything: all but looks at a tensor, views, and allocations, which it lists."""

    def __init__(self) -> None:
        super().__init__()
        self.computed = False
        self.allocated: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result, name = func(*args, **(kwargs or {})), func.__name__
        if name in _ALLOCATIONS:
            self.allocated.append(result)
        elif name not in (*_READS, *_VIEWS) and not (name == "__getitem__" and _is_slice(args[1])):
            self.computed = True
        return result


def _is_slice(index: Any) -> bool:
    """Whether what stands in the brackets makes a view, and gathers nothing."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is ... or isinstance(part, int | slice) for part in parts)
