"""Paging: which pages of streamed expert weights cross the link when, and what they wait for.

Pages belong to layers with routed experts. Those of such a layer cross from the one before it on: over that layer's
micro-batches and those of the dense layers between, in equal shares. The first layer's cross at the end of the pass
before. Layer by layer they alternate between two device slots, page by page between two pinned staging pages.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterator
from typing import NamedTuple

from hrm.model import ModelSpec
from hrm.policy import Policy, Staging
from hrm.schedule.task import IN_FLIGHT, Lane, Need, Task, TaskKey, TaskKind

__all__ = ["Pages"]


class _Crossing(NamedTuple):
    """Where layer `carrier` stands in bringing up a layer's pages: `done` of `span` layers' time are over."""

    ordinal: int
    for_next_pass: bool
    done: int
    span: int


class Pages:
    """The page tasks of a policy; `ffn` is the kind of task that reads the weights.

    A *use* counts the layers with routed experts over a run: pass * (layers with experts) + ordinal.
    """

    def __init__(self, policy: Policy, model: ModelSpec, ffn: TaskKind) -> None:
        self._layers = [layer for layer in range(model.num_layers) if model.layer_kind(layer).moe]
        self._num_layers = model.num_layers
        self._num_micro_batches = policy.num_micro_batches
        self._num_pages = policy.num_pages if policy.streamed_experts(model) and self._layers else 0
        self._staged = policy.staging is Staging.PAGEABLE
        self._ffn = ffn

    def reach(self, layer: int) -> int:
        """Return how many layers ahead of the GPU a page that crosses during a layer may start, as `Walk.reach`.

        A page waits for its slot, a pinned one only for that of the page before it in the same pinned memory. The slot
        is free in the middle of what the GPU is given with its layer: look-ahead follows.
        """
        if not self._num_pages:
            return 1
        crossing = self._crossing(layer)
        staged_uses = -(-IN_FLIGHT // self._num_pages) if self._staged else 0
        pass_index, ordinal = divmod(self._use(crossing) - IN_FLIGHT - staged_uses, len(self._layers))
        return 1 + layer - self._layers[ordinal] - pass_index * self._num_layers

    def prologue(self) -> Iterator[Task]:
        """Bring up, before the first pass, what each pass brings up for the next."""
        made: set[TaskKey] = set()
        first = self._layers[-1] if self._num_pages else self._num_layers
        for layer in range(first, self._num_layers):
            for micro_batch in range(self._num_micro_batches):
                for task in self.during(layer, micro_batch):
                    needs = tuple(Need(need.key) for need in task.needs if need.key in made)
                    made.add(task.key)
                    yield Task(key=task.key, lane=task.lane, needs=needs)

    def during(self, layer: int, micro_batch: int) -> Iterator[Task]:
        """Yield the pages that cross while a micro-batch of a layer is worked on."""
        if not self._num_pages:
            return
        crossing = self._crossing(layer)
        place, places = crossing.done * self._num_micro_batches + micro_batch, crossing.span * self._num_micro_batches
        first, last = (-(-self._num_pages * at // places) for at in (place, place + 1))
        for page in range(first, last):
            yield from self._page(crossing, page)

    def here(self, layer: int) -> list[Need]:
        """Need the last page of a layer, with which all have come: one lane brings them in order."""
        if not self._num_pages:
            return []
        page = self._num_pages - 1
        return [Need(TaskKey(TaskKind.PAGE_COPY, layer, page), 0 - self._pass_of(self._ordinal(layer), page))]

    def like(self, layer: int) -> Hashable:
        """Say what the page tasks of a layer depend on, relative to it."""
        if not self._num_pages:
            return None
        crossing = self._crossing(layer)
        use = self._use(crossing)
        uses = [use - back for back in range(IN_FLIGHT + 1)]
        places = (divmod(one, len(self._layers)) for one in uses)
        return (
            crossing.for_next_pass,
            crossing.done,
            crossing.span,
            tuple(self._layers[ordinal] + pass_index * self._num_layers - layer for pass_index, ordinal in places),
            tuple(self._pass_of(one, page) for one in uses for page in range(min(self._num_pages, IN_FLIGHT))),
            tuple(self._pass_of(one, self._num_pages - 1 - page) for one in uses for page in range(IN_FLIGHT)),
        )

    def _ordinal(self, layer: int) -> int:
        return self._layers.index(layer)

    def _use(self, crossing: _Crossing) -> int:
        return crossing.ordinal + crossing.for_next_pass * len(self._layers)

    def _crossing(self, layer: int) -> _Crossing:
        """Find out whose pages cross during a layer: those of the next layer with experts, perhaps in the next pass."""
        ordinal = bisect_right(self._layers, layer) % len(self._layers)
        for_next_pass = layer >= self._layers[-1]
        start = self._layers[ordinal - 1]
        end = self._layers[ordinal]
        if ordinal == 0:
            end += self._num_layers
        at = layer if layer >= start else layer + self._num_layers
        return _Crossing(ordinal=ordinal, for_next_pass=for_next_pass, done=at - start, span=end - start)

    def _pass_of(self, use: int, page: int) -> int:
        """Return in which pass, counted from the one of use 0, a page crosses for a use of its layer."""
        pass_index, ordinal = divmod(use, len(self._layers))
        if ordinal:
            return pass_index
        last = self._crossing(self._layers[-1])
        layers_before = page * last.span // self._num_pages
        return pass_index if layers_before >= self._num_layers - self._layers[-1] else pass_index - 1

    def _page(self, crossing: _Crossing, page: int) -> Iterator[Task]:
        use, layer = self._use(crossing), self._layers[crossing.ordinal]
        pin, copy = TaskKey(TaskKind.PAGE_PIN, layer, page), TaskKey(TaskKind.PAGE_COPY, layer, page)
        needs = [self._slot_free(use)] if page == 0 else []
        if self._staged:
            free = (self._staging_page_free(use, page),)
            yield Task(key=pin, lane=Lane.PIN, needs=free, for_next_pass=crossing.for_next_pass)
            needs.append(Need(pin))
        yield Task(key=copy, lane=Lane.H2D, needs=tuple(needs), for_next_pass=crossing.for_next_pass)

    def _slot_free(self, use: int) -> Need:
        """Need the weights two uses before to be done with; the pages behind the first wait behind it in their lane."""
        pass_index, ordinal = divmod(use - IN_FLIGHT, len(self._layers))
        return Need(TaskKey(self._ffn, self._layers[ordinal], self._num_micro_batches - 1), -pass_index)

    def _staging_page_free(self, use: int, page: int) -> Need:
        """Need the copy out of the pinned page that is pinned over: two pages back in the order of the run."""
        back_use, back_page = divmod(use * self._num_pages + page - IN_FLIGHT, self._num_pages)
        passes_ago = -self._pass_of(back_use, back_page)
        key = TaskKey(TaskKind.PAGE_COPY, self._layers[back_use % len(self._layers)], back_page)
        # With one page in all, the page two back crossed two passes ago; waiting for the one between is as good.
        return Need(key, min(passes_ago, 1))
