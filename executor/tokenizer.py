"""The tokenizer and chat template that lie in a checkpoint folder."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrm.errors import FileError
from hrm.files import read_json

if TYPE_CHECKING:
    import tokenizers

__all__ = ["TextStream", "Tokenizer", "end_tokens"]

_TOKENIZER, _CONFIG, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What bytes are decoded to that are no whole character."""
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """Encodes prompts and decodes answers; a folder without `tokenizer.json` is an error only when it is needed."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._path = self._folder / _TOKENIZER
        config = self._folder / _CONFIG
        self._config: dict[str, Any] = read_json(config) if config.is_file() else {}
        self._loaded: tokenizers.Tokenizer | None = None

    @property
    def exists(self) -> bool:
        """Whether the folder has a tokenizer."""
        return self._path.is_file()

    def encode_prompt(self, text: str, where: str) -> tuple[int, ...]:
        """Encode a prompt: as a user's message where there is a chat template, else as it stands."""
        if self._template() is not None:
            return self.encode_messages([{"role": "user", "content": text}], where)
        return tuple(self.load(where).encode(text).ids)

    def encode_messages(self, messages: Sequence[dict[str, str]], where: str) -> tuple[int, ...]:
        """Encode a conversation by the chat template, up to where the assistant's answer begins.

        Raises
        ------
        FileError
            When there is no tokenizer or template, the template fails, or jinja2 is not installed.
        """
        template = self._template()
        if template is None:
            raise FileError(
                f"{where}: messages: {self._folder} has no chat template (use prompt or tokens, or add {_TEMPLATE})"
            )
        # The template writes the special tokens itself.
        return tuple(self.load(where).encode(self._render(template, messages, where), add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""
        return str(self.load(str(self._folder)).decode(list(tokens), skip_special_tokens=True))

    def load(self, where: str) -> tokenizers.Tokenizer:
        """Return the tokenizer itself, read when it is first asked for; `where` is what needs it.

        Raises
        ------
        FileError
            When there is none, or it cannot be read.
        """
        if self._loaded is None:
            import tokenizers

            if not self.exists:
                raise FileError(f"{where}: {self._path} is missing (add it, or give the prompts as tokens)")
            try:
                self._loaded = tokenizers.Tokenizer.from_file(str(self._path))
            except Exception as error:  # tokenizers raises bare Exception
                raise FileError(f"{self._path}: not a tokenizer: {error} (fetch it again)") from None
            self._loaded.no_padding()
            self._loaded.no_truncation()
        return self._loaded

    def _template(self) -> str | None:
        path = self._folder / _TEMPLATE
        if path.is_file():
            return path.read_text(encoding="utf-8")
        template = self._config.get("chat_template")
        return template if isinstance(template, str) else None

    def _render(self, template: str, messages: Sequence[dict[str, str]], where: str) -> str:
        try:
            from jinja2 import TemplateError
            from jinja2.ext import loopcontrols
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise FileError(
                f"{where}: {self._folder} has a chat template, which needs jinja2 (pip install jinja2)"
            ) from None
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.globals["raise_exception"] = _refuse
        special = {name: _content(self._config[name]) for name in _SPECIAL if self._config.get(name)}
        try:
            return environment.from_string(template).render(messages=messages, add_generation_prompt=True, **special)
        except (TemplateError, ValueError) as error:
            raise FileError(f"{where}: the chat template of {self._folder} refuses it: {error}") from None


class TextStream:
    """The text of tokens as they come, in `text`: a character whose bytes several tokens share comes with the last."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.text = ""
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        # Text is the difference between two decodings that begin at the same token: some decoders treat what stands
        # first in their own way.
        self._begin = self._known = 0

    def add(self, token: int) -> None:
        """Take the next token."""
        self._tokens.append(token)
        before = self._tokenizer.decode(self._tokens[self._begin : self._known])
        now = self._tokenizer.decode(self._tokens[self._begin :])
        if len(now) > len(before) and not now.endswith(_INCOMPLETE):
            self.text += now[len(before) :]
            self._begin, self._known = self._known, len(self._tokens)


def _refuse(message: str) -> None:
    raise ValueError(message)


def _content(token: Any) -> str:
    """Return a special token's text: configurations hold it bare or as an object."""
    return str(token["content"]) if isinstance(token, dict) else str(token)


def end_tokens(folder: str | Path) -> frozenset[int]:
    """Return the token ids that end an answer, by `generation_config.json`, else `config.json`."""
    for name in ("generation_config.json", "config.json"):
        path = Path(folder) / name
        ids = read_json(path).get("eos_token_id") if path.is_file() else None
        if ids is not None:
            return frozenset(ids if isinstance(ids, list) else [ids])
    return frozenset()
