"""Watch a run to its end: one of this process, or one that goes on elsewhere."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from jacjobs.cli import events
from jacjobs.cli.sinks import Sink
from jacjobs.errors import DetachedError, StoppedError
from jacjobs.run.polling import polled

if TYPE_CHECKING:
    from jacjobs.run.handle import Run


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


def tell(path: str, sink: Sink) -> None:
    """What happened to a run so far, by its folder."""
    from jacjobs.store.folder import RunFolder

    folder = RunFolder(path)
    folder.require_run()
    for attempt in folder.attempts(folder.manifest()):
        for event in events.told(attempt):
            sink.tell(event)


def watch(path: str, sink: Sink) -> None:
    """… and then to its end, whoever carries it out; Ctrl-C or SIGTERM leave it alone."""
    again = f"`jacjobs logs {path} --follow` follows it again, `jacjobs stop {path}` ends it"
    with detaching(f"left; the run goes on: {again}"):
        tell(path, sink)
        from jacjobs.api import attach

        run = attach(path)
        with sink.live(), _watching(run, sink):
            manifest = run.wait()
    sink.tell(events.completed(run.path, manifest))


@contextmanager
def detaching(message: str) -> Iterator[None]:
    """A signal ends this process with that message, and nothing else."""

    def leave(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt  # which no library takes for an error of its own

    try:
        with _handling(leave):
            yield
    except KeyboardInterrupt:
        raise DetachedError(message) from None


def _watching(run: Run, sink: Sink) -> AbstractContextManager[None]:
    """Tell progress until the block ends."""
    return polled(run.progress, sink.seconds, lambda now: sink.tell(events.progressed(now, run.plan)))


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

    with _handling(ask):
        yield


@contextmanager
def _handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
