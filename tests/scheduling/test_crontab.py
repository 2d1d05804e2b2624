"""Lines of a crontab: what cron would run, and when."""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pytest
from croniter import croniter
from hypothesis import given, settings

from jacjobs.errors import InputError
from jacjobs.occurrences import following
from jacjobs.scheduling.targets.command import Here
from jacjobs.scheduling.targets.crontab import crontab
from tests.scheduling.expressions import expressions
from tests.scheduling.jobs import scheduled

HERE = Here(folder=Path("/srv/my project/50%"), python=Path("/opt/env/bin/python"), files=Path("/srv/out"))
NOW = datetime(2026, 7, 1, 12, 34, tzinfo=UTC)


def entries(text: str) -> list[tuple[dict[str, str], str, str]]:
    """As cronie reads it: settings, the five fields, and the command, in which \\% is %, up to a % alone."""
    settings: dict[str, str] = {}
    found = []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if setting := re.fullmatch(r"(\w+)=(.*)", line):
            settings[setting[1]] = setting[2]
            continue
        fields = line.split(None, 5)
        command = re.split(r"(?<!\\)%", fields[5])[0].replace("\\%", "%")
        found.append((dict(settings), " ".join(fields[:5]), command))
    return found


def test_a_line_a_job_each_in_its_own_zone() -> None:
    jobs = [
        scheduled("0 2 * * *", timezone="Europe/Berlin"),
        scheduled("*/10 8-18 * * mon-fri", name="often", file=Path("/srv/jobs/it's.yaml")),
    ]
    (text,) = crontab(jobs, HERE).values()
    first, second = entries(text)
    assert first[:2] == ({"CRON_TZ": "Europe/Berlin"}, "0 2 * * *")
    assert second[:2] == ({"CRON_TZ": "UTC"}, "*/10 8-18 * * 1-5")
    assert "crontab FILE" in text


def test_the_command_reaches_the_job_through_cron_and_the_shell(tmp_path: Path) -> None:
    """Odd paths, really run by sh: in the right folder, with the right words."""
    folder = tmp_path / "my 'project' 50%"
    folder.mkdir()
    python = tmp_path / "py thon"
    python.write_text('#!/bin/sh\npwd\nfor word; do echo "$word"; done\n')
    python.chmod(0o755)
    job = scheduled(file=tmp_path / "jobs" / "a $HOME 100%.yaml")
    ((_, _, command),) = entries(*crontab([job], Here(folder, python, tmp_path)).values())
    ran = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True, cwd="/")
    assert ran.stdout.splitlines() == [
        str(folder), "-m", "jacjobs", "submit", str(job.file), "--scheduled", "latest"
    ]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(expressions())
def test_cron_reads_the_occurrences_of_the_schedule(cron: str) -> None:
    job = scheduled(cron)
    ((_, fields, _),) = entries(*crontab([job], HERE).values())
    day, weekday = fields.split()[2], fields.split()[4]
    # Where one begins with *, cron wants both, as croniter does on request.
    theirs = croniter(fields, NOW, day_or=not (day.startswith("*") or weekday.startswith("*")))
    ours = list(islice(following(job.schedule, NOW), 10))
    assert ours == [theirs.get_next(datetime) for _ in ours]


def test_only_what_every_cron_knows_is_written() -> None:
    """No names, no step without a range, no alias."""
    for cron, fields in {
        "5/15 * * JAN-MAR,DEC SUN": "5-59/15 * * 1-3,12 0",
        "@weekly": "0 0 * * 0",
        "0 8/4 10/5 * 7": "0 8-23/4 10-31/5 * 7",
    }.items():
        assert entries(*crontab([scheduled(cron)], HERE).values())[0][1] == fields


def test_cron_knows_no_seconds() -> None:
    with pytest.raises(InputError, match="cron knows no seconds; leave the first field out, or use"):
        crontab([scheduled("*/5 * * * * *")], HERE)
