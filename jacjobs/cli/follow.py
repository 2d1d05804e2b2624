"""Watch a run of this process to its end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jacjobs.cli import events
from jacjobs.cli.sinks import Sink
from jacjobs.errors import StoppedError

if TYPE_CHECKING:
    from jacjobs.api import Run


def follow(run: Run, sink: Sink) -> None:
    """A first Ctrl-C or SIGTERM asks the run to stop, a second leaves at once."""
    sink.tell(events.planned(run.plan, run.path))
    try:
        with _stopping(run, sink), sink.live(), _watching(run, sink):
            manifest = run.wait()
    except KeyboardInterrupt:  # typer would make it 130
        raise StoppedError(
            "left at once; what was committed stays, and `jacjobs resume` goes on from there"
        ) from None
    sink.tell(events.completed(run.path, manifest))


@contextmanager
def _watching(run: Run, sink: Sink) -> Iterator[None]:
    """Tell progress until the block ends."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(sink.seconds):
            now = run.progress()
            if now is not None:
                sink.tell(events.progressed(now, run.plan))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10)


@contextmanager
def _stopping(run: Run, sink: Sink) -> Iterator[None]:
    asked = False

    def ask(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        sink.tell(events.noted("stopping: no new blocks; once more to leave at once"))
        run.stop()

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
