"""What the commands print for people: tables and sentences."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from jacjobs.cli.events import lost

if TYPE_CHECKING:
    from jacjobs.cli.events import Event
    from jacjobs.errors import JacjobsError
    from jacjobs.planning.planner import Candidate, Plan
    from jacjobs.run.tradeoff import Reading
    from jacjobs.scheduling.history import Entry
    from jacjobs.store.status import Status
    from jacjobs.store.verify import Verdict

SEGMENTS_SHOWN = 20
ATTEMPTS_SHOWN = 5
FAILURES_SHOWN = 5

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Controls, marks that turn the direction of writing, and halves of surrogate pairs."""
_out = Console(highlight=False, emoji=False)
_err = Console(stderr=True, highlight=False, emoji=False)


def console() -> Console:
    return _out


def is_terminal() -> bool:
    return _out.is_terminal


def error(text: str) -> None:
    _err.print(printable(text), markup=False, soft_wrap=True)


def note(text: str) -> None:
    _out.print(printable(text), markup=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """One document, for programs."""
    typer.echo(json.dumps(content, indent=2))


def printable(text: str) -> str:
    """A dataset may come from a stranger: its names must not steer the terminal."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _in_one_line(text: str) -> str:
    """Nor must they make lines of their own."""
    return text.replace("\n", "\\n")


def plan(made: Plan) -> None:
    tiling, resources = made.tiling, made.resources
    free = "unknown" if resources.disk_free_bytes is None else size(resources.disk_free_bytes)
    scratch = f", {size(made.scratch_bytes)} of spills beside it" if made.scratch_bytes else ""
    how = "measured" if made.timings else "predicted"
    who = f"{count(resources.workers, 'worker')}, {resources.device.name}"
    rows = [
        ("J", f"{made.shape} (points × rows × columns), {size(made.shape.total_bytes)}"),
        *([("pattern", pattern(made))] if made.groups is not None else []),
        (
            "dataset",
            f"{size(made.disk_bytes)} in {made.layout}, {packed(made.compression)}{scratch}; "
            f"free on that disk: {free}",
        ),
        ("on", f"{who}, {size(resources.budget_bytes)} each"),
        ("strategy", f"{made.strategy}, chunks of {made.chunk:,} products: {why(made)}"),
        ("memory", f"{size(made.peak_bytes)} a worker at the peak, predicted"),
        ("time", f"{duration(made.seconds)}, {how}; start-up not counted"),
        ("blocks", f"{tiling.blocks:,} of up to {size(made.block_bytes)}"),
        ("parts", f"{tiling.parts:,} of up to {size(made.part_bytes)}"),
        ("check", checking(made)),
    ]
    print_rows(rows)
    note("")
    print_table(
        ("strategy", "chunk", "memory", "time", ""),
        [_candidate_row(candidate, made.strategy) for candidate in made.candidates],
    )


def pattern(made: Plan) -> str:
    """Of a sparse J: how many entries, and how few products make them."""
    groups, shape = made.groups, made.shape
    if groups is None:
        return ""
    share = groups.entries / (shape.rows * shape.columns)
    if made.second is None:
        products = f"{count(groups.products, 'product')} of groups of {groups.kinds[0]}"
    else:
        products = (
            f"{groups.columns:,} products of groups of columns and {groups.rows:,} of groups of rows "
            f"({made.second.strategy})"
        )
    took = "" if made.dense_seconds is None else f", in {duration(made.dense_seconds)}"
    return (
        f"{groups.entries:,} entries a point ({share:.2g} of all) from {products}; one by one it would be "
        f"{min(shape.rows, shape.columns):,} products{took}"
    )


def why(made: Plan) -> str:
    """Why this strategy."""
    others = [c.seconds for c in made.candidates if c.seconds is not None and c.strategy != made.strategy]
    if len(made.candidates) == 1:
        return "asked for"
    if not others:
        return "the only one that works and fits"
    factor = min(others) / made.seconds if made.seconds else 1.0
    return f"{factor:.1f} × as fast as the next" if factor >= 1.05 else "the fastest, by little"


def _candidate_row(candidate: Candidate, chosen: str) -> tuple[str, ...]:
    if candidate.chunk is None or candidate.peak_bytes is None or candidate.seconds is None:
        needed = size(candidate.peak_bytes) if candidate.peak_bytes is not None else ""
        return candidate.strategy, "", needed, "", candidate.reason or "not compared"
    return (
        candidate.strategy,
        f"{candidate.chunk:,}",
        size(candidate.peak_bytes),
        duration(candidate.seconds),
        remarks(candidate, chosen),
    )


def remarks(candidate: Candidate, chosen: str) -> str:
    """What there is to say of a strategy that was compared."""
    said = [
        "chosen" if candidate.strategy == chosen else None,
        "timed" if candidate.timed else None,
        None if candidate.tried else "not tried: too large to run here",
        candidate.reason if candidate.slow else None,
    ]
    return ", ".join(remark for remark in said if remark)


def tradeoff(measured: Sequence[Reading], made: Plan) -> None:
    """A line a reading, those of a strategy together; the fastest of all is said at the end."""
    rows = []
    best = min(measured, key=lambda reading: reading.seconds)
    for reading in sorted(measured, key=lambda r: (r.strategy, r.chunk)):
        remarks = ["fastest of these"] if reading is best else []
        if (reading.strategy, reading.chunk) == (made.strategy, made.chunk):
            remarks.append("chosen")
        rows.append(
            (
                reading.strategy,
                f"{reading.chunk:,}",
                f"{reading.products_a_second:,.0f} {reading.makes}",
                size(reading.measured_bytes),
                size(reading.predicted_bytes),
                duration(reading.seconds),
                ", ".join(remarks),
            )
        )
    print_table(("strategy", "chunk", "a second", "memory", "predicted", "all of J", ""), rows)
    note("")
    note(
        f"chosen by `jacjobs submit`: {made.strategy}, chunks of {made.chunk:,}, "
        f"{duration(made.seconds)} on {count(made.resources.workers, 'worker')}"
    )


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def event(what: Event) -> None:
    """An event, as people read it."""
    match what["event"]:
        case "plan":
            blocks, parts = count(what["blocks"], "block"), count(what["parts"], "part")
            workers = f"{count(what['workers'], 'worker')}, {what['device']}"
            few = ""
            if what["entries"] is not None:
                few = f", sparse ({what['entries']:,} entries, {count(what['products'], 'product')} a point)"
            note(
                f"J is {what['shape']}, {size(what['bytes'])}{few}: {what['strategy']}, chunks of "
                f"{what['chunk']:,}, {blocks}, {parts} → {what['path']} ({workers})"
            )
        case "complete":
            parts, path = count(what["parts"], "part"), what["path"]
            note(f"complete: {parts}, {size(what['bytes'])} in {path} ({what['seconds']:.1f} s)")
            note(checked(what["checks"]))
            if what["failures"]:
                failures, again = count(what["failures"], "failure"), count(what["blocks_repeated"], "block")
                note(f"{failures} on the way, {again} computed again: `jacjobs show {path}` tells")
        case "error":
            if what["traceback"]:
                error(what["traceback"])
            error(f"jacjobs: {what['message']}")
        case "note":
            note(what["text"])


def summary(content: dict[str, Any]) -> None:
    P, m, n = content["shape"]
    rows = [
        ("run", f"{content['name']}, {content['state']}, {content['path']}"),
        ("J", f"{P:,} × {m:,} × {n:,} {_stored(content)} (points × rows × columns)"),
        ("made by", f"{content['strategy']}, chunks of {content['chunk']:,}, torch {content['torch']}"),
        (
            "on disk",
            f"{count(content['parts'], 'part')} of {content['layout']}, {size(content['bytes'])}, "
            f"{packed(content['compression'])}",
        ),
    ]
    for index, missing in enumerate(content["missing"][:SEGMENTS_SHOWN]):
        rows.append(("missing" if index == 0 else "", missing))
    if len(content["missing"]) > SEGMENTS_SHOWN:
        rows.append(("", f"… and {len(content['missing']) - SEGMENTS_SHOWN:,} more"))
    rows += _attempts(content["attempts"])
    if content["checks"] is not None:
        rows.append(("check", checked(content["checks"])))
    for title, segments in (("outputs", content["outputs"]), ("inputs", content["inputs"])):
        for index, segment in enumerate(segments[:SEGMENTS_SHOWN]):
            shape = tuple(segment["shape"])
            text = f"{segment['name']} {segment['start']:,}:{segment['stop']:,}, shape {shape}"
            text += f", norm {_figure(segment['norm'])}" if content["entries"] else ""
            rows.append((title if index == 0 else "", text))
        if len(segments) > SEGMENTS_SHOWN:
            rows.append(("", f"… and {len(segments) - SEGMENTS_SHOWN:,} more"))
    if content["entries"]:
        rows += _figures(content)
    print_rows(rows)


def _zeros(content: dict[str, Any]) -> str:
    others = round(content["entries"] * (1 - content["zeros"]))
    few = 0.99 < content["zeros"] < 1
    return f"all but {others:,} are zero" if few else f"{content['zeros']:.1%} zero"


def _figures(content: dict[str, Any]) -> list[tuple[str, str]]:
    """Norms, extremes and singular values."""
    P, m, n = content["shape"]
    extremes = f"{_figure(content['min'])} to {_figure(content['max'])}, {_zeros(content)}"
    if content["largest"] is not None:
        extremes += "; largest at J[{:,}, {:,}, {:,}]".format(*content["largest"])
    rows = [("entries", extremes)]
    if content["nonfinite"]:
        rows.append(("", f"{content['nonfinite']:,} are NaN or infinite; all figures are of the others"))
    rows.append(("Frobenius norm", _figure(content["norm"], 6)))
    for name, size in (("point", P), ("row", m), ("column", n)):
        if size > 1:
            norms = content[f"{name}_norms"]
            low, middle, high = (_figure(norms[key]) for key in ("min", "median", "max"))
            rows.append(
                (f"{name}s", f"norms {low} to {high}, median {middle}; largest: {norms['largest']:,}")
            )
    spectrum = content.get("singular_values")
    if spectrum is None:
        return rows
    values, rank = spectrum["values"], spectrum["effective_rank"]
    if values:
        which = "all" if spectrum["complete"] else "the largest"
        rows.append(("singular values", f"{values[0]:.6g} to {values[-1]:.4g}, {which} {len(values):,}"))
    else:
        rows.append(("singular values", "not known: too close to each other, or too large or small"))
    if rank is not None:
        rows.append(("effective rank", f"{rank:,.4g} of {min(P * m, n):,} (squared norm / squared largest)"))
    return rows


def _figure(number: float | None, digits: int = 4) -> str:
    return "(not a finite number)" if number is None else f"{number:.{digits}g}"


def status(found: Status) -> None:
    state = f"running, by {found.holder}" if found.holder else found.state
    points, rows, columns = found.shape
    lines = [
        ("run", f"{found.name}, {found.path}"),
        ("state", state),
        ("J", f"{points:,} × {rows:,} × {columns:,} (points × rows × columns)"),
        ("committed", f"{found.committed:.1%} of J, in {count(found.parts, 'part')}"),
    ]
    if found.last is not None:
        lines += _attempts([found.last.model_dump(mode="json")])
    print_rows(lines)


def status_content(found: Status) -> dict[str, Any]:
    last = None if found.last is None else found.last.model_dump(mode="json")
    return {**asdict(found), "last": last}


def statuses(found: Sequence[Status | tuple[Path, JacjobsError]], folder: Path) -> None:
    """A line a run."""
    rows = [
        (each.name, each.state, f"{each.committed:.0%}", " × ".join(f"{n:,}" for n in each.shape), each.path)
        for each in found
        if not isinstance(each, tuple)
    ]
    if rows:
        print_table(("run", "state", "there", "J", "path"), rows)
    for each in found:
        if isinstance(each, tuple):
            note(f"{each[0]}: {each[1]}")
    if not found:
        note(f"no runs below {folder}")


def _attempts(attempts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """One that went well is no news; else how each ended, and what was lost on the way."""
    rows: list[tuple[str, str]] = []
    if len(attempts) > 1 or any(a["failures"] or a["state"] != "complete" for a in attempts):
        for attempt in attempts[-ATTEMPTS_SHOWN:]:
            again = attempt["blocks_repeated"]
            rows.append(
                (
                    "attempt" if not rows else "",
                    f"{attempt['number']}: {attempt['state']} after {duration(attempt['seconds'])}, "
                    f"{attempt['blocks_done']:,} of {count(attempt['blocks_total'], 'block')} done"
                    + (f", {again:,} computed again" if again else "")
                    + (" (noted every 10 s)" if attempt["state"] == "running" else ""),
                )
            )
            shown = attempt["failures"][:FAILURES_SHOWN]
            rows += [("", f"   at {duration(f['seconds'])} {lost(f)}") for f in shown]
            if attempt["failures_total"] > len(shown):
                rows.append(("", f"   … and {attempt['failures_total'] - len(shown):,} more failures"))
            if attempt["cause"]:
                rows.append(("", f"   {attempt['cause']}"))
    return rows


def _stored(content: dict[str, Any]) -> str:
    """float32, or float16 (computed as float32)."""
    stored, origin = content["dtype"], content["origin"]
    return str(stored) if stored == origin else f"{stored} (computed as {origin})"


def verdict(found: Verdict, compared: bool) -> None:
    """What `verify` found, a line a fault."""
    state = "complete" if found.complete else "not complete; what is there was read"
    for fault in found.faults:
        note(f"FAULT  {fault}")
    well = "sound" if found.sound else count(len(found.faults), "fault")
    products = ", J agrees with the job's products" if compared and found.sound and found.complete else ""
    note(f"{well}: {count(found.parts, 'part')}, {size(found.nbytes)} read; {state}{products}")


def scheduled(jobs: Sequence[dict[str, Any]]) -> None:
    """A line a job."""
    head = ("job", "cron", "zone", "overlap", "latest", "next", "path of the next")
    keys = ("job", "cron", "timezone", "overlap", "latest_state", "next", "next_path")
    print_table(head, [tuple(job[key] for key in keys) for job in jobs])


def coming(occurrences: Sequence[dict[str, str]]) -> None:
    """A line an occurrence."""
    print_table(("next", "job", "path"), [(o["scheduled"], o["job"], o["path"]) for o in occurrences])


def job_files(found: Sequence[tuple[Path, JacjobsError | None]]) -> None:
    """A line a file: ok, or what is wrong."""
    for path, wrong in found:
        note(f"{path}: ok" if wrong is None else f"WRONG  {wrong}")


def history(entries: Sequence[Entry]) -> None:
    """A line an occurrence; times in UTC."""
    rows = []
    for entry in entries:
        took = ""
        if entry.started is not None and entry.ended is not None:
            took = duration((entry.ended - entry.started).total_seconds())
        rows.append((entry.scheduled.isoformat(), entry.job, entry.outcome, took, entry.message))
    if rows:
        print_table(("scheduled", "job", "outcome", "took", ""), rows)
    else:
        note("no occurrences yet")


def packed(compression: str) -> str:
    return "uncompressed" if compression == "none" else compression


def checking(made: Plan) -> str:
    """How a plan says that J will be checked."""
    if made.checked_by is None:
        return "none"
    return f"{'every point' if made.check_all else 'a sample of points'} against {made.checked_by}"


def checked(checks: dict[str, Any]) -> str:
    """How a manifest says what the check found."""
    if not checks.get("by"):
        return "not checked against another mode of differentiation"
    again = len(checks["blocks_recomputed"])
    return (
        f"{count(checks['points'], 'point')} checked against {checks['by']}, worst relative error "
        f"{checks['worst_relative_error']:.1e}"
        + (f", {count(again, 'block')} computed again" if again else "")
    )


def count(number: int, thing: str) -> str:
    """1 part, 2 parts."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def size(nbytes: float) -> str:
    """Bytes for people: 292.1 MiB."""
    nbytes = min(nbytes, 1 << 100)  # what a stranger's plan says may be more than a float holds
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if nbytes < 1024 or unit == "TiB":
            return f"{nbytes:,.0f} {unit}" if unit == "B" else f"{nbytes:,.1f} {unit}"
        nbytes /= 1024
    raise AssertionError


def duration(seconds: float) -> str:
    """Time for people: 0.3 s, 12 s, 4:05 min, 3:20 h, 12 days."""
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds >= 0.1 else "under 0.1 s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"
    if seconds < 48 * 3600:
        return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02} h"
    return f"{seconds / 86400:,.1f} days"


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; numbers, that is all but the first and the last, to the right."""
    rows = [[_in_one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if i in (0, len(head) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        note("  ".join(cells).rstrip())


def print_rows(rows: list[tuple[str, str]]) -> None:
    """Two columns; a line is as long as it is, so that it can be copied and searched."""
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        note(f"{label:<{width}}  {_in_one_line(text)}".rstrip())
