"""Whether a device works here: streams, events, copies, memory, and a tiny model that must say what the CPU says."""

from __future__ import annotations

import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from executor.checkpoint import synth
from executor.engine import Engine
from executor.native import status_line
from executor.prompts import Prompt
from hrm.device.backend import Backend
from hrm.device.host import HostBackend
from hrm.dtypes import DType
from hrm.errors import OutOfMemoryError
from hrm.memory import ledger
from hrm.model import ModelSpec
from hrm.model_config import load_model
from hrm.policy import Policy, Processor, ScheduleName, Staging
from hrm.records import record
from hrm.schedule.task import Lane
from hrm.units import MIB, format_bytes, format_bytes_per_s
from hrm.workload import Workload

__all__ = ["Check", "selftest"]

CPU, GPU = Processor.CPU, Processor.GPU
COPY_BYTES = 32 * MIB
REPEATS = 3
PROMPT_LENS = (3, 17, 1, 9, 30, 2, 12)
GEN_LEN = 8
TINY = ModelSpec(
    name="tiny",
    family="mixtral",
    num_layers=3,
    hidden_size=64,
    intermediate_size=96,
    num_query_heads=8,
    num_kv_heads=2,
    head_dim=8,
    num_experts=4,
    experts_per_token=2,
    vocab_size=256,
    max_position_embeddings=64,
    dtype=DType.FLOAT32,
)
ON_THE_CPU = Policy(
    batch_size=len(PROMPT_LENS),
    micro_batch_size=2,
    attention_device=CPU,
    ffn_device=CPU,
    resident_experts=0,
    kv_on_gpu=0.0,
    schedule=ScheduleName.HOST,
    weight_dtype=DType.FLOAT32,
    kv_dtype=DType.FLOAT32,
)
STREAMED = replace(ON_THE_CPU, ffn_device=GPU, resident_experts=1, schedule=ScheduleName.CGOPIPE)
ON_THE_DEVICE = replace(STREAMED, attention_device=GPU, kv_on_gpu=1.0)
DEVICE_POLICIES = {
    "experts streamed, attention on the CPU": STREAMED,
    "pages staged on the way": replace(STREAMED, staging=Staging.PAGEABLE),
    "all on the device": replace(ON_THE_DEVICE, resident_experts=4),
    "half the KV cache fetched": replace(ON_THE_DEVICE, schedule=ScheduleName.KV_TRANSFER, kv_on_gpu=0.5),
    "experts split with the CPU": replace(STREAMED, cpu_experts=2),
}


@record
class Check:
    """One thing tried: whether it works, and what to report of it."""

    name: str
    passed: bool
    detail: str


@record
class _Tiny:
    """The part of a plan that an engine needs."""

    policy: Policy
    model: ModelSpec
    workload: Workload


@record
class _Answered:
    """The tokens of each prompt, and the most device memory that was held between passes."""

    tokens: dict[str, tuple[int, ...]]
    device_bytes: int


def selftest(backend: Backend) -> Iterator[Check]:
    """Try the device from the ground up; what raises has failed, and the rest is tried all the same."""
    yield _tried("device", partial(_describe, backend))
    has_device = backend.memory_capacity_bytes > 0
    if has_device:
        yield _tried("streams and events", partial(_round_trip, backend))
        for lane in (Lane.H2D, Lane.D2H):
            for pinned in (True, False):
                words = f"{lane} copies, {'pinned' if pinned else 'pageable'}"
                yield _tried(words, partial(_copy_rate, backend, lane, pinned=pinned))
        yield _tried("memory has an end", partial(_out_of_memory, backend))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "tiny"
        synth(checkpoint, TINY)
        expected = _on_the_cpu(checkpoint)
        policies = DEVICE_POLICIES if has_device else {"all on the CPU": ON_THE_CPU}
        for words, policy in policies.items():
            yield _tried(words, partial(_same, expected, policy, checkpoint, backend))


def _tried(name: str, work: Callable[[], str]) -> Check:
    try:
        return Check(name=name, passed=True, detail=work())
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return Check(name=name, passed=False, detail=text)


def _describe(backend: Backend) -> str:
    """Say what was opened, and with which software."""
    parts = [backend.name]
    if backend.device.type == "cuda":
        found = torch.cuda.get_device_properties(backend.device)
        parts += [found.name, f"capability {found.major}.{found.minor}", f"CUDA {torch.version.cuda}"]
    if backend.memory_capacity_bytes:
        parts.append(format_bytes(backend.memory_capacity_bytes))
    return ", ".join([*parts, f"torch {torch.__version__}", f"Python {platform.python_version()}", status_line()])


def _round_trip(backend: Backend) -> str:
    """Bring numbers up, work on them, bring them down, each on its own stream behind the one before."""
    host, back = (backend.host_empty((256, 256), torch.float32, pinned=True) for _ in range(2))
    host.copy_(torch.arange(host.numel()).view(host.shape) % 7)
    device, result = (backend.empty(host.shape, torch.float32) for _ in range(2))
    up = backend.stream(Lane.H2D).submit(lambda: backend.copy(device, host))
    work = backend.stream(Lane.GPU).submit(lambda: torch.mm(device, device, out=result), [up])
    down = backend.stream(Lane.D2H).submit(lambda: backend.copy(back, result), [work])
    backend.stream(Lane.CPU).submit(lambda: None, [down]).wait()
    if not torch.equal(back, host @ host):
        raise ArithmeticError("a product computed on the device is not the CPU's")
    moments = [time_s for event in (up, work, down) for time_s in (event.started_s, event.ended_s)]
    if moments != sorted(moments):
        raise RuntimeError(f"events are out of order: {[f'{1e6 * (at - moments[0]):.0f} us' for at in moments]}")
    return f"up, product, down in order, in {1e6 * (moments[-1] - moments[0]):.0f} us"


def _copy_rate(backend: Backend, lane: Lane, *, pinned: bool) -> str:
    """Time copies of one direction, and compare what arrived."""
    host = backend.host_empty((COPY_BYTES,), torch.uint8, pinned=pinned)
    device = backend.empty((COPY_BYTES,), torch.uint8)
    source, target = (host, device) if lane is Lane.H2D else (device, host)
    backend.stream(Lane.GPU).submit(lambda: source.fill_(77)).wait()
    events = [backend.stream(lane).submit(lambda: backend.copy(target, source)) for _ in range(REPEATS)]
    events[-1].wait()
    sums: list[int] = []
    backend.stream(Lane.GPU).submit(lambda: sums.append(int((target == 77).sum()))).wait()
    if sums != [COPY_BYTES]:
        raise ArithmeticError(f"{COPY_BYTES - sums[0]} of {COPY_BYTES} bytes did not arrive")
    seconds = statistics.median(event.ended_s - event.started_s for event in events)
    return f"{format_bytes_per_s(COPY_BYTES / seconds)} in pieces of {format_bytes(COPY_BYTES)}"


def _out_of_memory(backend: Backend) -> str:
    """Ask for more than there is; it must be refused, and nothing be lost."""
    before = backend.memory_used_bytes
    try:
        backend.empty((backend.memory_capacity_bytes + 1,), torch.uint8)
    except OutOfMemoryError:
        if backend.memory_used_bytes == before:
            return f"{format_bytes(backend.memory_capacity_bytes)}; asking for more is refused"
        raise MemoryError("a refused allocation was counted") from None
    raise MemoryError("more than the capacity was handed out")


def _on_the_cpu(checkpoint: Path) -> _Answered:
    host = HostBackend(threads=1)
    try:
        return _generate(ON_THE_CPU, checkpoint, host)
    finally:
        host.close()


def _generate(policy: Policy, checkpoint: Path, backend: Backend) -> _Answered:
    prompts = [
        Prompt(id=str(length), tokens=tuple((7 * length + 31 * at) % TINY.vocab_size for at in range(length)))
        for length in PROMPT_LENS
    ]
    plan = _Tiny(policy=policy, model=load_model(checkpoint), workload=_workload())
    before, held = backend.memory_used_bytes, [0]
    generation = Engine(plan, checkpoint, backend).generate(
        prompts, lambda _: held.append(backend.memory_used_bytes - before)
    )
    return _Answered(tokens={answer.id: answer.tokens for answer in generation.completions}, device_bytes=max(held))


def _workload() -> Workload:
    return Workload.from_prompt_lens(PROMPT_LENS, GEN_LEN)


def _same(expected: _Answered, policy: Policy, checkpoint: Path, backend: Backend) -> str:
    """Run a policy; compare the tokens with the CPU's, and the device memory with the ledger."""
    found = _generate(policy, checkpoint, backend)
    wrong = [name for name, tokens in expected.tokens.items() if found.tokens[name] != tokens]
    if wrong:
        raise ArithmeticError(f"{len(wrong)} of {len(PROMPT_LENS)} answers are not the CPU's (prompts {wrong})")
    planned = ledger(policy, TINY, _workload()).gpu.total_bytes
    if found.device_bytes > planned:
        raise MemoryError(f"the same tokens, but {found.device_bytes} bytes of device memory and {planned} planned")
    return f"same {GEN_LEN} tokens of {len(PROMPT_LENS)} prompts; device memory {found.device_bytes} of {planned} bytes"
