"""The journal of a job: each answer is on disk as soon as it is finished, so that whatever ends the run loses no other.

A line names what the job is, by hashes; each further one holds a line number of the prompt file and what is to be
written for it. Lines are only ever added, and synced; a torn one at the end is dropped when the journal is opened.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hrm.errors import FileError

__all__ = ["Journal", "sync_folder"]

Entry = Mapping[str, Any]


class Journal:
    """What has been answered of a job, by line number of the prompt file; opened, and locked, by one run at a time.

    What cannot be written, because the disk is full, is kept and tried again with what comes next.

    Raises
    ------
    FileError
        When it cannot be opened or written at all, another run has it open, or it belongs to another job.
    """

    def __init__(self, path: Path, job: Mapping[str, str]) -> None:
        self.path = path
        self.answered: dict[int, Entry] = {}
        self.problem: str | None = None
        self._unsaved: dict[int, Entry] = {}
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                self._take_over(job)
            except BaseException:
                os.close(self._file)
                raise
        except OSError as error:
            raise FileError(f"{path}: cannot be written: {error.strerror} (free space, or choose another -o)") from None

    def _take_over(self, job: Mapping[str, str]) -> None:
        self._lock()
        self._size = self._read(job)
        os.ftruncate(self._file, self._size)
        if not self._size:
            self._append([dict(job)])
            sync_folder(self.path.parent)

    @property
    def unsaved(self) -> list[int]:
        """Line numbers of what is not on disk."""
        return sorted(self._unsaved)

    def add(self, entries: Mapping[int, Entry]) -> None:
        """Write what belongs to some lines of the prompt file; when this returns it is on disk, or `unsaved`."""
        self.answered |= entries
        self._unsaved |= entries
        try:
            self._append([{"line": line, "entry": entry} for line, entry in self._unsaved.items()])
        except OSError as error:
            self.problem = error.strerror
        else:
            self._unsaved, self.problem = {}, None

    def close(self, *, remove: bool = False) -> None:
        """Let go of the journal; remove it when what it holds is elsewhere, or when it holds nothing."""
        if remove or not self.answered:
            self.path.unlink()
        os.close(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileError(f"{self.path}: another run is writing it (wait for it, or choose another -o)") from None

    def _read(self, job: Mapping[str, str]) -> int:
        """Take over what was answered before; return the bytes of it that are sound."""
        sound = 0
        found: list[Entry] = []
        for line in self.path.read_bytes().splitlines(keepends=True):
            if (entry := _parsed(line)) is None:
                break
            found.append(entry)
            sound += len(line)
        self.answered = {entry["line"]: entry["entry"] for entry in found[1:]}
        differ = [name for name, value in job.items() if found and found[0].get(name) != value]
        if differ and self.answered:
            raise FileError(
                f"{self.path}: belongs to a run with another {' and another '.join(differ)} "
                f"(repeat that run to finish it, or delete the file to begin anew)"
            )
        return 0 if differ else sound

    def _append(self, entries: list[dict[str, Any]]) -> None:
        """Write lines behind what is there, and sync; where that fails, nothing of them stays."""
        data = b"".join(json.dumps(entry, ensure_ascii=False).encode() + b"\n" for entry in entries)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)


def _parsed(line: bytes) -> Entry | None:
    """Return what a whole line holds; None of a torn one."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def sync_folder(path: Path) -> None:
    """Make sure that the names of new files in a folder are on disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
