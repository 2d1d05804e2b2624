"""Somebody waits for a run, and a thread beside them tells how it goes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jacjobs.run.coordinator import Progress

JOIN_SECONDS = 10.0
"""Whoever is asked may not answer any more."""


@contextmanager
def polled(
    progress: Callable[[], Progress | None], seconds: float, tell: Callable[[Progress], None]
) -> Iterator[None]:
    """Tell progress, as long as there is any to tell, until the block ends."""
    over = threading.Event()

    def poll() -> None:
        while not over.wait(seconds):
            now = progress()
            if now is not None:
                tell(now)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=JOIN_SECONDS)
