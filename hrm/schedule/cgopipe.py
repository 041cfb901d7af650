"""CGOPipe: CPU attention, GPU and link at work at once, weights paged so that nothing waits long (paper §4.1, Alg. 1).

A pass walks positions x = (layer, micro-batch) in order. At each x the attention output comes up (D2), the next layer's
pages cross the link (D3), the GPU does post-attention; two positions ahead it has done pre-attention, whose queries,
keys and values went down (D1) and were attended to on the CPU meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator

from hrm.model import ModelSpec
from hrm.policy import Policy, Processor, Staging
from hrm.records import record
from hrm.schedule.task import IN_FLIGHT, Lane, Need, Phase, Schedule, Task, TaskKey, TaskKind

__all__ = ["cgopipe"]


def cgopipe(policy: Policy, model: ModelSpec) -> Schedule:
    """Order the tasks of a policy whose FFN runs on the GPU.

    With attention on the GPU there is no D1, D2 and CPU task; with all experts resident there are no pages.
    """
    pipe = _Pipe(
        num_layers=model.num_layers,
        num_micro_batches=policy.num_micro_batches,
        num_pages=policy.num_pages if policy.resident_experts < model.num_experts else 0,
        attention_on_cpu=policy.attention_device is Processor.CPU,
        staged=policy.staging is Staging.PAGEABLE,
    )
    return Schedule(
        prologue=tuple(pipe.prologue()),
        prefill=tuple(pipe.one_pass(Phase.PREFILL)),
        decode=tuple(pipe.one_pass(Phase.DECODE)),
    )


@record
class _Pipe:
    num_layers: int
    num_micro_batches: int
    num_pages: int
    attention_on_cpu: bool
    staged: bool

    def prologue(self) -> Iterator[Task]:
        """Bring the first layer's pages up before the first pass."""
        for page in range(self.num_pages):
            slot = [Need(TaskKey(TaskKind.PAGE_COPY, 0, page - IN_FLIGHT))] if page >= IN_FLIGHT else []
            yield from self._page(0, page, pin_needs=slot, copy_needs=[], for_next_pass=False)

    def one_pass(self, phase: Phase) -> Iterator[Task]:
        """Yield the tasks of one pass in the order in which lanes take them."""
        positions = self.num_layers * self.num_micro_batches
        on_cpu = self.attention_on_cpu and phase is Phase.DECODE
        ahead = min(IN_FLIGHT, self.num_micro_batches) if on_cpu else 0
        for x in range(min(ahead, positions)):
            yield from self._until_attention(x, phase)
        for x in range(positions):
            if not ahead:
                yield from self._until_attention(x, phase)
            if on_cpu:
                yield self._hidden_upload(x)
            yield from self._next_layer_pages(x)
            yield self._post_attention(x, uploaded=on_cpu)
            if ahead and x + ahead < positions:
                yield from self._until_attention(x + ahead, phase)

    def _key(self, kind: TaskKind, x: int) -> TaskKey:
        return TaskKey(kind, *divmod(x, self.num_micro_batches))

    def _until_attention(self, x: int, phase: Phase) -> Iterator[Task]:
        """Yield pre-attention, D1 and attention of position x."""
        decode = phase is Phase.DECODE
        pre, offload = self._key(TaskKind.PRE_ATTENTION, x), self._key(TaskKind.QKV_OFFLOAD, x)
        needs = [self._hidden_states(x)] if decode or x >= self.num_micro_batches else []
        if self.attention_on_cpu and x >= IN_FLIGHT:
            needs.append(Need(self._key(TaskKind.QKV_OFFLOAD, x - IN_FLIGHT)))
        yield Task(key=pre, lane=Lane.GPU, needs=tuple(needs))
        if self.attention_on_cpu:
            yield Task(key=offload, lane=Lane.D2H, needs=(Need(pre),))
        on_cpu = self.attention_on_cpu and decode
        lane = Lane.CPU if on_cpu else Lane.GPU
        yield Task(key=self._key(TaskKind.ATTENTION, x), lane=lane, needs=(Need(offload if on_cpu else pre),))

    def _hidden_states(self, x: int) -> Need:
        """Need what position x starts from: the layer before, or the token that the pass before made."""
        before = x - self.num_micro_batches
        if before >= 0:
            return Need(self._key(TaskKind.POST_ATTENTION, before))
        return Need(self._key(TaskKind.POST_ATTENTION, before + self.num_layers * self.num_micro_batches), 1)

    def _hidden_upload(self, x: int) -> Task:
        needs = [Need(self._key(TaskKind.ATTENTION, x))]
        if x >= IN_FLIGHT:
            needs.append(Need(self._key(TaskKind.POST_ATTENTION, x - IN_FLIGHT)))
        return Task(key=self._key(TaskKind.HIDDEN_UPLOAD, x), lane=Lane.H2D, needs=tuple(needs))

    def _post_attention(self, x: int, *, uploaded: bool) -> Task:
        layer = x // self.num_micro_batches
        needs = [Need(self._key(TaskKind.HIDDEN_UPLOAD if uploaded else TaskKind.ATTENTION, x))]
        if self.num_pages:
            last_page = TaskKey(TaskKind.PAGE_COPY, layer, self.num_pages - 1)
            needs.append(Need(last_page, passes_ago=1 if layer == 0 else 0))
        return Task(key=self._key(TaskKind.POST_ATTENTION, x), lane=Lane.GPU, needs=tuple(needs))

    def _next_layer_pages(self, x: int) -> Iterator[Task]:
        """Yield the pages of the next layer that cross while position x is worked on: an equal share of them."""
        layer, micro_batch = divmod(x, self.num_micro_batches)
        first = self.num_pages * micro_batch // self.num_micro_batches
        last = self.num_pages * (micro_batch + 1) // self.num_micro_batches
        target = (layer + 1) % self.num_layers
        for page in range(first, last):
            yield from self._page(
                target,
                page,
                pin_needs=[self._staging_page_free(layer, page)],
                copy_needs=[self._slot_free(layer)],
                for_next_pass=target == 0,
            )

    def _slot_free(self, layer: int) -> Need:
        """Need the weights of the layer before `layer` to be done with: their slot takes the layer after."""
        last = self.num_micro_batches - 1
        if layer > 0:
            return Need(TaskKey(TaskKind.POST_ATTENTION, layer - 1, last))
        return Need(TaskKey(TaskKind.POST_ATTENTION, self.num_layers - 1, last), passes_ago=1)

    def _staging_page_free(self, layer: int, page: int) -> Need:
        """Need the copy out of the pinned page that is pinned over: two pages back in the order of the pass."""
        y = layer * self.num_pages + page - IN_FLIGHT
        passes_ago = 0
        while y < 0:
            y, passes_ago = y + self.num_layers * self.num_pages, passes_ago + 1
        target = (y // self.num_pages + 1) % self.num_layers
        return Need(TaskKey(TaskKind.PAGE_COPY, target, y % self.num_pages), min(passes_ago, 1))

    def _page(
        self, layer: int, page: int, *, pin_needs: list[Need], copy_needs: list[Need], for_next_pass: bool
    ) -> Iterator[Task]:
        pin, copy = TaskKey(TaskKind.PAGE_PIN, layer, page), TaskKey(TaskKind.PAGE_COPY, layer, page)
        if self.staged:
            yield Task(key=pin, lane=Lane.PIN, needs=tuple(pin_needs), for_next_pass=for_next_pass)
            copy_needs = [*copy_needs, Need(pin)]
        yield Task(key=copy, lane=Lane.H2D, needs=tuple(copy_needs), for_next_pass=for_next_pass)
