"""Running a plan: the engine, its kernels, checkpoints and prompts.

The public names need torch, so each is imported when it is first asked for: `import executor` alone stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from executor.engine import Engine, Generation
    from executor.job import Job, run_job
    from executor.prompts import Completion, Prompt, read_prompts
    from executor.sampling import Settings

__all__ = ["Completion", "Engine", "Generation", "Job", "Prompt", "Settings", "read_prompts", "run_job"]

_HOMES = {
    "Completion": "executor.prompts",
    "Engine": "executor.engine",
    "Generation": "executor.engine",
    "Job": "executor.job",
    "Prompt": "executor.prompts",
    "Settings": "executor.sampling",
    "read_prompts": "executor.prompts",
    "run_job": "executor.job",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """Offer the public names beside what is loaded."""
    return sorted({*globals(), *__all__})
