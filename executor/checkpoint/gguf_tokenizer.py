"""Rebuilding a Hugging Face tokenizer from the vocabulary and merges that a GGUF file carries."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from hrm.errors import FileError, ModelError

__all__ = ["special_token_ids", "tokenizer_files"]

SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
IN_CONFIG = ("bos", "eos", "pad")

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_files(metadata: dict[str, Any], where: object) -> dict[str, bytes]:
    """Make `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` from GGUF metadata.

    A file without a vocabulary gives none of them.

    Raises
    ------
    FileError
        When merges or special tokens lie outside the vocabulary.
    ModelError
        When the tokenizer is not byte-level BPE, or splits text in a way that is not known here.
    """
    if "tokenizer.ggml.tokens" not in metadata:
        return {}
    _check_special_tokens(metadata, where)
    tokenizer = _tokenizer(metadata, where)
    ids = special_token_ids(metadata)
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(_tokenizer_config(metadata), indent=2, ensure_ascii=False),
        "generation_config.json": json.dumps({key: value for key, value in ids.items() if value is not None}, indent=2),
    }
    return {name: (text + "\n").encode() for name, text in files.items()}


def special_token_ids(metadata: dict[str, Any]) -> dict[str, int | None]:
    """Read the ids of the tokens that begin, end and pad a text, under their names in `config.json`."""
    return {f"{name}_token_id": metadata.get(f"tokenizer.ggml.{SPECIAL_TOKENS[name]}_token_id") for name in IN_CONFIG}


def _check_special_tokens(metadata: dict[str, Any], where: object) -> None:
    count = len(metadata["tokenizer.ggml.tokens"])
    for key in SPECIAL_TOKENS.values():
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id", 0)
        if token_id >= count:
            raise FileError(f"{where}: tokenizer.ggml.{key}_token_id: {token_id} is not below {count} (fetch it again)")


def _tokenizer(metadata: dict[str, Any], where: object) -> Tokenizer:
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ModelError(
            f"{where}: tokenizer.ggml.model: {kind!r} is not supported (only 'gpt2'; give the model as an HF folder)"
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges", [])]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    split = metadata.get("tokenizer.ggml.pre", "gpt-2")
    whole_words = split == "llama-bpe"
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole_words))
    except Exception as error:  # tokenizers raises nothing more specific
        raise FileError(f"{where}: tokenizer.ggml.merges: {error} (fetch the file again)") from None
    tokenizer.pre_tokenizer = _pre_tokenizer(split, where)
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata.get("tokenizer.ggml.token_type", [])
    for token, kind_of_token in zip(tokens, types, strict=False):
        if kind_of_token in (UNKNOWN, CONTROL):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind_of_token == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    _begin_with_bos(tokenizer, metadata)
    return tokenizer


def _pre_tokenizer(split: str, where: object) -> pre_tokenizers.PreTokenizer:
    """Return the rule that cuts text into the pieces that BPE then merges; the names are llama.cpp's."""
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    if split == "gpt-2":
        return plain
    if split == "llama-bpe":
        words = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated")
        return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    raise ModelError(
        f"{where}: tokenizer.ggml.pre: {split!r} is not supported (only gpt-2, llama-bpe, smollm; "
        "give the model as an HF folder)"
    )


def _begin_with_bos(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    """Put the beginning-of-text token before every text, where the model was trained so."""
    default = metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    bos_id = metadata.get("tokenizer.ggml.bos_token_id")
    if bos_id is None or not metadata.get("tokenizer.ggml.add_bos_token", default):
        return
    bos = metadata["tokenizer.ggml.tokens"][bos_id]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, bos_id)]
    )


def _tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.get("llama.context_length"),
    }
    for name, key in SPECIAL_TOKENS.items():
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            config[f"{name}_token"] = metadata["tokenizer.ggml.tokens"][token_id]
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return config
