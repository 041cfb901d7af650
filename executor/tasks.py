"""From a task of the schedule to the work to submit; when it runs is the schedule's business."""

from __future__ import annotations

from collections.abc import Callable

import torch

from executor.decode import DecodeTasks
from executor.disk import DiskTasks
from executor.prefill import PrefillTasks
from executor.split import SplitTasks
from executor.state import Step, WaveState
from hrm.schedule.task import Phase, Task, TaskKind

__all__ = ["TaskRunner"]


class TaskRunner:
    """One handler per task kind and phase."""

    def __init__(self, state: WaveState) -> None:
        prefill, decode, split = PrefillTasks(state), DecodeTasks(state), SplitTasks(state)
        disk, pages = DiskTasks(state), _PageTasks(state)
        self._state = state
        self._dropping = False
        self._of_all_micro_batches = {
            TaskKind.PAGE_PIN: pages.pin,
            TaskKind.PAGE_COPY: pages.copy,
            TaskKind.DISK_READ: disk.read,
            TaskKind.KEPT_EXPERTS: disk.kept,
            TaskKind.DISK_EXPERTS: disk.compute,
        }
        self._handlers: dict[tuple[Phase, TaskKind], Callable[[Step], None]] = {
            (Phase.PREFILL, TaskKind.PRE_ATTENTION): prefill.pre_attention,
            (Phase.PREFILL, TaskKind.QKV_OFFLOAD): prefill.offload,
            (Phase.PREFILL, TaskKind.ATTENTION): prefill.attention,
            (Phase.PREFILL, TaskKind.POST_ATTENTION): prefill.post_attention,
            (Phase.DECODE, TaskKind.PRE_ATTENTION): decode.pre_attention,
            (Phase.DECODE, TaskKind.QKV_OFFLOAD): decode.offload,
            (Phase.DECODE, TaskKind.ATTENTION): decode.attention,
            (Phase.DECODE, TaskKind.HIDDEN_UPLOAD): decode.upload,
            (Phase.DECODE, TaskKind.KV_LOAD): decode.load,
            (Phase.DECODE, TaskKind.POST_ATTENTION): decode.post_attention,
        }
        for phase in Phase:
            self._handlers |= {
                (phase, TaskKind.EXPERT_OFFLOAD): split.offload,
                (phase, TaskKind.CPU_EXPERTS): split.on_cpu,
                (phase, TaskKind.GPU_EXPERTS): split.on_gpu,
                (phase, TaskKind.EXPERT_UPLOAD): split.upload,
                (phase, TaskKind.HEAD): state.choose,
            }

    def work(self, phase: Phase, task: Task, pass_index: int) -> Callable[[], None]:
        """Return what to submit for a task of pass `pass_index` (0 is prefill)."""
        step = Step(task, pass_index)
        handler = self._of_all_micro_batches.get(task.kind) or self._of_one(phase, step)

        def run() -> None:
            if not self._dropping:
                with torch.inference_mode():
                    handler(step)

        return run

    def _of_one(self, phase: Phase, step: Step) -> Callable[[Step], None]:
        batch = self._state.batch(step)
        has_rows = batch.num_sequences if step.pass_index else batch.num_tokens
        return self._handlers[phase, step.task.kind] if has_rows else _nothing

    def drop(self) -> None:
        """Let work that was submitted and has not begun do nothing: the run is over."""
        self._dropping = True


class _PageTasks:
    """The handlers of pages; apart from the runner, which would else hold itself, and a wave's memory, in a circle."""

    def __init__(self, state: WaveState) -> None:
        self._state = state

    def pin(self, step: Step) -> None:
        self._state.experts.pin_page(step.task.layer, step.task.part, self._state.use(step))

    def copy(self, step: Step) -> None:
        self._state.experts.copy_page(step.task.layer, step.task.part, self._state.use(step))


def _nothing(_: Step) -> None:
    """Do the work of a micro-batch without sequences, or in prefill without prompts."""
