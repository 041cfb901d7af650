"""The executor's kernels as values, for the profiler to time: the very functions that the engine calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import torch

from executor.attention import AttentionForm, append_kv, decode_attention, prefill_attention
from executor.experts import assignments, weighted_sum
from executor.linear import linear, operand, suits_compiled
from executor.memory import torch_dtype
from executor.norm import add_and_norm, add_to, rms_norm
from executor.repeated import Repeated
from executor.rotary import rotate
from executor.routing import route
from executor.rows import copy_rows
from executor.workspace import Workspace
from hrm.ceilings import Kernel
from hrm.device.huge_pages import huge_paged
from hrm.dtypes import DType
from hrm.microbench.kernels import KernelProbe, MakeKernel
from hrm.schedule.task import Lane
from hrm.workspace import experts_workspace_bytes, linear_workspace_bytes

__all__ = ["kernel_probes"]

WORKING_SET_BYTES = 256 * 2**20
"""Weights or cache that calls go round over: what a run streams from memory must not lie in a cache here. From a set of
twice a cache it still serves a part: experts of 6 MB and 4 rows, 32 MiB of cache, Zen 5: 31.8 GB/s in a set of 64 MiB,
27.5 in one of 128, 25.6 in 256 and in 512."""
_MOST_OPERANDS = 2048
"""Beyond, they are less than the set: smaller ones are quick, and each has to be looked at once."""
HEAD_DIM = 64
NUM_KV_HEADS = 4
GROUP = 4
"""Query heads per KV head of the attention probes, as in Mixtral."""
KV_SIZE = NUM_KV_HEADS * HEAD_DIM
FFN_RATIO = 3.0
"""Intermediate over hidden size of the expert probes; published models lie between 2.7 and 3.5."""
ROUTED_EXPERTS, ROUTED_PER_TOKEN = 8, 2

_WEIGHT_SIZES = (2**16, 2**18, 2**20, 2**22)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
_CONTEXTS = (16, 128, 512, 2048)
_PROMPTS = (16, 64, 256, 1024)
_HIDDEN_SIZES = (256, 512, 1024, 2048, 4096)
"""Close together: from some 32,000 elements on torch works with all threads, and waking them may take longer."""
_REPEATED_ROWS = 512
"""Rows up to which the CPU's calls are repeated: with more, what is around a kernel no longer counts beside it."""

Call = Callable[[], object]
Operand = TypeVar("Operand")
_Make = Callable[[int, int, torch.device, torch.dtype], "_Turns[Any]"]


def kernel_probes(dtype: DType, quick: bool) -> tuple[KernelProbe, ...]:
    """Return a probe per kernel, computing in `dtype`; `quick` leaves out the largest shapes.

    Attention is probed with heads of 64 in groups of four, its cache in `dtype` too, including the append of the new
    token; an expert with the gathering of its tokens and the weighted sum; element-wise work as one layer's chain. On
    the CPU calls are repeated where the engine could (`executor.repeated`): what Python does around them is the task's.
    """
    kind = torch_dtype(dtype)

    def made(make: _Make, *, repeats: bool = True) -> MakeKernel:
        def make_call(size: int, count: int, lane: Lane, device: torch.device) -> Call:
            with torch.inference_mode():
                turns = make(size, count, device, kind)
            alone = repeats and lane is Lane.CPU and count <= _REPEATED_ROWS
            return partial(next, turns.repeated() if alone else turns.as_called())

        return make_call

    def probe(kernel: Kernel, make: _Make, sizes: Sequence[int], rows: Sequence[int]) -> KernelProbe:
        return KernelProbe(kernel=kernel, dtype=dtype, sizes=tuple(sizes), rows=tuple(rows), make=made(make))

    def several(count: int) -> MakeKernel:
        return made(partial(_experts_ffn, count))

    last, one_expert = -1 if quick else None, partial(_experts_ffn, 1)
    contexts, prompts = ([2 * tokens * KV_SIZE for tokens in lens[:last]] for lens in (_CONTEXTS, _PROMPTS))
    return (
        probe(Kernel.PROJECTION, _projection, _WEIGHT_SIZES[:last], _ROWS),
        replace(
            probe(Kernel.EXPERT_FFN, one_expert, _WEIGHT_SIZES[1:last], _ROWS),
            make_several=several,
            make_task=made(one_expert, repeats=False),
        ),
        replace(
            probe(Kernel.ATTENTION_DECODE, _attention_decode, contexts, (1, 8, 32, 128)),
            make_task=made(_attention_decode, repeats=False),
        ),
        probe(Kernel.ATTENTION_PREFILL, _attention_prefill, prompts, (1, 8)),
        probe(Kernel.ELEMENTWISE, _elementwise, _HIDDEN_SIZES, _ROWS),
    )


class _Turns(Generic[Operand]):
    """A kernel on one operand after the other, round and round, so that none is found in a cache."""

    def __init__(self, work: Callable[[Operand], object], operands: Sequence[Operand], whole: torch.Tensor) -> None:
        self._works = [partial(_inferring, work, operand) for operand in operands]
        self._whole = whole
        """The working set that operands are cut from, which lives as long as this."""

    def as_called(self) -> Iterator[None]:
        """Yield after each call."""
        for work in cycle(self._works):
            work()
            yield

    def repeated(self) -> Iterator[None]:
        """Yield after each call, which does without what leads to its kernels; before, all operands have had a turn."""
        self._works[0]()  # What is decided once, by trying, is decided when nobody watches.
        repeated = Repeated()
        for turn, work in enumerate(self._works):
            repeated.run(turn, None, work)
        for turn, work in cycle(enumerate(self._works)):
            repeated.run(turn, None, work)
            yield


def _inferring(work: Callable[[Operand], object], operand: Operand) -> None:
    with torch.inference_mode():
        work(operand)


def _filled(elements: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Allocate finite values as backends do, in pages of their own: untouched zeros would all be the same page."""
    empty = (
        huge_paged((elements,), dtype) if device.type == "cpu" else torch.empty(elements, dtype=dtype, device=device)
    )
    return empty.fill_(1 / 64)


_working_sets: WeakValueDictionary[tuple[int, torch.device, torch.dtype], torch.Tensor] = WeakValueDictionary()
"""Those that some call goes round over now: shapes that are timed in turn share one, for filling it takes long."""


def _working_set(elements: int, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a working set and operands of a size that it is cut into: one at least, exceeding the caches together."""
    least = WORKING_SET_BYTES // dtype.itemsize
    key = max(elements, least), device, dtype
    whole = _working_sets.get(key)
    if whole is None:
        whole = _working_sets[key] = _filled(*key)
    return whole, list(torch.split(whole, elements)[: min(_MOST_OPERANDS, max(1, least // elements))])


def _workspace(num_bytes: int, device: torch.device) -> Workspace:
    return Workspace(num_bytes, lambda shape, dtype: torch.empty(tuple(shape), dtype=dtype, device=device))


def _width(size: int, ratio: float) -> int:
    """Return the inputs of a matrix of `size` elements with `ratio` outputs per input, a power of two."""
    return int(2 ** round(math.log2(math.sqrt(size / ratio))))


def _projection(size: int, rows: int, device: torch.device, dtype: torch.dtype) -> _Turns[torch.Tensor]:
    inputs = _width(size, 1.0)
    whole, parts = _working_set(size, device, dtype)
    x = _filled(rows * inputs, device, dtype).view(rows, inputs)
    outputs = size // inputs
    workspace = _workspace(int(linear_workspace_bytes(rows, inputs, outputs)) + 4 * rows * outputs, device)

    def work(weight: torch.Tensor) -> None:
        with workspace.frame():
            linear(x, weight, workspace)

    return _Turns(work, [part.view(outputs, inputs) for part in parts], whole)


def _experts_ffn(
    count: int, size: int, rows: int, device: torch.device, dtype: torch.dtype
) -> _Turns[Sequence[torch.Tensor]]:
    """Compute so many experts in a call, as of a layer, each for as many tokens."""
    hidden = _width(size, FFN_RATIO)
    whole, experts = _working_set(3 * size, device, dtype)
    workspace = _workspace(int(experts_workspace_bytes(count * rows, hidden, size // hidden, count, 1)), device)
    x = _filled(count * rows * hidden, device, dtype).view(count * rows, hidden)
    shares = torch.full((len(x), 1), 0.5, device=device)
    chosen = torch.arange(len(x), device=device).remainder_(count).unsqueeze(1)

    def work(layer: Sequence[torch.Tensor]) -> None:
        with workspace.frame():
            weighted_sum(x, shares, chosen, layer, 0, workspace)

    layers = [experts[first : first + count] for first in range(0, len(experts) + 1 - count, count)]
    return _Turns(work, layers, whole)


def _attention_decode(size: int, rows: int, device: torch.device, dtype: torch.dtype) -> _Turns[torch.Tensor]:
    context = size // (2 * KV_SIZE)
    whole, caches = _working_set(2 * rows * context * KV_SIZE, device, dtype)
    query = _filled(rows * GROUP * KV_SIZE, device, dtype).view(rows, GROUP * NUM_KV_HEADS, HEAD_DIM)
    new = _filled(rows * KV_SIZE, device, dtype).view(rows, NUM_KV_HEADS, HEAD_DIM)
    out = torch.empty_like(query)
    capacities = torch.full((rows,), context)
    offsets = torch.arange(rows) * (context * KV_SIZE)
    places, valid = (offsets, capacities, capacities - 1), (offsets, capacities, capacities)

    def work(cache: torch.Tensor) -> None:
        keys, values = torch.split(cache, len(cache) // 2)
        append_kv(new, new, keys, values, places)
        decode_attention(query, keys, values, valid, NUM_KV_HEADS, out)

    return _Turns(work, caches, whole)


def _attention_prefill(size: int, rows: int, device: torch.device, dtype: torch.dtype) -> _Turns[torch.Tensor]:
    tokens = size // (2 * KV_SIZE)
    query = _filled(rows * tokens * GROUP * KV_SIZE, device, dtype).view(rows * tokens, GROUP * NUM_KV_HEADS, HEAD_DIM)
    keys = _filled(rows * tokens * KV_SIZE, device, dtype)
    out = torch.empty_like(query).view(rows * tokens, GROUP * KV_SIZE)
    form, lens = AttentionForm(scale=HEAD_DIM**-0.5), [tokens] * rows

    def work(cache: torch.Tensor) -> None:
        prefill_attention(query, cache, cache, out, lens, form)

    return _Turns(work, [keys], keys)


def _elementwise(size: int, rows: int, device: torch.device, dtype: torch.dtype) -> _Turns[torch.Tensor]:
    """Two norms, RoPE of queries and keys, values put by, routing, two residuals: of one layer."""
    workspace = _workspace(4 * 8 * rows * size + 16 * 64, device)
    hidden, attended = (_filled(rows * size, device, dtype).view(rows, size) for _ in range(2))
    weight = _filled(size, device, dtype)
    heads = size // HEAD_DIM
    cos, sin = (_filled(rows * HEAD_DIM // 2, device, dtype).view(rows, 1, HEAD_DIM // 2) for _ in range(2))
    logits = torch.rand((rows, ROUTED_EXPERTS), device=device)

    def work(hidden: torch.Tensor) -> None:
        with workspace.frame():
            normed = rms_norm(hidden, weight, 1e-5, workspace).view(rows, heads, HEAD_DIM)
            keys = values = normed[:, : max(1, heads // GROUP)]
            for part in (normed, keys):
                rotate(part, cos, sin, workspace.take(part.shape, dtype))
            copy_rows(values, workspace.take(values.shape, dtype))
        with workspace.frame():
            normed = workspace.take(hidden.shape, dtype)
            add_and_norm(hidden, attended, weight, 1e-5, workspace, normed)
            routed = route(logits, ROUTED_PER_TOKEN)
            if not suits_compiled(weight):
                assignments(*routed, ROUTED_EXPERTS)
            add_to(hidden, operand(normed, weight, workspace))

    return _Turns(work, [hidden], hidden)
