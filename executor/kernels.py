"""The executor's kernels as values, for the profiler to time: the very functions that the engine calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

import torch

from executor.attention import AttentionForm, append_kv, decode_attention, prefill_attention
from executor.experts import assignments, weighted_sum
from executor.linear import linear, operand, suits_compiled
from executor.memory import torch_dtype
from executor.norm import add_and_norm, add_to, rms_norm
from executor.rotary import rotate
from executor.routing import route
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

Call = Callable[[], object]
_Make = Callable[[int, int, torch.device, torch.dtype], Call]
Operand = TypeVar("Operand")


def kernel_probes(dtype: DType, quick: bool) -> tuple[KernelProbe, ...]:
    """Return a probe per kernel, computing in `dtype`; `quick` leaves out the largest shapes.

    Attention is probed with heads of 64 in groups of four, its cache in `dtype` too, including the append of the new
    token; an expert with the gathering of its tokens and the weighted sum; element-wise work as one layer's chain.
    """
    kind = torch_dtype(dtype)

    def made(make: _Make) -> MakeKernel:
        def make_call(size: int, count: int, _lane: Lane, device: torch.device) -> Call:
            with torch.inference_mode():
                return _inference(make(size, count, device, kind))

        return make_call

    def probe(kernel: Kernel, make: _Make, sizes: Sequence[int], rows: Sequence[int]) -> KernelProbe:
        return KernelProbe(kernel=kernel, dtype=dtype, sizes=tuple(sizes), rows=tuple(rows), make=made(make))

    def several(count: int) -> MakeKernel:
        return made(partial(_experts_ffn, count))

    last = -1 if quick else None
    contexts, prompts = ([2 * tokens * KV_SIZE for tokens in lens[:last]] for lens in (_CONTEXTS, _PROMPTS))
    return (
        probe(Kernel.PROJECTION, _projection, _WEIGHT_SIZES[:last], _ROWS),
        replace(probe(Kernel.EXPERT_FFN, partial(_experts_ffn, 1), _WEIGHT_SIZES[1:last], _ROWS), make_several=several),
        probe(Kernel.ATTENTION_DECODE, _attention_decode, contexts, (1, 8, 32, 128)),
        probe(Kernel.ATTENTION_PREFILL, _attention_prefill, prompts, (1, 8)),
        probe(Kernel.ELEMENTWISE, _elementwise, _HIDDEN_SIZES, _ROWS),
    )


def _inference(call: Call) -> Call:
    def run() -> object:
        with torch.inference_mode():
            return call()

    return run


def _filled(elements: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Allocate finite values as backends do, in pages of their own: untouched zeros would all be the same page."""
    empty = (
        huge_paged((elements,), dtype) if device.type == "cpu" else torch.empty(elements, dtype=dtype, device=device)
    )
    return empty.fill_(1 / 64)


_working_sets: WeakValueDictionary[tuple[int, torch.device, torch.dtype], torch.Tensor] = WeakValueDictionary()
"""Those that some call goes round over now: shapes that are timed in turn share one, for filling it takes long."""


def _copies(
    elements: int, device: torch.device, dtype: torch.dtype, shaped: Callable[[torch.Tensor], Operand]
) -> Iterator[Operand]:
    """Go round over operands of a size, one at least, and as many as exceed the caches together."""
    least = WORKING_SET_BYTES // dtype.itemsize
    key = max(elements, least), device, dtype
    whole = _working_sets.get(key)
    if whole is None:
        whole = _working_sets[key] = _filled(*key)
    parts = torch.split(whole, elements)[: max(1, least // elements)]
    return _round_over([shaped(part) for part in parts], whole)


def _round_over(operands: Sequence[Operand], _whole: torch.Tensor) -> Iterator[Operand]:
    """Yield operands without end; the working set that they are cut from lives as long as this."""
    while True:
        yield from operands


def _workspace(num_bytes: int, device: torch.device) -> Workspace:
    return Workspace(num_bytes, lambda shape, dtype: torch.empty(tuple(shape), dtype=dtype, device=device))


def _width(size: int, ratio: float) -> int:
    """Return the inputs of a matrix of `size` elements with `ratio` outputs per input, a power of two."""
    return int(2 ** round(math.log2(math.sqrt(size / ratio))))


def _projection(size: int, rows: int, device: torch.device, dtype: torch.dtype) -> Call:
    inputs = _width(size, 1.0)
    weights = _copies(size, device, dtype, lambda weight: weight.view(size // inputs, inputs))
    x = _filled(rows * inputs, device, dtype).view(rows, inputs)
    outputs = size // inputs
    workspace = _workspace(int(linear_workspace_bytes(rows, inputs, outputs)) + 4 * rows * outputs, device)

    def call() -> None:
        with workspace.frame():
            linear(x, next(weights), workspace)

    return call


def _experts_ffn(count: int, size: int, rows: int, device: torch.device, dtype: torch.dtype) -> Call:
    """Compute so many experts in a call, as of a layer, each for as many tokens."""
    hidden = _width(size, FFN_RATIO)
    experts = _copies(3 * size, device, dtype, lambda expert: expert)
    workspace = _workspace(int(experts_workspace_bytes(count * rows, hidden, size // hidden, count, 1)), device)
    x = _filled(count * rows * hidden, device, dtype).view(count * rows, hidden)
    shares = torch.full((len(x), 1), 0.5, device=device)
    chosen = torch.arange(len(x), device=device).remainder_(count).unsqueeze(1)

    def call() -> None:
        with workspace.frame():
            weighted_sum(x, shares, chosen, [next(experts) for _ in range(count)], 0, workspace)

    return call


def _attention_decode(size: int, rows: int, device: torch.device, dtype: torch.dtype) -> Call:
    context = size // (2 * KV_SIZE)
    caches = _copies(2 * rows * context * KV_SIZE, device, dtype, lambda cache: cache.chunk(2))
    query = _filled(rows * GROUP * KV_SIZE, device, dtype).view(rows, GROUP * NUM_KV_HEADS, HEAD_DIM)
    new = _filled(rows * KV_SIZE, device, dtype).view(rows, NUM_KV_HEADS, HEAD_DIM)
    out = torch.empty_like(query)
    capacities = torch.full((rows,), context)
    offsets = torch.arange(rows) * (context * KV_SIZE)

    def call() -> None:
        keys, values = next(caches)
        append_kv(new, new, keys, values, (offsets, capacities, capacities - 1))
        decode_attention(query, keys, values, (offsets, capacities, capacities), NUM_KV_HEADS, out)

    return call


def _attention_prefill(size: int, rows: int, device: torch.device, dtype: torch.dtype) -> Call:
    tokens = size // (2 * KV_SIZE)
    query = _filled(rows * tokens * GROUP * KV_SIZE, device, dtype).view(rows * tokens, GROUP * NUM_KV_HEADS, HEAD_DIM)
    keys = _filled(rows * tokens * KV_SIZE, device, dtype)
    out = torch.empty_like(query).view(rows * tokens, GROUP * KV_SIZE)
    form, lens = AttentionForm(scale=HEAD_DIM**-0.5), [tokens] * rows

    def call() -> None:
        prefill_attention(query, keys, keys, out, lens, form)

    return call


def _elementwise(size: int, rows: int, device: torch.device, dtype: torch.dtype) -> Call:
    """Two norms, RoPE of queries and keys, values put by, routing, two residuals: of one layer."""
    workspace = _workspace(4 * 8 * rows * size + 16 * 64, device)
    hidden, attended = (_filled(rows * size, device, dtype).view(rows, size) for _ in range(2))
    weight = _filled(size, device, dtype)
    heads = size // HEAD_DIM
    cos, sin = (_filled(rows * HEAD_DIM // 2, device, dtype).view(rows, 1, HEAD_DIM // 2) for _ in range(2))
    logits = torch.rand((rows, ROUTED_EXPERTS), device=device)

    def call() -> None:
        with workspace.frame():
            normed = rms_norm(hidden, weight, 1e-5, workspace).view(rows, heads, HEAD_DIM)
            keys = values = normed[:, : max(1, heads // GROUP)]
            for part in (normed, keys):
                rotate(part, cos, sin, workspace.take(part.shape, dtype))
            workspace.take(values.shape, dtype).copy_(values)
        with workspace.frame():
            normed = workspace.take(hidden.shape, dtype)
            add_and_norm(hidden, attended, weight, 1e-5, workspace, normed)
            routed = route(logits, ROUTED_PER_TOKEN)
            if not suits_compiled(weight):
                assignments(*routed, ROUTED_EXPERTS)
            add_to(hidden, operand(normed, weight, workspace))

    return call
