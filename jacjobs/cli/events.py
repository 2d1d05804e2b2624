"""What happens to a run, as events: plain dictionaries, which travel as lines of JSON through the log of a
remote job and are shown the same way wherever they come from.

| event    | says                                                                  |
| -------- | --------------------------------------------------------------------- |
| plan     | what is computed, how, and where it goes                              |
| progress | where it stands; counts are of this attempt                           |
| note     | a sentence                                                            |
| complete | what was written, and what the check found                            |
| error    | how it ended otherwise: `exit_code`, `message`, the user's traceback  |

Each has `time`, in ISO 8601 and UTC, and `jacjobs`, which tells it from what a user's code prints. No imports
but of the standard library: a cluster that lacks all else still gets to say so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jacjobs.planning.planner import Plan
    from jacjobs.run.coordinator import Progress
    from jacjobs.store.attempt import Attempt
    from jacjobs.store.folder import Manifest

Event = dict[str, Any]
MARK = 1
"""What `jacjobs` is in each event: the version of these words."""
KINDS = ("plan", "progress", "note", "complete", "error")


def planned(plan: Plan, path: str) -> Event:
    return _event(
        "plan",
        path=path,
        shape=str(plan.shape),
        bytes=plan.shape.total_bytes,
        strategy=plan.strategy,
        chunk=plan.chunk,
        entries=None if plan.groups is None else plan.groups.entries * plan.shape.points,
        products=None if plan.groups is None else plan.groups.products,
        blocks=plan.tiling.blocks,
        parts=plan.tiling.parts,
        workers=plan.resources.workers,
        device=plan.resources.device.name,
    )


def progressed(now: Progress, plan: Plan) -> Event:
    """`row_entries` and `entry_bytes` make rows and bytes of the entries that are counted."""
    row_entries: float = plan.shape.columns
    if plan.groups is not None:
        row_entries = plan.groups.entries / plan.shape.rows
    return _event("progress", **asdict(now), row_entries=row_entries, entry_bytes=plan.shape.item_bytes)


def noted(text: str) -> Event:
    return _event("note", text=text)


def completed(path: str, manifest: Manifest) -> Event:
    last = manifest.attempts[-1] if manifest.attempts else None
    return _event(
        "complete",
        path=path,
        parts=len(manifest.parts),
        bytes=sum(part.bytes for part in manifest.parts),
        seconds=manifest.timings["seconds"],
        checks=dict(manifest.checks),
        failures=0 if last is None else last.failures_total,
        blocks_repeated=0 if last is None else last.blocks_repeated,
    )


def failed(exit_code: int, message: str, traceback: str = "") -> Event:
    return _event("error", exit_code=exit_code, message=message, traceback=traceback)


def told(attempt: Attempt) -> Iterator[Event]:
    """What the record of an attempt says, in the order in which it happened."""
    began = datetime.fromisoformat(attempt.started)
    text = f"attempt {attempt.number} began on {attempt.host}, process {attempt.pid}"
    yield _event("note", began, text=text)
    for failure in attempt.failures:
        at = began + timedelta(seconds=failure.seconds)
        yield _event("note", at, text=lost(failure.model_dump()))
    done = f"{attempt.blocks_done:,} of {attempt.blocks_total:,} blocks done"
    text = f"attempt {attempt.number}: {attempt.state}, {done}" + (
        f": {attempt.cause}" if attempt.cause else ""
    )
    yield _event("note", began + timedelta(seconds=attempt.seconds), text=text)


def lost(failure: dict[str, Any]) -> str:
    """A failure of an attempt's record, as people read it."""
    where = f" ({failure['where']})" if failure["where"] else ""
    at = f", at {'; '.join(failure['blocks'])}" if failure["blocks"] else ""
    return f"{failure['who']}{where} was lost: {failure['cause']}{at}"


def line(event: Event) -> str:
    return json.dumps(event)


def parsed(text: str) -> Event | None:
    """The event that a line of a log says; None for what others print."""
    if not text.startswith("{"):
        return None
    try:
        event = json.loads(text)
    except ValueError:
        return None
    ours = isinstance(event, dict) and event.get("jacjobs") == MARK and event.get("event") in KINDS
    return event if ours else None


def _event(kind: str, at: datetime | None = None, /, **content: Any) -> Event:
    at = at or datetime.now(UTC)
    return {"jacjobs": MARK, "event": kind, "time": at.isoformat(timespec="milliseconds"), **content}
