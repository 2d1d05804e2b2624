"""One page on a run, that needs nothing beside itself: style and pictures are in it, and it loads nothing.

Every text in it comes from a run, and so perhaps from a stranger: the template escapes all of them, and the
page forbids itself to load or run anything.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from jacjobs.cli import render
from jacjobs.cli.plots import timeline
from jacjobs.cli.plots.canvas import as_png, as_svg
from jacjobs.cli.plots.memory import memory
from jacjobs.cli.plots.portrait import draw
from jacjobs.cli.report import planned, sections
from jacjobs.cli.report.facts import Facts, facts_of
from jacjobs.errors import InputError, JacjobsError
from jacjobs.store.folder import PLAN
from jacjobs.store.reader import open_run
from jacjobs.store.summary import figures_of

TEMPLATE = "page.html.j2"
PNG = b"\x89PNG"


def write_report(run: str, out: Path | None = None, *, look: bool = True) -> Path:
    """Write the page on `run` to `out`, or to report-NAME.html in the current folder; return where it is.

    look:  read all of J, for a picture of it.

    Raises InputError where there is no run or no page can be written, StoreError where the run is damaged.
    """
    facts = facts_of(run)
    path = out if out is not None else Path(f"report-{_file_name(facts.path)}.html")
    _check_place(path)
    text = page(facts, look=look)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError.about(
            "--out",
            got=f"{path}, which cannot be written: {error.strerror}",
            expected="the path of a file",
            do="choose another",
        ) from None
    return path


class Pictures(NamedTuple):
    """As PNG or SVG; None where there is nothing to draw. `portraits`: of J, with titles; or sentences."""

    portraits: list[tuple[str, bytes | str]]
    speed: bytes | None
    lanes: bytes | None
    peaks: bytes | None


def page(facts: Facts, *, look: bool = True) -> str:
    """As HTML; `look`: with a picture of J. Raises InputError where matplotlib is missing."""
    shown = timeline.stretches(facts.attempts[-sections.ATTEMPTS_DRAWN :])
    seen = portraits(facts) if look else []
    return laid_out(facts, Pictures(seen, _speed(facts, shown), _lanes(shown), _peaks(facts)))


def laid_out(facts: Facts, pictures: Pictures) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    return environment.get_template(TEMPLATE).render(
        run=sections.head(facts),
        missing=sections.missing(facts),
        job=planned.job(facts),
        plan=planned.plan(facts),
        attempts=sections.attempts(facts),
        workers=sections.workers(facts),
        memory=sections.memory(facts),
        losses=sections.losses(facts),
        check=sections.check(facts),
        versions=sections.versions(facts),
        pictures=pictures,
    )


def portraits(facts: Facts) -> list[tuple[str, bytes | str]]:
    """What J looks like: titles, each with a picture, or with why there is none. Reads all of J."""
    try:
        J = open_run(facts.path)
        portrait, spectrum = figures_of(J)
    except JacjobsError as error:
        return [("no picture", str(error))]
    if not portrait.entries:
        return []
    return [(f"J, {facts.shape}", as_png(draw(J, portrait, spectrum)))]


def data_uri(picture: bytes) -> str:
    kind = "image/png" if picture.startswith(PNG) else "image/svg+xml"
    return f"data:{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def _speed(facts: Facts, shown: Sequence[timeline.Stretch]) -> bytes | None:
    if not any(sum(stretch.timeline.computed) for stretch in shown):
        return None
    shape = facts.shape
    return as_svg(timeline.speed(shown, shape.item_bytes, shape.points * shape.rows * shape.columns))


def _lanes(shown: Sequence[timeline.Stretch]) -> bytes | None:
    if not any(stretch.attempt.workers for stretch in shown):
        return None
    return as_svg(timeline.lanes(shown))


def _peaks(facts: Facts) -> bytes | None:
    peaks = list(_measured(facts))
    if not peaks:
        return None
    return as_svg(memory(peaks, facts.predicted_bytes, facts.budget_bytes))


def _measured(facts: Facts) -> Iterator[tuple[str, int]]:
    several = len(facts.attempts) > 1
    for attempt in facts.attempts:
        for work in attempt.workers:
            if work.peak_bytes:
                yield (f"{attempt.number}: {work.name}" if several else work.name), work.peak_bytes


def _shown(value: Any) -> Any:
    """Without controls, marks that turn the direction of writing, and halves of characters."""
    return render.printable(value) if type(value) is str else value


def _file_name(path: str) -> str:
    name = re.sub(r"[^\w.-]+", "-", path.rstrip("/").rpartition("/")[2]).strip("-.")
    return name[:100] or "run"


def _check_place(path: Path) -> None:
    """Readers of a dataset take its folder for theirs alone."""
    if path.is_dir():
        raise InputError.about("--out", got=f"{path}, a folder", expected="the path of a file")
    if (path.absolute().parent / PLAN).is_file():
        raise InputError.about(
            "--out",
            got=f"{path}, in the folder of a run",
            expected="a file beside it: readers of Parquet open all that is in there",
            do="choose another",
        )
