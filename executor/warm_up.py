"""What happens once and belongs to no measured phase: threads, libraries and probes wake up on every lane."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch

from executor.attention import append_kv, decode_attention, prefill_attention
from executor.decoder import next_tokens, post_attention, pre_attention
from executor.state import WaveState
from hrm.policy import Processor
from hrm.schedule.task import Lane

__all__ = ["warm_up"]

_ROWS = 4


def warm_up(state: WaveState, lanes: Collection[Lane]) -> None:
    """Run one layer's kernels on a few rows, on the lanes that run them, and touch the other lanes."""
    ffn_lane = Lane.GPU if state.policy.ffn_device is Processor.GPU else Lane.CPU
    attention_lane = Lane.GPU if state.policy.attention_device is Processor.GPU else Lane.CPU
    events = [state.backend.stream(lane).submit(_nothing) for lane in lanes]
    events.append(state.backend.stream(ffn_lane).submit(partial(_dense_and_experts, state)))
    events.append(state.backend.stream(attention_lane).submit(partial(_attention, state)))
    for event in events:
        event.wait()


def _nothing() -> None:
    """Start the lane's thread."""


def _dense_and_experts(state: WaveState) -> None:
    model, layer, device = state.model, state.weights.layers[0], state.weights.head.device
    dtype = state.weights.head.dtype
    rows = min(_ROWS, state.wave.num_tokens, state.policy.micro_batch_size)
    heads = (model.num_query_heads, model.num_kv_heads, model.num_kv_heads)
    with torch.inference_mode():
        hidden = torch.zeros((rows, model.hidden_size), dtype=dtype, device=device)
        query, keys, values = (
            torch.zeros((rows, count, model.head_dim), dtype=dtype, device=device) for count in heads
        )
        rotary = state.rotary.at(state.positions[:rows])
        pre_attention(hidden, layer, model, rotary, state.workspace, (query, keys, values))
        attended = query.reshape(rows, model.query_size)
        prefill_attention(query, keys.transpose(0, 1), values.transpose(0, 1), attended)
        post_attention(attended, hidden, layer, state.experts.at_work(0, 0), model, state.workspace)
        next_tokens(hidden, state.weights, model, state.workspace)


def _attention(state: WaveState) -> None:
    model, cache = state.model, state.cache
    device = cache.keys[0].device
    dtype = state.weights.head.dtype
    if cache.keys[0].numel() == 0 or state.host_lengths[0] >= cache.layout(0, 1, state.host_lengths)[1][0]:
        return
    with torch.inference_mode():
        shape = (1, model.num_kv_heads, model.head_dim)
        keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        query = torch.zeros((1, model.num_query_heads, model.head_dim), dtype=dtype, device=device)
        none = torch.zeros(1, dtype=torch.int64)
        append_kv(keys, values, cache.keys[0], cache.values[0], cache.layout(0, 1, none))
        layout = cache.layout(0, 1, none + 1)
        decode_attention(query, cache.keys[0], cache.values[0], layout, model.num_kv_heads, torch.empty_like(query))
