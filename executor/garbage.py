"""Python's search for garbage, kept short while a schedule runs: it stops all lanes, the disk's threads too."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["old_objects_left_alone"]


@contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """Look through objects made from here on alone; those of the libraries are many, and none of them is garbage.

    With torch loaded a full search took 0.09 s, once in half a dozen passes.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
