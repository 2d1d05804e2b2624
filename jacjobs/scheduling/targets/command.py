"""What every scheduler is told to run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from jacjobs.errors import InputError
from jacjobs.occurrences import made_up_for, shown
from jacjobs.scheduling.jobs import ScheduledJob

LONGEST_NAME = 27
"""A RayJob's name has at most 47; `jacjobs-` comes before it, and KubeRay adds when it was scheduled."""


@dataclass(frozen=True)
class Here:
    """
    folder:  where relative paths of the jobs lead from, absolute.
    python:  the interpreter that has jacjobs, absolute.
    files:   where what is rendered will be, absolute.
    """

    folder: Path
    python: Path
    files: Path

    def __post_init__(self) -> None:
        for path in (self.folder, self.python, self.files):
            if not str(path).isprintable():  # it would end a line of a crontab or a unit
                raise InputError.about(
                    "this folder", got=repr(str(path)), expected="a path without control characters"
                )

    def command(self, *words: str | Path) -> str:
        """For a shell."""
        return shlex.join([str(self.python), "-m", "jacjobs", *map(str, words)])

    def submit(self, job: ScheduledJob, *more: str, scheduled: str = "latest") -> str:
        """`scheduled`: as the shell is to read it."""
        return " ".join([self.command("submit", job.file, "--scheduled"), scheduled, *map(shlex.quote, more)])


def slug(job: ScheduledJob) -> str:
    """Its name as units, Slurm and Kubernetes take it: small letters, digits and dashes."""
    plain = re.sub(r"[^a-z0-9]+", "-", job.name.lower()).strip("-")[:LONGEST_NAME].strip("-")
    if not plain:
        raise InputError.about(
            f"{job.file}: name", got=repr(job.name), expected="a letter of a to z, or a digit, in it"
        )
    return plain


def slugs(jobs: list[ScheduledJob]) -> list[tuple[str, ScheduledJob]]:
    """Raises InputError where two jobs would have the same."""
    found: dict[str, ScheduledJob] = {}
    for job in jobs:
        other = found.setdefault(slug(job), job)
        if other is not job:
            raise InputError.about(
                f"{job.file}: name",
                got=f"{job.name!r}, which becomes {slug(job)!r} as {other.name!r} does",
                expected="one that differs in letters or digits",
            )
    return list(found.items())


def gap_remark(job: ScheduledJob, scheduler: str) -> list[str]:
    """Schedulers other than cron start nothing at a time that the clocks leave out."""
    left_out = made_up_for(job.schedule)
    if left_out is None:
        return []
    day = shown(job.schedule, left_out)[:10]
    return [
        f"Where clocks go forward ({day}, for one) {scheduler} leaves a run out;",
        "`jacjobs submit JOB --scheduled TIME` makes up for it. `timezone: UTC` knows no such days.",
    ]


def header(target: str, install: list[str]) -> list[str]:
    """Comment lines: where it comes from, and how it is installed."""
    return [
        f"# Written by `jacjobs schedule render --target {target}`.",
        *(f"# {line}" for line in install),
    ]
