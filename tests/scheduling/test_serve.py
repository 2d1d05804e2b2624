"""`jacjobs schedule serve`: a real job on a real clock, and what became of every occurrence."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

import jacjobs
from jacjobs.errors import InputError
from jacjobs.occurrences import between, following, latest
from jacjobs.scheduling.history import Entry, History, read
from jacjobs.scheduling.jobs import ScheduledJob
from jacjobs.scheduling.serve import Server
from tests.scheduling.small import small_job, wait_for

EVERY = timedelta(seconds=10)
CRON = "*/10 * * * * *"


class Serving:
    """`jacjobs schedule serve` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.history = folder / "history.jsonl"
        self.said = folder / "said"
        package = Path(jacjobs.__file__).parent.parent
        command = [sys.executable, "-m", "jacjobs", "schedule", "serve", str(folder), "--history"]
        with self.said.open("a") as said:
            self.process = psutil.Popen(
                [*command, str(self.history)],
                env={**os.environ, "PYTHONPATH": str(package)}, cwd=folder,
                stdout=said, start_new_session=True,
            )  # fmt: skip

    def entries(self, *outcomes: str) -> list[Entry]:
        if not self.history.exists():
            return []
        return [e for e in read(self.history) if e.outcome in outcomes]

    def wait_for(self, outcome: str, number: int = 1) -> None:
        wait_for(lambda: len(self.entries(outcome)) >= number, self.process)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        code: int = self.process.wait(timeout=120)
        return code


@pytest.fixture
def started() -> Iterator[list[Serving]]:
    """Whatever was started is ended."""
    serving: list[Serving] = []
    yield serving
    for each in serving:
        family = [each.process, *each.process.children(recursive=True)] if each.process.is_running() else []
        for process in family:
            process.kill()


@pytest.mark.timeout(280)
def test_a_job_is_run_three_times_one_overlapping_and_one_missed(
    tmp_path: Path, started: list[Serving]
) -> None:
    """The first is held until another came, which is skipped. Then nobody serves for a while: what comes
    is missed, but for the latest, which is made up for. No occurrence is run twice, and none is forgotten.
    """
    job = small_job(tmp_path, CRON)
    (tmp_path / "hold").touch()
    first = Serving(tmp_path)
    started.append(first)
    first.wait_for("skipped")
    (tmp_path / "hold").unlink()
    first.wait_for("complete")
    assert first.end() == 0
    assert not first.entries("running"), "it waits for what it began"
    before = read(first.history)

    last = max(entry.scheduled for entry in before)
    wait_for(lambda: latest(job.schedule, datetime.now(UTC)) >= last + 3 * EVERY)
    second = Serving(tmp_path)
    started.append(second)
    second.wait_for("missed", 2)
    second.wait_for("complete", len([e for e in before if e.outcome == "complete"]) + 1)
    assert second.end() == 0

    entries = read(second.history)
    (since, *rest) = sorted(entries, key=lambda entry: entry.scheduled)
    assert since.outcome == "since"
    expected = between(job.schedule, since.scheduled, rest[-1].scheduled)
    assert [entry.scheduled for entry in rest] == expected, "each occurrence once"
    skipped = [e for e in rest if e.outcome == "skipped"]
    begun = {e.scheduled for e in rest if e.outcome in ("complete", "stopped")}
    for entry in skipped:
        assert entry.exit_code == 77
        named = re.search(r"was skipped: that of (\S+) goes on, by process \d+", entry.message)
        assert named, entry.message
        earlier = datetime.fromisoformat(named[1])
        assert earlier in begun
        assert earlier < entry.scheduled
    missed = [e for e in rest if e.outcome == "missed"]
    made_up = next(e for e in rest if e.scheduled > last and e.outcome != "missed")
    unserved = between(job.schedule, last, made_up.scheduled)[:-1]
    assert len(unserved) >= 2
    assert [e.scheduled for e in missed if e.scheduled < made_up.scheduled] == unserved
    assert made_up.outcome == "complete"
    assert made_up.started is not None
    # It was the latest that had come when it was decided, a moment before it was started.
    assert latest(job.schedule, made_up.started) - made_up.scheduled <= EVERY
    assert [e.started for e in missed] == [None] * len(missed)

    runs = {Path(job.path_at(e.scheduled)) for e in rest if e.outcome == "complete"}
    assert len(runs) >= 2
    assert {
        run for run in (tmp_path / "runs").iterdir() if (run / "_jacjobs" / "manifest.json").exists()
    } == runs
    for run in runs:
        assert jacjobs.open(run).to_numpy().shape == (4, 4, 4)
    skipped_runs = {Path(job.path_at(e.scheduled)) for e in [*skipped, *missed]}
    assert not any(run.exists() for run in skipped_runs), "nothing was written for those"


@pytest.mark.timeout(280)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_interrupted_goes_on_when_it_is_served_again(
    tmp_path: Path, started: list[Serving], how: signal.Signals
) -> None:
    """Once stopped in good order, once killed with all that it began. The run is finished, where it was."""
    job = small_job(tmp_path, "0 0 1 1 *", size=512)
    newest = latest(job.schedule, datetime.now(UTC))
    history = History(tmp_path / "history.jsonl")
    history.add(Entry(job=job.name, scheduled=newest - timedelta(days=1), outcome="since"))
    history.close()
    (tmp_path / "hold").touch()
    first = Serving(tmp_path)
    started.append(first)
    run = Path(job.path_at(newest))
    wait_for((run / "_jacjobs" / "held").exists, first.process)
    if how == signal.SIGTERM:
        first.process.send_signal(how)
        wait_for(lambda: "stopping: no new blocks" in first.said.read_text(), first.process)
        (tmp_path / "hold").unlink()
        assert first.process.wait(timeout=120) == 0
        (entry,) = first.entries("stopped")
        assert entry.exit_code == 75
    else:
        for process in (first.process, *first.process.children(recursive=True)):
            process.kill()
        first.process.wait(timeout=60)
        (tmp_path / "hold").unlink()
        (entry,) = first.entries("running")
    assert entry.scheduled == newest
    assert not (run / "_jacjobs" / "manifest.json").exists()

    second = Serving(tmp_path)
    started.append(second)
    second.wait_for("complete")
    assert second.end(signal.SIGINT) == 0
    assert [(e.scheduled, e.outcome) for e in read(second.history) if e.outcome != "since"] == [
        (newest, "complete")
    ]
    assert jacjobs.open(run).missing == []


# -- what is due, by a clock that the test turns -------------------------------------------------------------


class Clock:
    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


def server(job: ScheduledJob, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Server:
    """One whose occurrences are only noted."""
    made = Server([job], History(path), lambda _: None, clock)

    def begin(job: ScheduledJob, occurrence: datetime) -> None:
        made._note(Entry(job=job.name, scheduled=occurrence, outcome="running"))

    monkeypatch.setattr(made, "_start", begin)
    return made


def outcomes(path: Path) -> list[tuple[str, str]]:
    return [(e.scheduled.strftime("%H:%M"), e.outcome) for e in read(path) if e.outcome != "since"]


@pytest.mark.parametrize(("deadline", "newest"), [("", "running"), (", start_deadline: 10min", "missed")])
def test_of_what_came_while_nobody_was_there_the_latest_is_made_up_for_unless_it_is_too_late(
    deadline: str, newest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(tmp_path, "@hourly", more=deadline)
    path = tmp_path / "history"
    clock = Clock(NOON)
    serving = server(job, path, clock, monkeypatch)
    serving._history.add(Entry(job=job.name, scheduled=NOON, outcome="complete"))
    clock.now += timedelta(hours=3, minutes=20)
    serving._take_over(job)
    assert outcomes(path) == [
        ("12:00", "complete"),
        ("13:00", "missed"),
        ("14:00", "missed"),
        ("15:00", newest),
    ]
    serving._due(job)
    assert len(outcomes(path)) == 4, "nothing new has come"
    clock.now = NOON + timedelta(hours=4)
    serving._due(job)
    assert outcomes(path)[4:] == [("16:00", "running")]


def test_a_run_whose_server_was_killed_is_not_forgotten_when_later_ones_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(tmp_path, "@hourly")
    path = tmp_path / "history"
    serving = server(job, path, Clock(NOON + timedelta(hours=2)), monkeypatch)
    serving._history.add(Entry(job=job.name, scheduled=NOON, outcome="running", started=NOON))
    serving._take_over(job)
    assert outcomes(path) == [("12:00", "stopped"), ("13:00", "missed"), ("14:00", "running")]
    assert read(path)[0].message == "its server was killed"


def test_apscheduler_is_told_the_occurrences_of_the_schedule(tmp_path: Path) -> None:
    from jacjobs.scheduling.serve import _Times

    job = small_job(tmp_path, "30 2 * * *", more=", timezone: Europe/Berlin")
    times = _Times(job.schedule)
    now = datetime(2026, 3, 27, 12, tzinfo=UTC)
    fired: list[datetime] = []
    while len(fired) < 4:
        fired.append(times.get_next_fire_time(fired[-1] if fired else None, now))
    expected = following(job.schedule, now)
    assert fired == [next(expected) for _ in fired]


# -- history -------------------------------------------------------------------------------------------------


def test_the_last_word_counts_and_a_line_cut_short_does_not(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    history.add(Entry(job="a", scheduled=NOON, outcome="running", started=NOON))
    history.add(Entry(job="b", scheduled=NOON, outcome="missed", message='"quoted"\nand more'))
    history.add(Entry(job="a", scheduled=NOON, outcome="complete", started=NOON, ended=NOON, exit_code=0))
    history.close()
    with path.open("a") as file:
        file.write('{"job": "a", "scheduled": "2026-07')
    again = History(path)
    again.add(Entry(job="a", scheduled=NOON + timedelta(hours=1), outcome="failed", exit_code=3))
    again.close()
    assert [(e.job, e.outcome) for e in read(path)] == [("a", "complete"), ("b", "missed"), ("a", "failed")]
    assert read(path)[1].message == '"quoted"\nand more'


def test_two_do_not_write_one_history(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    with pytest.raises(InputError, match="a `jacjobs schedule serve` that writes it, expected one at a time"):
        History(tmp_path / "history.jsonl")
    history.close()
    History(tmp_path / "history.jsonl").close()


def test_json_of_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jacjobs.cli.app import main

    history = History(tmp_path / "history.jsonl")
    history.add(Entry(job="a", scheduled=NOON - EVERY, outcome="since"))
    history.add(
        Entry(
            job="a",
            scheduled=NOON,
            outcome="failed",
            started=NOON,
            ended=NOON + EVERY,
            exit_code=3,
            message="x",
        )
    )
    history.close()
    for more in ([], ["--json"]):
        monkeypatch.setattr(
            sys, "argv", ["jacjobs", "schedule", "history", str(tmp_path / "history.jsonl"), *more]
        )
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 0
        printed = capsys.readouterr().out
        if more:
            (entry,) = json.loads(printed)
            assert (entry["outcome"], entry["exit_code"], entry["scheduled"]) == (
                "failed", 3, "2026-07-01T12:00:00Z"
            )  # fmt: skip
        else:
            assert printed.splitlines()[1].split() == [
                "2026-07-01T12:00:00+00:00",
                "a",
                "failed",
                "10",
                "s",
                "x",
            ]
