"""`jacjobs`: the commands. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jacjobs.cli import render, schedule
from jacjobs.errors import (
    FunctionError,
    InputError,
    JacjobsError,
    RunHeldError,
    SkippedError,
    StoppedError,
    UnsoundError,
)

if TYPE_CHECKING:
    from jacjobs.api import Job, Run
    from jacjobs.jobspec import JobSpec

app = typer.Typer(
    name="jacjobs",
    help="Large Jacobians as batch jobs: torch in, Parquet out, within the memory there is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(schedule.app, name="schedule")

JobOrRun = Annotated[
    str, typer.Argument(metavar="JOB.yaml|RUN", help="A job file, or the folder of a run or its URI.")
]
JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.")]
RunPath = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run, or its URI.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the job file.")
]
Out = Annotated[str | None, typer.Option(metavar="PATH", help="Where the dataset goes (output.path).")]
Address = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="local, inline, auto, HOST:PORT or ray://… .")
]
Memory = Annotated[
    str | None,
    typer.Option(metavar="BYTES", help="Memory for products in each worker: 8GiB, or 0.9 of what is free."),
]
Scheduled = Annotated[
    str | None,
    typer.Option(metavar="latest|TIME", help="Which occurrence of the job's schedule; TIME in ISO 8601."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command()
def submit(
    job: JobFile,
    overrides: Set = None,
    out: Out = None,
    address: Address = None,
    memory: Memory = None,
    force_new: Annotated[
        bool, typer.Option("--force-new", help="Replace the run of a different job that is there.")
    ] = False,
    scheduled: Scheduled = None,
) -> None:
    """Compute a job's Jacobian into a dataset; if part of it is there, compute the rest."""
    from jacjobs.api import submit_job
    from jacjobs.scheduling.overlap import admit

    settings = [*(overrides or []), *(["output.overwrite=true"] if force_new else [])]
    spec = _spec(job, settings, out, address, memory)
    occurrence = _occurrence(spec, scheduled)
    if occurrence is None:
        _follow(submit_job(_built(spec, job)))
        return
    admit(spec, occurrence, datetime.now(UTC), render.note)
    try:
        _follow(submit_job(_built(spec.at(occurrence), job)))
    except RunHeldError as error:  # another submit of it was quicker
        raise SkippedError(f"{spec.name} was skipped: {error}") from None


@app.command()
def plan(
    job: JobOrRun,
    overrides: Set = None,
    out: Out = None,
    address: Address = None,
    memory: Memory = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help='Plan for GPUs that are not here: "H100 80GB".')
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a job would do: size, strategies compared, memory, time, disk. Starts and writes nothing.

    Of a run: what it began with. Then no code of the job is run either.
    """
    from jacjobs.api import plan_job, plan_of

    if "://" in job or Path(job).is_dir():
        made = plan_of(job)
    else:
        spec = _spec(Path(job), overrides, out, address, memory)
        made = plan_job(_built(_latest(spec), Path(job)), device)
    if as_json:
        _print_json(made.model_dump(mode="json"))
    else:
        render.plan(made)


@app.command()
def tune(
    job: JobFile,
    overrides: Set = None,
    memory: Memory = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where tune.csv and tune.png go; made if it is not there.")
    ] = Path("tune"),
    seconds: Annotated[float, typer.Option(metavar="N", min=1, help="About how long to measure.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Measure memory and speed against the chunk, for every strategy that works: a table, a CSV, a
    picture.
    """
    from jacjobs.api import measure_job
    from jacjobs.cli import plots

    planned = _built(_latest(_spec(job, overrides, memory=memory)), job)
    measured, made = measure_job(planned, seconds)
    out.mkdir(parents=True, exist_ok=True)
    render.write_csv(out / "tune.csv", [asdict(reading) for reading in measured])
    plots.tradeoff(measured, made, planned.name, out / "tune.png")
    if as_json:
        _print_json([asdict(reading) for reading in measured])
        return
    render.tradeoff(measured, made)
    render.note(f"\n{out / 'tune.csv'}, {out / 'tune.png'}")


@app.command()
def resume(run: RunPath, address: Address = None) -> None:
    """Finish a run that was interrupted, with the plan that it began with."""
    from jacjobs.api import resume as resume_run

    _follow(resume_run(run, address=address))


@app.command()
def status(run: RunPath, as_json: AsJson = False) -> None:
    """Say where a run stands, from its folder alone: who works on it, how far it is, what was lost."""
    from jacjobs.store.status import status_of

    found = status_of(run)
    if as_json:
        _print_json(render.status_content(found))
    else:
        render.status(found)


@app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to look.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs below a folder (runs, if none is given) with their states."""
    from jacjobs.store.status import Status, statuses_below

    if not folder.is_dir():
        raise InputError.about(str(folder), got="no such folder", expected="a folder with runs below it")
    found = list(statuses_below(folder))
    if as_json:
        runs = [render.status_content(each) for each in found if isinstance(each, Status)]
        _print_json(runs + [{"path": str(e[0]), "error": str(e[1])} for e in found if isinstance(e, tuple)])
    else:
        render.statuses(found, folder)


@app.command()
def stop(run: JobOrRun) -> None:
    """Ask whoever works on a run to stop, wherever that is; what was committed stays.

    Of a job with a schedule: whichever of its last occurrences goes on.
    """
    from jacjobs.store.folder import RunFolder
    from jacjobs.store.status import status_of

    for path in _live(Path(run)) if Path(run).is_file() else [run]:
        holder = status_of(path).holder
        if holder is None:
            raise InputError.about(path, got="a run that nobody works on", expected="one that goes on")
        RunFolder(path).request_stop()
        render.note(
            f"asked {holder} to stop; it hands out no more blocks. `jacjobs status {path}` says when it ended"
        )


@app.command()
def show(run: RunPath, as_json: AsJson = False) -> None:
    """Show what a run holds: shape, segments, norm and extremes."""
    from jacjobs.store.reader import open_run

    summary = open_run(run).summary()
    if as_json:
        _print_json(summary)
    else:
        render.summary(summary)


@app.command()
def verify(
    run: RunPath,
    against: Annotated[
        Path | None,
        typer.Option(metavar="JOB.yaml", help="Compare J with products of this job too. Runs its code."),
    ] = None,
    scheduled: Scheduled = None,
    as_json: AsJson = False,
) -> None:
    """Check that a dataset is what its run wrote: every digest, every record. Runs no code of the job."""
    if against is None:
        from jacjobs.store.verify import verify_run

        verdict = verify_run(run)
    else:
        from jacjobs.api import verify as verify_products

        spec = _spec(against, None)
        occurrence = _occurrence(spec, scheduled)
        verdict = verify_products(run, _built(spec.at(occurrence) if occurrence else spec, against).problem)
    if as_json:
        _print_json({"sound": verdict.sound, **asdict(verdict)})
    else:
        render.verdict(verdict, against is not None)
    if not verdict.sound:
        raise typer.Exit(UnsoundError.exit_code)


def main() -> None:
    """The entry point: runs a command, and turns each of our errors into a sentence and an exit code."""
    try:
        app(standalone_mode=True)
    except JacjobsError as error:
        if isinstance(error, FunctionError) and error.user_traceback:
            render.error(error.user_traceback)
        render.error(f"jacjobs: {error}")
        sys.exit(error.exit_code)


def _spec(
    path: Path,
    overrides: list[str] | None,
    out: str | None = None,
    address: str | None = None,
    memory: str | None = None,
) -> JobSpec:
    from jacjobs.jobspec import read_job

    settings = list(overrides or [])
    settings += [f"output.path={json.dumps(out)}"] if out is not None else []
    settings += [f"cluster.address={json.dumps(address)}"] if address is not None else []
    settings += [f"compute.memory={memory}"] if memory is not None else []
    spec = read_job(path, settings)
    if spec.cluster.address.startswith(("http://", "https://")):
        raise InputError.about(
            "cluster.address",
            got=spec.cluster.address,
            expected="local, inline, auto, HOST:PORT or ray://…",
            do="submitting through the Ray Jobs API is not there yet",
        )
    return spec


def _occurrence(spec: JobSpec, scheduled: str | None) -> datetime | None:
    """The one that `--scheduled` names; None for a job without a schedule."""
    from jacjobs.occurrences import named

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
    return named(spec.schedule, scheduled, datetime.now(UTC))


def _live(job: Path) -> list[str]:
    """The runs of a job that go on, or the run of one without a schedule."""
    from jacjobs.scheduling.overlap import live_runs

    spec = _spec(job, None)
    if spec.schedule is None:
        return [spec.output.path]
    paths = [live.path for live in live_runs(spec, datetime.now(UTC))]
    if not paths:
        raise InputError.about(str(job), got="a job of which no occurrence goes on", expected="one that does")
    return paths


def _latest(spec: JobSpec) -> JobSpec:
    """For what writes nothing of a run: the job of its latest occurrence, where it has a schedule."""
    from jacjobs.occurrences import latest

    return spec if spec.schedule is None else spec.at(latest(spec.schedule, datetime.now(UTC)))


def _built(spec: JobSpec, path: Path) -> Job:
    from jacjobs.api import job_from_spec

    return job_from_spec(spec, path.absolute().parent)


def _follow(run: Run) -> None:
    """Watch a run to its end. A first Ctrl-C or SIGTERM asks it to stop, a second leaves at once."""
    render.plan_line(run.plan, run.path)
    try:
        with _stopping(run), render.watching(run):
            manifest = run.wait()
    except KeyboardInterrupt:  # typer would make it 130
        raise StoppedError(
            "left at once; what was committed stays, and `jacjobs resume` goes on from there"
        ) from None
    render.finished(run.path, manifest)


@contextmanager
def _stopping(run: Run) -> Iterator[None]:
    asked = False

    def ask(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        render.note("stopping: no new blocks; once more to leave at once")
        run.stop()

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=2))
