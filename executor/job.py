"""A job from file to file: read prompts, run the plan, write the answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from executor.engine import Engine, Generation, Runnable
from executor.prompts import read_prompts, write_completions
from hrm.device.backend import Backend
from hrm.errors import FileError

__all__ = ["run_job"]


def run_job(
    plan: Runnable,
    checkpoint_dir: str | Path,
    prompts_path: str | Path,
    output_path: str | Path,
    backend: Backend,
    on_progress: Callable[[int, int], None] | None = None,
) -> Generation:
    """Run a plan on the prompts of a file; the output file appears whole, when all is done.

    Raises
    ------
    HrmError
        For whatever is wrong with the files, the plan or the device, before anything long was done where possible.
    """
    folder = Path(output_path).parent
    if not folder.is_dir():
        raise FileError(f"{output_path}: the folder {folder} does not exist (make it first)")
    prompts = read_prompts(prompts_path, checkpoint_dir)
    generation = Engine(plan, checkpoint_dir, backend).generate(prompts, on_progress)
    write_completions(output_path, generation.completions)
    return generation
