"""From a checkpoint's tensors to a model's weights: what families call them, experts one by one or fused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from executor.decoder import LayerWeights, ModelWeights
from executor.grouped import GroupedWeights
from executor.latent import LatentWeights
from executor.mxfp4 import BLOCK, from_mxfp4
from executor.routing import RouterWeights
from hrm.model import LatentAttention, ModelSpec
from hrm.variants import QKNorm

__all__ = ["Place", "Source", "experts_of", "load_dense", "load_experts"]

_MIXTURE = {"mixtral": "block_sparse_moe"}
"""What a layer's mixture is called where it is not `mlp`."""
_MATRICES = {"mixtral": ("w1", "w3", "w2")}
"""What an expert's gate, up and down projection are called where it is not as in `_PROJECTIONS`."""
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class Place(Protocol):
    """Stores tensors one behind the other as one where they are to lie, in the format of the weights or in `kept`."""

    def __call__(self, tensors: tuple[torch.Tensor, ...], kept: torch.dtype | None = None, /) -> torch.Tensor:
        """Return what was stored."""


class Source(Protocol):
    """What tensors are read from: a checkpoint, or whoever wants to know which ones there are."""

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of this name."""

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a tensor, which must have this shape."""

    def release(self, tensor: torch.Tensor) -> None:
        """Let go of a tensor that was read."""


def load_experts(reader: Source, model: ModelSpec, layer: int, target: Callable[[int], torch.Tensor]) -> None:
    """Copy a layer's experts into place: `target(expert)` is flat, as `executor.experts.swiglu` takes it."""
    for expert, parts in enumerate(experts_of(reader, model, layer)):
        places = torch.split(target(expert), [tensor.numel() for tensor in parts])
        for place, tensor in zip(places, parts, strict=True):
            place.view(tensor.shape).copy_(tensor)
            reader.release(tensor)


def experts_of(reader: Source, model: ModelSpec, layer: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield each expert's matrices: gate, up, down, or gate and up in one, then down; then biases, if any."""
    prefix = f"model.layers.{layer}"
    up, down = (model.intermediate_size, model.hidden_size), (model.hidden_size, model.intermediate_size)
    if model.expert_bias:
        yield from _biased_experts(reader, model, f"{prefix}.mlp.experts")
    elif model.num_experts == 1:
        yield _ffn(reader, f"{prefix}.mlp", model.hidden_size, model.intermediate_size)
    elif f"{prefix}.mlp.experts.gate_up_proj" in reader:
        fused = reader.read(f"{prefix}.mlp.experts.gate_up_proj", (model.num_experts, 2 * up[0], up[1]))
        downs = reader.read(f"{prefix}.mlp.experts.down_proj", (model.num_experts, *down))
        yield from zip(fused, downs, strict=True)
    else:
        stem = f"{prefix}.{_MIXTURE.get(model.family, 'mlp')}.experts"
        names = _MATRICES.get(model.family, _PROJECTIONS)
        for expert in range(model.num_experts):
            yield _ffn(reader, f"{stem}.{expert}", model.hidden_size, model.intermediate_size, names)


def _biased_experts(reader: Source, model: ModelSpec, stem: str) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield gpt-oss's experts: fused, inputs before outputs or in MXFP4, rows of gate and up in turn."""
    count, hidden, width = model.num_experts, model.hidden_size, model.intermediate_size
    both_biases = reader.read(f"{stem}.gate_up_proj_bias", (count, 2 * width))
    down_biases = reader.read(f"{stem}.down_proj_bias", (count, hidden))
    boths = _matrices(reader, f"{stem}.gate_up_proj", (count, 2 * width, hidden))
    downs = _matrices(reader, f"{stem}.down_proj", (count, hidden, width))
    for both, down, both_bias, down_bias in zip(boths, downs, both_biases, down_biases, strict=True):
        yield both[0::2], both[1::2], down, both_bias[0::2], both_bias[1::2], down_bias


def _matrices(reader: Source, name: str, shape: tuple[int, int, int]) -> Iterator[torch.Tensor]:
    """Yield each expert's matrix [outputs, inputs], where `shape` is [experts, outputs, inputs]."""
    count, outputs, inputs = shape
    if f"{name}_blocks" not in reader:
        for stored in reader.read(name, (count, inputs, outputs)):
            yield stored.t()
        return
    blocks = reader.read(f"{name}_blocks", (count, outputs, inputs // BLOCK, BLOCK // 2))
    scales = reader.read(f"{name}_scales", (count, outputs, inputs // BLOCK))
    for own_blocks, own_scales in zip(blocks, scales, strict=True):
        yield from_mxfp4(own_blocks, own_scales)
        reader.release(own_blocks)


def _ffn(
    reader: Source, stem: str, hidden: int, width: int, names: tuple[str, ...] = _PROJECTIONS
) -> tuple[torch.Tensor, ...]:
    shapes = ((width, hidden), (width, hidden), (hidden, width))
    return tuple(reader.read(f"{stem}.{name}.weight", shape) for name, shape in zip(names, shapes, strict=True))


def load_dense(reader: Source, model: ModelSpec, place: Place) -> ModelWeights:
    """Read what is no routed expert to where `place` puts it."""
    vocab = (model.vocab_size, model.hidden_size)
    embedding = place((reader.read("model.embed_tokens.weight", vocab),))
    layers = tuple(_Layer(reader, model, layer, place).weights() for layer in range(model.num_layers))
    return ModelWeights(
        embedding=embedding,
        layers=layers,
        final_norm=place((reader.read("model.norm.weight", (model.hidden_size,)),)),
        head=embedding if model.tie_word_embeddings else place((reader.read("lm_head.weight", vocab),)),
    )


class _Layer:
    """Reads the weights of one layer outside its routed experts."""

    def __init__(self, reader: Source, model: ModelSpec, layer: int, place: Place) -> None:
        self._reader, self._model, self._place = reader, model, place
        self._prefix = f"model.layers.{layer}"
        self._is_dense = layer in model.dense_layers

    def weights(self) -> LayerWeights:
        model, hidden = self._model, self._model.hidden_size
        return LayerWeights(
            input_norm=self._one("input_layernorm.weight", hidden),
            attention=self._grouped() if model.latent is None else self._latent(model.latent),
            output=self._one("self_attn.o_proj.weight", hidden, model.output_projection[0]),
            output_bias=self._one("self_attn.o_proj.bias", hidden) if model.output_bias else None,
            post_norm=self._one("post_attention_layernorm.weight", hidden),
            router=None if self._is_dense or model.num_experts == 1 else self._router(),
            ffn=self._passed_by_all(),
        )

    def _read(self, name: str, *shape: int) -> torch.Tensor:
        return self._reader.read(f"{self._prefix}.{name}", shape)

    def _one(self, name: str, *shape: int) -> torch.Tensor:
        return self._place((self._read(name, *shape),))

    def _grouped(self) -> GroupedWeights:
        model = self._model
        sizes = {"q_proj": model.query_size, "k_proj": model.kv_size, "v_proj": model.kv_size}
        bias = None
        if model.qkv_bias:
            bias = self._place(tuple(self._read(f"self_attn.{name}.bias", size) for name, size in sizes.items()))
        norms: list[torch.Tensor | None] = [None, None]
        if model.qk_norm is not QKNorm.NONE:
            every = model.qk_norm is QKNorm.ALL_HEADS
            widths = (model.query_size, model.kv_size) if every else (model.head_dim, model.head_dim)
            norms = [
                self._one(f"self_attn.{name}_norm.weight", width) for name, width in zip("qk", widths, strict=True)
            ]
        sinks = self._one("self_attn.sinks", model.num_query_heads) if model.attention_sinks else None
        return GroupedWeights(
            qkv=self._place(
                tuple(self._read(f"self_attn.{name}.weight", size, model.hidden_size) for name, size in sizes.items())
            ),
            qkv_bias=bias,
            query_norm=norms[0],
            key_norm=norms[1],
            sinks=sinks,
            host_sinks=None if sinks is None else sinks.to("cpu", torch.float32),
        )

    def _latent(self, latent: LatentAttention) -> LatentWeights:
        model, hidden, rank = self._model, self._model.hidden_size, latent.q_lora_rank
        heads, inputs = model.num_query_heads, rank or hidden
        query = self._read(f"self_attn.{'q_b_proj' if rank else 'q_proj'}.weight", heads * model.head_dim, inputs)
        down = self._read("self_attn.kv_a_proj_with_mqa.weight", model.cache_width, hidden)
        up = latent.nope_head_dim + latent.value_head_dim
        return LatentWeights(
            query_down=self._one("self_attn.q_a_proj.weight", rank, hidden) if rank else None,
            query_norm=self._one("self_attn.q_a_layernorm.weight", rank) if rank else None,
            query=self._place((_in_halves(query.view(heads, -1, inputs), latent.rope_head_dim).flatten(0, 1),)),
            down=self._place((_in_halves(down, latent.rope_head_dim),)),
            latent_norm=self._one("self_attn.kv_a_layernorm.weight", latent.kv_lora_rank),
            up=self._one("self_attn.kv_b_proj.weight", heads * up, latent.kv_lora_rank).view(heads, up, -1),
        )

    def _router(self) -> RouterWeights:
        """Read the router; experts that are fused in the file lie under `mlp` whatever the family."""
        model, shape = self._model, (self._model.num_experts, self._model.hidden_size)
        stem = "mlp.router" if model.router.bias else f"{_MIXTURE.get(model.family, 'mlp')}.gate"
        if f"{self._prefix}.mlp.gate.weight" in self._reader:
            stem = "mlp.gate"
        correction = None
        if model.router.correction:
            read = self._read(f"{stem}.e_score_correction_bias", model.num_experts)
            correction = self._place((read,), torch.float32)
        bias = self._one(f"{stem}.bias", model.num_experts) if model.router.bias else None
        return RouterWeights(weight=self._one(f"{stem}.weight", *shape), bias=bias, correction=correction)

    def _passed_by_all(self) -> torch.Tensor | None:
        """Read the FFN of a dense layer, or the shared experts, flat."""
        model = self._model
        width = model.dense_intermediate_size if self._is_dense else model.shared_intermediate_size
        if not width:
            return None
        stem = f"{self._prefix}.mlp" + ("" if self._is_dense else ".shared_experts")
        parts = _ffn(self._reader, stem, model.hidden_size, width)
        return self._place(tuple(part.flatten() for part in parts))


def _in_halves(rows: torch.Tensor, rotated: int) -> torch.Tensor:
    """Reorder the last `rotated` rows [..., rows, inputs] from neighbours that are a pair to halves that are paired."""
    kept, pairs = rows[..., :-rotated, :], rows[..., -rotated:, :]
    return torch.cat((kept, pairs[..., 0::2, :], pairs[..., 1::2, :]), dim=-2)
