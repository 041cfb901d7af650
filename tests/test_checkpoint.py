from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from executor.checkpoint import dense, synth, upcycle
from hrm.dtypes import DType
from hrm.errors import FileError, ModelError
from hrm.model import ModelSpec
from hrm.model_config import load_model
from tests.llamas import assert_refused, bytes_of, logits, logits_of, save_llama


def mixtral(**changes: Any) -> ModelSpec:
    values: dict[str, Any] = {
        "name": "tiny",
        "family": "mixtral",
        "num_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_query_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "num_experts": 8,
        "experts_per_token": 2,
        "vocab_size": 64,
        "max_position_embeddings": 128,
        "dtype": DType.FLOAT32,
    }
    return ModelSpec(**(values | changes))


def tensors_of(folder):
    held: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            held |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 (not a dict)
    return held


@pytest.fixture
def source(tmp_path):
    save_llama(tmp_path / "dense")
    return tmp_path / "dense"


def test_synthetic_checkpoint_reads_back_with_the_dimensions_asked_for(tmp_path):
    synth(tmp_path / "tiny", mixtral())

    assert load_model(tmp_path / "tiny") == mixtral()


def test_synthetic_checkpoint_loads_in_transformers_without_missing_or_unused_tensors(tmp_path):
    synth(tmp_path / "tiny", mixtral())

    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", output_loading_info=True)
    report = loaded[1]

    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_synthetic_tensors_have_as_many_parameters_as_the_model_counts(tmp_path):
    synth(tmp_path / "tiny", mixtral())

    assert sum(tensor.numel() for tensor in tensors_of(tmp_path / "tiny").values()) == mixtral().total_parameters


def test_synthetic_tied_checkpoint_has_no_lm_head(tmp_path):
    synth(tmp_path / "tiny", mixtral(tie_word_embeddings=True))

    assert "lm_head.weight" not in tensors_of(tmp_path / "tiny")
    assert logits_of(tmp_path / "tiny").isfinite().all()


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        synth(tmp_path / name, mixtral(dtype=DType.BFLOAT16), seed=seed)

    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "again")
    assert bytes_of(tmp_path / "first") != bytes_of(tmp_path / "other")


def test_sharding_changes_no_tensor_and_keeps_shards_small(tmp_path):
    synth(tmp_path / "whole", mixtral())
    synth(tmp_path / "split", mixtral(), shard_bytes=100_000)

    whole, split = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "split")
    shards = list((tmp_path / "split").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert max(path.stat().st_size for path in shards) < 110_000
    assert whole.keys() == split.keys()
    assert all(torch.equal(whole[name], split[name]) for name in whole)
    assert torch.equal(logits_of(tmp_path / "whole"), logits_of(tmp_path / "split"))


def test_synthetic_routing_reaches_every_expert_about_equally(tmp_path):
    synth(tmp_path / "tiny", mixtral(hidden_size=64, vocab_size=512, max_position_embeddings=512, num_layers=4))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", dtype=torch.float32)
    tokens = torch.randint(512, (4, 128), generator=torch.Generator().manual_seed(0))

    with torch.inference_mode():
        router_logits = model(tokens, output_router_logits=True).router_logits

    for layer in router_logits:
        chosen = torch.topk(layer, 2).indices.flatten()
        share = torch.bincount(chosen, minlength=8) / chosen.numel()
        assert share.min() > 0.25 / 8
        assert share.max() < 2.5 / 8


def test_synthetic_logits_keep_their_size_at_depth(tmp_path):
    for layers in (1, 12):
        synth(tmp_path / f"deep{layers}", mixtral(num_layers=layers, num_experts=4))

        assert 0.3 < logits_of(tmp_path / f"deep{layers}").std() < 3


@pytest.mark.parametrize("tied", [False, True])
def test_upcycled_mixture_computes_what_the_dense_model_does(tmp_path, tied):
    model = save_llama(tmp_path / "dense", tied=tied)

    upcycle(tmp_path / "dense", tmp_path / "moe", num_experts=4, experts_per_token=2)

    torch.testing.assert_close(logits_of(tmp_path / "moe"), logits(model), atol=1e-4, rtol=1e-4)
    spec = load_model(tmp_path / "moe")
    assert (spec.family, spec.num_experts, spec.experts_per_token) == ("mixtral", 4, 2)
    assert (spec.rope_theta, spec.tie_word_embeddings, spec.dtype) == (5e4, tied, DType.FLOAT32)


def test_upcycling_keeps_number_format_and_special_tokens(tmp_path):
    save_llama(tmp_path / "dense", dtype=torch.bfloat16)

    upcycle(tmp_path / "dense", tmp_path / "moe", num_experts=2, experts_per_token=1)

    assert {tensor.dtype for tensor in tensors_of(tmp_path / "moe").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "moe" / "config.json").read_text())["bos_token_id"] == 7


def test_noise_makes_experts_differ_and_leaves_the_rest(source, tmp_path):
    upcycle(source, tmp_path / "plain", num_experts=2, experts_per_token=1)
    upcycle(source, tmp_path / "noisy", num_experts=2, experts_per_token=1, noise=0.1)

    plain, noisy = tensors_of(tmp_path / "plain"), tensors_of(tmp_path / "noisy")
    experts = "model.layers.1.block_sparse_moe.experts"
    assert torch.equal(plain[f"{experts}.0.w1.weight"], plain[f"{experts}.1.w1.weight"])
    assert not torch.equal(noisy[f"{experts}.0.w1.weight"], noisy[f"{experts}.1.w1.weight"])
    assert all(torch.equal(plain[name], noisy[name]) for name in plain if ".experts." not in name)


def test_noise_has_the_relative_size_asked_for(source, tmp_path):
    upcycle(source, tmp_path / "plain", num_experts=2, experts_per_token=1)
    upcycle(source, tmp_path / "noisy", num_experts=2, experts_per_token=1, noise=0.1)

    name = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    relative = tensors_of(tmp_path / "noisy")[name] / tensors_of(tmp_path / "plain")[name] - 1
    assert relative.std().item() == pytest.approx(0.1, rel=0.1)


def test_same_seed_upcycles_to_the_same_bytes(source, tmp_path):
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        upcycle(source, tmp_path / name, num_experts=2, experts_per_token=1, noise=0.1, seed=seed)

    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "again")
    assert bytes_of(tmp_path / "first") != bytes_of(tmp_path / "other")


def test_mistral_without_a_sliding_window_is_a_llama(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "mistral", "sliding_window": None}))

    dense(source, tmp_path / "copy")

    assert load_model(tmp_path / "copy").family == "llama"


@pytest.mark.parametrize("kept_share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_safetensors_is_refused(source, tmp_path, kept_share):
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept_share)])

    assert_refused(source, tmp_path / "out", FileError, "model.safetensors: not a whole safetensors file")


def test_missing_source_and_missing_shard_are_refused(source, tmp_path):
    (source / "model.safetensors").unlink()

    assert_refused(tmp_path / "absent", tmp_path / "out", FileError, "absent: no such file or folder")
    assert_refused(source, tmp_path / "out", FileError, "model.safetensors: no such file")


def test_configuration_that_contradicts_the_tensors_is_refused(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"intermediate_size": 63}))

    assert_refused(source, tmp_path / "out", FileError, r"dense: tensor .*gate_proj.weight: has shape \(64, 32\)")


def test_configuration_with_more_layers_than_the_tensors_is_refused(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))

    assert_refused(source, tmp_path / "out", FileError, r"tensor model.layers.2.* is missing \(9 in all")


def test_a_mixture_is_not_upcycled_again(source, tmp_path):
    upcycle(source, tmp_path / "moe")

    assert_refused(tmp_path / "moe", tmp_path / "out", ModelError, "is a mixtral checkpoint already")


def test_an_existing_checkpoint_is_not_overwritten(source, tmp_path):
    synth(tmp_path / "kept", mixtral())
    before = bytes_of(tmp_path / "kept")

    with pytest.raises(FileError, match="kept: already exists"):
        dense(source, tmp_path / "kept")

    assert bytes_of(tmp_path / "kept") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts_per_token": 9}, "--top-k 9"),
        ({"experts_per_token": 0}, "--top-k 0"),
        ({"noise": -1.0}, "--noise -1"),
        ({"noise": float("nan")}, "--noise nan"),
    ],
)
def test_senseless_options_are_refused(source, tmp_path, options, message):
    with pytest.raises(ModelError, match=message):
        upcycle(source, tmp_path / "out", **options)

    assert not (tmp_path / "out").exists()


def test_integer_formats_are_not_stored(tmp_path):
    with pytest.raises(ModelError, match="cannot be stored as int4"):
        synth(tmp_path / "out", mixtral(dtype=DType.INT4))

    assert not list(tmp_path.iterdir())
