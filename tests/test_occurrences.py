"""When a schedule's occurrences are, and that each has a path of its own."""

from __future__ import annotations

import contextlib
import zoneinfo
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any

import pytest
from croniter import croniter
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jacjobs.errors import InputError
from jacjobs.jobspec import JobSpec, parse_job, read_job
from jacjobs.occurrences import between, following, latest, made_up_for, named, preceding, shown
from jacjobs.planning.options import ALIASES, ScheduleOptions
from tests.conftest import JOBS
from tests.scheduling.expressions import expressions

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
FORWARD, BACK = datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)
"""When Berlin's clocks are turned: 2:00 becomes 3:00, and 3:00 becomes 2:00."""
DAY = timedelta(days=1)


def job(path: str, params: dict[str, Any] | None = None, **schedule: Any) -> JobSpec:
    content = {"name": "a", "problem": "p.py:f", "output": {"path": path}, "params": params or {}}
    return parse_job({**content, **({"schedule": schedule} if schedule else {})}, "job.yaml")


def local(cron: str, begin: datetime, end: datetime) -> list[str]:
    """Occurrences in Berlin, as its clocks show them."""
    schedule = ScheduleOptions(cron=cron, timezone="Europe/Berlin")
    return [shown(schedule, o)[11:-3] for o in between(schedule, begin - timedelta(seconds=1), end)]


# -- when ----------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(expressions(), st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1)))
def test_occurrences_are_those_of_another_cron_parser(cron: str, begin: datetime) -> None:
    schedule = ScheduleOptions(cron=cron)
    begin = begin.replace(tzinfo=UTC)
    # croniter takes day and weekday as either, whatever they begin with: only there the two may differ.
    day, weekday = cron.split()[2], cron.split()[4]
    either = not (day.startswith("*") or weekday.startswith("*"))
    assume(either or "*" in (day, weekday))
    theirs = croniter(cron, begin, day_or=either)
    ours = list(islice(following(schedule, begin), 10))
    assert ours == [theirs.get_next(datetime) for _ in ours]


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_are_those_of_another_cron_parser(alias: str) -> None:
    begin = datetime(2026, 7, 1, 12, 34, tzinfo=UTC)
    theirs = croniter(alias, begin)
    ours = list(islice(following(ScheduleOptions(cron=alias), begin), 5))
    assert ours == [theirs.get_next(datetime) for _ in ours]


@settings(max_examples=150, deadline=None)
@given(
    expressions(),
    st.sampled_from([FORWARD, BACK, datetime(2026, 7, 1, tzinfo=UTC)]),
    st.integers(-30_000, 30_000),
    st.sampled_from(["Europe/Berlin", "Australia/Lord_Howe", "America/Santiago", "UTC"]),
)
def test_forward_and_backward_agree_also_where_clocks_are_turned(
    cron: str, around: datetime, seconds: int, zone: str
) -> None:
    """From wherever one looks: what follows rises, what precedes falls, and they meet without a gap."""
    schedule = ScheduleOptions(cron=cron, timezone=zone)
    now = around + timedelta(seconds=seconds)
    before, after = list(islice(preceding(schedule, now), 5)), list(islice(following(schedule, now), 5))
    assert before[0] <= now < after[0]
    assert all(earlier < later for earlier, later in pairwise([*reversed(before), *after]))
    assert list(islice(following(schedule, before[-1]), 9)) == [*reversed(before[:-1]), *after]
    assert list(islice(preceding(schedule, after[-1]), 10)) == [*reversed(after), *before]


@pytest.mark.parametrize(
    ("cron", "forward", "back"),
    [
        ("30 1 * * *", ["01:30:00+01"], ["01:30:00+02"]),
        ("30 2 * * *", ["03:00:00+02"], ["02:30:00+02"]),
        ("30 3 * * *", ["03:30:00+02"], ["03:30:00+01"]),
        ("0 1-3 * * *", ["01:00:00+01", "03:00:00+02"], ["01:00:00+02", "02:00:00+02", "03:00:00+01"]),
        (
            "0 * * * *",
            ["01:00:00+01", "03:00:00+02"],
            ["01:00:00+02", "02:00:00+02", "02:00:00+01", "03:00:00+01"],
        ),
    ],
)
def test_where_berlins_clocks_are_turned(cron: str, forward: list[str], back: list[str]) -> None:
    """A time that is left out is made up for after the gap; one that comes twice once, hourly twice."""
    hours = timedelta(hours=1)
    assert local(cron, FORWARD - 1 * hours, FORWARD + timedelta(minutes=59)) == forward
    assert local(cron, BACK - 2 * hours, BACK + timedelta(hours=1, minutes=59)) == back


def test_whether_clocks_leave_an_occurrence_out() -> None:
    for cron, zone, left_out in [
        ("30 2 * * *", "Europe/Berlin", True),
        ("0 2,3 * * *", "Europe/Berlin", False),  # it comes at 3:00 anyway
        ("*/30 * * * *", "Europe/Berlin", False),
        ("30 3 * * *", "Europe/Berlin", False),
        ("30 2 * 5 *", "Europe/Berlin", False),
        ("30 2 * * *", "UTC", False),
    ]:
        assert (made_up_for(ScheduleOptions(cron=cron, timezone=zone)) is not None) == left_out, cron


def test_an_occurrence_between_the_two_hours_of_one_name_is_not_lost() -> None:
    """02:15 comes twice. At the second, 02:30 of the first has come, and the next is tomorrow's."""
    schedule = ScheduleOptions(cron="30 2 * * *", timezone="Europe/Berlin")
    second = BACK + timedelta(minutes=15)
    assert shown(schedule, latest(schedule, second)) == "2026-10-25T02:30:00+02:00"
    assert shown(schedule, next(following(schedule, second))) == "2026-10-26T02:30:00+01:00"


def test_a_time_must_be_an_occurrence_that_has_come() -> None:
    schedule = ScheduleOptions(cron="0 2 * * *", timezone="Europe/Berlin")
    now = datetime(2026, 11, 25, 12, tzinfo=UTC)
    assert named(schedule, "latest", now) == datetime(2026, 11, 25, 1, tzinfo=UTC)
    for text in ("2026-11-24T02:00", "2026-11-24T02:00:00+01:00", "2026-11-24T01:00:00Z", "2026-11-24 02:00"):
        assert named(schedule, text, now) == datetime(2026, 11, 24, 1, tzinfo=UTC)
    with pytest.raises(
        InputError,
        match=r"those beside it are 2026-11-24T02:00:00\+01:00 and 2026-11-25T02:00:00\+01:00",
    ):
        named(schedule, "2026-11-24T02:01", now)
    with pytest.raises(InputError, match="which is to come, expected one that has come"):
        named(schedule, "2026-11-26T02:00", now)
    with pytest.raises(InputError, match="got 'yesterday', expected latest, or a time such as"):
        named(schedule, "yesterday", now)
    for text in ("0001-01-01T00:00", "9999-12-31T23:59:59-12:00"):
        with pytest.raises(InputError, match="expected latest, or a time such as"):
            named(schedule, text, now)


# -- {scheduled:…} -------------------------------------------------------------------------------------------


def test_the_time_is_filled_into_path_and_params_in_the_schedules_zone() -> None:
    params = {"day": "{scheduled:%Y-%m-%d}", "files": ["a-{scheduled:%H}.pt", 3], "deep": {"x": "no {time}"}}
    spec = job("runs/{scheduled:%Y}/{scheduled:%m-%d}", params, cron="30 0 * * *", timezone="Europe/Berlin")
    made = spec.at(datetime(2026, 6, 30, 22, 30, tzinfo=UTC))
    assert made.output.path == "runs/2026/07-01"
    assert made.params == {"day": "2026-07-01", "files": ["a-00.pt", 3], "deep": {"x": "no {time}"}}
    assert made.schedule is None
    assert parse_job(made.model_dump(), "plan.json") == made, "resume reads it from the run"
    assert spec.params == params


@settings(max_examples=40, deadline=None)
@given(expressions(), st.sampled_from(["UTC", "Europe/Berlin"]), st.sampled_from([FORWARD, BACK]))
def test_a_path_that_is_accepted_never_repeats(cron: str, zone: str, around: datetime) -> None:
    for text in ("%Y-%m-%d", "%Y-%m", "%G-%V", "%Y-%m-%dT%H", "%Y-%m-%dT%H%M", "%Y-%m-%dT%H%M%z"):
        try:
            spec = job(f"runs/{{scheduled:{text}}}", cron=cron, timezone=zone)
        except InputError:
            assert text != "%Y-%m-%dT%H%M%z", "nothing looks alike there"
            continue
        assert spec.schedule is not None
        found = list(islice(following(spec.schedule, around - DAY), 200))
        assert len({spec.at(occurrence).output.path for occurrence in found}) == len(found)


WRONG = {
    "no field": ("runs/x", {"cron": "@daily"}, "add {scheduled:%Y-%m-%d} to it"),
    "days for hours": (
        "{scheduled:%Y-%m-%d}",
        {"cron": "@hourly"},
        "got '{scheduled:%Y-%m-%d}', which leaves the hour open, expected a path of its own for every "
        "occurrence of '@hourly'; add %H to its format",
    ),
    "hours for minutes": ("{scheduled:%Y-%m-%dT%H}", {"cron": "*/5 * * * *"}, "add %M to its format"),
    "minutes for seconds": ("{scheduled:%Y-%jT%H%M}", {"cron": "*/5 * * * * *"}, "add %S to its format"),
    "no day": ("{scheduled:%H%M}", {"cron": "@hourly"}, "leaves the date open"),
    "no month": ("{scheduled:%Y-%d}", {"cron": "@daily"}, "add %Y-%m-%d to its format"),
    "no year": ("{scheduled:%m-%d}", {"cron": "@daily"}, "leaves the date open"),
    "week and the other year": ("{scheduled:%Y-%V}", {"cron": "@weekly"}, "leaves the date open"),
    "week for days": ("{scheduled:%G-%V}", {"cron": "0 0 * * 1,2"}, "leaves the date open"),
    "month for day and weekday": ("{scheduled:%Y-%m}", {"cron": "0 0 1 * 1"}, "leaves the date open"),
    "month for all weekdays": ("{scheduled:%Y-%m}", {"cron": "0 0 1 * 0-6"}, "leaves the date open"),
    "clocks turned back": (
        "{scheduled:%Y-%m-%dT%H}",
        {"cron": "@hourly", "timezone": "Europe/Berlin"},
        "the same for 2024-10-27T02:00:00+02:00 and 2024-10-27T02:00:00+01:00, expected a path of its own "
        "for every occurrence of '@hourly'; clocks are turned there: add %z, or use `timezone: UTC`",
    ),
    "clocks turned forward": (
        "{scheduled:%Y-%m-%dT%H}",
        {"cron": "30 2,3 * * *", "timezone": "Europe/Berlin"},
        "the same for 2024-03-31T03:00:00+02:00 and 2024-03-31T03:30:00+02:00, expected a path of its own "
        "for every occurrence of '30 2,3 * * *'; clocks are turned there: add %M, or use `timezone: UTC`",
    ),
    "no format": ("{scheduled}", {"cron": "@daily"}, "got '{scheduled}', expected a format such as"),
    "unknown directive": ("{scheduled:%Q}", {"cron": "@daily"}, "got '%Q' in '{scheduled:%Q}'"),
    "control characters": ("{scheduled:%Y-%m-%d\0}", {"cron": "@daily"}, "got '{scheduled:%Y-%m-%d\\x00}'"),
    "no directive": ("{scheduled:day}", {"cron": "@daily"}, "got '{scheduled:day}', expected a format"),
    "no schedule": ("{scheduled:%Y}", {}, "and no schedule, expected {scheduled:…} in a job that has"),
    "minute 61": (
        "x",
        {"cron": "61 * * * *"},
        "(minute hour day month weekday), or an alias such as @daily; bad",
    ),
    "four fields": ("x", {"cron": "* * * *"}, "wrong number of fields"),
    "never": ("x", {"cron": "0 0 31 2 *"}, "schedule.cron: got '0 0 31 2 *'"),
    "not cron's": ("x", {"cron": "0 0 L * *"}, "not every cron knows L, LW and #"),
    "long": ("x", {"cron": "0," * 300 + "0 * * * *"}, "at most 200 characters, of ASCII"),
    "other digits": ("x", {"cron": "\uff10 * * * *"}, "at most 200 characters, of ASCII"),
    "many digits": ("x", {"cron": "9" * 150 + " * * * *"}, "bad minute"),
    "long zone": ("x", {"cron": "@daily", "timezone": "z" * 100_000}, "the name of a time zone, such as UTC"),
    "reboot": ("x", {"cron": "@reboot"}, "schedule.cron: got '@reboot', expected five fields"),
    "zone": ("x", {"cron": "@daily", "timezone": "europe/berln"}, "did you mean 'Europe/Berlin'?"),
    "no zone": ("x", {"cron": "@daily", "timezone": "../etc/passwd"}, "the name of a time zone, such as UTC"),
    "deadline": ("x", {"cron": "@daily", "start_deadline": "soon"}, "expected a time such as '90s', '30min'"),
    "deadline 0": ("x", {"cron": "@daily", "start_deadline": "0s"}, "expected a time such as '90s', '30min'"),
    "overlap": (
        "x",
        {"cron": "@daily", "overlap": "queue"},
        "schedule.overlap: got 'queue', expected 'forbid'",
    ),
    "unknown key": ("x", {"corn": "@daily"}, "'schedule.cron' is missing"),
    "unknown key beside": (
        "x",
        {"cron": "@daily", "overlaps": 1},
        "'schedule.overlaps'; did you mean 'overlap'?",
    ),
}


@pytest.mark.parametrize(
    ("cron", "text"),
    [
        ("@yearly", "%Y"),
        ("@monthly", "%Y-%m"),
        ("@weekly", "%G-W%V"),
        ("@daily", "%Y/%j"),
        ("@daily", "%G-%V-%u"),
        ("@hourly", "%Y%m%dT%H"),
        ("15 2-5 24 12 *", "%Y-%H"),
        ("30 2 * * *", "%Y-%m-%d"),
    ],
)
def test_a_path_says_no_more_than_it_must(cron: str, text: str) -> None:
    for zone in ("UTC", "Europe/Berlin") if "%H" not in text else ("UTC",):
        assert job(f"{{scheduled:{text}}}", cron=cron, timezone=zone).schedule is not None


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_schedule_is_one_sentence(case: str) -> None:
    path, schedule, sentence = WRONG[case]
    with pytest.raises(InputError) as caught:
        job(path, **schedule)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("job.yaml: ")
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=9), st.text(max_size=20))
def test_whatever_is_written_it_is_read_or_refused(cron: str, zone: str, late: str, form: str) -> None:
    for changed in ({"cron": cron}, {"timezone": zone}, {"start_deadline": late}, {}):
        schedule: dict[str, Any] = {"cron": "@daily", **changed}
        with contextlib.suppress(InputError):
            spec = job(f"{{scheduled:%Y-%m-%d{form}}}", {"x": f"{{scheduled:{form}}}"}, **schedule)
            assert spec.schedule is not None
            spec.at(latest(spec.schedule, FORWARD))


def test_a_wrong_field_in_params_is_named() -> None:
    with pytest.raises(InputError, match=r"params\.files\.1: got '%f' in '\{scheduled:%f\}'"):
        job("{scheduled:%Y-%m-%d}", {"files": ["a", "{scheduled:%f}"]}, cron="@daily")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30min", 1800), ("30 min", 1800), ("2h", 7200), ("1d", 86400)]
)
def test_deadlines(text: str, seconds: int) -> None:
    assert ScheduleOptions(cron="@daily", start_deadline=text).deadline == timedelta(seconds=seconds)


def test_the_example_is_run_every_night_in_berlin() -> None:
    spec = read_job(JOBS / "nightly.yaml", [])
    assert spec.schedule is not None
    found = list(islice(following(spec.schedule, datetime(2026, 3, 27, 12, tzinfo=UTC)), 4))
    assert [o.astimezone(BERLIN).isoformat() for o in found] == [
        "2026-03-28T03:30:00+01:00",
        "2026-03-29T03:30:00+02:00",
        "2026-03-30T03:30:00+02:00",
        "2026-03-31T03:30:00+02:00",
    ]
    assert [spec.at(o).output.path for o in found] == [
        f"runs/nightly/2026-03-{day}" for day in (28, 29, 30, 31)
    ]
