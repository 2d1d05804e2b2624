"""Job files in a folder, and those of them that have a schedule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from heapq import merge
from pathlib import Path

from jacjobs.errors import InputError, JacjobsError
from jacjobs.jobspec import JobSpec, read_job
from jacjobs.occurrences import following
from jacjobs.planning.options import ScheduleOptions
from jacjobs.store.folder import RunFolder
from jacjobs.store.status import status_of


@dataclass(frozen=True)
class ScheduledJob:
    """A job file with a schedule. `file` is absolute."""

    file: Path
    spec: JobSpec
    schedule: ScheduleOptions

    @property
    def name(self) -> str:
        return self.spec.name

    def path_at(self, occurrence: datetime) -> str:
        return self.spec.at(occurrence).output.path

    def state_at(self, occurrence: datetime) -> str:
        """Of that occurrence's run; `none` if it never began."""
        path = self.path_at(occurrence)
        return status_of(path).state if RunFolder(path).is_run else "none"


def job_files(place: Path) -> list[Path]:
    """The file itself, or the job files of a folder, in the order of their names."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise InputError.about(str(place), got="nothing there", expected="a job file, or a folder of them")
    found = sorted(path for path in place.iterdir() if path.suffix in (".yaml", ".yml"))
    if not found:
        raise InputError.about(str(place), got="no *.yaml in it", expected="a folder of job files")
    return found


def scheduled_jobs(place: Path, wrong: list[JacjobsError] | None = None) -> list[ScheduledJob]:
    """Raises InputError at the first job file that is wrong, and where no job has a schedule.

    wrong:  takes what is wrong with files, instead; they are left out.
    """
    specs = []
    for path in job_files(place):
        try:
            specs.append((path, read_job(path, [])))
        except JacjobsError as error:
            if wrong is None:
                raise
            wrong.append(error)
    jobs = [ScheduledJob(path.absolute(), spec, spec.schedule) for path, spec in specs if spec.schedule]
    if not jobs:
        raise InputError.about(
            str(place),
            got="no job with a schedule",
            expected="one",
            do="add `schedule: {cron: …}` to its file",
        )
    names: dict[str, Path] = {}
    for job in jobs:
        if not str(job.file).isprintable():  # it would end a line of a crontab or a unit
            raise InputError.about(
                "a job file", got=repr(str(job.file)), expected="a path without control characters"
            )
        other = names.setdefault(job.name, job.file)
        if other != job.file:
            raise InputError.about(
                f"name {job.name!r}",
                got=f"{other} and {job.file}",
                expected="a name of its own for every job",
            )
    return jobs


def checked(place: Path) -> list[tuple[Path, JacjobsError | None]]:
    """Every job file, and what is wrong with it."""
    found: list[tuple[Path, JacjobsError | None]] = []
    for path in job_files(place):
        try:
            read_job(path, [])
            found.append((path, None))
        except JacjobsError as error:
            found.append((path, error))
    return found


def coming(jobs: list[ScheduledJob], now: datetime) -> Iterator[tuple[datetime, ScheduledJob]]:
    """The occurrences of all of them, in the order of time."""

    def of(number: int) -> Iterator[tuple[datetime, int]]:
        return ((occurrence, number) for occurrence in following(jobs[number].schedule, now))

    return ((occurrence, jobs[number]) for occurrence, number in merge(*map(of, range(len(jobs)))))
