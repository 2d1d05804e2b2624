"""Cron expressions for Hypothesis: those that come true within a year."""

from __future__ import annotations

from hypothesis import strategies as st

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


def _stepped(parts: tuple[str, int]) -> str:
    return f"{parts[0]}/{parts[1]}"


def _field(low: int, high: int, names: tuple[str, ...] = ()) -> st.SearchStrategy[str]:
    numbers = st.integers(low, high)
    # Of two ends: croniter takes 0-0 as all.
    span = st.lists(numbers, min_size=2, max_size=2, unique=True).map(lambda ends: f"{min(ends)}-{max(ends)}")
    one = st.one_of(numbers.map(str), st.sampled_from(names) if names else numbers.map(str))
    stepped = st.tuples(st.one_of(st.just("*"), span), st.integers(1, high)).map(_stepped)
    several = st.lists(st.one_of(one, span), min_size=2, max_size=3).map(",".join)
    return st.one_of(st.just("*"), one, span, stepped, several)


def expressions(minute: str | None = None) -> st.SearchStrategy[str]:
    """Five fields; every month has the days."""
    return st.tuples(
        st.just(minute) if minute else _field(0, 59),
        _field(0, 23),
        _field(1, 28),
        _field(1, 12, MONTHS),
        _field(0, 7, WEEKDAYS),
    ).map(" ".join)
