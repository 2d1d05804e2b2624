"""Where events go: text and a live bar for people, lines of JSON for programs."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from enum import StrEnum
from typing import Protocol

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from jacjobs.cli import events, render
from jacjobs.cli.events import Event
from jacjobs.errors import FunctionError, JacjobsError


class LogFormat(StrEnum):
    text = "text"
    json = "json"


LINE_SECONDS = 5.0
"""How often a log line appears where there is no terminal."""
REFRESH_SECONDS = 0.2
JSON_SECONDS = 1.0
PAUSE_SECONDS = 30.0
"""Until then workers are starting."""


class Sink(Protocol):
    seconds: float
    """How often progress is worth telling."""

    def tell(self, event: Event) -> None: ...

    def live(self) -> AbstractContextManager[None]:
        """While progress is to be shown."""
        ...


def sink_for(log_format: LogFormat, as_json: bool) -> Sink:
    if as_json or log_format == LogFormat.json:
        return Lines()
    return Bar() if render.is_terminal() else Text()


@contextmanager
def reporting(sink: Sink) -> Iterator[None]:
    """Where errors are events, say them there; the exit code stays."""
    try:
        yield
    except JacjobsError as error:
        if not isinstance(sink, Lines):
            raise
        traceback = error.user_traceback if isinstance(error, FunctionError) else ""
        sink.tell(events.failed(error.exit_code, str(error), traceback))
        raise SystemExit(error.exit_code) from None


class Lines:
    """One line of JSON an event; progress that is none is left out."""

    seconds = JSON_SECONDS

    def __init__(self) -> None:
        self._last: Event = {}
        self._writing = threading.RLock()  # a signal's handler may tell something too

    def tell(self, event: Event) -> None:
        if event["event"] == "progress":
            news = {key: value for key, value in event.items() if key not in ("time", "seconds")}
            if news == self._last:
                return
            self._last = news
        with self._writing:  # of threads; in one piece
            sys.stdout.write(events.line(event) + "\n")
            sys.stdout.flush()

    @contextmanager
    def live(self) -> Iterator[None]:
        yield


class Text:
    """A line an event, and of progress one every few seconds."""

    seconds = LINE_SECONDS

    def __init__(self) -> None:
        self._told = time.monotonic()

    def tell(self, event: Event) -> None:
        if event["event"] != "progress":
            render.event(event)
        elif event["blocks_total"] and time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            render.note(f"{event['blocks_done']:,}/{event['blocks_total']:,} blocks, {rate(event)}")

    @contextmanager
    def live(self) -> Iterator[None]:
        yield


class Bar:
    """A bar that moves, and above it the lines of other events."""

    seconds = REFRESH_SECONDS

    def __init__(self) -> None:
        self._shown: tuple[Progress, TaskID] | None = None

    def tell(self, event: Event) -> None:
        if event["event"] != "progress":
            render.event(event)
        elif self._shown is not None and event["blocks_total"]:
            bar, task = self._shown
            done, total = event["blocks_done"], event["blocks_total"]
            bar.update(task, completed=done, total=total, rate=rate(event))

    @contextmanager
    def live(self) -> Iterator[None]:
        columns = (
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} blocks"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
        )
        with ExitStack() as stack:
            bar = stack.enter_context(Progress(*columns, console=render.console()))
            self._shown = bar, bar.add_task("", total=1, rate="starting")
            try:
                yield
            finally:
                self._shown = None


def rate(now: Event) -> str:
    """Rows a second, bytes a second, and how long the rest will take at that rate."""
    trouble = f", {now['nonfinite']:,} entries are NaN or infinite" if now["nonfinite"] else ""
    trouble += f", {render.count(now['failures'], 'failure')} so far" if now["failures"] else ""
    workers = render.count(now["workers"], "worker")
    if now["paused"] and now["seconds"] > PAUSE_SECONDS:
        return "paused: nobody to compute; waiting for workers" + trouble
    if not now["entries_done"] or not now["seconds"]:
        return (f"{workers}, " if now["workers"] else "") + "starting" + trouble
    entries = now["entries_done"] / now["seconds"]
    left = math.ceil((now["entries_total"] - now["entries_done"]) / entries)
    return (
        f"{entries / now['row_entries']:,.0f} rows/s, {render.size(entries * now['entry_bytes'])}/s, "
        f"{workers}, ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}{trouble}"
    )
