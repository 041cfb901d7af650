"""What a checkpoint holds, apart from how it is stored: the common form between the sources and the writer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from hrm.dtypes import DType
from hrm.errors import FileError, ModelError
from hrm.model import ModelSpec
from hrm.records import record

__all__ = ["Content", "check_tensors", "hf_config", "layout", "stored_bytes", "stored_dtype"]

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@record
class Content:
    """A checkpoint's dimensions, special token ids, files beside the weights, and its weights one at a time.

    `read` takes a name of `shapes` and returns that tensor; nothing is held between calls. `own_config` and
    `own_shapes` are for models of other families than `hf_config` and `layout` write.
    """

    spec: ModelSpec
    read: Callable[[str], torch.Tensor]
    token_ids: dict[str, Any]
    side_files: dict[str, bytes]
    own_config: dict[str, Any] | None = None
    own_shapes: dict[str, tuple[int, ...]] | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The Hugging Face `config.json`."""
        return self.own_config or hf_config(self.spec, self.token_ids)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor by name, in the order of the layers."""
        return self.own_shapes or layout(self.spec)


def layout(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """List every tensor of a Hugging Face checkpoint of this model, in the order of the layers, with its shape."""
    hidden = spec.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocab_size, hidden)}
    for layer in range(spec.num_layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.self_attn.q_proj.weight"] = (spec.query_size, hidden)
        shapes[f"{prefix}.self_attn.k_proj.weight"] = (spec.kv_size, hidden)
        shapes[f"{prefix}.self_attn.v_proj.weight"] = (spec.kv_size, hidden)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (hidden, spec.query_size)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        shapes.update(_ffn_layout(spec, prefix))
    shapes["model.norm.weight"] = (hidden,)
    if not spec.tie_word_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    return shapes


def _ffn_layout(spec: ModelSpec, prefix: str) -> dict[str, tuple[int, ...]]:
    up, down = (spec.intermediate_size, spec.hidden_size), (spec.hidden_size, spec.intermediate_size)
    if spec.family == "llama":
        return {
            f"{prefix}.mlp.gate_proj.weight": up,
            f"{prefix}.mlp.up_proj.weight": up,
            f"{prefix}.mlp.down_proj.weight": down,
        }
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.block_sparse_moe.gate.weight": (spec.num_experts, spec.hidden_size)
    }
    for expert in range(spec.num_experts):
        for matrix, shape in (("w1", up), ("w3", up), ("w2", down)):
            shapes[f"{prefix}.block_sparse_moe.experts.{expert}.{matrix}.weight"] = shape
    return shapes


def hf_config(spec: ModelSpec, token_ids: dict[str, Any]) -> dict[str, Any]:
    """Write a model's dimensions as a Hugging Face `config.json`."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM" if spec.family == "llama" else "MixtralForCausalLM"],
        "model_type": spec.family,
        "hidden_act": "silu",
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_query_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "rms_norm_eps": spec.rms_norm_eps,
        "rope_theta": spec.rope_theta,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "torch_dtype": str(spec.dtype),
        "use_cache": True,
    }
    if spec.family == "mixtral":
        experts = {"num_local_experts": spec.num_experts, "num_experts_per_tok": spec.experts_per_token}
        config |= {**experts, "sliding_window": None, "output_router_logits": False}
    return config | {key: token_ids.get(key) for key in TOKEN_IDS}


def stored_dtype(dtype: DType) -> torch.dtype:
    """Return torch's name for a format that a checkpoint's tensors can be stored in.

    Raises
    ------
    ModelError
        For the integer formats, which only the engine makes.
    """
    allowed = {DType.FLOAT32: torch.float32, DType.BFLOAT16: torch.bfloat16, DType.FLOAT16: torch.float16}
    if dtype not in allowed:
        raise ModelError(f"dtype: a checkpoint cannot be stored as {dtype} (use one of {', '.join(allowed)})")
    return allowed[dtype]


def stored_bytes(content: Content) -> int:
    """Count the bytes of all tensors of a checkpoint."""
    return sum(math.prod(shape) for shape in content.shapes.values()) * stored_dtype(content.spec.dtype).itemsize


def check_tensors(spec: ModelSpec, held: Mapping[str, tuple[int, ...]], where: object) -> None:
    """Refuse a source that lacks a tensor of the model, has one of another shape, or one that would be dropped.

    Raises
    ------
    FileError
        When a tensor is missing, or its shape contradicts the configuration.
    ModelError
        When a tensor is left over: the model is not the plain architecture its configuration describes.
    """
    expected = layout(spec)
    missing = [name for name in expected if name not in held]
    if missing:
        raise FileError(f"{where}: tensor {missing[0]} is missing ({len(missing)} in all; fetch the checkpoint again)")
    for name, shape in expected.items():
        if held[name] != shape:
            raise FileError(f"{where}: tensor {name}: has shape {held[name]}, the configuration says {shape} (fix it)")
    derived = {"lm_head.weight"} if spec.tie_word_embeddings else set()
    extra = [name for name in held if name not in expected and name not in derived and "rotary_emb" not in name]
    if extra:
        raise ModelError(f"{where}: tensor {extra[0]} does not belong to a plain {spec.family} model (use another)")
