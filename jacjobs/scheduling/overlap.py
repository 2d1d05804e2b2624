"""May this occurrence start? Every `jacjobs submit --scheduled` asks, so that all schedulers behave alike.

Who works on a run is read from its lock, which a submit takes just before the first block: one that still
imports or plans is not seen. Of two that begin the same run at once, the lock lets one in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

from jacjobs.errors import JacjobsError, SkippedError
from jacjobs.jobspec import JobSpec
from jacjobs.occurrences import preceding, shown
from jacjobs.planning.options import ScheduleOptions
from jacjobs.store.folder import RunFolder
from jacjobs.store.lock import holder_of

LOOK_BACK, LOOK_BACK_TIME = 32, timedelta(days=1)
"""A run may still go on so many occurrences back, or as many as were due in that time, if they are more."""
AT_ONCE = 16
"""Runs that are looked at: an object store takes its time for each."""
REPLACE_SECONDS = 600.0
"""How long one that was asked to stop may take: it finishes the blocks that are being computed."""
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class LiveRun:
    occurrence: datetime
    path: str
    holder: str


def admit(spec: JobSpec, occurrence: datetime, now: datetime, tell: Callable[[str], None]) -> None:
    """Returns if it may start, at once or after the earlier one was stopped.

    Raises SkippedError if not: it goes on already, is too late, or another one goes on.
    One that began is not late, whenever it is resumed. One that is complete has nothing to start.
    """
    schedule = _schedule(spec)
    folder = RunFolder(spec.at(occurrence).output.path)
    holder = holder_of(folder.place)
    if holder is not None:
        raise SkippedError(f"{_this(spec, occurrence)} was skipped: it is being computed, by {holder}")
    if folder.is_run and folder.manifest() is not None:
        return
    if not folder.is_run:
        refuse_late(spec, occurrence, now)
    if schedule.overlap == "allow":
        return
    for other in live_runs(spec, now):
        if schedule.overlap == "forbid":
            other_one = f"that of {shown(schedule, other.occurrence)} goes on, by {other.holder}"
            raise overlapping(spec, occurrence, other_one)
        tell(f"stopping the occurrence of {shown(schedule, other.occurrence)}, by {other.holder}")
        _stop(other)


def refuse_late(spec: JobSpec, occurrence: datetime, now: datetime) -> None:
    """Raises SkippedError if it is too late to begin it."""
    schedule = _schedule(spec)
    if _is_past(schedule, occurrence, now):
        raise SkippedError(
            f"{_this(spec, occurrence)} was skipped: it may start at most {schedule.start_deadline} late, "
            f"and it is {shown(schedule, now.replace(microsecond=0))} now"
        )


def overlapping(spec: JobSpec, occurrence: datetime, other: str) -> SkippedError:
    return SkippedError(f"{_this(spec, occurrence)} was skipped: {other} (schedule.overlap: forbid)")


def is_late(spec: JobSpec, occurrence: datetime, now: datetime) -> bool:
    """Too late to start. A run that began is only resumed."""
    return (
        _is_past(_schedule(spec), occurrence, now) and not RunFolder(spec.at(occurrence).output.path).is_run
    )


def _is_past(schedule: ScheduleOptions, occurrence: datetime, now: datetime) -> bool:
    return schedule.deadline is not None and now - occurrence > schedule.deadline


def live_runs(spec: JobSpec, now: datetime) -> list[LiveRun]:
    """Of the last occurrences, those that somebody works on; the latest first."""

    def look(occurrence: datetime) -> LiveRun | None:
        folder = RunFolder(spec.at(occurrence).output.path)
        holder = holder_of(folder.place)
        return None if holder is None else LiveRun(occurrence, folder.uri, holder)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [live for live in pool.map(look, _last(spec, now)) if live is not None]


def unfinished(spec: JobSpec, now: datetime) -> datetime:
    """The latest occurrence that was begun, is not complete, and that nobody works on; if there is none, the
    latest of all. What a scheduler goes on with that had to stop it.
    """
    occurrences = _last(spec, now)

    def is_left(occurrence: datetime) -> bool:
        folder = RunFolder(spec.at(occurrence).output.path)
        return folder.is_run and folder.manifest() is None and holder_of(folder.place) is None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        left = pool.map(is_left, occurrences)
        return next(
            (occurrence for occurrence, yes in zip(occurrences, left, strict=True) if yes), occurrences[0]
        )


def _last(spec: JobSpec, now: datetime) -> list[datetime]:
    """Those whose runs may go on; the latest first."""
    found: list[datetime] = []
    for occurrence in preceding(_schedule(spec), now):
        if len(found) >= LOOK_BACK and now - occurrence >= LOOK_BACK_TIME:
            break
        found.append(occurrence)
    return found


def _stop(other: LiveRun) -> None:
    folder = RunFolder(other.path)
    folder.request_stop()
    give_up = time.monotonic() + REPLACE_SECONDS
    while holder_of(folder.place) is not None:
        if time.monotonic() > give_up:
            raise JacjobsError(
                f"run {other.path}: {other.holder} was asked to stop, and goes on after "
                f"{REPLACE_SECONDS:.0f} s; end that process"
            )
        time.sleep(POLL_SECONDS)


def _this(spec: JobSpec, occurrence: datetime) -> str:
    return f"{spec.name}: the occurrence of {shown(_schedule(spec), occurrence)}"


def _schedule(spec: JobSpec) -> ScheduleOptions:
    assert spec.schedule is not None
    return spec.schedule
