"""Units for systemd: a service that computes the latest occurrence, and the timer that starts it."""

from __future__ import annotations

from collections.abc import Iterable

from jacjobs.occurrences import allowed
from jacjobs.planning.options import ScheduleOptions
from jacjobs.scheduling.jobs import ScheduledJob
from jacjobs.scheduling.targets.command import Here, gap_remark, header, slugs

STOP_SECONDS = 600
"""To finish the blocks that are being computed."""
_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def systemd(jobs: list[ScheduledJob], here: Here) -> dict[str, str]:
    """Two files a job."""
    files = {}
    for name, job in slugs(jobs):
        unit = f"jacjobs-{name}"
        top = header(
            "systemd",
            [
                f"Install: copy {unit}.service and {unit}.timer to ~/.config/systemd/user, then",
                f"`systemctl --user daemon-reload && systemctl --user enable --now {unit}.timer`.",
                *gap_remark(job, "systemd"),
                *_overlap_remark(job),
            ],
        )
        files[f"{unit}.service"] = _service(job, here, top)
        files[f"{unit}.timer"] = _timer(job, top)
    return files


def _overlap_remark(job: ScheduledJob) -> list[str]:
    if job.schedule.overlap == "forbid":
        return []
    return [
        f"While it runs, systemd starts no other one: `overlap: {job.schedule.overlap}` is `forbid` here."
    ]


def on_calendar(schedule: ScheduleOptions) -> list[str]:
    """The cron expression as systemd's calendar events; it comes when one of them does.

    A calendar event is one of day and weekday together. Where either will do, there are two.
    """
    cron = allowed(schedule)
    months = _numbers(cron.months, 1, 12)
    clock = ":".join(
        (_numbers(cron.hours, 0, 23), _numbers(cron.minutes, 0, 59), _numbers(cron.seconds, 0, 59))
    )
    by_day = f"*-{months}-{_numbers(cron.days, 1, 31)} {clock} {schedule.timezone}"
    if cron.both and cron.every_weekday:
        return [by_day]
    # Not as a range: systemd's week begins on Monday.
    weekdays = ",".join(_WEEKDAYS[day] for day in sorted(cron.weekdays, key=lambda day: (day - 1) % 7))
    if cron.both:
        return [f"{weekdays} {by_day}"]
    if cron.every_day or cron.every_weekday:
        return [f"*-{months}-* {clock} {schedule.timezone}"]
    return [by_day, f"{weekdays} *-{months}-* {clock} {schedule.timezone}"]


def _numbers(values: Iterable[int], first: int, last: int) -> str:
    """`*`, `0/15`, `9..17` or `0,7,30`, as short as one of them says it."""
    numbers = sorted(values)
    if numbers == list(range(first, last + 1)):
        return "*"
    if len(numbers) > 2:
        step = numbers[1] - numbers[0]
        if step == 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
            return f"{numbers[0]:02}..{numbers[-1]:02}"
        if numbers == list(range(numbers[0], last + 1, step)):
            return f"{numbers[0]:02}/{step}"
    return ",".join(f"{number:02}" for number in numbers)


def _service(job: ScheduledJob, here: Here, top: list[str]) -> str:
    arguments = ["-m", "jacjobs", "submit", str(job.file), "--scheduled", "latest"]
    # In an argument $ begins a variable; in the command itself it does not.
    words = [str(here.python), *(word.replace("$", "$$") for word in arguments)]
    lines = [
        *top,
        "# 77: skipped. 75: stopped, and it goes on in a minute; `systemctl stop` stops it for good.",
        "# KillMode: only jacjobs is asked to stop, and it stops Ray. Type: a oneshot cannot restart on 75.",
        "[Unit]",
        _description(job),
        "",
        "[Service]",
        "Type=exec",
        f"WorkingDirectory={_escaped(str(here.folder))}",
        f"ExecStart={' '.join(_quoted(word) for word in words)}",
        "SuccessExitStatus=77",
        "RestartForceExitStatus=75",
        "RestartSec=60",
        "KillMode=mixed",
        f"TimeoutStopSec={STOP_SECONDS}",
    ]
    return "\n".join(lines) + "\n"


def _timer(job: ScheduledJob, top: list[str]) -> str:
    lines = [
        *top,
        f"# cron: {job.schedule.expression}",
        "[Unit]",
        _description(job),
        "",
        "[Timer]",
        *(f"OnCalendar={event}" for event in on_calendar(job.schedule)),
        "AccuracySec=1s",
        "Persistent=true",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    return "\n".join(lines) + "\n"


def _description(job: ScheduledJob) -> str:
    return f"Description={_escaped(' '.join(f'jacjobs {job.name}'.split()))}"


def _escaped(text: str) -> str:
    """% begins a specifier."""
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """A word of a command, which a space would end."""
    text = _escaped(word)
    if any(character in text for character in " \t\"'\\;"):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text
