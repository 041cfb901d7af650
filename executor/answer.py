"""An answer while it is made: its tokens so far, and whether one of them ended it."""

from __future__ import annotations

from executor.prompts import Completion, Prompt
from executor.tokenizer import TextStream, Tokenizer
from hrm.records import record

__all__ = ["Answer", "Rules"]


@record
class Rules:
    """What ends the answers of a job: the plan's `gen_len`, the model's end tokens; and what turns tokens into text."""

    gen_len: int
    end_tokens: frozenset[int]
    tokenizer: Tokenizer


class Answer:
    """The answer to a prompt. `left` is how many tokens it may still get: 0 once it is finished."""

    def __init__(self, prompt: Prompt, rules: Rules) -> None:
        self.prompt = prompt
        self.tokens: list[int] = []
        self.left = prompt.settings.max_new_tokens or rules.gen_len
        self._stopped = False
        self._tokenizer = rules.tokenizer
        self._end_tokens = frozenset() if prompt.settings.ignore_eos else rules.end_tokens
        self._stream = TextStream(rules.tokenizer) if prompt.settings.stop else None
        self._cut: int | None = None

    @property
    def cached_tokens(self) -> int:
        """Tokens whose keys and values the cache holds: the prompt's and all made but the last."""
        return len(self.prompt.tokens) + max(len(self.tokens) - 1, 0)

    def take(self, token: int) -> None:
        """Add a token, which may end the answer."""
        assert self.left, "the answer has ended"
        self.tokens.append(token)
        self._stopped = token in self._end_tokens or self._meets_stop(token)
        self.left = 0 if self._stopped else self.left - 1

    def _meets_stop(self, token: int) -> bool:
        if self._stream is None:
            return False
        stop = self.prompt.settings.stop
        known = len(self._stream.text)
        self._stream.add(token)
        # A stop text may have begun in what was known before.
        begin = max(0, known + 1 - max(map(len, stop)))
        found = [at for at in (self._stream.text.find(text, begin) for text in stop) if at >= 0]
        self._cut = min(found, default=None)
        return bool(found)

    def completion(self) -> Completion:
        """Return the finished answer; a stop text and what follows it are not part of the text."""
        text = self._tokenizer.decode(self.tokens) if self._tokenizer.exists else None
        if self._stream is not None and self._cut is not None:
            text = self._stream.text[: self._cut]
        return Completion(
            id=self.prompt.id,
            prompt_tokens=len(self.prompt.tokens),
            tokens=tuple(self.tokens),
            text=text,
            finish_reason="stop" if self._stopped else "length",
        )
