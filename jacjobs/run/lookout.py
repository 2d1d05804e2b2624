"""A run that another process carries out, watched by its folder: from any machine that sees it, no Ray."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from jacjobs.errors import JacjobsError, WorkersError, error_of
from jacjobs.run.coordinator import Progress
from jacjobs.store.folder import Manifest, RunFolder
from jacjobs.store.status import Status, status_of

LOOK_SECONDS = 2.0
BEGIN_SECONDS = 120.0
"""For a run that nobody has begun, since its submitter still prepares."""


class Lookout:
    look_seconds = LOOK_SECONDS

    def __init__(self, path: str) -> None:
        self._folder = RunFolder(path)

    def start(self) -> None:
        """Whoever carries it out has started it."""

    def done(self) -> bool:
        return self._ended(self._status())

    def result(self) -> Manifest:
        status = self._status()
        while not self._ended(status):
            time.sleep(LOOK_SECONDS)
            status = self._status()
        manifest = self._folder.manifest()
        if manifest is None:
            raise _error(status)
        return manifest

    def progress(self) -> Progress | None:
        """As old as the record of the attempt: up to ten seconds. None while nobody works on the run."""
        status = self._status()
        last = status.last
        if status.state != "running" or last is None or last.state != "running":
            return None
        return Progress(
            state="running",
            paused=False,
            blocks_done=last.blocks_done,
            blocks_total=last.blocks_total,
            entries_done=last.entries_done,
            entries_total=last.entries_total,
            workers=sum(worker.left is None for worker in last.workers),
            seconds=last.seconds,
            nonfinite=0,
            failures=last.failures_total,
        )

    def stop(self) -> None:
        self._folder.request_stop()

    def _status(self) -> Status:
        return status_of(self._folder.uri)

    def _ended(self, status: Status) -> bool:
        if status.state == "not begun":
            created = datetime.fromisoformat(self._folder.record().created)
            return (datetime.now(UTC) - created).total_seconds() > BEGIN_SECONDS
        return status.state != "running"


def _error(status: Status) -> JacjobsError:
    """How a run ended that is not complete, as far as its folder knows."""
    last = status.last
    if last is not None and last.cause and status.state != "interrupted":
        return error_of(last.exit_code or 1, last.cause)
    return WorkersError(f"{status.path}: {status.state}, and nobody works on it; `jacjobs resume` goes on")
