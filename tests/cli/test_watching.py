"""How commands say what happens: as text, as events in JSON, for a run of another process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jacjobs.cli import events
from tests.faults.job import ROOT, Ending, TroubledJob, ending, parts, read_until, wait_for


def jacjobs(job: TroubledJob, *arguments: str) -> Ending:
    return ending(job.start(job.command(*arguments)))


def told(printed: str) -> list[events.Event]:
    """Every line is an event, with its time."""
    found = [json.loads(line) for line in printed.splitlines()]
    for event in found:
        assert event["event"] in events.KINDS
        age = datetime.now(UTC) - datetime.fromisoformat(event["time"])
        assert timedelta(seconds=-1) < age < timedelta(minutes=5)
    return found


def test_a_run_as_lines_of_json(job: TroubledJob) -> None:
    job.trouble(9, "hold")
    process = job.start(job.command("submit", str(job.file), "--address", "inline", "--log-format", "json"))
    read_until(process, '"blocks_done": 8, ')
    job.calm(9)
    done = ending(process)
    assert done.code == 0
    assert not done.errors
    *_, last = told(done.printed)
    assert last["event"] == "complete"
    assert last["bytes"] == sum(map(len, parts(job.out).values()))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--set", "compute.chunks=3"], 2, "did you mean 'chunk'?"),
        (["--address", "inline"], 3, "no result at point 5"),
    ],
)
def test_an_error_is_an_event_too(job: TroubledJob, arguments: list[str], code: int, says: str) -> None:
    job.trouble(5, "fail")
    done = jacjobs(job, "submit", str(job.file), *arguments, "--log-format", "json")
    assert done.code == code
    assert not done.errors
    *_, last = told(done.printed)
    assert (last["event"], last["exit_code"]) == ("error", code)
    assert says in last["message"]
    assert ("ZeroDivisionError" in last["traceback"]) == (code == 3)


def test_the_log_of_a_run_is_in_its_folder(job: TroubledJob) -> None:
    job.trouble(5, "fail")
    jacjobs(job, "submit", str(job.file), "--address", "inline")
    job.calm(5)
    jacjobs(job, "resume", str(job.out), "--address", "inline")
    lines = jacjobs(job, "logs", str(job.out)).printed.splitlines()
    assert lines[0].startswith("attempt 1 began on ")
    assert lines[1].startswith("attempt 1: failed, 4 of 12 blocks done: ")
    assert "no result at point 5" in lines[1]
    assert lines[2].startswith("attempt 2 began on ")
    assert lines[3] == "attempt 2: complete, 8 of 8 blocks done"
    said = told(jacjobs(job, "logs", str(job.out), "--log-format", "json").printed)
    assert [event["text"] for event in said] == lines


def test_the_run_of_another_process_is_followed_left_and_followed_again(job: TroubledJob) -> None:
    job.trouble(9, "hold")
    run = job.start(job.command("submit", str(job.file), "--address", "inline"))
    job.wait_until_met(9)
    first = job.start(job.command("logs", str(job.out), "--follow", "--log-format", "json"))
    read_until(first, "attempt 1: running")
    os.kill(first.pid, signal.SIGINT)
    left = ending(first)
    assert left.code == 75
    assert told(left.printed)[-1]["message"].startswith("left; the run goes on: ")
    assert run.poll() is None
    second = job.start(job.command("logs", str(job.out), "--follow"))
    read_until(second, "attempt 1: running")
    job.calm(9)
    assert ending(run).code == 0
    done = ending(second)
    assert done.code == 0
    assert done.printed.splitlines()[-2].startswith("complete: 3 parts, 12.0 MiB in ")


def test_a_run_that_is_killed_while_it_is_followed(job: TroubledJob) -> None:
    job.trouble(9, "hold")
    run = job.start(job.command("submit", str(job.file), "--address", "inline"))
    job.wait_until_met(9)
    following = job.start(job.command("logs", str(job.out), "--follow"))
    read_until(following, "attempt 1: running")
    run.kill()
    run.wait()
    done = ending(following)
    assert done.code == 1
    assert "interrupted, and nobody works on it; `jacjobs resume` goes on" in done.says
    wait_for(lambda: not job.relatives())


@pytest.mark.parametrize(
    ("words", "expected"),
    [("jacjobs st", {"stop", "status"}), ("jacjobs submit --fo", {"--force-new", "--follow"})],
)
def test_the_shell_completes_commands_and_options(words: str, expected: set[str]) -> None:
    environment = {
        **os.environ,
        "_JACJOBS_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    command = [str(Path(sys.executable).parent / "jacjobs")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == expected


def test_help_names_every_command_in_groups_and_fits_a_terminal() -> None:
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "jacjobs", "--help"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    groups = [line.split("─ ")[1].split(" ─")[0] for line in lines if line.startswith("╭─")]
    assert groups == ["Options", "Before a run", "Run", "Watch", "Read"]
    named = {line.split()[1] for line in lines if line.startswith("│ ") and line[2] != " "}
    prepare, go, watch = ("plan", "tune"), ("submit", "resume", "stop"), ("status", "logs", "list")
    for name in (*prepare, *go, *watch, "show", "report", "verify"):
        assert name in named
