"""What `jacjobs submit --scheduled` starts, and what it leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pytest

import jacjobs
from jacjobs.cli.app import main
from jacjobs.errors import JacjobsError, SkippedError
from jacjobs.occurrences import following, latest, preceding, shown
from jacjobs.scheduling import overlap
from jacjobs.scheduling.jobs import ScheduledJob
from jacjobs.scheduling.overlap import LOOK_BACK, admit, unfinished
from jacjobs.store.folder import RunFolder
from jacjobs.store.lock import RunLock
from tests.scheduling.small import small_job, wait_for

NOW = datetime(2026, 7, 1, 12, 34, tzinfo=UTC)
POLICIES = ["forbid", "replace", "allow"]


def asked(job: ScheduledJob, occurrence: datetime, now: datetime = NOW) -> list[str]:
    """What is told on the way, if it may start."""
    told: list[str] = []
    admit(job.spec, occurrence, now, told.append)
    return told


def occurrences(job: ScheduledJob, number: int) -> list[datetime]:
    """The latest first."""
    return list(islice(preceding(job.schedule, NOW), number))


@contextmanager
def working_on(job: ScheduledJob, occurrence: datetime) -> Iterator[RunFolder]:
    """Somebody who lives holds the lock of that occurrence's run, and lets go when asked to stop."""
    folder = RunFolder(job.path_at(occurrence))
    folder.place.prepare()
    lock, over = RunLock(folder.place), threading.Event()
    lock.acquire()

    def obey() -> None:
        while not folder.stop_requested() and not over.wait(0.05):
            pass
        lock.release()

    thread = threading.Thread(target=obey, daemon=True)
    thread.start()
    try:
        yield folder
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("back", [1, 5, LOOK_BACK - 1])
def test_an_earlier_occurrence_that_goes_on(tmp_path: Path, policy: str, back: int) -> None:
    job = small_job(tmp_path, "@hourly", more=f", overlap: {policy}")
    newest, *_, earlier = occurrences(job, back + 1)
    with working_on(job, earlier) as folder:
        if policy == "forbid":
            with pytest.raises(SkippedError) as caught:
                asked(job, newest)
            assert str(caught.value).startswith(
                f"small: the occurrence of {shown(job.schedule, newest)} was skipped: that of "
                f"{shown(job.schedule, earlier)} goes on, by process "
            )
            assert not folder.stop_requested()
        elif policy == "replace":
            (told,) = asked(job, newest)
            assert told.startswith(f"stopping the occurrence of {shown(job.schedule, earlier)}, by process ")
            assert folder.stop_requested()
            assert overlap.live_runs(job.spec, NOW) == [], "it waited for the end of that one"
        else:
            assert asked(job, newest) == []
            assert not folder.stop_requested()


def test_a_later_occurrence_overlaps_with_an_earlier_one_that_is_resumed(tmp_path: Path) -> None:
    job = small_job(tmp_path, "@hourly")
    newest, earlier = occurrences(job, 2)
    with working_on(job, newest), pytest.raises(SkippedError, match="goes on, by process"):
        asked(job, earlier)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_that_goes_on_already_is_not_started_twice(tmp_path: Path, policy: str) -> None:
    """Whatever the policy: that is about others. It is not asked to stop."""
    job = small_job(tmp_path, "@hourly", more=f", overlap: {policy}")
    newest = latest(job.schedule, NOW)
    with working_on(job, newest) as folder:
        with pytest.raises(SkippedError, match="was skipped: it is being computed, by process"):
            asked(job, newest)
        assert not folder.stop_requested()


def test_one_that_does_not_stop_is_waited_for_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(tmp_path, "@hourly", more=", overlap: replace")
    newest, earlier = occurrences(job, 2)
    folder = RunFolder(job.path_at(earlier))
    folder.place.prepare()
    lock = RunLock(folder.place)
    lock.acquire()
    monkeypatch.setattr(overlap, "REPLACE_SECONDS", 1.0)
    try:
        with pytest.raises(JacjobsError, match="was asked to stop, and goes on after 1 s") as caught:
            asked(job, newest)
    finally:
        lock.release()
    assert caught.value.exit_code == 1


def test_how_late_it_may_start(tmp_path: Path) -> None:
    job = small_job(tmp_path, "@hourly", more=", start_deadline: 30min")
    newest = datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert asked(job, newest, newest + timedelta(minutes=30)) == []
    with pytest.raises(SkippedError) as caught:
        asked(job, newest, newest + timedelta(minutes=30, seconds=1))
    assert str(caught.value) == (
        "small: the occurrence of 2026-07-01T12:00:00+00:00 was skipped: it may start at most 30min late, "
        "and it is 2026-07-01T12:30:01+00:00 now"
    )


# -- the command line ----------------------------------------------------------------------------------------


def ended(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["jacjobs", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScheduledJob:
    monkeypatch.chdir(tmp_path)
    return small_job(tmp_path, "0 2 * * *", more=", timezone: Europe/Berlin, start_deadline: 12h")


def test_every_occurrence_has_its_run_and_submitting_again_changes_nothing(
    job: ScheduledJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jacjobs.scheduling.overlap.refuse_late", lambda *_: None)
    newest, before, *_ = list(islice(preceding(job.schedule, datetime.now(UTC)), 2))
    assert ended(monkeypatch, "submit", str(job.file), "--scheduled", "latest") == 0
    assert ended(monkeypatch, "submit", str(job.file), "--scheduled", shown(job.schedule, before)) == 0
    runs = sorted((job.file.parent / "runs").iterdir())
    assert runs == sorted(Path(job.path_at(o)) for o in (newest, before))
    written = {path: path.read_bytes() for path in runs[0].rglob("*") if path.is_file()}
    monkeypatch.undo()
    monkeypatch.chdir(job.file.parent)
    # Late by now, perhaps: but there is nothing to start.
    assert ended(monkeypatch, "submit", str(job.file), "--scheduled", shown(job.schedule, before)) == 0
    parts = {path: content for path, content in written.items() if path.suffix == ".parquet"}
    assert parts
    assert {path: path.read_bytes() for path in parts} == parts
    capsys.readouterr()
    against = ["verify", str(runs[0]), "--against", str(job.file), "--scheduled", shown(job.schedule, before)]
    assert ended(monkeypatch, *against) == 0
    assert "J agrees with the job's products" in capsys.readouterr().out


def test_an_interrupted_one_goes_on_however_late(
    job: ScheduledJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed while it computed, three days late: it began, so it is not too late."""
    old = list(islice(preceding(job.schedule, datetime.now(UTC)), 4))[-1]
    time_of_it = shown(job.schedule, old)
    assert ended(monkeypatch, "submit", str(job.file), "--scheduled", time_of_it) == 77
    assert "it may start at most 12h late" in capsys.readouterr().err
    run = Path(job.path_at(old))
    assert not run.exists()

    monkeypatch.setattr("jacjobs.scheduling.overlap.refuse_late", lambda *_: None)
    assert ended(monkeypatch, "submit", str(job.file), "--scheduled", time_of_it) == 0
    monkeypatch.undo()
    monkeypatch.chdir(job.file.parent)
    whole = {part.name: part.read_bytes() for part in run.glob("part-*")}
    (run / "_jacjobs" / "manifest.json").unlink()
    for part in run.glob("part-*"):
        part.unlink()
    assert ended(monkeypatch, "submit", str(job.file), "--scheduled", time_of_it) == 0
    assert {part.name: part.read_bytes() for part in run.glob("part-*")} == whole


def test_one_that_goes_on_for_hours_is_seen_though_many_were_due_since(tmp_path: Path) -> None:
    job = small_job(tmp_path, "* * * * *")
    newest, *_, earlier = occurrences(job, 600)
    with working_on(job, earlier), pytest.raises(SkippedError, match="goes on, by"):
        asked(job, newest)


def test_what_was_begun_and_is_not_complete_is_found(
    job: ScheduledJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jacjobs.scheduling.overlap.refuse_late", lambda *_: None)
    newest, _, interrupted, complete = list(islice(preceding(job.schedule, datetime.now(UTC)), 4))
    assert unfinished(job.spec, datetime.now(UTC)) == newest, "nothing was begun"
    for occurrence in (interrupted, complete):
        assert (
            ended(monkeypatch, "submit", str(job.file), "--scheduled", shown(job.schedule, occurrence)) == 0
        )
    run = Path(job.path_at(interrupted))
    (run / "_jacjobs" / "manifest.json").unlink()
    with working_on(job, interrupted):
        assert unfinished(job.spec, datetime.now(UTC)) == newest, "somebody is at it"
    assert ended(monkeypatch, "submit", str(job.file), "--scheduled", "unfinished") == 0
    assert (run / "_jacjobs" / "manifest.json").exists()
    assert not Path(job.path_at(newest)).exists()


def test_skipped_is_77_and_one_sentence(
    job: ScheduledJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    newest, earlier = list(islice(preceding(job.schedule, datetime.now(UTC)), 2))
    RunFolder(job.path_at(newest)).place.prepare()
    monkeypatch.setattr("jacjobs.scheduling.overlap.refuse_late", lambda *_: None)
    with working_on(job, earlier):
        assert ended(monkeypatch, "submit", str(job.file), "--scheduled", "latest") == 77
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"jacjobs: small: the occurrence of {shown(job.schedule, newest)} was skipped: that"
    )
    assert not RunFolder(job.path_at(newest)).is_run


def test_of_two_that_begin_one_run_at_once_the_slower_is_skipped(
    job: ScheduledJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither saw the other when it asked; the lock of the run decides."""
    newest = latest(job.schedule, datetime.now(UTC))
    monkeypatch.setattr("jacjobs.scheduling.overlap.refuse_late", lambda *_: None)
    assert ended(monkeypatch, "submit", str(job.file), "--scheduled", "latest") == 0
    folder = RunFolder(job.path_at(newest))
    folder.place.remove("_jacjobs/manifest.json")
    with working_on(job, newest):
        monkeypatch.setattr("jacjobs.scheduling.overlap.admit", lambda *_: None)
        assert ended(monkeypatch, "submit", str(job.file), "--scheduled", "latest") == 77
    assert "small was skipped: run " in capsys.readouterr().err


def test_which_occurrence_must_be_said(
    job: ScheduledJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, "submit", str(job.file)) == 2
    assert "add `--scheduled latest`, or the time of one that" in capsys.readouterr().err
    plain = job.file.with_name("plain.yaml")
    plain.write_text("name: plain\nproblem: small.py:build\noutput: {path: runs/x}\n")
    assert ended(monkeypatch, "submit", str(plain), "--scheduled", "latest") == 2
    assert "got a job without a schedule" in capsys.readouterr().err
    assert ended(monkeypatch, "submit", str(job.file), "--scheduled", "2026-07-01T03:00") == 2
    assert "those beside it are 2026-07-01T02:00:00+02:00 and 2026-07-02" in capsys.readouterr().err
    coming = shown(job.schedule, next(following(job.schedule, datetime.now(UTC))))
    assert ended(monkeypatch, "submit", str(job.file), "--scheduled", coming) == 2
    assert "which is to come" in capsys.readouterr().err
    assert not (job.file.parent / "runs").exists()


def test_plan_takes_the_latest_and_writes_nothing(
    job: ScheduledJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, "plan", str(job.file)) == 0
    assert "4 × 4 × 4 float32" in capsys.readouterr().out
    assert not (job.file.parent / "runs").exists()


@pytest.mark.timeout(240)
def test_replace_stops_a_real_run_and_stop_finds_it_by_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process computes yesterday's; today's stops it with 75, and is then stopped by `jacjobs stop JOB`."""
    monkeypatch.chdir(tmp_path)
    job = small_job(tmp_path, "0 0 * * *", size=512, more=", overlap: replace")
    newest, earlier = list(islice(preceding(job.schedule, datetime.now(UTC)), 2))
    package = Path(jacjobs.__file__).parent.parent
    (tmp_path / "hold").touch()

    def start(occurrence: datetime) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "jacjobs", "submit", str(job.file), "--scheduled"]
        return subprocess.Popen(
            [*command, shown(job.schedule, occurrence)],
            stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(package)},
        )  # fmt: skip

    def held(occurrence: datetime) -> bool:
        return (Path(job.path_at(occurrence)) / "_jacjobs" / "held").exists()

    children = [start(earlier)]
    try:
        wait_for(lambda: held(earlier), children[0])
        children.append(start(newest))
        wait_for(RunFolder(job.path_at(earlier)).stop_requested, children[0])
        time.sleep(2.5)  # it looks every two seconds
        (tmp_path / "hold").unlink()
        assert children[0].wait(timeout=120) == 75
        (tmp_path / "hold").touch()
        wait_for(lambda: held(newest), children[1])
        assert ended(monkeypatch, "stop", str(job.file)) == 0
        time.sleep(2.5)
        (tmp_path / "hold").unlink()
        assert children[1].wait(timeout=120) == 75
    finally:
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
    assert f"jacjobs status {job.path_at(newest)}" in capsys.readouterr().out
    assert ended(monkeypatch, "stop", str(job.file)) == 2
    assert "got a job of which no occurrence goes on" in capsys.readouterr().err
