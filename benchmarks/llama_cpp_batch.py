"""llama.cpp's low-level batch calls: many sequences decoded together, greedily.

The Python wrapper's own `generate` decodes one sequence; its batch calls are the ones an efficient user would take.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

__all__ = ["Llama"]

MAX_BATCH_TOKENS = 512
"""Tokens in one call where prompts are read: llama.cpp's own micro-batch."""

_silent = llama_cpp.llama_log_callback(lambda *_: None)
"""Kept as long as the module: the library prints a line per input of each graph otherwise."""


class Llama:
    """A model mapped from a GGUF file, with room for `num_tokens` of keys and values over all sequences."""

    def __init__(self, path: str | Path, num_threads: int, num_tokens: int) -> None:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.use_mmap = True
        self._model: Any = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._num_tokens, self._num_threads = num_tokens, num_threads

    def generate(self, prompts: Sequence[Sequence[int]], gen_len: int) -> list[list[int]]:
        """Return `gen_len` greedy tokens of each prompt."""
        context = self._context(len(prompts))
        batch = llama_cpp.llama_batch_init(max(MAX_BATCH_TOKENS, len(prompts)), 0, 1)
        made = [[token] for token in self._prefill(context, batch, prompts)]
        for step in range(gen_len - 1):
            rows = [(tokens[-1], len(prompts[sequence]) + step, sequence, True) for sequence, tokens in enumerate(made)]
            for sequence, token in self._decode(context, batch, rows):
                made[sequence].append(token)
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        return made

    def _context(self, num_sequences: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self._num_tokens
        params.n_batch = params.n_ubatch = max(MAX_BATCH_TOKENS, num_sequences)
        params.n_seq_max = num_sequences
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = self._num_threads
        return llama_cpp.llama_init_from_model(self._model, params)

    def _prefill(self, context: Any, batch: Any, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Return the first token of each prompt, the prompts' tokens read in calls as full as they get."""
        rows = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        first: dict[int, int] = {}
        for start in range(0, len(rows), MAX_BATCH_TOKENS):
            first.update(self._decode(context, batch, rows[start : start + MAX_BATCH_TOKENS]))
        return [first[sequence] for sequence in range(len(prompts))]

    def _decode(self, context: Any, batch: Any, rows: Sequence[tuple[int, int, int, bool]]) -> list[tuple[int, int]]:
        """Read rows (token, position, sequence, whether the next is wanted); return those of the latter."""
        for at, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, position, 1
            batch.seq_id[at][0], batch.logits[at] = sequence, int(wanted)
        batch.n_tokens = len(rows)
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError("llama.cpp cannot decode the batch: its context is full")
        return [(sequence, self._best(context, at)) for at, (_, _, sequence, wanted) in enumerate(rows) if wanted]

    def _best(self, context: Any, row: int) -> int:
        logits = ctypes.cast(llama_cpp.llama_get_logits_ith(context, row), ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(logits, shape=(self._vocab_size,)).argmax())
