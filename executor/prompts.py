"""Prompt files and answers: JSONL in, token ids by the checkpoint's own tokenizer and chat template, JSONL out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from executor.sampling import Settings, seed_for
from executor.tokenizer import Tokenizer
from hrm.errors import FileError
from hrm.files import atomic_writer, from_plain, to_plain
from hrm.records import record

__all__ = ["Completion", "Prompt", "read_prompts", "write_completions"]

_SOURCES = ("prompt", "messages", "tokens")
DEFAULTS = Settings()


@record
class Prompt:
    """A prompt as token ids, and how it is answered."""

    id: str
    tokens: tuple[int, ...]
    settings: Settings = Settings()


@record
class Completion:
    """An answer: the new tokens, their text where there is a tokenizer, and why it ended (`stop` or `length`)."""

    id: str
    prompt_tokens: int
    tokens: tuple[int, ...]
    text: str | None
    finish_reason: str


def read_prompts(path: str | Path, checkpoint_dir: str | Path, defaults: Settings = DEFAULTS) -> tuple[Prompt, ...]:
    """Read a prompt file: one object a line with `id`, one of `prompt`, `messages`, `tokens`, maybe settings.

    A field of `Settings` on a line goes before `defaults`; without a seed of its own a prompt gets one that follows
    from the default seed and its id. Other keys are ignored. A `prompt` is a user's message where the checkpoint has a
    chat template, else plain text.

    Raises
    ------
    FileError
        When the file is missing or a line is broken; the text names the file and the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error} (check the path)"
        ) from None
    tokenizer = Tokenizer(checkpoint_dir)
    prompts = tuple(
        _prompt(line, tokenizer, defaults, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    )
    if not prompts:
        raise FileError(f"{path}: holds no prompt (write one JSON object a line)")
    _refuse_repeated_ids(prompts, path)
    return prompts


def _refuse_repeated_ids(prompts: Iterable[Prompt], path: Path) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise FileError(f"{path}: id {prompt.id!r} appears twice (give each prompt its own)")
        seen.add(prompt.id)


def _prompt(line: str, tokenizer: Tokenizer, defaults: Settings, where: str) -> Prompt:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise FileError(f"{where}: not valid JSON at column {error.colno}: {error.msg}") from None
    if not isinstance(entry, dict):
        raise FileError(f"{where}: holds {type(entry).__name__}, expected an object with id and prompt")
    if not isinstance(entry.get("id"), str | int):
        raise FileError(f"{where}: id: expected text or a number, got {entry.get('id')!r} (add it)")
    given = [name for name in _SOURCES if name in entry]
    if len(given) != 1:
        raise FileError(f"{where}: needs exactly one of {', '.join(_SOURCES)}, got {', '.join(given) or 'none'}")
    settings = _settings(entry, defaults, where)
    tokens = _tokens(given[0], entry[given[0]], tokenizer, where)
    return Prompt(id=str(entry["id"]), tokens=tokens, settings=settings)


def _settings(entry: dict[str, Any], defaults: Settings, where: str) -> Settings:
    own = {name: entry[name] for name in Settings.__dataclass_fields__ if entry.get(name) is not None}
    if isinstance(own.get("stop"), str):
        own["stop"] = [own["stop"]]
    own.setdefault("seed", seed_for(defaults.seed, str(entry["id"])))
    return from_plain(Settings, to_plain(defaults) | own, where=where)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _tokens(source: str, value: Any, tokenizer: Tokenizer, where: str) -> tuple[int, ...]:
    if source == "tokens":
        if not isinstance(value, list) or not all(_is_count(token, least=0) for token in value):
            raise FileError(f"{where}: tokens: expected a list of token ids")
        tokens = tuple(value)
    elif source == "prompt":
        if not isinstance(value, str):
            raise FileError(f"{where}: prompt: expected text, got {value!r}")
        tokens = tokenizer.encode_prompt(value, where)
    else:
        if not isinstance(value, list) or not all(_is_message(message) for message in value):
            raise FileError(f"{where}: messages: expected a list of objects with role and content")
        tokens = tokenizer.encode_messages(value, where)
    if not tokens:
        raise FileError(f"{where}: {source}: empty, expected at least one token")
    return tokens


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def write_completions(path: str | Path, completions: Sequence[Completion]) -> None:
    """Write answers as JSONL (`id`, `tokens`, `text`, `finish_reason`), atomically."""
    with atomic_writer(path) as stream:
        for answer in completions:
            line: dict[str, Any] = {"id": answer.id, "tokens": list(answer.tokens)}
            if answer.text is not None:
                line["text"] = answer.text
            stream.write(json.dumps(line | {"finish_reason": answer.finish_reason}, ensure_ascii=False) + "\n")
