"""The commands, for runs on a cluster that is reached by its Jobs API."""

from __future__ import annotations

import re
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jacjobs.cli import events, render
from jacjobs.cli.events import Event
from jacjobs.cli.follow import detaching
from jacjobs.cli.sinks import Sink, rate
from jacjobs.errors import InputError, error_of

if TYPE_CHECKING:
    from jacjobs.jobspec import JobSpec
    from jacjobs.remote.cluster import Cluster, Sent, Submission


_ERROR = re.compile(r"[\w.]+(Error|Exception)\b")
"""The last line of a traceback."""


def submit(spec: JobSpec, occurrence: datetime | None, file: Path, sink: Sink, watch: bool) -> None:
    """`occurrence`: of a job with a schedule."""
    from jacjobs.remote.cluster import Cluster
    from jacjobs.remote.shipment import pack

    one = spec if occurrence is None else spec.at(occurrence)
    with tempfile.TemporaryDirectory(prefix="jacjobs-") as folder:
        shipment = pack(one, file.absolute(), Path(folder))
        cluster = Cluster(spec.cluster.address)
        if occurrence is not None:
            _admit(spec, occurrence, cluster, sink)
        sent = cluster.submit(shipment)
    _begin(cluster, sent, sink, watch)


def _admit(spec: JobSpec, occurrence: datetime, cluster: Cluster, sink: Sink) -> None:
    """Overlap and lateness, where other occurrences are jobs of the same cluster: their runs may be on
    storage that this process does not see. An occurrence that was submitted before only goes on.
    """
    from jacjobs.remote.cluster import ACTIVE
    from jacjobs.scheduling.overlap import overlapping, refuse_late

    schedule, path = spec.schedule, spec.at(occurrence).output.path
    assert schedule is not None
    every = [one for one in cluster.submissions() if one.name == spec.name]
    if not any(one.path == path for one in every):
        refuse_late(spec, occurrence, datetime.now(UTC))
    for other in (one for one in every if one.state in ACTIVE and one.path != path):
        if schedule.overlap == "forbid":
            raise overlapping(spec, occurrence, f"{other.id} goes on at {cluster.address}")
        if schedule.overlap == "replace":
            sink.tell(events.noted(f"stopping {other.id}"))
            cluster.stop(other)
            cluster.wait(other.id)


def resume(run: str, address: str, sink: Sink, watch: bool) -> None:
    from jacjobs.remote.cluster import Cluster

    cluster = Cluster(address)
    _begin(cluster, cluster.again(cluster.find(run)), sink, watch)


def status(run: str, address: str, as_json: bool) -> None:
    from jacjobs.remote.cluster import Cluster

    cluster = Cluster(address)
    found = cluster.find(run)
    said = [event for line in cluster.log(found).splitlines() if (event := events.parsed(line))]
    last = {event["event"]: event for event in said}
    if as_json:
        render.print_json({**_content(found), "progress": last.get("progress"), "error": last.get("error")})
        return
    rows = [("job", f"{found.id}, at {cluster.address}"), ("run", f"{found.name}, {found.path}")]
    rows.append(("state", _state(found)))
    if "plan" in last:
        plan = last["plan"]
        rows.append(("J", f"{plan['shape']}, {plan['strategy']}, chunks of {plan['chunk']:,}"))
    if "progress" in last and found.state != "complete":
        now = last["progress"]
        rows.append(("done", f"{now['blocks_done']:,}/{now['blocks_total']:,} blocks, {rate(now)}"))
    if "error" in last:
        rows.append(("cause", last["error"]["message"]))
    render.print_rows(rows)


def list_runs(address: str, as_json: bool) -> None:
    from jacjobs.remote.cluster import Cluster

    found = Cluster(address).submissions()
    if as_json:
        render.print_json([_content(one) for one in found])
    elif not found:
        render.note(f"no jobs of jacjobs at {address}")
    else:
        rows = [(one.name, one.state, _when(one.started), one.path, one.id) for one in found]
        render.print_table(("run", "state", "started", "path", "job"), rows)


def stop(run: str, address: str, as_json: bool) -> None:
    from jacjobs.remote.cluster import ACTIVE, Cluster

    cluster = Cluster(address)
    found = cluster.find(run)
    if found.state not in ACTIVE:
        raise InputError.about(found.id, got=f"a job that has ended, {found.state}", expected="one that runs")
    cluster.stop(found)
    if as_json:
        render.print_json([{"run": found.path, "asked": found.id}])
        return
    render.note(
        f"asked {found.id} to stop; it hands out no more blocks. "
        f"`jacjobs status {found.id} --address {cluster.address}` says when it ended"
    )


def logs(run: str, address: str, sink: Sink, watch: bool) -> None:
    from jacjobs.remote.cluster import Cluster

    cluster = Cluster(address)
    found = cluster.find(run)
    if watch:
        _watch(cluster, found.id, sink)
        return
    for line in cluster.log(found).splitlines():
        _tell(line, sink)


def _begin(cluster: Cluster, sent: Sent, sink: Sink, watch: bool) -> None:
    how = "runs already" if sent.attached else "submitted"
    sink.tell(events.noted(f"{how}: {sent.id} at {cluster.address}"))
    if sent.changed:
        sink.tell(events.noted("files beside the job file have changed; it runs with those it was sent with"))
    if watch:
        _watch(cluster, sent.id, sink)
    else:
        sink.tell(events.noted(f"`jacjobs logs {sent.id} --follow --address {cluster.address}` follows it"))


def _watch(cluster: Cluster, id: str, sink: Sink) -> None:
    """To the job's end, and then as the job ended. Ctrl-C or SIGTERM leave it alone, and end this process."""
    again = (
        f"`jacjobs logs {id} --follow --address {cluster.address}` follows it again, `jacjobs stop` ends it"
    )
    with detaching(f"left; the job goes on: {again}"), sink.live():
        ended = _to_the_end(cluster, id, sink)
    if ended is None:
        found = cluster.submission(id)
        if found.state == "stopped":
            raise error_of(75, f"{id} was stopped before it began")
        raise error_of(1, f"{id} ended without a word, {found.state}: {_why(found)}")
    if ended["event"] == "error":
        raise error_of(ended["exit_code"], ended["message"], ended["traceback"])
    sink.tell(ended)


def _to_the_end(cluster: Cluster, id: str, sink: Sink) -> Event | None:
    """Tell all that the job says; returns its last word."""
    waiting = ""
    ended = None
    for line in cluster.follow(id):
        if not isinstance(line, str):
            if line.state == "pending" and line.message != waiting:
                waiting = line.message
                sink.tell(events.noted(f"pending: {waiting}"))
            continue
        event = events.parsed(line)
        if event is not None and event["event"] in ("complete", "error"):
            ended = event
        else:
            _tell(line, sink)
    return ended


def _tell(line: str, sink: Sink) -> None:
    """What a job's log says, or what others have printed into it."""
    event = events.parsed(line)
    if event is None and _of_ray(line):
        return
    sink.tell(event or events.noted(line))


def _of_ray(line: str) -> bool:
    """What Ray says of itself at the beginning of every log."""
    return "job_manager.py" in line or line.startswith("Running entrypoint for job") or not line.strip()


def _why(found: Submission) -> str:
    """Of what Ray kept of the log: the last error, or else the last line."""
    lines = found.message.strip().splitlines() or ["Ray does not say why"]
    return next((line for line in reversed(lines) if _ERROR.match(line)), lines[-1])


def _content(found: Submission) -> dict[str, Any]:
    """Of Ray's message, which may hold much of the log, the line that says something."""
    return {**asdict(found), "message": _why(found) if found.message else ""}


def _state(found: Submission) -> str:
    said = found.state if found.state != "pending" or not found.message else f"pending: {found.message}"
    return f"{said}, since {_when(found.started)}" if found.ended is None else f"{said}, {_when(found.ended)}"


def _when(seconds: float | None) -> str:
    """UTC, to the second."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
