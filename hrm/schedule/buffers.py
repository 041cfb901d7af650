"""What each task reads and writes, by name of buffer and what is then in it.

It follows from the kind of task, not from the schedule, so that a schedule can be checked against it. Buffers are those
of the executor's memory: what is in flight exists `IN_FLIGHT` times and goes by position, streamed weights by use of a
slot, pinned staging by page of the run.
"""

from __future__ import annotations

from typing import NamedTuple

from hrm.model import ModelSpec
from hrm.policy import Policy, Processor, Staging
from hrm.records import record
from hrm.schedule.disk_ring import DiskRing
from hrm.schedule.task import IN_FLIGHT, Phase, Task, TaskKind

__all__ = ["Access", "Accesses", "accesses"]


class Access(NamedTuple):
    """A buffer, and what a task finds or leaves in it."""

    name: str
    number: int
    content: tuple[object, ...]


class Accesses(NamedTuple):
    """All that a task reads, and all that it writes; what it changes in place is in both."""

    reads: list[Access]
    writes: list[Access]


@record
class _Run:
    """A task of a pass, and the buffers that it may use."""

    policy: Policy
    model: ModelSpec
    phase: Phase
    pass_index: int
    task: Task

    @property
    def position(self) -> int:
        return self.task.layer * self.policy.num_micro_batches + self.task.part

    @property
    def moe_layers(self) -> list[int]:
        return [layer for layer in range(self.model.num_layers) if self.model.layer_kind(layer).moe]

    @property
    def attends_on_cpu(self) -> bool:
        """Whether attention runs elsewhere than the rest."""
        on_cpu = self.policy.attention_device is not self.policy.main_device
        return on_cpu and self.phase is Phase.DECODE

    @property
    def streams(self) -> bool:
        return self.policy.main_device is Processor.GPU and self.policy.streamed_experts(self.model) > 0

    def is_split(self, layer: int) -> bool:
        on_gpu = self.policy.main_device is Processor.GPU
        return on_gpu and self.policy.experts_on_cpu(self.model) > 0 and self.model.layer_kind(layer).moe

    @property
    def ring(self) -> DiskRing:
        return DiskRing(self.policy, self.model)

    def flight(self, name: str) -> Access:
        """Return a buffer of a micro-batch in flight; the two phases have their own."""
        return Access(f"{self.phase} {name}", self.position % IN_FLIGHT, (self.pass_index, self.position))

    def hidden(self, layer: int, done: TaskKind, micro_batch: int | None = None) -> Access:
        """Return hidden states of a micro-batch (the task's own if none is named) after a kind of task of a layer."""
        number = self.task.part if micro_batch is None else micro_batch
        return Access(f"{self.phase} hidden states", number, (self.pass_index, layer, done))

    def sums(self, micro_batch: int, experts: int) -> Access:
        """Return what the layer's first experts, so many of them, have added up to."""
        return Access("sums", micro_batch, (self.pass_index, self.task.layer, experts))

    def normed(self, micro_batch: int) -> Access:
        """Return the micro-batch's normed hidden states and routing, kept until all experts have computed."""
        return Access("normed", micro_batch, (self.pass_index, self.task.layer))

    def disk_buffer(self, part: int) -> Access:
        """Return the buffer of the layer's expert on disk, at the use that the task makes of it."""
        ring = self.ring
        use = ring.use(max(self.pass_index, 0) + self.task.for_next_pass, self.task.layer, part)
        return Access("disk buffer", use % ring.buffers, (use,))

    def waits_for_disk(self, layer: int) -> bool:
        """Whether the layer's experts are all computed with at once, as those on disk come."""
        return self.policy.computes_from_disk and self.ring.parts(layer) > 0

    def completed_by(self, layer: int) -> TaskKind:
        """Return the kind of task that leaves a layer's output."""
        if self.waits_for_disk(layer):
            return TaskKind.DISK_EXPERTS
        return TaskKind.EXPERT_UPLOAD if self.is_split(layer) else TaskKind.POST_ATTENTION

    def hidden_before(self) -> Access:
        """Return the hidden states that the layer starts from."""
        layer = self.task.layer - 1
        if layer < 0:
            return self.hidden(0, TaskKind.PRE_ATTENTION)
        return self.hidden(layer, self.completed_by(layer))

    def hidden_of_prompts(self) -> list[Access]:
        """Return those of all prompts, whose memory the first decode pass takes."""
        batches = range(self.policy.num_micro_batches)
        return [Access(f"{Phase.PREFILL} hidden states", batch, ()) for batch in batches]

    def token(self, pass_index: int) -> Access:
        return Access("token", self.task.part, (pass_index,))

    def cache(self, pass_index: int) -> Access:
        """Return the rows that a pass adds to the KV cache in host memory."""
        return Access(f"KV of pass {pass_index}", self.position, ())

    def use(self) -> int:
        """Return the number, over the run, of the use that the task makes of streamed weights."""
        layers = self.moe_layers
        pass_index = max(self.pass_index, 0) + self.task.for_next_pass
        return pass_index * len(layers) + layers.index(self.task.layer)

    def weights(self, page: int) -> Access:
        use, pages = self.use(), self.policy.num_pages(self.model)
        return Access("weights", use % IN_FLIGHT * pages + page, (use,))

    def staging(self) -> Access:
        page = self.use() * self.policy.pages_in_memory(self.model) + self.task.part
        return Access("staging", page % IN_FLIGHT, (page,))

    def ffn_weights(self) -> list[Access]:
        if not self.streams or not self.model.layer_kind(self.task.layer).moe:
            return []
        return [self.weights(page) for page in range(self.policy.num_pages(self.model))]


def accesses(policy: Policy, model: ModelSpec, phase: Phase, pass_index: int, task: Task) -> Accesses:
    """Return what a task of pass `pass_index` (0 is prefill, -1 the prologue) reads and writes."""
    run = _Run(policy=policy, model=model, phase=phase, pass_index=pass_index, task=task)
    return _BY_KIND[task.kind](run)


def _pre_attention(run: _Run) -> Accesses:
    qkv = run.flight("qkv")
    if run.task.layer:
        return Accesses([run.hidden_before()], [qkv])
    decode = run.phase is Phase.DECODE
    taken = run.hidden_of_prompts() if run.pass_index == 1 else []
    return Accesses([run.token(run.pass_index - 1)] if decode else [], [run.hidden_before(), *taken, qkv])


def _qkv_offload(run: _Run) -> Accesses:
    down = run.flight("qkv on the host") if run.attends_on_cpu else run.cache(run.pass_index)
    return Accesses([run.flight("qkv")], [down])


def _attention(run: _Run) -> Accesses:
    if run.attends_on_cpu:
        reads = [run.flight("qkv on the host"), run.cache(run.pass_index - 1)]
        return Accesses(reads, [run.cache(run.pass_index), run.flight("attended on the host")])
    kv_comes_up = run.policy.kv_on_gpu < 1 and run.phase is Phase.DECODE and run.policy.main_device is Processor.GPU
    loaded = [run.flight("loaded KV")] if kv_comes_up else []
    return Accesses([run.flight("qkv"), *loaded], [run.flight("attended")])


def _hidden_upload(run: _Run) -> Accesses:
    return Accesses([run.flight("attended on the host")], [run.flight("attended")])


def _kv_load(run: _Run) -> Accesses:
    return Accesses([run.cache(run.pass_index - 1)], [run.flight("loaded KV")])


def _post_attention(run: _Run) -> Accesses:
    layer = run.task.layer
    reads, writes = [run.flight("attended"), run.hidden_before()], [run.hidden(layer, TaskKind.POST_ATTENTION)]
    if run.is_split(layer):
        return Accesses(reads, [*writes, run.flight("routed")])
    if run.waits_for_disk(layer):
        return Accesses(reads, [*writes, run.normed(run.task.part), run.sums(run.task.part, 0)])
    token = [run.token(run.pass_index)] if layer == run.model.num_layers - 1 else []
    return Accesses([*reads, *run.ffn_weights()], [*writes, *token])


def _expert_offload(run: _Run) -> Accesses:
    return Accesses([run.flight("routed")], [run.flight("routed on the host")])


def _cpu_experts(run: _Run) -> Accesses:
    return Accesses([run.flight("routed on the host")], [run.flight("sum on the host")])


def _gpu_experts(run: _Run) -> Accesses:
    layer = run.task.layer
    reads = [run.flight("routed"), run.hidden(layer, TaskKind.POST_ATTENTION), *run.ffn_weights()]
    return Accesses(reads, [run.hidden(layer, TaskKind.GPU_EXPERTS)])


def _expert_upload(run: _Run) -> Accesses:
    all_on_cpu = run.policy.experts_on_cpu(run.model) == run.model.num_experts
    before = run.hidden(run.task.layer, TaskKind.POST_ATTENTION if all_on_cpu else TaskKind.GPU_EXPERTS)
    return Accesses([run.flight("sum on the host"), before], [run.hidden(run.task.layer, TaskKind.EXPERT_UPLOAD)])


def _head(run: _Run) -> Accesses:
    return Accesses([run.hidden(run.task.layer, run.completed_by(run.task.layer))], [run.token(run.pass_index)])


def _page_pin(run: _Run) -> Accesses:
    return Accesses([], [run.staging()])


def _page_copy(run: _Run) -> Accesses:
    on_disk = run.task.part - run.policy.pages_in_memory(run.model)
    if on_disk >= 0:
        return Accesses([run.disk_buffer(on_disk)], [run.weights(run.task.part)])
    staged = run.policy.staging is Staging.PAGEABLE
    return Accesses([run.staging()] if staged else [], [run.weights(run.task.part)])


def _disk_read(run: _Run) -> Accesses:
    return Accesses([], [run.disk_buffer(run.task.part)])


def _kept_experts(run: _Run) -> Accesses:
    on_disk = run.policy.disk_experts_of(run.model)[run.task.layer]
    batches, kept = range(run.policy.num_micro_batches), run.model.num_experts - on_disk
    reads = [*map(run.normed, batches), *(run.sums(batch, 0) for batch in batches)]
    return Accesses(reads, [run.sums(batch, kept) for batch in batches])


def _disk_experts(run: _Run) -> Accesses:
    (_, layer, part), batches = run.task.key, range(run.policy.num_micro_batches)
    on_disk = run.policy.disk_experts_of(run.model)[layer]
    added = run.model.num_experts - on_disk + part
    reads = [run.disk_buffer(part), *map(run.normed, batches), *(run.sums(batch, added) for batch in batches)]
    writes = [run.sums(batch, added + 1) for batch in batches]
    if part == on_disk - 1:
        reads += [run.hidden(layer, TaskKind.POST_ATTENTION, batch) for batch in batches]
        writes += [run.hidden(layer, TaskKind.DISK_EXPERTS, batch) for batch in batches]
    return Accesses(reads, writes)


_BY_KIND = {
    TaskKind.PRE_ATTENTION: _pre_attention,
    TaskKind.QKV_OFFLOAD: _qkv_offload,
    TaskKind.ATTENTION: _attention,
    TaskKind.HIDDEN_UPLOAD: _hidden_upload,
    TaskKind.KV_LOAD: _kv_load,
    TaskKind.POST_ATTENTION: _post_attention,
    TaskKind.EXPERT_OFFLOAD: _expert_offload,
    TaskKind.CPU_EXPERTS: _cpu_experts,
    TaskKind.GPU_EXPERTS: _gpu_experts,
    TaskKind.EXPERT_UPLOAD: _expert_upload,
    TaskKind.HEAD: _head,
    TaskKind.PAGE_COPY: _page_copy,
    TaskKind.PAGE_PIN: _page_pin,
    TaskKind.DISK_READ: _disk_read,
    TaskKind.KEPT_EXPERTS: _kept_experts,
    TaskKind.DISK_EXPERTS: _disk_experts,
}
