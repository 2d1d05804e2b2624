"""`jacjobs`: the commands. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from jacjobs.cli import events, remote, render, schedule
from jacjobs.cli.jobs import at_latest, built, live_paths, occurrence_of, spec_of
from jacjobs.cli.sinks import LogFormat, reporting, sink_for
from jacjobs.errors import (
    FunctionError,
    InputError,
    JacjobsError,
    RunHeldError,
    SkippedError,
    UnsoundError,
)
from jacjobs.run.address import is_remote

EXAMPLES = """Examples:

  jacjobs plan job.yaml              how large, which strategy, how long

  jacjobs submit job.yaml            compute it on this machine

  jacjobs resume runs/digits         finish what was interrupted

  jacjobs show runs/digits           what is there

  jacjobs submit job.yaml --address http://HEAD:8265 --out s3://bucket/run

                                     … on a cluster; then status, logs, stop

Exit codes: 0 complete, 1 failed, 2 wrong input, 3 the function raised,
4 incomplete, 75 stopped, 77 skipped by its schedule.
"""

app = typer.Typer(
    name="jacjobs",
    help="Large Jacobians as batch jobs: torch in, Parquet out, within the memory there is.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
PREPARE, COMPUTE, WATCH, READ = "Before a run", "Run", "Watch", "Read"
app.add_typer(schedule.app, name="schedule", rich_help_panel=COMPUTE)

JobOrRun = Annotated[
    str, typer.Argument(metavar="JOB.yaml|RUN", help="A job file, or the folder of a run or its URI.")
]
JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.")]
RunPath = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run, or its URI.")]
AnyRun = Annotated[
    str,
    typer.Argument(metavar="RUN", help="The folder of a run or its URI; with --address, a job's name or id."),
]
RunOrJob = Annotated[
    str,
    typer.Argument(metavar="RUN|JOB.yaml", help="As of `status`; or a job file, for its runs that go on."),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the job file.")
]
Out = Annotated[str | None, typer.Option(metavar="PATH", help="Where the dataset goes (output.path).")]
Address = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="local, inline, auto, HOST:PORT, ray://…, or http://HEAD:8265."),
]
Head = Annotated[
    str | None, typer.Option("--address", metavar="http://HEAD:8265", help="Of the cluster where it runs.")
]
Memory = Annotated[
    str | None,
    typer.Option(metavar="BYTES", help="Memory for products in each worker: 8GiB, or 0.9 of what is free."),
]
Scheduled = Annotated[
    str | None,
    typer.Option(
        metavar="latest|unfinished|TIME",
        help="Which occurrence of the job's schedule: the latest, the latest that was begun and is not "
        "complete (if there is none, the latest), or the one of a TIME in ISO 8601.",
    ),
]
Follow = Annotated[
    bool, typer.Option("--follow/--no-follow", help="Watch a job on a cluster to its end; Ctrl-C leaves it.")
]
Format = Annotated[
    LogFormat, typer.Option(metavar="text|json", help="How to say what happens: json is a line an event.")
]
AsEvents = Annotated[bool, typer.Option("--json", help="The same as --log-format json.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


# -- before a run --------------------------------------------------------------------------------------------


@app.command(rich_help_panel=PREPARE)
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
        spec = at_latest(spec_of(Path(job), overrides, out, address, memory))
        made = plan_job(built(spec, Path(job)), device)
    if as_json:
        render.print_json(made.model_dump(mode="json"))
    else:
        render.plan(made)


@app.command(rich_help_panel=PREPARE)
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
    """Measure memory and speed against the chunk: a table, a CSV, a picture."""
    from jacjobs.api import measure_job
    from jacjobs.cli.plots.tradeoff import tradeoff

    planned = built(at_latest(spec_of(job, overrides, memory=memory)), job)
    measured, made = measure_job(planned, seconds)
    out.mkdir(parents=True, exist_ok=True)
    render.write_csv(out / "tune.csv", [asdict(reading) for reading in measured])
    tradeoff(measured, made, planned.name, out / "tune.png")
    if as_json:
        render.print_json([asdict(reading) for reading in measured])
        return
    render.tradeoff(measured, made)
    render.note(f"\n{out / 'tune.csv'}, {out / 'tune.png'}")


# -- runs ----------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=COMPUTE)
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
    follow: Follow = True,
    log_format: Format = LogFormat.text,
    as_json: AsEvents = False,
) -> None:
    """Compute a job's Jacobian into a dataset; if part of it is there, compute the rest.

    With --address http://HEAD:8265 the job's folder travels to that cluster,
    and runs there. To submit it again while it runs is to watch it.
    """
    sink = sink_for(log_format, as_json)
    with reporting(sink):
        settings = [*(overrides or []), *(["output.overwrite=true"] if force_new else [])]
        spec = spec_of(job, settings, out, address, memory)
        occurrence = occurrence_of(spec, scheduled)
        if is_remote(spec.cluster.address):
            remote.submit(spec, occurrence, job, sink, follow)
            return
        from jacjobs.api import submit_job
        from jacjobs.cli.follow import follow as follow_run
        from jacjobs.scheduling.overlap import admit

        if occurrence is None:
            follow_run(submit_job(built(spec, job)), sink)
            return
        admit(spec, occurrence, datetime.now(UTC), lambda text: sink.tell(events.noted(text)))
        try:
            follow_run(submit_job(built(spec.at(occurrence), job)), sink)
        except RunHeldError as error:  # another submit of it was quicker
            raise SkippedError(f"{spec.name} was skipped: {error}") from None


@app.command(rich_help_panel=COMPUTE)
def resume(
    run: AnyRun,
    address: Address = None,
    follow: Follow = True,
    log_format: Format = LogFormat.text,
    as_json: AsEvents = False,
) -> None:
    """Finish a run that was interrupted, with the plan that it began with."""
    sink = sink_for(log_format, as_json)
    with reporting(sink):
        if address is not None and is_remote(address):
            remote.resume(run, address, sink, follow)
            return
        from jacjobs.api import resume as resume_run
        from jacjobs.cli.follow import follow as follow_run

        follow_run(resume_run(run, address=address), sink)


@app.command(rich_help_panel=COMPUTE)
def stop(run: RunOrJob, address: Head = None, as_json: AsJson = False) -> None:
    """Ask whoever works on a run to stop, wherever that is; what was committed stays.

    Of a job file with a schedule: whichever of its last occurrences goes on.
    """
    if address is not None:
        remote.stop(run, _head(address), as_json)
        return
    from jacjobs.store.folder import RunFolder
    from jacjobs.store.status import status_of

    paths = [run]
    if Path(run).is_file():
        spec = spec_of(Path(run))
        if is_remote(spec.cluster.address):
            remote.stop(spec.name, spec.cluster.address, as_json)
            return
        paths = live_paths(spec)
    asked = []
    for path in paths:
        holder = status_of(path).holder
        if holder is None:
            raise InputError.about(path, got="a run that nobody works on", expected="one that goes on")
        RunFolder(path).request_stop()
        asked.append({"run": path, "asked": holder})
    if as_json:
        render.print_json(asked)
        return
    for one in asked:
        render.note(
            f"asked {one['asked']} to stop; it hands out no more blocks. "
            f"`jacjobs status {one['run']}` says when it ended"
        )


# -- watching ------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=WATCH)
def status(run: AnyRun, address: Head = None, as_json: AsJson = False) -> None:
    """Say where a run stands, from its folder alone: who works on it, how far it is, what was lost."""
    if address is not None:
        remote.status(run, _head(address), as_json)
        return
    from jacjobs.store.status import status_of

    found = status_of(run)
    if as_json:
        render.print_json(render.status_content(found))
    else:
        render.status(found)


@app.command(rich_help_panel=WATCH)
def logs(
    run: AnyRun,
    address: Head = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run has ended.")] = False,
    log_format: Format = LogFormat.text,
    as_json: AsEvents = False,
) -> None:
    """Say what happened to a run: its attempts, what was lost and why. Of a job on a cluster: all it said."""
    sink = sink_for(log_format, as_json)
    with reporting(sink):
        if address is not None:
            remote.logs(run, _head(address), sink, follow)
            return
        from jacjobs.cli.follow import tell, watch

        (watch if follow else tell)(run, sink)


@app.command("list", rich_help_panel=WATCH)
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to look.")] = Path("runs"),
    address: Head = None,
    as_json: AsJson = False,
) -> None:
    """List the runs below a folder (runs, if none is given) with their states, or the jobs on a cluster."""
    if address is not None:
        remote.list_runs(_head(address), as_json)
        return
    from jacjobs.store.status import Status, statuses_below

    if not folder.is_dir():
        raise InputError.about(str(folder), got="no such folder", expected="a folder with runs below it")
    found = list(statuses_below(folder))
    if as_json:
        runs = [render.status_content(each) for each in found if isinstance(each, Status)]
        render.print_json(
            runs + [{"path": str(e[0]), "error": str(e[1])} for e in found if isinstance(e, tuple)]
        )
    else:
        render.statuses(found, folder)


# -- reading -------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=READ)
def show(
    run: RunPath,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw J, its norms and its singular values.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run holds: shape, segments, norms, extremes, effective rank; a picture of J.

    Reads all of J, streamed: memory stays small. One that is too large to be
    decomposed is read ten or twenty times, for its largest singular values.
    """
    from jacjobs.store.reader import open_run
    from jacjobs.store.summary import figures_of, summary_of

    J = open_run(run)
    portrait, spectrum = figures_of(J)
    summary = summary_of(J, portrait, spectrum)
    if as_json:
        render.print_json(summary)
    else:
        render.summary(summary)
    if plot is not None:
        from jacjobs.cli.plots.canvas import save
        from jacjobs.cli.plots.portrait import draw

        save(draw(J, portrait, spectrum), plot)
        render.note(f"\n{plot}")


@app.command(rich_help_panel=READ)
def verify(
    run: RunPath,
    against: Annotated[
        Path | None,
        typer.Option(metavar="JOB.yaml", help="Compare J with products of this job too. Runs its code."),
    ] = None,
    overrides: Set = None,
    scheduled: Scheduled = None,
    as_json: AsJson = False,
) -> None:
    """Check that a dataset is what its run wrote: every digest, every record. Runs no code of the job."""
    if against is None:
        from jacjobs.store.verify import verify_run

        verdict = verify_run(run)
    else:
        from jacjobs.api import verify as verify_products

        spec = spec_of(against, overrides)
        occurrence = occurrence_of(spec, scheduled)
        verdict = verify_products(run, built(spec.at(occurrence) if occurrence else spec, against).problem)
    if as_json:
        render.print_json({"sound": verdict.sound, **asdict(verdict)})
    else:
        render.verdict(verdict, against is not None)
    if not verdict.sound:
        raise typer.Exit(UnsoundError.exit_code)


@app.command(rich_help_panel=READ)
def report(
    run: RunPath,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Where the page goes; report-NAME.html, if not given."),
    ] = None,
    plot: Annotated[
        bool, typer.Option("--plot/--no-plot", help="Draw J too, for which all of it is read.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Write a page on a run: what was planned and why, how it went, what was lost, what the check found."""
    from jacjobs.cli.report.page import write_report

    path = write_report(run, out, look=plot)
    if as_json:
        render.print_json({"run": run, "report": str(path)})
    else:
        render.note(str(path))


def main() -> None:
    """The entry point: runs a command, and turns each of our errors into a sentence and an exit code."""
    try:
        app(standalone_mode=True)
    except JacjobsError as error:
        if isinstance(error, FunctionError) and error.user_traceback:
            render.error(error.user_traceback)
        render.error(f"jacjobs: {error}")
        sys.exit(error.exit_code)


def _head(address: str) -> str:
    if not is_remote(address):
        raise InputError.about(
            "--address",
            got=address,
            expected="that of a Ray dashboard, http://HEAD:8265",
            do="leave it out: a run's folder says all that is known of it",
        )
    return address
