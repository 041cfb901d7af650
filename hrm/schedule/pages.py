"""Paging: which pages of streamed expert weights cross the link when, and what they wait for.

Pages belong to layers with routed experts. Those of such a layer cross from the one before it on: over that layer's
micro-batches and those of the dense layers between, in equal shares, or where the schedule does not page all at the
first of them. The first layer's cross at the end of the pass before. Layer by layer they alternate between two device
slots, page by page between two pinned staging pages.

Experts on disk are a layer's last pages. They go round the ring of `hrm.schedule.disk_ring` instead of the staging
pages: each is read into a buffer once what was there has crossed, so that the disk runs ahead over layers and passes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterator
from typing import NamedTuple

from hrm.model import ModelSpec
from hrm.policy import Policy, ScheduleName, Staging
from hrm.schedule.disk_ring import DiskRing
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
        streams = policy.streamed_experts(model) > 0 and bool(self._layers)
        self._num_pages = policy.num_pages(model) if streams else 0
        self._in_memory = policy.pages_in_memory(model) if streams else 0
        self._spreads = policy.schedule is ScheduleName.CGOPIPE
        self._staged = policy.staging is Staging.PAGEABLE
        self._ring = DiskRing(policy, model)
        self._ffn = ffn

    def reach(self, layer: int) -> int:
        """Return how many layers ahead of the GPU a page that crosses during a layer may start, as `Walk.reach`.

        A page waits for its slot, a pinned one or one that is read only for that of the page before it in the same
        host memory. The slot is free in the middle of what the GPU is given with its layer: look-ahead follows.
        """
        if not self._num_pages:
            return 1
        pass_index, ordinal = divmod(self._use(self._crossing(layer)) - self._oldest_use, len(self._layers))
        return 1 + layer - self._layers[ordinal] - pass_index * self._num_layers

    @property
    def _oldest_use(self) -> int:
        """How many uses back are the weights whose slot a layer's first page, wherever it is put first, waits for."""
        staged = -(-IN_FLIGHT // self._in_memory) if self._staged and self._in_memory else 0
        return IN_FLIGHT + max(staged, self._ring_uses)

    @property
    def _ring_uses(self) -> int:
        """How many uses back is the oldest page whose buffer one of a layer is read into: all read as many experts."""
        on_disk = self._num_pages - self._in_memory
        return -(-self._ring.buffers // on_disk) if on_disk else 0

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
        for page in range(*(self._pages_until(at, places) for at in (place, place + 1))):
            yield from self._page(crossing, page)

    def _pages_until(self, place: int, places: int) -> int:
        """Return how many of a layer's pages cross before a place of so many."""
        return -(-self._num_pages * place // places) if self._spreads else self._num_pages * (place > 0)

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
        uses = [use - back for back in range(max(IN_FLIGHT, self._ring_uses) + 1)]
        places = [divmod(one, len(self._layers)) for one in uses]
        return (
            crossing.for_next_pass,
            crossing.done,
            crossing.span,
            tuple(self._layers[ordinal] + pass_index * self._num_layers - layer for pass_index, ordinal in places),
            tuple(self._pass_of(one, page) for one in uses for page in range(min(self._num_pages, IN_FLIGHT))),
            tuple(self._pass_of(one, self._num_pages - 1 - page) for one in uses for page in range(IN_FLIGHT)),
            tuple((pass_index, ordinal == 0) for pass_index, ordinal in places) if self._ring_uses else None,
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
        layers_before = page * last.span // self._num_pages if self._spreads else 0
        return pass_index if layers_before >= self._num_layers - self._layers[-1] else pass_index - 1

    def _page(self, crossing: _Crossing, page: int) -> Iterator[Task]:
        use, layer = self._use(crossing), self._layers[crossing.ordinal]
        pin, copy = TaskKey(TaskKind.PAGE_PIN, layer, page), TaskKey(TaskKind.PAGE_COPY, layer, page)
        needs = [self._slot_free(use)] if page == 0 else []
        if page >= self._in_memory:
            part = page - self._in_memory
            read = TaskKey(TaskKind.DISK_READ, layer, part)
            free = (self._ring_buffer_free(crossing, part),)
            yield Task(key=read, lane=Lane.DISK, needs=free, for_next_pass=crossing.for_next_pass)
            needs.append(Need(read))
        elif self._staged:
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
        back_use, back_page = divmod(use * self._in_memory + page - IN_FLIGHT, self._in_memory)
        passes_ago = -self._pass_of(back_use, back_page)
        key = TaskKey(TaskKind.PAGE_COPY, self._layers[back_use % len(self._layers)], back_page)
        # With one page in all, the page two back crossed two passes ago; waiting for the one between is as good.
        return Need(key, min(passes_ago, 1))

    def _ring_buffer_free(self, crossing: _Crossing, part: int) -> Need:
        """Need the copy out of the buffer that an expert is read into: of the one before it there, over the run."""
        before = self._ring.before(self._layers[crossing.ordinal], part)
        use = self._ordinal(before.layer) + (crossing.for_next_pass - before.passes_ago) * len(self._layers)
        page = self._in_memory + before.part
        return Need(TaskKey(TaskKind.PAGE_COPY, before.layer, page), -self._pass_of(use, page))
