"""What the coordinator needs of whoever carries out its commands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from jacjobs.run.messages import Command, Event


class Executor(Protocol):
    """Carries commands out and reports what happened. Decides nothing."""

    def execute(self, commands: Sequence[Command]) -> None:
        """Begin to carry out `commands`, in order; do not wait for them."""
        ...

    def poll(self, timeout_seconds: float) -> Iterable[Event]:
        """What happened since the last call; waits for a first event for at most so long.

        Carry out the commands that answer an event before asking for the next: only then does the ledger,
        at every event, know of the same workers as the executor.
        """
        ...

    def close(self) -> None:
        """End everything that was started. Safe to call twice."""
        ...
