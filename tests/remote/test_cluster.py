"""A cluster's Jobs API that misbehaves: what the client makes of it, without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest

from jacjobs.cli import events
from jacjobs.errors import InputError, WorkersError
from jacjobs.remote import cluster
from jacjobs.remote.cluster import Cluster, Submission, _LostError


def submission(id: str, state: str = "complete", **about: Any) -> Submission:
    content = {"name": "a", "path": "/a", "job": "j", "digest": "d", "exit_code": None, "message": ""}
    return Submission(id=id, state=state, started=None, ended=None, **{**content, **about})  # type: ignore[arg-type]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)
    made = Cluster.__new__(Cluster)
    made.address = "http://head:8265"
    made._client = Mock()
    return made


def test_an_id_is_that_jobs_and_a_name_is_the_latests(jobs: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    every = [submission("jacjobs-a-1-2"), submission("jacjobs-a-1"), submission("jacjobs-b-1", name="b")]
    monkeypatch.setattr(jobs, "submissions", lambda: every)
    assert jobs.find("jacjobs-a-1").id == "jacjobs-a-1"
    assert jobs.find("a").id == "jacjobs-a-1-2"
    every[1] = submission("jacjobs-a-1", "running")
    assert jobs.find("a").id == "jacjobs-a-1", "the one that goes on"
    for unknown in ("", "j", "jacjobs-"):
        with pytest.raises(InputError, match="expected one of those there: a, b"):
            jobs.find(unknown)


def test_a_stream_that_always_breaks_ends_with_the_job(
    jobs: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What did not come by it is read at the end; nothing is told twice."""
    tries = iter(range(100))

    def tail(id: str) -> Iterator[str]:
        next(tries)
        yield "one\ntwo\nthr"
        raise _LostError("cut")

    monkeypatch.setattr(jobs, "_tail", tail)
    states = iter(["running"] * 5 + ["complete"])
    monkeypatch.setattr(jobs, "_now", lambda id: submission(id, next(states)))
    jobs._client.get_job_logs.return_value = "one\ntwo\nthree\nfour\n"
    lines = list(jobs.follow("jacjobs-a-1"))
    assert "".join(map(str, lines)) == "onetwothreefour"
    assert next(tries) == 6


def test_one_that_breaks_for_ever_is_given_up(jobs: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10**6, 100))
    monkeypatch.setattr(cluster.time, "monotonic", lambda: next(now))

    def tail(id: str) -> Iterator[str]:
        yield "one\n"
        raise _LostError("cut")

    monkeypatch.setattr(jobs, "_tail", tail)
    monkeypatch.setattr(jobs, "_now", lambda id: submission(id, "running"))
    lines = []
    with pytest.raises(WorkersError, match="does not come back"):
        lines.extend(jobs.follow("jacjobs-a-1"))


def test_the_same_job_file_is_attached_to_and_another_one_refused(
    jobs: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it runs; whatever has changed in its folder, such as a log."""
    monkeypatch.setattr(jobs, "submissions", lambda: [submission("jacjobs-a-1", "running")])
    assert jobs.submit(Mock(job="j", digest="d", path="/a")) == ("jacjobs-a-1", True, False)
    assert jobs.submit(Mock(job="j", digest="changed", path="/a")) == ("jacjobs-a-1", True, True)
    with pytest.raises(InputError, match="got another job that is writing there: jacjobs-a-1"):
        jobs.submit(Mock(job="another", digest="d", path="/a"))


def test_an_id_that_was_used_is_not_used_again(jobs: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    used = {"jacjobs-a-1", "jacjobs-a-1-2"}

    def submit_job(submission_id: str, **_: Any) -> None:
        if submission_id in used:
            raise RuntimeError(
                "Request failed with status code 500: Traceback (most recent call last):\n  File …\n"
                f"ValueError: Job with submission_id {submission_id} already exists. Use another one.\n."
            )

    jobs._client.submit_job = submit_job
    monkeypatch.setattr(jobs, "submission", lambda id: submission(id, "stopped"))
    assert jobs._submit("jacjobs-a-1", "python", {}, {}) == ("jacjobs-a-1-3", False, False)
    monkeypatch.setattr(jobs, "submission", lambda id: submission(id, "running"))
    assert jobs._submit("jacjobs-a-1", "python", {}, {}) == ("jacjobs-a-1", True, False), (
        "somebody was faster"
    )


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "progress", "step": 3}',
        '{"event": "error"}',
        '{"jacjobs": 1, "event": "other"}',
        "{",
        "[1]",
        "text",
    ],
)
def test_what_a_users_code_prints_is_no_event_of_ours(line: str) -> None:
    assert events.parsed(line) is None
    assert events.parsed(events.line(events.noted("ours"))) is not None
