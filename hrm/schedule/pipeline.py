"""The pipeline that all schedules with a GPU share; what tells them apart is how far it looks ahead, and the policy.

A pass walks positions x = (layer, micro-batch) in order. At each one attention's output or the KV cache comes up, pages
of the next layer's weights follow, the GPU does post-attention, and experts split between CPU and GPU do their parts.
With look-ahead, pre-attention and CPU attention have run so many positions before; without, they run at x itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from hrm.model import ModelSpec
from hrm.policy import Policy, Processor
from hrm.schedule.pages import Pages
from hrm.schedule.task import IN_FLIGHT, Lane, Need, Phase, Schedule, Task, TaskKey, TaskKind, Walk

__all__ = ["pipeline"]


def pipeline(policy: Policy, model: ModelSpec, *, look_ahead: int) -> Schedule:
    """Order the tasks of a policy that uses the GPU; CPU attention runs `look_ahead` micro-batches ahead of the rest.

    Prefill attends on the GPU. Keys and values that live on the CPU go down in either phase.
    """
    pipes = {phase: _Pipe(policy, model, phase, look_ahead) for phase in Phase}
    return Schedule(
        prologue=tuple(pipes[Phase.PREFILL].pages.prologue()),
        walks={phase: pipe.walk() for phase, pipe in pipes.items()},
    )


class _Pipe:
    """Makes the tasks of a pass."""

    def __init__(self, policy: Policy, model: ModelSpec, phase: Phase, look_ahead: int) -> None:
        self.model = model
        self.decode = phase is Phase.DECODE
        self.num_micro_batches = policy.num_micro_batches
        self.positions = model.num_layers * policy.num_micro_batches
        on_cpu = policy.experts_on_cpu(model)
        self.splits, self.gpu_experts = on_cpu > 0, on_cpu < model.num_experts
        self.attends_on_cpu = self.decode and policy.attention_device is Processor.CPU
        self.kv_goes_down = policy.kv_on_gpu < 1
        self.kv_comes_up = self.decode and self.kv_goes_down and not self.attends_on_cpu
        self.ahead = min(look_ahead, policy.num_micro_batches) if self.attends_on_cpu else 0
        # The CPU's experts come up one position later, so that nothing waits behind them in the lane.
        self.upload_lag = min(1, policy.num_micro_batches - max(self.ahead, 1))
        self.pages = Pages(policy, model, TaskKind.GPU_EXPERTS if self.splits else TaskKind.POST_ATTENTION)

    def walk(self) -> Walk:
        """Wrap up what makes the pass."""
        return Walk(
            num_layers=self.model.num_layers,
            layer=self._layer,
            like=self._like,
            main=Lane.GPU,
            reach=self._reach,
        )

    def _reach(self, layer: int) -> int:
        """Return how many layers back needs point: those of micro-batches in flight and loaded ahead, and of pages."""
        return max(IN_FLIGHT + (self.num_micro_batches < IN_FLIGHT), self.pages.reach(layer))

    def _like(self, layer: int) -> Hashable:
        """Tell layers apart by what they give to the lanes, and by where in their own layers needed tasks stand."""
        last = self.model.num_layers - 1
        reach = self._reach(layer)
        kinds = tuple(self.model.layer_kind(at) for at in range(max(layer - reach - 1, 0), min(layer + 1, last) + 1))
        pages = tuple(self.pages.like(at) for at in range(max(layer - reach, 0), layer + 1))
        return min(layer, reach + 1), min(last - layer, IN_FLIGHT + 1), kinds, pages

    def _layer(self, layer: int) -> Iterator[Task]:
        """Yield what is given to the lanes while the GPU works on a layer."""
        first = layer * self.num_micro_batches
        if layer == 0:
            for x in range(self.ahead):
                yield from self._until_attention(x)
            if self.kv_comes_up:
                yield self._kv_load(0)
        for x in range(first, first + self.num_micro_batches):
            yield from self._position(x)
        if layer == self.model.num_layers - 1:
            for x in range(self.positions - self.upload_lag, self.positions):
                yield from self._finish(x)

    def _position(self, x: int) -> Iterator[Task]:
        if not self.ahead:
            yield from self._until_attention(x)
        if self.attends_on_cpu:
            yield self._hidden_upload(x)
        if self.kv_comes_up and x + 1 < self.positions:
            yield self._kv_load(x + 1)
        if self.upload_lag and x:
            yield from self._finish(x - self.upload_lag)
        yield from self.pages.during(*divmod(x, self.num_micro_batches))
        yield self._post_attention(x)
        if self._is_split(x):
            yield from self._split_experts(x)
        if not self.upload_lag:
            yield from self._finish(x)
        if self.ahead and x + self.ahead < self.positions:
            yield from self._until_attention(x + self.ahead)

    def _task(self, kind: TaskKind, x: int, lane: Lane, needs: list[Need]) -> Task:
        return Task(key=self._key(kind, x), lane=lane, needs=tuple(needs))

    def _key(self, kind: TaskKind, x: int) -> TaskKey:
        return TaskKey(kind, *divmod(x, self.num_micro_batches))

    def _need(self, kind: TaskKind, x: int, passes_ago: int = 0) -> Need:
        return Need(self._key(kind, x), passes_ago)

    def _is_split(self, x: int) -> bool:
        return self.splits and self.model.layer_kind(x // self.num_micro_batches).moe

    def _buffer_free(self, kind: TaskKind, x: int) -> list[Need]:
        """Need the task of this kind that last used the buffer in flight which position x uses."""
        return [self._need(kind, x - IN_FLIGHT)] if x >= IN_FLIGHT else []

    def _buffer_free_since_last_pass(self, kind: TaskKind, x: int) -> list[Need]:
        """Do as `_buffer_free`, where nothing else makes sure that the pass before is done with the buffer."""
        last = self.positions - 1
        before = last - (last - x) % IN_FLIGHT
        return self._buffer_free(kind, x) or [self._need(kind, before, 1)]

    def _until_attention(self, x: int) -> Iterator[Task]:
        """Yield pre-attention, D1 and attention of position x."""
        needs = self._hidden_states(x)
        if self.kv_comes_up:
            needs += self._buffer_free_since_last_pass(TaskKind.QKV_OFFLOAD, x)
        elif self.kv_goes_down:
            needs += self._buffer_free(TaskKind.QKV_OFFLOAD, x)
        yield self._task(TaskKind.PRE_ATTENTION, x, Lane.GPU, needs)
        qkv = self._need(TaskKind.PRE_ATTENTION, x)
        if self.kv_goes_down:
            yield self._task(TaskKind.QKV_OFFLOAD, x, Lane.D2H, [qkv])
        if self.attends_on_cpu:
            yield self._task(TaskKind.ATTENTION, x, Lane.CPU, [self._need(TaskKind.QKV_OFFLOAD, x)])
        else:
            kv = [self._need(TaskKind.KV_LOAD, x)] if self.kv_comes_up else []
            yield self._task(TaskKind.ATTENTION, x, Lane.GPU, [qkv, *kv])

    def _hidden_states(self, x: int) -> list[Need]:
        """Need what position x starts from: the layer before, or the token that the pass before made."""
        before = x - self.num_micro_batches
        if before >= 0:
            return [self._need(self._last_kind(before), before)]
        if not self.decode:
            return []
        before += self.positions
        return [self._need(TaskKind.HEAD if self._is_split(before) else TaskKind.POST_ATTENTION, before, 1)]

    def _last_kind(self, x: int) -> TaskKind:
        return TaskKind.EXPERT_UPLOAD if self._is_split(x) else TaskKind.POST_ATTENTION

    def _hidden_upload(self, x: int) -> Task:
        needs = [self._need(TaskKind.ATTENTION, x), *self._buffer_free(TaskKind.POST_ATTENTION, x)]
        return self._task(TaskKind.HIDDEN_UPLOAD, x, Lane.H2D, needs)

    def _kv_load(self, x: int) -> Task:
        """Load the cache, the token of the pass before included, once attention has done with the buffer."""
        needs = [self._need(TaskKind.QKV_OFFLOAD, x, 1), *self._buffer_free_since_last_pass(TaskKind.ATTENTION, x)]
        return self._task(TaskKind.KV_LOAD, x, Lane.H2D, needs)

    def _post_attention(self, x: int) -> Task:
        layer = x // self.num_micro_batches
        needs = [self._need(TaskKind.HIDDEN_UPLOAD if self.attends_on_cpu else TaskKind.ATTENTION, x)]
        if self._is_split(x):
            needs += self._earlier_split(TaskKind.EXPERT_OFFLOAD, x)
        elif self.model.layer_kind(layer).moe:
            needs += self.pages.here(layer)
        return self._task(TaskKind.POST_ATTENTION, x, Lane.GPU, needs)

    def _earlier_split(self, kind: TaskKind, x: int) -> list[Need]:
        """Do as `_buffer_free` for the buffers of split experts, which dense layers leave alone."""
        return self._buffer_free(kind, x) if self._is_split(max(x - IN_FLIGHT, 0)) else []

    def _split_experts(self, x: int) -> Iterator[Task]:
        """Yield both halves of the experts, which the CPU and the GPU compute side by side."""
        routed = self._need(TaskKind.POST_ATTENTION, x)
        needs = [routed, *self._earlier_split(TaskKind.CPU_EXPERTS, x)]
        yield self._task(TaskKind.EXPERT_OFFLOAD, x, Lane.D2H, needs)
        needs = [self._need(TaskKind.EXPERT_OFFLOAD, x), *self._earlier_split(TaskKind.EXPERT_UPLOAD, x)]
        yield self._task(TaskKind.CPU_EXPERTS, x, Lane.CPU, needs)
        if self.gpu_experts:
            needs = [routed, *self.pages.here(x // self.num_micro_batches)]
            yield self._task(TaskKind.GPU_EXPERTS, x, Lane.GPU, needs)

    def _finish(self, x: int) -> Iterator[Task]:
        """Yield what completes position x after both halves of its experts."""
        if not self._is_split(x):
            return
        needs = [self._need(TaskKind.CPU_EXPERTS, x)]
        if self.gpu_experts:
            needs.append(self._need(TaskKind.GPU_EXPERTS, x))
        yield self._task(TaskKind.EXPERT_UPLOAD, x, Lane.H2D, needs)
        if x >= self.positions - self.num_micro_batches:
            yield self._task(TaskKind.HEAD, x, Lane.GPU, [self._need(TaskKind.EXPERT_UPLOAD, x)])
