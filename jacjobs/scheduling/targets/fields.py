"""A cron expression in the words that a scheduler knows: not all know names, a weekday 7, or seconds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from cronsim import CronSim
from cronsim.cronsim import SYMBOLIC_DAYS, SYMBOLIC_MONTHS

from jacjobs.errors import InputError
from jacjobs.planning.options import ScheduleOptions
from jacjobs.scheduling.jobs import ScheduledJob

_LAST = (59, 23, 31, 12, 7)
_MONTHS = {name: number + 1 for number, name in enumerate(SYMBOLIC_MONTHS)}
_DAYS = {name: number for number, name in enumerate(SYMBOLIC_DAYS)}
_NAMES: tuple[dict[str, int], ...] = ({}, {}, {}, _MONTHS, _DAYS)
_DAY, _WEEKDAY = 2, 4


@dataclass(frozen=True)
class Values:
    """What each field lets through. Sunday is 0.

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
        return self.days == frozenset(range(1, 32))

    @property
    def every_weekday(self) -> bool:
        return self.weekdays == frozenset(range(7))


def values(schedule: ScheduleOptions) -> Values:
    parsed = CronSim(schedule.expression, datetime(2024, 1, 1, tzinfo=UTC))
    return Values(
        seconds=frozenset(parsed.seconds),
        minutes=frozenset(parsed.minutes),
        hours=frozenset(parsed.hours),
        days=frozenset(parsed.days),
        months=frozenset(parsed.months),
        weekdays=frozenset(day % 7 for day in parsed.weekdays if isinstance(day, int)),
        both=parsed.day_and,
    )


def five_fields(job: ScheduledJob, scheduler: str) -> list[str]:
    """For cron itself: numbers, steps after a range. Raises InputError where there are seconds."""
    fields = job.schedule.expression.split()
    if len(fields) != len(_LAST):
        raise InputError.about(
            f"{job.file}: schedule.cron",
            got=f"{job.schedule.cron!r}, which says seconds",
            expected=f"five fields: {scheduler} knows no seconds",
            do="leave the first field out, or use `jacjobs schedule serve`",
        )
    return [
        ",".join(_term(term, names, last) for term in field.split(","))
        for field, names, last in zip(fields, _NAMES, _LAST, strict=True)
    ]


def kubernetes_fields(job: ScheduledJob) -> str:
    """For the parser that Kubernetes and KubeRay use. It has no weekday 7, and where cron wants both `*/2` of
    the month and the weekday, it takes either.
    """
    fields = five_fields(job, "Kubernetes")
    allowed = values(job.schedule)
    if allowed.both and not (allowed.every_day or allowed.every_weekday):
        raise InputError.about(
            f"{job.file}: schedule.cron",
            got=f"{job.schedule.cron!r}, days that must be right in month and week",
            expected="a * for one of them: Kubernetes would run it on either",
        )
    either_is_every = not allowed.both and (allowed.every_day or allowed.every_weekday)
    if allowed.every_day or either_is_every:
        fields[_DAY] = "*"
    if allowed.every_weekday or either_is_every:
        fields[_WEEKDAY] = "*"
    else:
        fields[_WEEKDAY] = ",".join(map(str, sorted(allowed.weekdays)))
    return " ".join(fields)


def _term(term: str, names: dict[str, int], last: int) -> str:
    body, slash, step = term.partition("/")
    ends = [str(names.get(end, end)) for end in body.split("-")]
    if slash and len(ends) == 1 and body != "*":  # 5/15: some crons want 5-59/15
        ends.append(str(last))
    return "-".join(ends) + slash + step
