"""Lines for cron."""

from __future__ import annotations

import shlex

from jacjobs.scheduling.jobs import ScheduledJob
from jacjobs.scheduling.targets.command import Here, header
from jacjobs.scheduling.targets.fields import five_fields


def crontab(jobs: list[ScheduledJob], here: Here) -> dict[str, str]:
    """One file for all. What a job prints, cron mails."""
    lines = header(
        "crontab",
        [
            "Install: `crontab FILE` replaces your crontab; `crontab -e` lets you add these lines to it.",
            "CRON_TZ is known to cronie (Fedora, RHEL, Arch). Debian's and Ubuntu's cron go by the machine's",
            "zone whatever it says: there, all jobs must have that one.",
        ],
    )
    for job in jobs:
        command = f"cd {shlex.quote(str(here.folder))} && {here.submit(job)}"
        lines += ["", f"CRON_TZ={job.schedule.timezone}"]
        # To cron, a % ends the command.
        lines.append(f"{' '.join(five_fields(job, 'cron'))} {command.replace('%', chr(92) + '%')}")
    return {"jacjobs.crontab": "\n".join(lines) + "\n"}
