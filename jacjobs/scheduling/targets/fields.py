"""A cron expression in the words that a scheduler knows: not all know names, a weekday 7, or seconds."""

from __future__ import annotations

from cronsim.cronsim import SYMBOLIC_DAYS, SYMBOLIC_MONTHS

from jacjobs.errors import InputError
from jacjobs.occurrences import allowed
from jacjobs.scheduling.jobs import ScheduledJob

_LAST = (59, 23, 31, 12, 7)
_MONTHS = {name: number + 1 for number, name in enumerate(SYMBOLIC_MONTHS)}
_DAYS = {name: number for number, name in enumerate(SYMBOLIC_DAYS)}
_NAMES: tuple[dict[str, int], ...] = ({}, {}, {}, _MONTHS, _DAYS)
_DAY, _WEEKDAY = 2, 4


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
    cron = allowed(job.schedule)
    if cron.both and not (cron.every_day or cron.every_weekday):
        raise InputError.about(
            f"{job.file}: schedule.cron",
            got=f"{job.schedule.cron!r}, days that must be right in month and week",
            expected="a * for one of them: Kubernetes would run it on either",
        )
    either_is_every = not cron.both and (cron.every_day or cron.every_weekday)
    if cron.every_day or either_is_every:
        fields[_DAY] = "*"
    if cron.every_weekday or either_is_every:
        fields[_WEEKDAY] = "*"
    else:
        fields[_WEEKDAY] = ",".join(map(str, sorted(cron.weekdays)))
    return " ".join(fields)


def _term(term: str, names: dict[str, int], last: int) -> str:
    body, slash, step = term.partition("/")
    ends = [str(names.get(end, end)) for end in body.split("-")]
    if slash and len(ends) == 1 and body != "*":  # 5/15: some crons want 5-59/15
        ends.append(str(last))
    return "-".join(ends) + slash + step
