"""Units as systemd reads them, and calendar events that come when the cron expression does."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jacjobs.occurrences import following
from jacjobs.planning.options import ScheduleOptions
from jacjobs.scheduling.targets.command import Here
from jacjobs.scheduling.targets.systemd import on_calendar, systemd
from tests.scheduling.expressions import expressions
from tests.scheduling.jobs import scheduled

ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze here")
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
HERE = Here(Path("/srv"), Path("/opt/python"), Path("/srv"))
BEGIN = datetime(2026, 6, 1, tzinfo=UTC)
EVENT = re.compile(
    r"(?:(?P<days>[A-Z][\w,]*) )?\*-(?P<m>\S+)-(?P<d>\S+) (?P<H>\S+):(?P<M>\S+):(?P<S>\S+) \S+"
)


def allowed(text: str, first: int, last: int) -> set[int]:
    """systemd.time(7): a list of numbers, ranges a..b, and a/step, which goes on to the end."""
    if text == "*":
        return set(range(first, last + 1))
    found: set[int] = set()
    for part in text.split(","):
        if ".." in part:
            low, high = map(int, part.split(".."))
            found |= set(range(low, high + 1))
        elif "/" in part:
            begin, step = map(int, part.split("/"))
            found |= set(range(begin, last + 1, step))
        else:
            found.add(int(part))
    assert all(first <= number <= last for number in found)
    return found


def coming(event: str, begin: datetime, days: int) -> Iterator[datetime]:
    """When a calendar event comes, day by day, in a zone that turns no clocks."""
    match = EVENT.fullmatch(event)
    assert match, event
    weekdays = match["days"].split(",") if match["days"] else DAYS
    clock = [
        sorted(allowed(match[part], first, last))
        for part, first, last in (("H", 0, 23), ("M", 0, 59), ("S", 0, 59))
    ]
    for day in (begin + timedelta(days=n) for n in range(days)):
        if day.month not in allowed(match["m"], 1, 12) or day.day not in allowed(match["d"], 1, 31):
            continue
        if DAYS[day.weekday()] in weekdays:
            for hour in clock[0]:
                for minute in clock[1]:
                    yield from (day.replace(hour=hour, minute=minute, second=second) for second in clock[2])


@settings(max_examples=200, deadline=None)
@given(expressions(), st.sampled_from(["", "0 ", "*/20 "]))
def test_calendar_events_come_when_cron_does(cron: str, seconds: str) -> None:
    """All of them within 430 days, or the first 300: by systemd's rules, written down here."""
    schedule = ScheduleOptions(cron=seconds + cron)
    both: set[datetime] = set()
    for event in on_calendar(schedule):
        both |= set(islice(coming(event, BEGIN, 430), 300))
    ours = list(islice(following(schedule, BEGIN - timedelta(seconds=1)), 300))
    end = min(ours[-1], BEGIN + timedelta(days=430))
    assert sorted(time for time in both if time < end) == [time for time in ours if time < end]


@pytest.mark.parametrize(
    ("cron", "events"),
    {
        "0 2 * * *": ["*-*-* 02:00:00 UTC"],
        "*/15 9-17 * * 1-5": ["Mon,Tue,Wed,Thu,Fri *-*-* 09..17:00/15:00 UTC"],
        "0 0 1,15 * 7": ["*-*-01,15 00:00:00 UTC", "Sun *-*-* 00:00:00 UTC"],
        "0 0 */2 * 1": ["Mon *-*-01/2 00:00:00 UTC"],
        "0 0 1-31 * 1": ["*-*-* 00:00:00 UTC"],
        "30 4 29 feb *": ["*-02-29 04:30:00 UTC"],
        "*/10 * * * * *": ["*-*-* *:*:00/10 UTC"],
    }.items(),
)
def test_events_are_short(cron: str, events: list[str]) -> None:
    assert on_calendar(ScheduleOptions(cron=cron)) == events


def analyzed(event: str, base: datetime, number: int) -> list[datetime]:
    """What systemd itself says."""
    assert ANALYZE is not None
    said = subprocess.run(
        [ANALYZE, "calendar", event, f"--iterations={number}", f"--base-time={base:%Y-%m-%d %H:%M:%S} UTC"],
        capture_output=True, text=True, check=True, env={"TZ": "UTC", "LC_ALL": "C"},
    ).stdout  # fmt: skip
    found = re.findall(r"(?:Next elapse|Iter\. #\d+): \w+ (\S+ \S+) UTC", said)
    return [datetime.fromisoformat(text).replace(tzinfo=UTC) for text in found]


@needs_systemd
@settings(max_examples=60, deadline=None)
@given(expressions(), st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata"]))
def test_systemd_says_the_same_times(cron: str, zone: str) -> None:
    """In summer, when no clocks are turned."""
    schedule = ScheduleOptions(cron=cron, timezone=zone)
    base = datetime(2026, 4, 2, 12, 34, 56, tzinfo=UTC)
    theirs = sorted({time for event in on_calendar(schedule) for time in analyzed(event, base, 6)})[:6]
    ours = list(islice(following(schedule, base), 6))
    turned = datetime(2026, 10, 25, tzinfo=UTC)
    assert [time for time in theirs if time < turned] == [time for time in ours if time < turned]


@needs_systemd
@pytest.mark.parametrize("cron", ["30 1 * * *", "30 2 * * *", "0 3 * * *"])
def test_where_clocks_are_turned_systemd_starts_once_a_day_or_the_unit_says_that_it_does_not(
    cron: str,
) -> None:
    """Never earlier than cron would, and before the next occurrence: `latest` is the day's own."""
    schedule = ScheduleOptions(cron=cron, timezone="Europe/Berlin")
    (event,) = on_calendar(schedule)
    for base in (datetime(2026, 3, 27, 12, tzinfo=UTC), datetime(2026, 10, 23, 12, tzinfo=UTC)):
        theirs, ours = analyzed(event, base, 5), list(islice(following(schedule, base), 7))
        begun = [max(occurrence for occurrence in ours if occurrence <= time) for time in theirs]
        left_out = set(ours[:5]) - set(begun)
        assert len(set(begun)) == 5
        assert bool(left_out) == (cron == "30 2 * * *" and base.month == 3)
    (unit, _) = systemd([scheduled(cron, timezone="Europe/Berlin")], HERE).values()
    assert ("systemd leaves a run out" in unit) == (cron == "30 2 * * *")


@needs_systemd
@pytest.mark.parametrize("overlap", ["forbid", "replace"])
def test_systemd_verifies_the_units(tmp_path: Path, overlap: str) -> None:
    """Odd names too: what is quoted must come out as it was."""
    folder = tmp_path / "my project 50%"
    folder.mkdir()
    python = tmp_path / "env$x" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    jobs = [
        scheduled("0 0 1,15 * MON", timezone="Europe/Berlin", overlap=overlap),
        scheduled("*/5 * * * *", name='Every 5% "minutes"', file=tmp_path / 'a b$c%d\\e".yaml'),
    ]
    files = systemd(jobs, Here(folder, python, tmp_path))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert len(files) == 4
    assert ANALYZE is not None
    done = subprocess.run(
        [ANALYZE, "verify", "--man=no", *(str(tmp_path / name) for name in files)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "jacjobs" in line]  # and not of the machine's own
    assert (done.returncode, said) == (0, [])


def test_a_service_restarts_after_75_only_and_takes_77_for_success() -> None:
    files = systemd([scheduled()], HERE)
    service, timer = files["jacjobs-nightly.service"], files["jacjobs-nightly.timer"]
    assert "RestartForceExitStatus=75\n" in service
    assert "Restart=" not in service
    assert "SuccessExitStatus=77\n" in service
    assert "KillMode=mixed\n" in service
    assert "ExecStart=/opt/python -m jacjobs submit /srv/jobs/nightly.yaml --scheduled latest\n" in service
    assert "OnCalendar=*-*-* 02:00:00 UTC\n" in timer
    assert "Persistent=true\n" in timer
    assert "systemctl --user enable --now jacjobs-nightly.timer" in timer
