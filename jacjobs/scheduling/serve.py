"""Runs jobs when they are due, from one process, where there is no scheduler.

APScheduler keeps the time; when an occurrence comes is cronsim's word. Each is a `jacjobs submit --scheduled`
in a process of its own, which sees to overlaps itself. What came while nobody was there, or while the machine
slept, is missed; only the latest is made up for.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from jacjobs.errors import SkippedError, StoppedError
from jacjobs.occurrences import between, following, latest, shown
from jacjobs.planning.options import ScheduleOptions
from jacjobs.scheduling.history import Entry, History, Outcome
from jacjobs.scheduling.jobs import ScheduledJob
from jacjobs.scheduling.overlap import is_late

AT_ONCE = 256
"""Occurrences that may go on at the same time: each waits for its process in a thread."""
_OUTCOMES: dict[int, Outcome] = {
    0: "complete",
    StoppedError.exit_code: "stopped",
    SkippedError.exit_code: "skipped",
}


class _Times(BaseTrigger):  # type: ignore[misc]  # APScheduler 3 has no types
    """A schedule's occurrences, for APScheduler."""

    def __init__(self, schedule: ScheduleOptions) -> None:
        self._schedule = schedule

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        return next(following(self._schedule, previous or now))


class Server:
    """Serves jobs from `serve` until `stop` is called, from another thread or a signal's handler."""

    def __init__(
        self,
        jobs: list[ScheduledJob],
        history: History,
        tell: Callable[[str], None],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._jobs, self._history, self._tell, self._clock = jobs, history, tell, clock
        self._over = threading.Event()
        self._children: set[subprocess.Popen[str]] = set()
        self._starting = threading.RLock()  # a handler may interrupt a handler
        self._deciding = {job.name: threading.Lock() for job in jobs}

    def serve(self) -> None:
        """Returns after `stop`, when every process that was begun has ended."""
        scheduler = BackgroundScheduler(timezone=UTC, executors={"default": ThreadPoolExecutor(AT_ONCE)})
        options: dict[str, Any] = {"misfire_grace_time": None, "coalesce": True, "max_instances": AT_ONCE}
        for job in self._jobs:
            if self._history.latest(job.name) is None:
                newest = latest(job.schedule, self._clock())
                self._history.add(Entry(job=job.name, scheduled=newest, outcome="since"))
            scheduler.add_job(self._due, _Times(job.schedule), [job], **options)
            scheduler.add_job(self._take_over, args=[job], **options)
        scheduler.start()
        while not self._over.wait(1.0):  # a wait without end would keep signals from being seen
            pass
        scheduler.shutdown(wait=True)

    def stop(self) -> None:
        """Begin nothing more, and ask what goes on to stop; asked again, it leaves at once."""
        with self._starting:
            self._over.set()
            for child in list(self._children):
                child.send_signal(signal.SIGTERM)

    # -- what is due -----------------------------------------------------------------------------------------

    def _take_over(self, job: ScheduledJob) -> None:
        """The latest occurrence goes on if an earlier server left it interrupted; what came since is due."""
        now = self._clock()
        newest = latest(job.schedule, now)
        entry = self._history.get(job.name, newest)
        for left in list(self._history.running(job.name)):
            if left.scheduled != newest:
                self._note(left.model_copy(update={"outcome": "stopped", "message": "its server was killed"}))
        if entry is not None and entry.outcome in ("running", "stopped"):
            self._run(job, newest)
        else:
            self._due(job)

    def _due(self, job: ScheduledJob) -> None:
        """Run the latest occurrence since the last one that is known; those between are missed."""
        with self._deciding[job.name]:
            now = self._clock()
            last = self._history.latest(job.name)
            assert last is not None
            if self._over.is_set():
                return
            due = between(job.schedule, last, now)
            for occurrence in due[:-1]:
                self._miss(job, occurrence, "nobody was there to start it")
            if not due:
                return
            if is_late(job.spec, due[-1], now):
                self._miss(job, due[-1], f"it could start at most {job.schedule.start_deadline} late")
                return
            started = self._start(job, due[-1])
        if started is not None:
            self._follow(job, due[-1], *started)

    def _miss(self, job: ScheduledJob, occurrence: datetime, why: str) -> None:
        self._note(Entry(job=job.name, scheduled=occurrence, outcome="missed", message=why))

    # -- one occurrence --------------------------------------------------------------------------------------

    def _run(self, job: ScheduledJob, occurrence: datetime) -> None:
        started = self._start(job, occurrence)
        if started is not None:
            self._follow(job, occurrence, *started)

    def _start(
        self, job: ScheduledJob, occurrence: datetime
    ) -> tuple[subprocess.Popen[str], datetime] | None:
        """None if this server is to end. A session of its own: a Ctrl-C reaches it through `stop` alone."""
        time = shown(job.schedule, occurrence)
        command = [sys.executable, "-m", "jacjobs", "submit", str(job.file), "--scheduled", time]
        with self._starting:
            if self._over.is_set():
                return None
            started = self._clock()
            self._note(Entry(job=job.name, scheduled=occurrence, outcome="running", started=started))
            child = subprocess.Popen(
                command, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
            )
            self._children.add(child)
        return child, started

    def _follow(
        self, job: ScheduledJob, occurrence: datetime, child: subprocess.Popen[str], started: datetime
    ) -> None:
        assert child.stderr is not None
        last = _passed_on(child.stderr, sys.stderr)
        code = child.wait()
        with self._starting:
            self._children.discard(child)
        outcome = _OUTCOMES.get(code, "failed")
        if code < 0:  # by a signal: what was committed stays
            outcome, last = "stopped", f"killed by {signal.Signals(-code).name}"
        self._note(
            Entry(
                job=job.name,
                scheduled=occurrence,
                outcome=outcome,
                started=started,
                ended=self._clock(),
                exit_code=code,
                message="" if outcome == "complete" else last.removeprefix("jacjobs: "),
            )
        )

    def _note(self, entry: Entry) -> None:
        self._history.add(entry)
        why = f": {entry.message}" if entry.message else ""
        self._tell(f"{entry.job} {entry.scheduled.isoformat()} {entry.outcome}{why}")


def serve(jobs: list[ScheduledJob], path: Path, tell: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT."""
    history = History(path)
    server = Server(jobs, history, tell)
    before = {s: signal.signal(s, lambda *_: server.stop()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.serve()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        history.close()


def _passed_on(source: IO[str], target: IO[str]) -> str:
    """Every line goes on; returns the last one that says something."""
    last = ""
    for line in source:
        target.write(line)
        target.flush()
        last = line.strip() or last
    return last
