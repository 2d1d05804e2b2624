"""`jacjobs schedule`: jobs that have a schedule."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from jacjobs.cli import render as show
from jacjobs.errors import InputError, JacjobsError

app = typer.Typer(help="Jobs that have a schedule: list, check, render for a scheduler, or serve them here.")

Jobs = Annotated[Path, typer.Argument(metavar="JOBS", help="A folder of job files, or one job file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
HISTORY = Path("runs/schedule-history.jsonl")


class Target(StrEnum):
    """What a schedule can be rendered for."""

    crontab = "crontab"
    systemd = "systemd"
    slurm = "slurm"
    k8s_cronjob = "k8s-cronjob"
    raycronjob = "raycronjob"


@app.command("list")
def list_jobs(jobs: Jobs, as_json: AsJson = False) -> None:
    """List the jobs that have a schedule: when, where to, and the state of the latest occurrence's run."""
    from jacjobs.occurrences import following, latest, shown
    from jacjobs.scheduling.jobs import scheduled_jobs

    now = datetime.now(UTC)
    rows = []
    wrong: list[JacjobsError] = []
    for job in scheduled_jobs(jobs, wrong):
        last, coming = latest(job.schedule, now), next(following(job.schedule, now))
        rows.append(
            {
                "job": job.name,
                "file": str(job.file),
                "cron": job.schedule.cron,
                "timezone": job.schedule.timezone,
                "overlap": job.schedule.overlap,
                "latest": shown(job.schedule, last),
                "latest_path": job.path_at(last),
                "latest_state": job.state_at(last),
                "next": shown(job.schedule, coming),
                "next_path": job.path_at(coming),
            }
        )
    if as_json:
        show.print_json(rows)
    else:
        show.scheduled(rows)
    _end_with(wrong)


@app.command("next")
def next_occurrences(
    jobs: Jobs,
    number: Annotated[int, typer.Option("-n", metavar="N", min=1, max=10_000, help="How many.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show the next occurrences of all jobs together, with the paths of their runs."""
    from jacjobs.occurrences import shown
    from jacjobs.scheduling.jobs import coming, scheduled_jobs

    wrong: list[JacjobsError] = []
    rows = [
        {"scheduled": shown(job.schedule, occurrence), "job": job.name, "path": job.path_at(occurrence)}
        for occurrence, job in islice(coming(scheduled_jobs(jobs, wrong), datetime.now(UTC)), number)
    ]
    if as_json:
        show.print_json(rows)
    else:
        show.coming(rows)
    _end_with(wrong)


@app.command()
def validate(jobs: Jobs, as_json: AsJson = False) -> None:
    """Check every job file, those without a schedule too; ends with 2 if one is wrong."""
    from jacjobs.scheduling.jobs import checked

    found = checked(jobs)
    if as_json:
        show.print_json(
            [{"file": str(path), "error": str(wrong) if wrong else None} for path, wrong in found]
        )
    else:
        show.job_files(found)
    if any(wrong is not None for _, wrong in found):
        raise typer.Exit(InputError.exit_code)


@app.command()
def render(
    jobs: Jobs,
    target: Annotated[Target, typer.Option(help="The scheduler.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write files there instead of printing them.")
    ] = None,
    nodes: Annotated[int, typer.Option(metavar="N", min=1, help="slurm: nodes for each job.")] = 1,
    image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="k8s-cronjob, raycronjob: the containers' image.")
    ] = None,
    claim: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="k8s-cronjob, raycronjob: the PersistentVolumeClaim for the runs."),
    ] = None,
) -> None:
    """Write what a scheduler reads. It runs `jacjobs submit JOB --scheduled latest`, from this folder."""
    files = _rendered(jobs, target, out, nodes, image, claim)
    if out is None:
        for number, (name, text) in enumerate(files.items()):
            if len(files) > 1:
                typer.echo(f"{'' if number == 0 else chr(10)}# ==> {name}")
            typer.echo(text, nl=False)
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError.about(
            f"--out {out}", got=error.strerror, expected="a folder that can be written"
        ) from None
    for name in files:
        show.note(str(out / name))


@app.command()
def serve(
    jobs: Jobs,
    history: Annotated[Path, typer.Option(metavar="FILE", help="What is done is written here.")] = HISTORY,
) -> None:
    """Run the jobs when they are due, from this process, until SIGTERM or Ctrl-C.

    What goes on then is stopped, and goes on when it is served again.
    Of what came while nobody was there, the latest is made up for.
    """
    from jacjobs.scheduling.jobs import scheduled_jobs
    from jacjobs.scheduling.serve import serve as run

    run(scheduled_jobs(jobs), history, show.note)


@app.command("history")
def show_history(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The history of `serve`.")] = HISTORY,
    as_json: AsJson = False,
) -> None:
    """Show what `jacjobs schedule serve` did: every occurrence, and what became of it."""
    from jacjobs.scheduling.history import read

    entries = [entry for entry in read(file) if entry.outcome != "since"]
    if as_json:
        show.print_json([entry.model_dump(mode="json") for entry in entries])
    else:
        show.history(entries)


def _end_with(wrong: list[JacjobsError]) -> None:
    """What else there is to say of the folder: files that are no jobs."""
    for error in wrong:
        show.error(f"WRONG  {error}")
    if wrong:
        raise typer.Exit(InputError.exit_code)


def _rendered(
    jobs: Path, target: Target, out: Path | None, nodes: int, image: str | None, claim: str | None
) -> dict[str, str]:
    from jacjobs.scheduling.jobs import scheduled_jobs
    from jacjobs.scheduling.targets.command import Here

    found = scheduled_jobs(jobs)
    here = Here(folder=Path.cwd(), python=Path(sys.executable), files=(out or Path()).absolute())
    if target == Target.crontab:
        from jacjobs.scheduling.targets.crontab import crontab

        return crontab(found, here)
    if target == Target.systemd:
        from jacjobs.scheduling.targets.systemd import systemd

        return systemd(found, here)
    if target == Target.slurm:
        from jacjobs.scheduling.targets.slurm import slurm

        return slurm(found, here, nodes)
    from importlib.metadata import version

    from jacjobs.scheduling.targets.kubernetes import Pods, cron_jobs, ray_cron_jobs

    if image is None:
        raise InputError.about(
            f"--target {target}",
            got="no image",
            expected="what the containers are made of",
            do="add --image IMAGE",
        )
    pods = Pods(image, claim, version("ray"))
    return (cron_jobs if target == Target.k8s_cronjob else ray_cron_jobs)(found, pods)
