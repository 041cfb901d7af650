"""A job from file to file: read prompts, run the plan, write the answers; interrupted, it goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from executor.engine import Engine, Generation, Runnable
from executor.identity import identity
from executor.journal import Journal, sync_folder
from executor.progress import Progress
from executor.prompts import Completion, Entry, Prompt, answer_line, read_entries
from executor.sampling import Settings
from hrm.device.backend import Backend
from hrm.errors import FileError
from hrm.files import atomic_writer, check_output
from hrm.records import record

__all__ = ["Job", "JobResult", "run_job"]

_NAMED = 20
"""Lost answers that an error names, at most."""


@record
class Job:
    """The files of a job, and how prompts are answered that do not say it themselves.

    `routing` is where to write what the routers chose, if anywhere; `ram_limit_bytes` what the process may hold.
    """

    checkpoint: Path
    prompts: Path
    output: Path
    routing: Path | None = None
    settings: Settings = Settings()
    ram_limit_bytes: int | None = None

    @property
    def journal(self) -> Path:
        """Where answers are kept until the output is written."""
        return self.output.with_name(f"{self.output.name}.partial")


@record
class JobResult:
    """What came of a job; `generation` is what this run generated, None where an earlier one had answered everything.

    `resumed` counts the lines that earlier runs had done. `problems` says of each line without an answer why.
    """

    generation: Generation | None
    answered: int
    resumed: int
    problems: tuple[str, ...]


def run_job(
    plan: Runnable, job: Job, backend: Backend, on_progress: Callable[[Progress], None] | None = None
) -> JobResult:
    """Run a plan on the prompts of a file; the output appears whole, when all is done, in the order of the prompts.

    Until then answers are kept beside it, in `OUTPUT.partial`, from which the same job goes on when it is run again. A
    line that cannot be answered gets an `error` in the output, and the job goes on.

    Raises
    ------
    HrmError
        For whatever is wrong with the files, the plan or the device, before anything long was done where possible; and
        when there is no room for the answers. What the journal holds is not lost.
    """
    check_output(job.output)
    entries = read_entries(job.prompts, job.checkpoint, job.settings)
    journal = Journal(job.journal, identity(plan, job.checkpoint, job.prompts, job.settings))
    try:
        resumed = len(journal.answered)
        generation = _generate(plan, job, backend, _Todo(entries, journal, on_progress))
        lines = [_line(entry, journal.answered) for entry in entries]
        _write(job, lines, journal)
    except BaseException:
        journal.close()
        raise
    journal.close(remove=True)
    problems = tuple(line["error"] for line in lines if "error" in line)
    return JobResult(generation=generation, answered=len(lines) - len(problems), resumed=resumed, problems=problems)


class _Todo:
    """What of a job is still to be answered, and where the answers go."""

    def __init__(
        self, entries: Sequence[Entry], journal: Journal, on_progress: Callable[[Progress], None] | None
    ) -> None:
        self.journal = journal
        self.done = len(journal.answered)
        self.lines = {
            entry.line: entry.prompt
            for entry in entries
            if entry.prompt is not None and entry.line not in journal.answered
        }
        self._line_of = {prompt.id: line for line, prompt in self.lines.items()}
        self._on_progress = on_progress

    def refuse(self, line: int, prompt: Prompt, problem: str) -> None:
        """Note that a prompt cannot be answered."""
        del self.lines[line]
        self.journal.add({line: {"id": prompt.id, "line": line, "error": problem}})

    def keep(self, answers: Sequence[Completion]) -> None:
        """Put answers where nothing ends them."""
        self.journal.add({self._line_of[answer.id]: answer_line(answer) for answer in answers})

    def hear(self, progress: Progress) -> None:
        """Count what earlier runs have done."""
        if self._on_progress is not None:
            done = self.done
            self._on_progress(replace(progress, answered=progress.answered + done, prompts=progress.prompts + done))


def _generate(plan: Runnable, job: Job, backend: Backend, todo: _Todo) -> Generation | None:
    """Answer what is left, and whatever the plan does not take; None where nothing is left."""
    if not todo.lines:
        return None
    engine = Engine(plan, job.checkpoint, backend, ram_limit_bytes=job.ram_limit_bytes)
    for line, prompt in list(todo.lines.items()):
        if (problem := engine.problem(prompt)) is not None:
            todo.refuse(line, prompt, f"{job.prompts}, line {line}: {problem}")
    if not todo.lines:
        return None
    tally = engine.record_routing() if job.routing is not None else None
    generation = engine.generate(list(todo.lines.values()), todo.hear, todo.keep)
    if tally is not None and job.routing is not None:
        tally.write(job.routing)
    return generation


def _line(entry: Entry, answered: Mapping[int, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return what is written for a line of the prompt file."""
    return answered.get(entry.line) or {"id": entry.id, "line": entry.line, "error": entry.problem}


def _write(job: Job, lines: Sequence[Mapping[str, Any]], journal: Journal) -> None:
    """Write the output, whole and on disk, before the journal goes.

    Raises
    ------
    FileError
        When there is no room for it, or there was none for the journal.
    """
    try:
        with atomic_writer(job.output) as stream:
            for line in lines:
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        sync_folder(job.output.parent)
    except OSError as error:
        journal.add({})
        lost = [str(journal.answered[line]["id"]) for line in journal.unsaved]
        raise FileError(
            f"{job.output}: cannot be written: {error.strerror}; answers are kept in {job.journal}{_but(lost)} "
            f"(make room and run the same again)"
        ) from None


def _but(lost: Sequence[str]) -> str:
    """Name answers that are kept nowhere."""
    more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
    return f", but for {', '.join(lost[:_NAMED])}{more}, for which there was no room" if lost else ""
