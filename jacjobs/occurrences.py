"""The times at which a schedule says that its job is run, and what of a job depends on them.

An occurrence is an instant, in UTC: two datetimes of a zone that turns its clocks compare and subtract as if
it did not. What people read is in the schedule's own zone.

Where clocks are turned, occurrences are those of Debian's cron: a time that is left out is made up for right
after the gap; one that comes twice counts once, unless the minute or the hour begins with *: then it counts
twice. In a path those two look alike without %z, so such a path is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice, takewhile
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim

from jacjobs.errors import InputError
from jacjobs.planning.options import ScheduleOptions

DIRECTIVES = "YymdHMSjGVuwzZ"
"""Of a `{scheduled:FORMAT}`: those that are the same in every language and on every system."""
COMPARED = 60
"""Occurrences in a row: more than a year of weeks."""
_AROUND_CHANGES = timedelta(hours=3)
_FIELD = re.compile(r"\{scheduled(?::([^{}]*))?\}")
_EXAMPLE = "{scheduled:%Y-%m-%d}"
_START = datetime(2024, 1, 1, tzinfo=UTC)
"""Paths are compared from here on, and not from today: a job file is right or wrong whenever it is read."""
_DAYS_LATER, _YEARS_LATER = (0, 1, 7, 31), range(1, 7)
"""So long after the first: what is the same on another day, weekday, month or year is seen there."""


def following(schedule: ScheduleOptions, after: datetime) -> Iterator[datetime]:
    """All occurrences later than a time, the next one first."""
    last = after.astimezone(UTC)
    for found in CronSim(schedule.expression, _moved(schedule, last, -_AROUND_CHANGES)):
        instant = found.astimezone(UTC)
        if instant > last:
            last = instant
            yield instant


def preceding(schedule: ScheduleOptions, until: datetime) -> Iterator[datetime]:
    """All occurrences that have come by then, the latest one first."""
    last = until.astimezone(UTC) + timedelta(microseconds=1)
    for found in CronSim(schedule.expression, _moved(schedule, last, _AROUND_CHANGES), reverse=True):
        instant = found.astimezone(UTC)
        if instant < last:
            last = instant
            yield instant


def latest(schedule: ScheduleOptions, now: datetime) -> datetime:
    """The last one that has come."""
    return next(preceding(schedule, now))


def between(schedule: ScheduleOptions, after: datetime, until: datetime) -> list[datetime]:
    """Those later than one time, and no later than another."""
    return list(takewhile(lambda occurrence: occurrence <= until, following(schedule, after)))


def named(schedule: ScheduleOptions, text: str, now: datetime) -> datetime:
    """The occurrence that is meant by `latest` or a time: ISO 8601, in the schedule's zone if it names none.

    Raises InputError for a time that is no occurrence, or has not come yet.
    """
    if text == "latest":
        return latest(schedule, now)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InputError.about(
            "--scheduled", got=repr(text), expected="latest, or a time such as 2026-11-25T02:00:00+01:00"
        ) from None
    time = (time if time.tzinfo else time.replace(tzinfo=schedule.zone)).astimezone(UTC)
    before = latest(schedule, time)
    if before != time:
        after = next(following(schedule, time))
        raise InputError.about(
            "--scheduled",
            got=text,
            expected=f"an occurrence of {schedule.cron!r} in {schedule.timezone}",
            do=f"those beside it are {shown(schedule, before)} and {shown(schedule, after)}",
        )
    if time > now:
        raise InputError.about("--scheduled", got=f"{text}, which is to come", expected="one that has come")
    return time


def shown(schedule: ScheduleOptions, occurrence: datetime) -> str:
    """As people read it, and `named` understands: in the schedule's zone."""
    return occurrence.astimezone(schedule.zone).isoformat()


def _moved(schedule: ScheduleOptions, time: datetime, by: timedelta) -> datetime:
    """Where to begin looking: near a change of clocks, cronsim leaves some out that are next to its begin."""
    if schedule.timezone == "UTC":  # none are turned
        by = timedelta(0)
    return (time + by).astimezone(UTC if schedule.timezone == "UTC" else schedule.zone)


# -- {scheduled:…} -------------------------------------------------------------------------------------------


def is_template(text: str) -> bool:
    return _FIELD.search(text) is not None


def filled(value: Any, local: datetime) -> Any:
    """Every `{scheduled:FORMAT}` in a text replaced by the time, and so in all texts of a list or mapping."""
    if isinstance(value, str):
        return _FIELD.sub(lambda match: local.strftime(match[1]), value)
    if isinstance(value, dict):
        return {key: filled(each, local) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, local) for each in value]
    return value


def check_texts(value: Any, where: str) -> None:
    """Raises InputError for a `{scheduled:…}` that cannot be filled in."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            check_texts(each, f"{where}.{key}")
    if not isinstance(value, str):
        return
    for match in _FIELD.finditer(value):
        directives = re.findall("%(.?)", match[1] or "", re.DOTALL)
        unknown = [f"%{each}" for each in directives if each not in DIRECTIVES or not each]
        if unknown or not directives:
            raise InputError.about(
                where,
                got=f"{unknown[0]} in {match[0]}" if unknown else match[0],
                expected=f"a format such as {_EXAMPLE}",
                do=f"there are {', '.join(f'%{each}' for each in DIRECTIVES)}",
            )


def check_path(path: str, schedule: ScheduleOptions, where: str) -> None:
    """Raises InputError unless every occurrence has a path of its own."""
    if not is_template(path):
        raise InputError.about(
            where,
            got=repr(path),
            expected="a path of its own for every occurrence of the schedule",
            do=f"add {_EXAMPLE} to it",
        )
    check_texts(path, where)
    same = _sharing(path, schedule)
    if same is None:
        return
    first, second = (occurrence.astimezone(schedule.zone) for occurrence in same)
    if first.replace(tzinfo=None, fold=0) == second.replace(tzinfo=None, fold=0):
        do = "the clocks are turned back between them: add %z, or use `timezone: UTC`"
    else:
        do = f"add %{_telling_apart(first, second)} to its format"
    raise InputError.about(
        where,
        got=f"{path!r}, the same for {first.isoformat()} and {second.isoformat()}",
        expected=f"a path of its own for every occurrence of {schedule.cron!r}",
        do=do,
    )


def _telling_apart(first: datetime, second: datetime) -> str:
    for directive in "YmdHM":
        if first.strftime(f"%{directive}") != second.strftime(f"%{directive}"):
            return directive
    return "S"


@lru_cache(maxsize=256)
def _sharing(path: str, schedule: ScheduleOptions) -> tuple[datetime, datetime] | None:
    """Two occurrences whose runs would have the same path."""
    seen: dict[str, datetime] = {}
    first = next(following(schedule, _START - timedelta(seconds=1)))
    later = [first + timedelta(days=days) for days in _DAYS_LATER]
    later += [first.replace(year=first.year + years, day=min(first.day, 28)) for years in _YEARS_LATER]
    for begin in (*later, *_repeated_hours(schedule.timezone)):
        for occurrence in islice(following(schedule, begin - timedelta(seconds=1)), COMPARED):
            text = filled(path, occurrence.astimezone(schedule.zone))
            other = seen.setdefault(text, occurrence)
            if other != occurrence:
                return min(other, occurrence), max(other, occurrence)
    return None


@lru_cache(maxsize=64)
def _repeated_hours(timezone: str) -> tuple[datetime, ...]:
    """Where the clocks were turned back in two years: the begin of what came twice, both times."""
    zone = ZoneInfo(timezone)
    found: list[datetime] = []
    for hour in range(2 * 366 * 24):
        before, after = (_START + timedelta(hours=hour + h) for h in (0, 1))
        back = _offset(before, zone) - _offset(after, zone)
        if back > timedelta(0):
            found += [after - back, after]
    return tuple(found)


def _offset(time: datetime, zone: ZoneInfo) -> timedelta:
    return time.astimezone(zone).utcoffset() or timedelta(0)
