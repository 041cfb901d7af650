"""The engine: loads a checkpoint as a plan wants it, then runs jobs by the plan's schedule, wave after wave."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from executor.answer import Answer, Rules
from executor.buffers import WaveBuffers
from executor.disk import DiskStore
from executor.footprint import Footprint
from executor.garbage import old_objects_left_alone
from executor.kv_cache import WaveCache
from executor.measure import WaveSpans, measured
from executor.memory import main_device, main_memory, pinned_memory, torch_dtype
from executor.progress import Listener, Progress
from executor.prompts import Completion, Prompt
from executor.rotary import RotaryTable
from executor.running import run_schedule
from executor.seats import Seats
from executor.state import WaveState
from executor.supported import check_runnable
from executor.tally import Tally
from executor.tasks import TaskRunner
from executor.tokenizer import Tokenizer, end_tokens
from executor.warm_up import warm_up
from executor.wave import Wave, deal_waves, make_wave
from executor.weights import load_weights
from executor.workspace import ALIGNMENT_BYTES, Workspace
from hrm.compare import Measured
from hrm.device.backend import Backend
from hrm.device.opening import open_backend
from hrm.dtypes import DType
from hrm.errors import FileError, HrmError, ModelError, PolicyError
from hrm.memory import ledger
from hrm.model import ModelSpec
from hrm.model_config import load_model
from hrm.plan import Plan
from hrm.policy import Policy, Processor
from hrm.records import record
from hrm.schedule.catalog import build_schedule
from hrm.workload import Workload
from hrm.workspace import experts_workspace_bytes, gathered_expert_workspace_bytes, workspace_bytes

__all__ = ["Engine", "Generation", "Runnable"]

_FREE_FIELDS = ("name", "dtype", "expert_dtype")
"""Fields in which a plan's model may differ from the checkpoint: what it is called, and how its weights are stored."""


class Runnable(Protocol):
    """The part of a plan that the engine needs."""

    @property
    def policy(self) -> Policy:
        """What to run."""

    @property
    def model(self) -> ModelSpec:
        """The model it was made for."""

    @property
    def workload(self) -> Workload:
        """The job it was made for; the engine keeps to its `gen_len` and longest prompt."""


@record
class Generation:
    """The answers in the order of the prompts, what was measured, and when each task ran, wave by wave."""

    completions: tuple[Completion, ...]
    measured: Measured
    waves: tuple[WaveSpans, ...]


class Engine:
    """A checkpoint loaded for a plan on a backend; without one, on the device that the plan names.

    `ram_limit_bytes` is what the process may hold in host memory, its libraries included.

    Raises
    ------
    PolicyError
        When the policy cannot be run as written on this backend, or is predicted only.
    ModelError
        When the checkpoint holds another model than the plan is for, or one that is predicted only.
    FileError
        When the checkpoint is incomplete or damaged.
    OutOfMemoryError
        When the device cannot hold what the plan puts there, or the host takes more than the plan's ledger says.
    """

    def __init__(
        self,
        plan: Runnable | Plan,
        checkpoint_dir: str | Path,
        backend: Backend | None = None,
        *,
        ram_limit_bytes: int | None = None,
    ) -> None:
        if backend is None:
            assert isinstance(plan, Plan), "only a plan says on which device to run: give a backend"
            backend = open_backend(plan.machine.device, plan.machine.emulated)
        self.policy, self.workload, self.backend = plan.policy, plan.workload, backend
        if not Path(checkpoint_dir).is_dir():
            raise FileError(f"--checkpoint {checkpoint_dir}: no such folder (give a checkpoint folder)")
        self.model = load_model(checkpoint_dir)
        _check_model(plan.model, self.model, checkpoint_dir)
        check_runnable(self.model, self.policy)
        self._schedule = build_schedule(self.policy, self.model)
        _check_backend(self.policy, backend)
        self._tokenizer = Tokenizer(checkpoint_dir)
        if self._tokenizer.exists:
            self._tokenizer.load(str(checkpoint_dir))
        self._end_tokens = end_tokens(checkpoint_dir)
        planned = ledger(self.policy, self.model, self.workload)
        self._footprint = Footprint(backend, planned.cpu.total_bytes, ram_limit_bytes)
        folder = Path(checkpoint_dir)
        reads = self.policy.disk_experts > 0
        self._disk = DiskStore(self.policy, self.model, folder, backend.direct_empty) if reads else None
        self._weights, self._experts = load_weights(self.policy, self.model, folder, backend, self._disk)
        # What is listened to while answers are made, though not while everything warms up.
        self._heard_weights = self._weights
        self._footprint.look()
        self._device = main_device(self.policy, backend)
        dtype = torch_dtype(self.policy.weight_dtype)
        self._rotary = RotaryTable(self.model, self.workload.max_context_len, dtype, self._device)

    def record_routing(self) -> Tally:
        """Count what the routers choose from now on; what is returned has the counts.

        Raises
        ------
        ModelError
            When the model has no router.
        """
        tally = Tally()
        self._heard_weights = tally.listen_to(self._weights)
        return tally

    def generate(
        self,
        prompts: Sequence[Prompt],
        on_progress: Callable[[Progress], None] | None = None,
        on_answers: Callable[[Sequence[Completion]], None] | None = None,
    ) -> Generation:
        """Answer each prompt, as its settings say, with at most `gen_len` tokens.

        After each pass `on_answers` gets the answers that it finished, if any, and `on_progress` hears how far it is.

        Raises
        ------
        HrmError
            When a prompt does not fit the plan.
        """
        if not prompts:
            raise HrmError("no prompts: there is nothing to generate (give at least one)")
        for prompt in prompts:
            if (problem := self.problem(prompt)) is not None:
                raise HrmError(f"prompt {prompt.id!r}: {problem}")
        rules = Rules(gen_len=self.workload.gen_len, end_tokens=self._end_tokens, tokenizer=self._tokenizer)
        answers = [Answer(prompt, rules) for prompt in prompts]
        waiting = dict.fromkeys(sorted(answers, key=lambda answer: -len(answer.prompt.tokens)))
        heard = Listener(answers, on_progress, on_answers)
        lens = [len(prompt.tokens) for prompt in prompts]
        waves: list[WaveSpans] = []
        for members in deal_waves(lens, self.policy.batch_size):
            if any(answers[place] in waiting for place in members):
                wave = make_wave(members, lens, self.policy)
                waves += self._run_wave(Seats(wave, answers, waiting, rules.gen_len), heard)
        result = measured(
            waves,
            sequences=len(prompts),
            prompt_tokens=sum(lens),
            generated_tokens=sum(len(answer.tokens) for answer in answers),
            peak_bytes={
                "gpu": self.backend.memory_peak_bytes,
                "cpu": self._footprint.peak_bytes,
                "runtime": self._footprint.runtime_bytes,
            },
        )
        completions = tuple(answer.completion() for answer in answers)
        return Generation(completions=completions, measured=result, waves=tuple(waves))

    def _run_wave(self, seats: Seats, heard: Listener) -> Iterator[WaveSpans]:
        """Run a wave, in rounds: when enough seats are free, those who wait take them and prefill runs again."""
        seats.seat()
        state = self._wave_state(seats)
        warm_up(state, {task.lane for task in (*self._schedule.prefill, *self._schedule.decode)})
        self._footprint.look()
        while seats.live:
            now = replace(state, round=seats.round(self._device), weights=self._heard_weights)
            yield self._run_round(now, seats, heard)
            if seats.live:
                seats.seat()

    def _run_round(self, state: WaveState, seats: Seats, heard: Listener) -> WaveSpans:
        # Those who go on find the token they made last where decode looks for it.
        state.buffers.generated[0].copy_(state.round.last_tokens)
        if state.disk is not None:
            state.disk.begin_round()

        def on_pass(index: int) -> int:
            self._footprint.look()
            heard.hear(seats.take(index, state.buffers.generated[index].tolist()))
            return seats.passes_after(index)

        begun_s = time.perf_counter()
        with old_objects_left_alone():
            spans = run_schedule(self._schedule, seats.passes, TaskRunner(state), self.backend, on_pass)
        return WaveSpans(begun_s=begun_s, spans=spans)

    def _wave_state(self, seats: Seats) -> WaveState:
        """Allocate what the wave holds, to the token, and map its memory."""
        policy, model, wave, gen_len = self.policy, self.model, seats.wave, self.workload.gen_len
        main, on_cpu, landing = self._workspaces(wave)
        return WaveState(
            policy=policy,
            model=model,
            backend=self.backend,
            weights=self._weights,
            experts=self._experts,
            disk=self._disk,
            rotary=self._rotary,
            workspace=main,
            cpu_workspace=on_cpu,
            landing=landing,
            round=seats.round(self._device),
            cache=WaveCache.of(policy, model, wave, gen_len, self.backend),
            buffers=WaveBuffers(policy, model, wave, gen_len, self.backend),
        )

    def _workspaces(self, wave: Wave) -> tuple[Workspace, Workspace, Workspace]:
        """Make those of the main device, of the CPU's experts beside it, and of keys and values on their way down."""
        policy, model, backend = self.policy, self.model, self.backend
        tokens = max(batch.num_tokens for batch in wave.micro_batches)
        on_gpu = policy.main_device is Processor.GPU
        main = int(workspace_bytes(model, tokens, policy.micro_batch_size))
        if policy.computes_from_disk:
            ffn = model.hidden_size, model.intermediate_size, model.experts_per_token
            main = max(main, int(gathered_expert_workspace_bytes(wave.num_tokens, *ffn)))
        splits = on_gpu and policy.experts_on_cpu(model) > 0
        ffns = model.hidden_size, model.intermediate_size, model.num_experts, model.experts_per_token
        room = experts_workspace_bytes(tokens, *ffns)
        goes_down = on_gpu and policy.kv_on_gpu < 1
        formats = ((tokens, policy.kv_dtype), (policy.micro_batch_size, policy.weight_dtype))
        largest = max(rows * torch_dtype(dtype).itemsize for rows, dtype in formats) * model.cache_width
        return (
            Workspace(main, main_memory(policy, backend)),
            Workspace(int(room) if splits else 0, backend.host_empty),
            Workspace(largest + ALIGNMENT_BYTES if goes_down else 0, pinned_memory(backend)),
        )

    def problem(self, prompt: Prompt) -> str | None:
        """Say why a prompt does not fit the plan or the model; None when it does."""
        longest, gen_len, settings = self.workload.max_prompt_len, self.workload.gen_len, prompt.settings
        if not 0 < len(prompt.tokens) <= longest:
            return f"{len(prompt.tokens)} tokens, the plan takes 1 to {longest} (plan again with --max-prompt-len)"
        if max(prompt.tokens) >= self.model.vocab_size or min(prompt.tokens) < 0:
            return f"a token is outside the vocabulary of {self.model.vocab_size} (is it for another model?)"
        if (settings.max_new_tokens or 0) > gen_len:
            return (
                f"max_new_tokens {settings.max_new_tokens} exceeds the plan's gen_len {gen_len} "
                f"(plan again with a larger --gen-len)"
            )
        if settings.stop and not self._tokenizer.exists:
            return "stop texts need a tokenizer, and the checkpoint has none (add tokenizer.json)"
        return None


def _check_model(planned: ModelSpec, found: ModelSpec, checkpoint_dir: str | Path) -> None:
    for field in ModelSpec.__dataclass_fields__:
        wanted, here = getattr(planned, field), getattr(found, field)
        if field not in _FREE_FIELDS and wanted != here:
            raise ModelError(
                f"{checkpoint_dir}: {field} is {here}, the plan is for {wanted} (plan again for this checkpoint)"
            )


def _check_backend(policy: Policy, backend: Backend) -> None:
    allowed = [DType.FLOAT32, DType.BFLOAT16]
    if backend.device.type != "cpu" and policy.attention_device is Processor.GPU:
        allowed.append(DType.FLOAT16)
    for name, dtype in (("weight_dtype", policy.weight_dtype), ("kv_dtype", policy.kv_dtype)):
        if dtype not in allowed:
            raise PolicyError(f"{name} {dtype}: not executed on this device (one of {', '.join(allowed)})")
    if policy.main_device is Processor.GPU and backend.memory_capacity_bytes == 0:
        raise PolicyError(f"a policy for the gpu: backend {backend.name} has no device (plan for the CPU, or open one)")
