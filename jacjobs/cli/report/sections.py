"""What the page says of how a run went: facts go in, sentences and rows of tables come out."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jacjobs.cli import render
from jacjobs.cli.report.facts import Facts
from jacjobs.cli.report.words import NOT_KNOWN, UNBROKEN, Bar, Rows, Table, moment, more_of, short, size, time
from jacjobs.store.attempt import Attempt, Failure, Work

ATTEMPTS_DRAWN = 8
ATTEMPTS_SHOWN = 50
WORKERS_SHOWN = 60
WORKERS_OF_MANY = 20
FAILURES_SHOWN = 30
CAUSES_SHOWN = 8
MISSING_SHOWN = 12
RETREATS_SHOWN = 12


# -- the sentence that matters, and the figures --------------------------------------------------------------


def head(facts: Facts) -> dict[str, Any]:
    return {
        "name": facts.record.name,
        "path": facts.path,
        "state": "complete" if facts.complete else facts.status.state,
        "sentence": _sentence(facts),
        "next": _next(facts),
        "figures": _figures(facts),
    }


def _sentence(facts: Facts) -> str:
    done, seconds = _stored_bytes(facts), facts.seconds
    by = f" by {render.count(facts.workers, 'worker')}" if facts.workers else ""
    tries = f" in {len(facts.attempts):,} attempts" if len(facts.attempts) > 1 else ""
    took = ""
    if seconds:
        took = f"computed in {time(seconds)}{by}{tries}, {size(done / seconds)} a second"
    what = f"J is {facts.shape}, {size(facts.shape.total_bytes)}"
    if facts.complete:
        return f"{what}{', ' + took if took else ''}. {_checked(facts)}"
    there = f"{facts.status.committed:.1%} of it is there"
    return f"{what}; {there}{', ' + took if took and done else ''}."


def _stored_bytes(facts: Facts) -> int:
    return facts.entries_done * facts.shape.item_bytes


def _checked(facts: Facts) -> str:
    checks = {} if facts.manifest is None else facts.manifest.checks
    if not checks.get("by"):
        return "It was not checked against another mode of differentiation."
    return (
        f"It was checked at {render.count(checks['points'], 'point')} against {checks['by']}: "
        f"the worst relative error is {checks['worst_relative_error']:.1e}."
    )


def _next(facts: Facts) -> tuple[str, str, str] | None:
    """What to do, if there is something: before, the command, after."""
    last = facts.attempts[-1] if facts.attempts else None
    cause = f"The last attempt ended with: {short(last.cause)}. " if last is not None and last.cause else ""
    command = f"jacjobs resume {facts.path}"
    match facts.status.state:
        case "running":
            return f"It goes on, by {facts.status.holder}; this page is of now.", "", ""
        case "complete":
            return None
        case "not begun":
            return "No attempt has left a record; ", command, " computes it."
        case _:
            return cause, command, " computes the rest."


def _figures(facts: Facts) -> list[tuple[str, str, str]]:
    """A label, a figure, and what stands under it."""
    done, seconds, shape = _stored_bytes(facts), facts.seconds, facts.shape
    predicted = "" if facts.plan is None else f"{time(facts.plan.seconds)} predicted"
    peak = facts.measured_bytes
    under = f"{size(facts.predicted_bytes)} predicted, {size(facts.budget_bytes)} allowed"
    figures = [
        (
            "J",
            size(shape.total_bytes),
            f"{shape.points:,} × {shape.rows:,} × {shape.columns:,} {shape.dtype}",
        ),
        ("time", time(seconds), predicted),
        ("rate", f"{size(done / seconds)}/s" if seconds and done else NOT_KNOWN, "start-up counted"),
        ("memory, at most", size(peak) if peak else "not measured", under),
    ]
    checks = {} if facts.manifest is None else facts.manifest.checks
    if checks.get("by"):
        error = f"{checks['worst_relative_error']:.1e}"
        figures.append(("worst relative error", error, f"against {checks['by']}"))
    else:
        said = "not checked" if facts.complete else "not yet"
        figures.append(
            ("check", said, "" if facts.plan is None else f"planned: {render.checking(facts.plan)}")
        )
    lost, again = facts.failures, facts.blocks_repeated
    under = f"{render.count(again, 'block')} computed again" if again else "no block computed again"
    figures.append(("lost on the way", f"{lost:,}" if lost else "nothing", under))
    return figures


def missing(facts: Facts) -> list[str]:
    rectangles = [str(rectangle) for rectangle in facts.missing[:MISSING_SHOWN]]
    more = len(facts.missing) - len(rectangles)
    return [*rectangles, *([f"… and {more:,} more"] if more else [])]


# -- how it went ---------------------------------------------------------------------------------------------


def attempts(facts: Facts) -> Table:
    shown = facts.attempts[-ATTEMPTS_SHOWN:]
    rows = [_attempt(attempt, facts) for attempt in shown]
    head = (">", "_began", "_where", ">took", ">blocks", ">again", ">workers", "_ended", "why")
    left_out = len(facts.attempts) - len(shown)
    return Table(head, rows, f"… and {left_out:,} before these" if left_out else "")


def _attempt(attempt: Attempt, facts: Facts) -> tuple[Any, ...]:
    state = attempt.state
    if state == "running" and (facts.status.holder is None or attempt is not facts.attempts[-1]):
        state = "killed"
    code = "" if attempt.exit_code is None else f",{UNBROKEN}exit{UNBROKEN}{attempt.exit_code:,}"
    return (
        f"{attempt.number:,}",
        moment(attempt.started),
        short(f"{attempt.host},{UNBROKEN}{attempt.pid}"),
        time(attempt.seconds),
        f"{attempt.blocks_done:,} of {attempt.blocks_total:,}",
        f"{attempt.blocks_repeated:,}",
        f"{len(attempt.workers):,}",
        short(f"{state}{code}"),
        short(attempt.cause),
    )


def workers(facts: Facts) -> Table:
    """The longest at work first, where there are too many to show."""
    each = [(attempt, work) for attempt in facts.attempts for work in attempt.workers]
    shown = each
    if len(each) > WORKERS_SHOWN:
        shown = sorted(each, key=lambda one: -one[1].seconds)[:WORKERS_OF_MANY]
    several = len(facts.attempts) > 1
    rows = [
        (*((f"{attempt.number:,}",) if several else ()), *_work(attempt, work)) for attempt, work in shown
    ]
    head = ("worker", "where", ">joined", ">left", ">blocks", ">computing", ">busy", ">peak memory")
    more = f"… and {len(each) - len(shown):,} more, who computed less" if len(each) > len(shown) else ""
    return Table(((">attempt",) if several else ()) + head, rows, more)


def _work(attempt: Attempt, work: Work) -> tuple[Any, ...]:
    there = (attempt.seconds if work.left is None else work.left) - work.joined
    busy = min(1.0, work.seconds / there) if there > 0 else 0.0
    return (
        short(work.name),
        short(f"{work.where}, GPU {work.device}" if work.device else work.where),
        time(work.joined),
        "" if work.left is None else time(work.left),
        f"{work.blocks:,}",
        time(work.seconds),
        Bar(f"{busy:.0%}", round(100 * busy, 1)),
        size(work.peak_bytes) if work.peak_bytes else NOT_KNOWN,
    )


def memory(facts: Facts) -> str:
    peak, predicted, budget = facts.measured_bytes, facts.predicted_bytes, facts.budget_bytes
    allowed = (
        f"Each worker may take {size(budget)} for products in the making; {size(predicted)} were predicted."
    )
    if not peak:
        return f"{allowed} What blocks took was not measured."
    part = f", {peak / predicted:.0%} of what was predicted" if predicted else ""
    return f"{allowed} The most that a block took is {size(peak)}{part}."


def losses(facts: Facts) -> dict[str, Any]:
    several = len(facts.attempts) > 1
    each = [(attempt, failure) for attempt in facts.attempts for failure in attempt.failures]
    rows = [
        (*((f"{attempt.number:,}",) if several else ()), *_failure(failure))
        for attempt, failure in each[:FAILURES_SHOWN]
    ]
    head = ((">attempt",) if several else ()) + (">at", "_who", "_where", "cause", "was at")
    retreats = [
        f"attempt {number}: {short(what)}" if several else short(what)
        for number, what in facts.retreats[:RETREATS_SHOWN]
    ]
    return {
        "sentence": _lost(facts),
        "causes": _causes(facts) if len(each) > len(rows) else [],
        "table": Table(head, rows, more_of(facts.failures - len(rows))) if rows else None,
        "retreats": [*retreats, *([more] if (more := more_of(len(facts.retreats) - len(retreats))) else [])],
    }


def _lost(facts: Facts) -> str:
    if not facts.failures:
        return "Nothing was lost on the way."
    again = f"{render.count(facts.blocks_repeated, 'block')} were handed out again"
    return f"{render.count(facts.failures, 'failure')} on the way; {again}."


def _causes(facts: Facts) -> list[str]:
    """The most frequent first."""
    causes = Counter(failure.cause for attempt in facts.attempts for failure in attempt.failures)
    shown = [f"{number:,} × {short(cause)}" for cause, number in causes.most_common(CAUSES_SHOWN)]
    left_out = more_of(len(causes) - len(shown))
    return [*shown, *([left_out] if left_out else [])]


def _failure(failure: Failure) -> tuple[str, ...]:
    return (
        time(failure.seconds),
        short(failure.who),
        short(failure.where),
        short(failure.cause),
        short("; ".join(failure.blocks)),
    )


def check(facts: Facts) -> dict[str, Any]:
    planned = "" if facts.plan is None else f"Planned: {render.checking(facts.plan)}."
    if facts.manifest is None:
        return {"sentence": f"{planned} What it found is written when the run is complete.", "again": []}
    checks = facts.manifest.checks
    again = [short(block) for block in checks.get("blocks_recomputed", ())]
    left_out = more_of(len(again) - MISSING_SHOWN)
    return {
        "sentence": f"{planned} {_checked(facts)}",
        "again": [*again[:MISSING_SHOWN], *([left_out] if left_out else [])],
    }


def versions(facts: Facts) -> Rows:
    return [(short(name), short(version)) for name, version in facts.record.versions.items()]
