"""The job that a command is given: its file, with what the command line overrides, and which occurrence of
its schedule is meant.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from jacjobs.errors import InputError

if TYPE_CHECKING:
    from jacjobs.job import Job
    from jacjobs.jobspec import JobSpec


def spec_of(
    path: Path,
    overrides: list[str] | None = None,
    out: str | None = None,
    address: str | None = None,
    memory: str | None = None,
) -> JobSpec:
    from jacjobs.jobspec import read_job

    settings = list(overrides or [])
    settings += [f"output.path={json.dumps(out)}"] if out is not None else []
    settings += [f"cluster.address={json.dumps(address)}"] if address is not None else []
    settings += [f"compute.memory={memory}"] if memory is not None else []
    return read_job(path, settings)


def built(spec: JobSpec, path: Path) -> Job:
    """With its problem, built here: of a job that is to run elsewhere too."""
    from jacjobs.job import job_from_spec

    return job_from_spec(spec, path.absolute().parent)


def occurrence_of(spec: JobSpec, scheduled: str | None) -> datetime | None:
    """The one that `--scheduled` names; None for a job without a schedule."""
    from jacjobs.occurrences import named
    from jacjobs.scheduling.overlap import unfinished

    if spec.schedule is None:
        if scheduled is not None:
            raise InputError.about(
                "--scheduled", got="a job without a schedule", expected="one with `schedule:` in its file"
            )
        return None
    if scheduled is None:
        raise InputError.about(
            f"job {spec.name!r}",
            got="a job with a schedule, and no occurrence",
            expected="which one to compute",
            do="add `--scheduled latest`, or the time of one that `jacjobs schedule next` shows",
        )
    now = datetime.now(UTC)
    return unfinished(spec, now) if scheduled == "unfinished" else named(spec.schedule, scheduled, now)


def at_latest(spec: JobSpec) -> JobSpec:
    """For what writes nothing of a run: the job of its latest occurrence, where it has a schedule."""
    from jacjobs.occurrences import latest

    return spec if spec.schedule is None else spec.at(latest(spec.schedule, datetime.now(UTC)))


def live_paths(spec: JobSpec) -> list[str]:
    """The runs of a job that go on, or the run of one without a schedule."""
    from jacjobs.scheduling.overlap import live_runs

    if spec.schedule is None:
        return [spec.output.path]
    paths = [live.path for live in live_runs(spec, datetime.now(UTC))]
    if not paths:
        raise InputError.about(
            f"job {spec.name!r}", got="a job of which no occurrence goes on", expected="one that does"
        )
    return paths
