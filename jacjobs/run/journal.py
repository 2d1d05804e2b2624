"""Keeps the record of an attempt in the run's folder while it goes on, and at its end."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from datetime import UTC, datetime

from jacjobs.errors import JacjobsError, StoreError
from jacjobs.run.ledger import Ledger
from jacjobs.store.attempt import Attempt
from jacjobs.store.folder import RunFolder

WRITE_SECONDS = 10.0
"""How old the record in the folder may be."""


class Journal:
    """One attempt's. The first write may raise StoreError; that a later one fails is no reason to stop."""

    def __init__(self, folder: RunFolder, ledger: Ledger, number: int, entries_total: int) -> None:
        self._folder = folder
        self._ledger = ledger
        self._entries_total = entries_total
        self._number = number
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._written = time.monotonic()
        folder.write_attempt(self.attempt())

    def attempt(self, state: str | None = None, error: BaseException | None = None) -> Attempt:
        """What there is to say now."""
        ledger = self._ledger
        error = error or ledger.error
        return Attempt(
            number=self._number,
            started=self._started,
            host=socket.gethostname(),
            pid=os.getpid(),
            state=state or ledger.state,
            cause="" if error is None else str(error) or type(error).__name__,
            exit_code=error.exit_code if isinstance(error, JacjobsError) else None,
            seconds=round(ledger.history.seconds, 3),
            blocks_done=ledger.blocks_done,
            blocks_total=ledger.blocks_total,
            entries_done=ledger.entries_done,
            entries_total=self._entries_total,
            blocks_repeated=ledger.history.blocks_repeated,
            retreats=tuple(ledger.tally.retreats),
            workers=ledger.history.work,
            failures=tuple(ledger.history.failures),
            failures_total=ledger.history.failures_total,
            timeline=ledger.history.timeline,
        )

    def keep(self) -> None:
        """Write, unless that was done a moment ago."""
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self._written = time.monotonic()
            with contextlib.suppress(StoreError):
                self._folder.write_attempt(self.attempt())

    def end(self, error: BaseException | None) -> None:
        """Write how it ended: as the ledger says, or by an error that it knows nothing of."""
        state = "failed" if error is not None and self._ledger.error is not error else None
        with contextlib.suppress(StoreError):
            self._folder.write_attempt(self.attempt(state, error))
