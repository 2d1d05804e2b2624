"""Where a run stands, from its folder alone: no Ray, no torch, from any machine that sees the folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jacjobs.errors import JacjobsError
from jacjobs.store.attempt import Attempt
from jacjobs.store.folder import PLAN, RunFolder
from jacjobs.store.lock import holder_of
from jacjobs.store.schema import part_rectangle

State = Literal["complete", "running", "interrupted", "stopped", "incomplete", "failed", "not begun"]
DEPTH = 4
"""How far below a folder runs are looked for."""


@dataclass(frozen=True)
class Status:
    """
    state:     complete; running, if somebody who lives writes; else how the last attempt ended, and
               interrupted if it was killed.
    committed: the part of J's entries that is in its place for good.
    holder:    who writes: process and host.
    last:      the record of the last attempt; it is up to ten seconds old while the run goes on.
    """

    path: str
    name: str
    run: str
    state: State
    shape: tuple[int, int, int]
    committed: float
    parts: int
    holder: str | None = None
    last: Attempt | None = None


def status_of(path: str | Path) -> Status:
    """Raises InputError where there is no run, StoreError where it is damaged."""
    folder = RunFolder(path)
    folder.require_run()
    record, manifest = folder.record(), folder.manifest()
    names = folder.part_names()
    entries = sum(part.entries for name in names if (part := part_rectangle(name)) is not None)
    last = max(folder.attempts(manifest), key=lambda attempt: attempt.number, default=None)
    holder = holder_of(folder.place)
    shape = record.shape
    return Status(
        path=folder.uri,
        name=record.name,
        run=record.run,
        state=_state(last, complete=manifest is not None, held=holder is not None),
        shape=(shape.points, shape.rows, shape.columns),
        committed=entries / (shape.points * shape.rows * shape.columns),
        parts=len(names),
        holder=holder,
        last=last,
    )


def _state(last: Attempt | None, *, complete: bool, held: bool) -> State:
    if held:
        return "running"
    if complete:
        return "complete"
    if last is None:
        return "not begun"
    states: dict[str, State] = {"stopped": "stopped", "incomplete": "incomplete", "failed": "failed"}
    return states.get(last.state, "interrupted")


def runs_below(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Folders of runs, in the order of their names; a run holds no others."""
    if (folder / PLAN).is_file():
        yield folder
        return
    if depth:
        for child in sorted(child for child in _folders(folder) if not child.name.startswith(".")):
            yield from runs_below(child, depth - 1)


def _folders(folder: Path) -> list[Path]:
    try:
        return [child for child in folder.iterdir() if child.is_dir() and not child.is_symlink()]
    except OSError:
        return []


def statuses_below(folder: Path) -> Iterator[Status | tuple[Path, JacjobsError]]:
    """Of all runs below a folder; where one cannot be read, why."""
    for path in runs_below(folder):
        try:
            yield status_of(path)
        except JacjobsError as error:
            yield path, error
