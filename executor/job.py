"""A job from file to file: read prompts, run the plan, write the answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from executor.engine import Engine, Generation, Runnable
from executor.progress import Progress
from executor.prompts import read_prompts, write_completions
from executor.sampling import Settings
from hrm.device.backend import Backend
from hrm.errors import FileError
from hrm.records import record

__all__ = ["Job", "run_job"]


@record
class Job:
    """The files of a job, and how prompts are answered that do not say it themselves."""

    checkpoint: Path
    prompts: Path
    output: Path
    settings: Settings = Settings()


def run_job(
    plan: Runnable, job: Job, backend: Backend, on_progress: Callable[[Progress], None] | None = None
) -> Generation:
    """Run a plan on the prompts of a file; the output file appears whole, when all is done.

    Raises
    ------
    HrmError
        For whatever is wrong with the files, the plan or the device, before anything long was done where possible.
    """
    folder = job.output.parent
    if not folder.is_dir():
        raise FileError(f"{job.output}: the folder {folder} does not exist (make it first)")
    prompts = read_prompts(job.prompts, job.checkpoint, job.settings)
    generation = Engine(plan, job.checkpoint, backend).generate(prompts, on_progress)
    write_completions(job.output, generation.completions)
    return generation
