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
from dataclasses import dataclass
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
_AROUND_CHANGES = timedelta(hours=3)
_AGES = timedelta(days=400 * 366)
_FIELD = re.compile(r"\{scheduled(?::([^{}]*))?\}")
_EXAMPLE = "{scheduled:%Y-%m-%d}"
_START = datetime(2024, 1, 1, tzinfo=UTC)
"""Changes of clocks are looked for from here on, not from today: a job file is right whenever it is read."""
_COMPARED = 3


@dataclass(frozen=True)
class Allowed:
    """What each field of a cron expression lets through. Sunday is 0.

    both:  a day must be in `days` and in `weekdays`; else one will do.
    """

    seconds: frozenset[int]
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    both: bool

    @property
    def every_day(self) -> bool:
        return len(self.days) == 31

    @property
    def every_weekday(self) -> bool:
        return len(self.weekdays) == 7


def allowed(schedule: ScheduleOptions) -> Allowed:
    cron = CronSim(schedule.expression, _START)
    return Allowed(
        seconds=frozenset(cron.seconds),
        minutes=frozenset(cron.minutes),
        hours=frozenset(cron.hours),
        days=frozenset(cron.days),
        months=frozenset(cron.months),
        weekdays=frozenset(day % 7 for day in cron.weekdays if isinstance(day, int)),
        both=cron.day_and,
    )


def following(schedule: ScheduleOptions, after: datetime) -> Iterator[datetime]:
    """All occurrences later than a time, the next one first."""
    last = after.astimezone(UTC)
    for found in CronSim(schedule.expression, _begin(schedule, last)):
        instant = found.astimezone(UTC)
        if instant > last:
            last = instant
            yield instant


def preceding(schedule: ScheduleOptions, until: datetime) -> Iterator[datetime]:
    """All occurrences that have come by then, the latest one first."""
    until, span = until.astimezone(UTC), timedelta(hours=1)
    while span < _AGES:
        # Forward, piece by piece: where clocks are turned, cronsim finds others on its way back.
        yield from reversed(between(schedule, until - span, until))
        until, span = until - span, 2 * span


def latest(schedule: ScheduleOptions, now: datetime) -> datetime:
    """The last one that has come."""
    return next(preceding(schedule, now))


def between(
    schedule: ScheduleOptions, after: datetime, until: datetime, most: int | None = None
) -> list[datetime]:
    """Those later than one time, and no later than another; the first ones, if there are more."""
    found = takewhile(lambda occurrence: occurrence <= until, following(schedule, after))
    return list(islice(found, most))


def named(schedule: ScheduleOptions, text: str, now: datetime) -> datetime:
    """The occurrence that is meant by `latest` or a time: ISO 8601, in the schedule's zone if it names none.

    Raises InputError for a time that is no occurrence, or has not come yet.
    """
    if text == "latest":
        return latest(schedule, now)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or not 1970 <= time.year < 9000:  # what datetime can add to, and subtract from
        raise InputError.about(
            "--scheduled", got=repr(text), expected="latest, or a time such as 2026-11-25T02:00:00+01:00"
        )
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


def _begin(schedule: ScheduleOptions, time: datetime) -> datetime:
    """Where to begin looking: near a change of clocks, cronsim leaves some out that are next to its begin."""
    if schedule.timezone == "UTC":  # none are turned
        return time
    return (time - _AROUND_CHANGES).astimezone(schedule.zone)


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
        if unknown or not directives or not match[0].isprintable():
            raise InputError.about(
                where,
                got=f"{unknown[0]!r} in {match[0]!r}" if unknown else repr(match[0]),
                expected=f"a format such as {_EXAMPLE}",
                do=f"there are {', '.join(f'%{each}' for each in DIRECTIVES)}",
            )


def check_path(path: str, schedule: ScheduleOptions, where: str) -> None:
    """Raises InputError unless every occurrence has a path of its own."""
    expected = f"a path of its own for every occurrence of {schedule.cron!r}"
    if not is_template(path):
        raise InputError.about(where, got=repr(path), expected=expected, do=f"add {_EXAMPLE} to it")
    check_texts(path, where)
    left_open = _left_open(path, schedule)
    if left_open is not None:
        what, directives = left_open
        got = f"{path!r}, which leaves the {what} open"
        raise InputError.about(where, got=got, expected=expected, do=f"add {directives} to its format")
    same = _sharing(path, schedule)
    if same is not None:
        first, second = (occurrence.astimezone(schedule.zone) for occurrence in same)
        twice = first.replace(tzinfo=None, fold=0) == second.replace(tzinfo=None, fold=0)
        raise InputError.about(
            where,
            got=f"{path!r}, the same for {first.isoformat()} and {second.isoformat()}",
            expected=expected,
            do=f"clocks are turned there: add {'%z' if twice else '%M'}, or use `timezone: UTC`",
        )


def _left_open(path: str, schedule: ScheduleOptions) -> tuple[str, str] | None:
    """What neither the path nor the cron expression says of an occurrence, and the directives that do."""
    says = set("".join(re.findall("%(.)", "".join(match[1] for match in _FIELD.finditer(path)))))
    cron = allowed(schedule)
    only_days, only_weekdays = cron.both and cron.every_weekday, cron.both and cron.every_day
    year = bool(says & {"Y", "y"})
    date = (
        (year and ("j" in says or {"m", "d"} <= says))
        or ({"G", "V"} <= says and bool(says & {"u", "w"}))
        # one day a month, one day a week
        or (year and ("m" in says or len(cron.months) == 1) and len(cron.days) == 1 and only_days)
        or ({"G", "V"} <= says and len(cron.weekdays) == 1 and only_weekdays)
    )
    if not date:
        return "date", "%Y-%m-%d"
    for what, directive, values in (
        ("hour", "H", cron.hours),
        ("minute", "M", cron.minutes),
        ("second", "S", cron.seconds),
    ):
        if directive not in says and len(values) > 1:
            return what, f"%{directive}"
    return None


@lru_cache(maxsize=256)
def _sharing(path: str, schedule: ScheduleOptions) -> tuple[datetime, datetime] | None:
    """Two occurrences that have the same path where clocks are turned: of an hour that comes twice, or one
    that is made up for after a gap, and the next.
    """
    moment = timedelta(seconds=1)
    for change, by in _changes(schedule.timezone):
        seen: dict[str, datetime] = {}
        for begin in (change + by, change) if by < timedelta(0) else (change,):
            # Both hours have the same times; it shows in the first of them.
            for occurrence in between(schedule, begin - moment, begin + abs(by) - moment, _COMPARED):
                other = seen.setdefault(filled(path, occurrence.astimezone(schedule.zone)), occurrence)
                if other != occurrence:
                    return other, occurrence
    return None


def made_up_for(schedule: ScheduleOptions) -> datetime | None:
    """An occurrence whose time the clocks leave out, and which comes right after the gap instead."""
    for change, by in _changes(schedule.timezone):
        if by > timedelta(0) and between(schedule, change - timedelta(seconds=1), change):
            as_if = ScheduleOptions(cron=schedule.cron, timezone="UTC")
            after_gap = change.astimezone(schedule.zone).replace(tzinfo=UTC)
            if next(following(as_if, after_gap - timedelta(seconds=1))) != after_gap:
                return change
    return None


@lru_cache(maxsize=64)
def _changes(timezone: str) -> tuple[tuple[datetime, timedelta], ...]:
    """When clocks are turned in 28 years, in which every date was on every weekday, and by how much."""
    zone = ZoneInfo(timezone)
    found: list[tuple[datetime, timedelta]] = []
    for day in (_START + timedelta(days=days) for days in range(28 * 365)):
        if _offset(day, zone) == _offset(day + timedelta(days=1), zone):
            continue
        for minute in range(0, 24 * 60, 15):
            before, after = (day + timedelta(minutes=minute + m) for m in (0, 15))
            by = _offset(after, zone) - _offset(before, zone)
            if by:
                found.append((after, by))
    return tuple(found)


def _offset(time: datetime, zone: ZoneInfo) -> timedelta:
    return time.astimezone(zone).utcoffset() or timedelta(0)
