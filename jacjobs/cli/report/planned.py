"""What the page says of the job and of its plan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jacjobs.cli import render
from jacjobs.cli.report.facts import Facts, finite
from jacjobs.cli.report.words import NOT_KNOWN, Bar, Rows, Table, moment, more_of, short, size, time
from jacjobs.planning.planner import Candidate, Plan
from jacjobs.shape import Segment

SEGMENTS_SHOWN = 40
TIMINGS_SHOWN = 40


def job(facts: Facts) -> dict[str, Any]:
    record, shape = facts.record, facts.shape
    rows = [("name", record.name)]
    params = None
    if record.job is not None:
        spec = record.job["spec"]
        rows += [("problem", _text(spec.get("problem"))), ("folder", record.job["folder"])]
        params = spec.get("params") or None
    else:
        rows.append(("problem", "from Python: there is no job file"))
    stored = f"{shape.dtype}, computed as {shape.origin}" if _narrowed(facts) else shape.dtype
    rows += [
        ("J", f"{shape.points:,} points × {shape.rows:,} rows × {shape.columns:,} columns of {stored}"),
        ("planned", moment(record.created)),
        ("run", record.run),
        ("dataset", f"{size(facts.bytes)} in {record.layout}, {facts.path}"),
    ]
    asked = {key: value for key, value in record.options.items() if value is not None}
    return {
        "rows": [(label, short(text)) for label, text in rows],
        "params": None if params is None else short(json.dumps(params, indent=2, ensure_ascii=False)),
        "options": short(json.dumps(asked, indent=2, ensure_ascii=False)) if asked else None,
        "outputs": _segments(shape.outputs),
        "inputs": _segments(shape.inputs),
    }


def _narrowed(facts: Facts) -> bool:
    return bool(facts.shape.origin) and facts.shape.origin != facts.shape.dtype


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _segments(segments: Sequence[Segment]) -> Table:
    rows = [
        (
            short(s.name),
            f"{s.start:,}:{s.stop:,}",
            f"{s.size:,}",
            " × ".join(f"{n:,}" for n in s.shape) or "scalar",
        )
        for s in segments[:SEGMENTS_SHOWN]
    ]
    return Table(("name", ">range", ">size", ">shape"), rows, more_of(len(segments) - len(rows)))


def plan(facts: Facts) -> dict[str, Any]:
    made = facts.plan
    if made is None:
        frozen = facts.record.plan
        said = f"{frozen['strategy']}, chunks of {frozen['chunk']:,}"
        version = facts.record.versions.get("jacjobs", "unknown")
        note = f"What else jacjobs {version} planned, and why, this version cannot read."
        return {"sentence": f"{said}. {note}", "rows": [], "candidates": None, "timings": None}
    return {
        "sentence": f"{made.strategy}, {render.count(made.chunk, 'product')} at once: {render.why(made)}.",
        "rows": _plan_rows(made),
        "candidates": _candidates(made),
        "timings": _timings(made),
    }


def _plan_rows(made: Plan) -> Rows:
    tiling, resources = made.tiling, made.resources
    how = "measured" if made.timings else "predicted"
    product = "a column" if made.by_columns else "a row"
    if made.groups is not None:
        product = f"the sum of a group of {' or '.join(made.groups.kinds)}"
    rows = [
        ("a product", f"{product} of J"),
        *([("pattern", render.pattern(made))] if made.groups is not None else []),
        (
            "for",
            f"{render.count(resources.workers, 'worker')} on {resources.device.name}, "
            f"{size(resources.budget_bytes)} each",
        ),
        ("blocks", f"{tiling.blocks:,} of up to {size(made.block_bytes)}: what a worker computes at a time"),
        ("parts", f"{render.count(tiling.parts, 'file')} of up to {size(made.part_bytes)}"),
        ("memory", f"{size(made.peak_bytes)} a worker at the peak, predicted"),
        ("time", f"{time(made.seconds)}, {how}; start-up not counted"),
        (
            "dataset",
            f"{size(made.disk_bytes)} in {made.layout}, {render.packed(made.compression)}"
            + (f"; {size(made.scratch_bytes)} of spills beside it" if made.scratch_bytes > 0 else ""),
        ),
        ("check", render.checking(made)),
    ]
    if made.leaner:
        rows.append(("if one product does not fit", ", then ".join(made.leaner)))
    return [(label, short(text)) for label, text in rows]


def _candidates(made: Plan) -> Table:
    """The chosen one first, then by time; those that were dropped last."""
    works = [
        c for c in made.candidates if c.chunk is not None and (finite(c.seconds) or 0) >= 0 and c.seconds
    ]
    dropped = [c for c in made.candidates if c not in works]
    works.sort(key=lambda c: (c.strategy != made.strategy, finite(c.seconds) or 0.0))
    most_seconds = max((finite(c.seconds) or 0.0 for c in works), default=0.0)
    most_bytes = max((finite(c.peak_bytes) or 0.0 for c in works), default=0.0)
    rows = [_candidate(c, made, most_seconds, most_bytes) for c in works]
    rows += [
        (c.strategy, "", size(c.peak_bytes) if c.peak_bytes else "", "", short(c.reason or "not compared"))
        for c in dropped
    ]
    return Table(("strategy", ">chunk", ">memory a worker", ">time for all of J", ""), rows)


def _candidate(candidate: Candidate, made: Plan, most_seconds: float, most_bytes: float) -> tuple[Any, ...]:
    return (
        candidate.strategy,
        f"{candidate.chunk:,}",
        Bar(size(candidate.peak_bytes), _percent(candidate.peak_bytes, most_bytes)),
        Bar(time(candidate.seconds), _percent(candidate.seconds, most_seconds)),
        short(render.remarks(candidate, made.strategy)),
    )


def _percent(number: float | None, of: float) -> float:
    number = finite(number)
    return round(min(100.0, max(0.0, 100 * number / of)), 1) if number and of > 0 else 0.0


def _timings(made: Plan) -> Table | None:
    if not made.timings:
        return None
    rows = []
    for timing in made.timings[:TIMINGS_SHOWN]:
        seconds = finite(timing.chunk_seconds)
        rate = (
            f"{timing.chunk / seconds:,.0f}"
            if seconds and seconds > 0 and finite(timing.chunk)
            else NOT_KNOWN
        )
        chosen = "chosen" if (timing.strategy, timing.chunk) == (made.strategy, made.chunk) else ""
        setup = _precise(timing.setup_seconds)
        rows.append(
            (timing.strategy, f"{timing.chunk:,}", setup, _precise(timing.chunk_seconds), rate, chosen)
        )
    head = ("strategy", ">chunk", ">before the first", ">a chunk", ">products a second", "")
    return Table(head, rows, more_of(len(made.timings) - len(rows)))


def _precise(seconds: float) -> str:
    """Of what takes milliseconds."""
    number = finite(seconds)
    if number is None or number < 0:
        return NOT_KNOWN
    return f"{1000 * number:,.3g} ms" if number < 1 else f"{number:,.3g} s"
