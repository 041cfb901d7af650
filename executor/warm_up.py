"""What happens once and belongs to no measured phase: threads, libraries and probes wake up on every lane."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch

from executor.attention import append_kv, decode_attention, prefill_attention
from executor.decoder import next_logits, post_attention, pre_attention, route_attended
from executor.experts import ExpertForm, weighted_sum
from executor.kv_cache import CacheView
from executor.memory import torch_dtype
from executor.sampling import Settings, pick
from executor.state import WaveState
from hrm.device.openmp import end_helpers
from hrm.policy import Processor
from hrm.schedule.task import Lane, Phase

__all__ = ["warm_up"]

_ROWS = 4


def warm_up(state: WaveState, lanes: Collection[Lane]) -> None:
    """Run one layer's kernels on a few rows, on the lanes that run them, and touch the other lanes.

    What loaded weights and mapped memory, in the calling thread, has done so: its helpers would be in the lanes' way.
    """
    end_helpers()
    streams = {lane: state.backend.stream(lane) for lane in lanes}
    events = [stream.submit(_nothing) for stream in streams.values()]
    events.append(streams[Lane(state.policy.main_device)].submit(partial(_dense_and_experts, state)))
    events.append(state.backend.stream(Lane(state.policy.attention_device)).submit(partial(_attention, state)))
    if state.buffers.split:
        events.append(streams[Lane.CPU].submit(partial(_cpu_experts, state)))
    for event in events:
        event.wait()


def _nothing() -> None:
    """Start the lane's thread."""


def _dense_and_experts(state: WaveState) -> None:
    model, device = state.model, state.weights.head.device
    first = model.moe_layers[0]
    layer = state.weights.layers[first]
    dtype = state.weights.head.dtype
    rows = min(_ROWS, len(state.round.positions), state.policy.micro_batch_size)
    with torch.inference_mode():
        hidden = torch.zeros((rows, model.hidden_size), dtype=dtype, device=device)
        query = torch.zeros((rows, model.num_query_heads, model.head_dim), dtype=dtype, device=device)
        parts = [torch.zeros((rows, *model.cache_heads), dtype=dtype, device=device) for _ in range(model.cache_parts)]
        rotary = state.rotary.at(state.round.positions[:rows])
        pre_attention(hidden, layer, model, rotary, state.workspace, (query, *parts))
        attended = torch.zeros((rows, model.output_projection[0]), dtype=dtype, device=device)
        with state.workspace.frame():
            cached = [part.transpose(0, 1).flatten() for part in parts]
            keys, values = state.keys_values(first, cached, [rows])
            prefill_attention(query, keys, values, attended, [rows], state.attention(first))
        if state.policy.computes_from_disk:
            routed = state.buffers.disk.routed.parts(rows)
            route_attended(attended, hidden, layer, model, state.workspace, routed)
        elif experts := state.main_experts(first, 0):
            post_attention(attended, hidden, layer, experts, model, state.workspace)
        else:
            routed = state.buffers.split[Phase.DECODE][0].routed.parts(rows)
            route_attended(attended, hidden, layer, model, state.workspace, routed)
        with state.workspace.frame():
            pick(next_logits(hidden, state.weights, model, state.workspace), [Settings()] * rows, [0] * rows)


def _cpu_experts(state: WaveState) -> None:
    experts = state.experts.on_cpu(state.model.moe_layers[0])
    first = state.model.num_experts - len(experts)
    with torch.inference_mode(), state.cpu_workspace.frame():
        x = torch.zeros((1, state.model.hidden_size), dtype=experts[0].dtype)
        chosen, form = torch.full((1, 1), first), ExpertForm.of(state.model)
        weighted_sum(x, torch.ones((1, 1)), chosen, experts, first, state.cpu_workspace, form)


def _attention(state: WaveState) -> None:
    """Attend over a cache of one token."""
    model, dtype = state.model, torch_dtype(state.policy.kv_dtype)
    device = state.backend.device if state.policy.attention_device is Processor.GPU else torch.device("cpu")
    none = torch.zeros(1, dtype=torch.int64)
    heads, dim = model.cache_heads
    with torch.inference_mode():
        keys, values = (torch.zeros(heads * dim, dtype=dtype, device=device) for _ in range(2))
        view = CacheView(keys, values, offsets=none, capacities=none + 1)
        query = torch.zeros(
            (1, model.num_query_heads, dim), dtype=torch_dtype(state.policy.weight_dtype), device=device
        )
        new = query[:, :heads]
        append_kv(new, new, keys, values, view.next_places(none))
        out = query.new_empty((1, model.num_query_heads, model.attended_size // model.num_query_heads))
        decode_attention(query, keys, values, view.valid(none + 1), heads, out)
