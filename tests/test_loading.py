import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from executor.loading import CheckpointReader
from executor.parameters import load_dense, load_experts
from hrm.errors import FileError
from hrm.model import ModelSpec

MODEL = ModelSpec(
    name="tiny",
    family="mixtral",
    num_layers=1,
    hidden_size=8,
    intermediate_size=12,
    num_query_heads=2,
    num_kv_heads=1,
    head_dim=4,
    num_experts=2,
    experts_per_token=1,
    vocab_size=10,
    max_position_embeddings=16,
)
EXPERT = "model.layers.0.block_sparse_moe.experts"


def write(folder: Path, **changes: torch.Tensor | None) -> Path:
    """Write a whole checkpoint of `MODEL`, with tensors replaced or (None) left out."""
    layer = "model.layers.0"
    shapes = {
        "model.embed_tokens.weight": (10, 8),
        "model.norm.weight": (8,),
        "lm_head.weight": (10, 8),
        f"{layer}.input_layernorm.weight": (8,),
        f"{layer}.post_attention_layernorm.weight": (8,),
        f"{layer}.self_attn.q_proj.weight": (8, 8),
        f"{layer}.self_attn.k_proj.weight": (4, 8),
        f"{layer}.self_attn.v_proj.weight": (4, 8),
        f"{layer}.self_attn.o_proj.weight": (8, 8),
        f"{layer}.block_sparse_moe.gate.weight": (2, 8),
    }
    for expert in range(2):
        shapes |= {f"{EXPERT}.{expert}.{name}.weight": (12, 8) for name in ("w1", "w3")}
        shapes[f"{EXPERT}.{expert}.w2.weight"] = (8, 12)
    tensors: dict[str, torch.Tensor | None] = {name: torch.randn(shape) for name, shape in shapes.items()}
    tensors |= changes
    path = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return path


def load(folder: Path) -> list[torch.Tensor]:
    """Load everything; returns the two experts, flat."""
    reader = CheckpointReader(folder)
    experts = [torch.empty(MODEL.expert_parameters) for _ in range(2)]
    load_dense(reader, MODEL, lambda tensors, _kept=None: torch.cat(tensors))
    load_experts(reader, MODEL, 0, experts.__getitem__)
    return experts


def test_an_expert_is_gate_up_and_down_one_behind_the_other(tmp_path):
    stored = load_file(write(tmp_path))

    experts = load(tmp_path)

    parts = [stored[f"{EXPERT}.1.{name}.weight"].flatten() for name in ("w1", "w3", "w2")]
    assert torch.equal(experts[1], torch.cat(parts))


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.0.self_attn.k_proj.weight", f"{EXPERT}.1.w2.weight"]
)
def test_a_missing_or_misshapen_tensor_is_named(tmp_path, name):
    write(tmp_path, **{name: None})
    with pytest.raises(FileError, match=rf"{tmp_path}.*{name} is missing"):
        load(tmp_path)

    path = write(tmp_path, **{name: torch.zeros(3)})
    with pytest.raises(FileError, match=rf"{path}: tensor {name} has shape \[3\], expected"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -8])
def test_a_truncated_file_is_one_line_that_names_it(tmp_path, keep):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(FileError, match=f"{path}: not a whole safetensors file") as caught:
        load(tmp_path)

    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_or_with_a_missing_shard_is_refused(tmp_path):
    with pytest.raises(FileError, match="holds neither"):
        CheckpointReader(tmp_path)

    index = {"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileError, match=r"model-00001-of-00002\.safetensors: no such file"):
        load(tmp_path)

    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": []}))
    with pytest.raises(FileError, match="weight_map"):
        CheckpointReader(tmp_path)
