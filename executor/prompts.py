"""Prompt files and answers: JSONL in, token ids by the checkpoint's own tokenizer and chat template, JSONL out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from executor.sampling import Settings, seed_for
from executor.tokenizer import Tokenizer
from hrm.errors import FileError
from hrm.files import from_plain, to_plain
from hrm.records import record

__all__ = ["Completion", "Entry", "Prompt", "answer_line", "read_entries", "read_prompts"]

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


@record
class Entry:
    """A line of a prompt file: a prompt, or what is wrong with it."""

    line: int
    id: str | None = None
    prompt: Prompt | None = None
    problem: str | None = None


def read_prompts(path: str | Path, checkpoint_dir: str | Path, defaults: Settings = DEFAULTS) -> tuple[Prompt, ...]:
    """Read a prompt file as `read_entries` does, and refuse it when anything is wrong with any line.

    Raises
    ------
    FileError
        When the file is missing or a line is broken; the text names the file and the line.
    """
    prompts = []
    for entry in read_entries(path, checkpoint_dir, defaults):
        if entry.prompt is None:
            raise FileError(str(entry.problem))
        prompts.append(entry.prompt)
    return tuple(prompts)


def read_entries(path: str | Path, checkpoint_dir: str | Path, defaults: Settings = DEFAULTS) -> tuple[Entry, ...]:
    """Read a prompt file: one object a line with `id`, one of `prompt`, `messages`, `tokens`, maybe settings.

    A field of `Settings` on a line goes before `defaults`; without a seed of its own a prompt gets one that follows
    from the default seed and its id. Other keys are ignored. A `prompt` is a user's message where the checkpoint has a
    chat template, else plain text. Of several lines with the same id the first counts.

    Raises
    ------
    FileError
        When the file cannot be read, holds no line, or no line that is in order.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror} (check the path)") from None
    tokenizer = Tokenizer(checkpoint_dir)
    found = (_entry(line, number, tokenizer, defaults, path) for number, line in enumerate(lines, 1) if line.strip())
    entries = tuple(_each_id_once(found, path))
    if not entries:
        raise FileError(f"{path}: holds no prompt (write one JSON object a line)")
    if all(entry.prompt is None for entry in entries):
        raise FileError(str(entries[0].problem))
    return entries


def _each_id_once(entries: Iterable[Entry], path: Path) -> Iterator[Entry]:
    """Put a problem, without an id, in the place of an entry whose id was there before."""
    seen: set[str] = set()
    for entry in entries:
        if entry.id in seen:
            where = f"{path}, line {entry.line}"
            yield Entry(line=entry.line, problem=f"{where}: id {entry.id!r} appears twice (give each prompt its own)")
            continue
        yield entry
        seen |= {entry.id} if entry.id is not None else set()


def _entry(line: bytes, number: int, tokenizer: Tokenizer, defaults: Settings, path: Path) -> Entry:
    where, own_id = f"{path}, line {number}", None
    try:
        fields = _fields(line, where)
        own_id = str(fields["id"])
        return Entry(line=number, id=own_id, prompt=_prompt(fields, tokenizer, defaults, where))
    except FileError as error:
        return Entry(line=number, id=own_id, problem=str(error))


def _fields(line: bytes, where: str) -> dict[str, Any]:
    """Return the object on a line, which has an id."""
    try:
        fields = json.loads(line.decode("utf-8-sig"))
        # Half of a pair of surrogates is valid in JSON, and cannot be written as text.
        json.dumps(fields, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise FileError(f"{where}: not valid JSON at column {error.colno}: {error.msg}") from None
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise FileError(f"{where}: not valid text: {error.reason} (write it as UTF-8)") from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where}: not read: {error} (write one flat object)") from None
    if not isinstance(fields, dict):
        raise FileError(f"{where}: holds {type(fields).__name__}, expected an object with id and prompt")
    if not isinstance(fields.get("id"), str | int) or isinstance(fields["id"], bool):
        raise FileError(f"{where}: id: expected text or a number, got {fields.get('id')!r} (add it)")
    return fields


def _prompt(fields: dict[str, Any], tokenizer: Tokenizer, defaults: Settings, where: str) -> Prompt:
    given = [name for name in _SOURCES if name in fields]
    if len(given) != 1:
        raise FileError(f"{where}: needs exactly one of {', '.join(_SOURCES)}, got {', '.join(given) or 'none'}")
    settings = _settings(fields, defaults, where)
    tokens = _tokens(given[0], fields[given[0]], tokenizer, where)
    return Prompt(id=str(fields["id"]), tokens=tokens, settings=settings)


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


def answer_line(answer: Completion) -> dict[str, Any]:
    """Return what is written for an answer: `id`, `tokens`, `text` where there is a tokenizer, `finish_reason`."""
    text = {} if answer.text is None else {"text": answer.text}
    return {"id": answer.id, "tokens": list(answer.tokens)} | text | {"finish_reason": answer.finish_reason}
