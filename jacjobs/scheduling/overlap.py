"""May this occurrence start? Every `jacjobs submit --scheduled` asks, so that all schedulers behave alike.

Who works on a run is read from its lock, which a submit takes just before the first block: one that still
imports or plans is not seen. Of two that begin the same run at once, the lock lets one in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from jacjobs.errors import JacjobsError, SkippedError
from jacjobs.jobspec import JobSpec
from jacjobs.occurrences import preceding, shown
from jacjobs.planning.options import ScheduleOptions
from jacjobs.store.folder import RunFolder
from jacjobs.store.lock import holder_of

LOOK_BACK = 32
"""How many occurrences back a run may still go on."""
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
    this = f"{spec.name}: the occurrence of {shown(schedule, occurrence)}"
    holder = holder_of(folder.place)
    if holder is not None:
        raise SkippedError(f"{this} was skipped: it is being computed, by {holder}")
    if folder.is_run and folder.manifest() is not None:
        return
    if is_late(spec, occurrence, now):
        raise SkippedError(
            f"{this} was skipped: it may start at most {schedule.start_deadline} late, and it is "
            f"{shown(schedule, now.replace(microsecond=0))} now"
        )
    if schedule.overlap == "allow":
        return
    for other in live_runs(spec, now):
        if schedule.overlap == "forbid":
            raise SkippedError(
                f"{this} was skipped: that of {shown(schedule, other.occurrence)} goes on, by {other.holder} "
                "(schedule.overlap: forbid)"
            )
        tell(f"stopping the occurrence of {shown(schedule, other.occurrence)}, by {other.holder}")
        _stop(other)


def is_late(spec: JobSpec, occurrence: datetime, now: datetime) -> bool:
    """Too late to start. A run that began is only resumed."""
    deadline = _schedule(spec).deadline
    if deadline is None or now - occurrence <= deadline:
        return False
    return not RunFolder(spec.at(occurrence).output.path).is_run


def live_runs(spec: JobSpec, now: datetime) -> list[LiveRun]:
    """Of the last occurrences, those that somebody works on; the latest first."""
    found = []
    for occurrence in islice(preceding(_schedule(spec), now), LOOK_BACK):
        folder = RunFolder(spec.at(occurrence).output.path)
        holder = holder_of(folder.place)
        if holder is not None:
            found.append(LiveRun(occurrence, folder.uri, holder))
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


def _schedule(spec: JobSpec) -> ScheduleOptions:
    assert spec.schedule is not None
    return spec.schedule
