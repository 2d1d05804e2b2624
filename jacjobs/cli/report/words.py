"""What the sections of the page are made of: texts that are never too long, tables, bars."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from jacjobs.cli import render
from jacjobs.cli.report.facts import finite

TEXT_SHOWN = 1500
"""Characters of one text: a cause, a parameter."""
NOT_KNOWN = "–"
UNBROKEN = "\u00a0"
"""A space that no line ends at."""

Rows = list[tuple[str, str]]


class Table(NamedTuple):
    """Columns whose heads begin with `>` hold numbers, with `_` short texts. `more`: what is not shown."""

    head: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    more: str = ""


class Bar(NamedTuple):
    """A cell of a table: a text on a bar of so many per cent."""

    text: str
    percent: float


def size(number: float | None) -> str:
    number = finite(number)
    return NOT_KNOWN if number is None or number < 0 else render.size(number)


def time(seconds: float | None) -> str:
    seconds = finite(seconds)
    return NOT_KNOWN if seconds is None or seconds < 0 else render.duration(seconds)


def short(text: str) -> str:
    return text if len(text) <= TEXT_SHOWN else f"{text[:TEXT_SHOWN]} … ({len(text):,} characters in all)"


def moment(text: str) -> str:
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S %Z}".strip().replace(" ", UNBROKEN)
    except ValueError:
        return short(text) or NOT_KNOWN


def more_of(number: int) -> str:
    return f"… and {number:,} more" if number > 0 else ""
