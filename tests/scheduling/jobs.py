"""Jobs with schedules, for the tests of what schedulers are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jacjobs.jobspec import parse_job
from jacjobs.scheduling.jobs import ScheduledJob


def scheduled(
    cron: str = "0 2 * * *",
    *,
    name: str = "nightly",
    file: Path = Path("/srv/jobs/nightly.yaml"),
    path: str = "runs/{scheduled:%Y-%m-%dT%H%M%S%z}",
    cluster: dict[str, Any] | None = None,
    **schedule: Any,
) -> ScheduledJob:
    content = {
        "name": name,
        "problem": "p.py:build",
        "output": {"path": path},
        "cluster": cluster or {},
        "schedule": {"cron": cron, **schedule},
    }
    spec = parse_job(content, str(file))
    assert spec.schedule is not None
    return ScheduledJob(file, spec, spec.schedule)
