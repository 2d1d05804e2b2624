"""What `jacjobs schedule serve` did: a file of JSON lines, only ever added to.

An occurrence has a line when it begins and one when it ends; the last one counts. A line that a crash cut
short is left out.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from jacjobs.errors import InputError, StoreError

Outcome = Literal["since", "running", "complete", "failed", "stopped", "skipped", "missed"]


class Entry(BaseModel):
    """One occurrence of one job.

    outcome:  complete; failed; stopped (a further submit goes on); skipped, since an earlier one went on;
              missed, since nobody was there to start it in time; running. `since` is none: from here on
              occurrences are looked after.
    message:  why, as far as it is known.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    job: Annotated[str, Field(min_length=1)]
    scheduled: AwareDatetime
    outcome: Outcome
    started: AwareDatetime | None = None
    ended: AwareDatetime | None = None
    exit_code: int | None = None
    message: str = ""


def read(path: Path) -> list[Entry]:
    """The last word on every occurrence, in the order in which they were begun or missed."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError.about(
            str(path), got=reason, expected="the history that `jacjobs schedule serve` writes"
        ) from None
    found: dict[tuple[str, datetime], Entry] = {}
    for line in lines:
        with contextlib.suppress(ValidationError):
            entry = Entry.model_validate_json(line)
            key = (entry.job, entry.scheduled)
            if entry.outcome != "since" or key not in found:
                found[key] = entry
    return list(found.values())


class History:
    """One writer: two that serve the same jobs would run all of them twice."""

    def __init__(self, path: Path) -> None:
        """Raises InputError if somebody writes there already."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise InputError.about(
                f"--history {path}", got=error.strerror, expected="a file that can be written"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise InputError.about(
                f"--history {path}",
                got="a `jacjobs schedule serve` that writes it",
                expected="one at a time",
                do="stop that one, or choose another file",
            ) from None
        self._path, self._writing = path, threading.Lock()
        self._file.seek(0)
        content = self._file.read()
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")
        self._last = {(entry.job, entry.scheduled): entry for entry in read(path)}

    def add(self, entry: Entry) -> None:
        """Returns when it is on the disk."""
        line = json.dumps(entry.model_dump(mode="json", exclude_none=True)) + "\n"
        with self._writing:
            try:
                self._file.write(line.encode())
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise StoreError(f"cannot write {self._path}: {error.strerror}") from error
            self._last[entry.job, entry.scheduled] = entry

    def latest(self, job: str) -> datetime | None:
        """The last occurrence that anything is known about."""
        with self._writing:
            return max((scheduled for name, scheduled in self._last if name == job), default=None)

    def get(self, job: str, scheduled: datetime) -> Entry | None:
        with self._writing:
            return self._last.get((job, scheduled))

    def running(self, job: str) -> Iterator[Entry]:
        """Those that began and, as far as the file says, did not end."""
        with self._writing:
            entries = list(self._last.values())
        return (entry for entry in entries if entry.job == job and entry.outcome == "running")

    def close(self) -> None:
        self._file.close()
