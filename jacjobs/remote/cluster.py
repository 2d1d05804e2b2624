"""A cluster, as its Jobs API shows it. Each refusal is one sentence.

Source: https://docs.ray.io/en/latest/cluster/running-applications/job-submission/sdk.html
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from packaging.version import Version

from jacjobs.errors import InputError, JacjobsError, WorkersError
from jacjobs.remote.naming import submission_id

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

    from jacjobs.remote.shipment import Shipment

State = Literal["pending", "running", "complete", "stopped", "incomplete", "failed"]
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 15.0
"""After so long without a line it is asked whether the job still runs."""
RECONNECT_SECONDS = 600.0
"""How long a connection that was lost is sought again."""
STOP_SECONDS = 60
"""How long Ray lets a job that is to stop finish what it has in hand; its own answer is 3."""
DRIVER_BYTES = 1 << 30
"""What the process that plans and watches asks for: memory, and no CPU, so that none is lost to workers. A
request for memory also lets Ray place it on any node, where it would else be the head's.
"""
LEAST_RAY = Version("2.50")
"""Here as the package requires it, there as jobs are sent."""
ACTIVE = ("pending", "running")
_TALKATIVE = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
_OVERRIDING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@dataclass(frozen=True)
class Submission:
    """One job of ours. Times: seconds since 1970, UTC. `message` is Ray's."""

    id: str
    name: str
    path: str
    job: str
    digest: str
    state: State
    exit_code: int | None
    message: str
    started: float | None
    ended: float | None


class Sent(NamedTuple):
    """attached: it was running already. changed: with other files than those that are here now."""

    id: str
    attached: bool = False
    changed: bool = False


class Cluster:
    """Raises InputError where nobody answers, or who answers refuses."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        _knock(self.address)
        with self._asking():
            self._client = _client(self.address)
            there = Version(str(self._client._do_request("GET", "/api/version").json()["ray_version"]))
        if there < LEAST_RAY:
            raise InputError.about(
                self.address, got=f"Ray {there}", expected=f"{LEAST_RAY} or later", do="upgrade the cluster"
            )

    def submit(self, shipment: Shipment) -> Sent:
        """Have it run, unless the same job file is running already for the same place.

        Raises InputError where another job is writing there.
        """
        for one in self.submissions():
            if one.state not in ACTIVE or one.path != shipment.path:
                continue
            if one.job == shipment.job:
                return Sent(one.id, attached=True, changed=one.digest != shipment.digest)
            raise InputError.about(
                f"output path {one.path}",
                got=f"another job that is writing there: {one.id}",
                expected="one job at a time",
                do=f"`jacjobs stop {one.id} --address {self.address}` first, or choose another path",
            )
        environment = {
            "working_dir": str(shipment.folder),
            "py_modules": [str(module) for module in shipment.modules],
        }
        about = {
            "jacjobs": "1",
            "name": shipment.name,
            "path": shipment.path,
            "job": shipment.job,
            "digest": shipment.digest,
        }
        return self._submit(shipment.id, shipment.entrypoint, environment, about)

    def again(self, submission: Submission) -> Sent:
        """Submit it once more as it was, if it does not run any more.

        Raises InputError where its code is gone from the cluster.
        """
        for one in self.submissions():
            if one.state in ACTIVE and one.path == submission.path:
                return Sent(one.id, attached=True)
        with self._asking():
            details = self._client.get_job_info(submission.id)
        environment = {k: v for k, v in (details.runtime_env or {}).items() if k != "env_vars"}
        packages = [environment.get("working_dir", ""), *environment.get("py_modules", [])]
        if not all(package and self._has(package) for package in packages):
            raise InputError.about(
                submission.id,
                got="a job whose code the cluster has let go of",
                expected="one that ended minutes ago",
                do="submit its job file again: it finishes the run",
            )
        first = submission_id(submission.name, submission.digest)
        return self._submit(first, details.entrypoint, environment, dict(details.metadata or {}))

    def submissions(self) -> list[Submission]:
        """Ours, the latest first."""
        with self._asking():
            found = self._client.list_jobs()
        ours = [_submission(one) for one in found if one.submission_id and "jacjobs" in (one.metadata or {})]
        return sorted(ours, key=lambda one: one.started or float("inf"), reverse=True)

    def find(self, which: str) -> Submission:
        """By its id; by the job's name or the path of its run: the one that goes on, or else the latest."""
        every = self.submissions()
        for one in sorted(every, key=lambda one: (one.id != which, one.state not in ACTIVE)):
            if which in (one.id, one.name, one.path):
                return one
        names = ", ".join(dict.fromkeys(one.name for one in every)) or "none"
        raise InputError.about(
            f"job {which!r}",
            got=f"none of that name or id at {self.address}",
            expected=f"one of those there: {names}",
            do="`jacjobs list --address …` lists them",
        )

    def stop(self, submission: Submission) -> None:
        with self._asking():
            self._client.stop_job(submission.id)

    def wait(self, id: str) -> None:
        """Until it has ended: after a request to stop, when what it has in hand is done."""
        give_up = time.monotonic() + 2 * STOP_SECONDS
        while self.submission(id).state in ACTIVE:
            if time.monotonic() > give_up:
                raise WorkersError(f"{id} was asked to stop, and goes on after {2 * STOP_SECONDS} s")
            time.sleep(1.0)

    def log(self, submission: Submission) -> str:
        with self._asking():
            return str(self._client.get_job_logs(submission.id))

    def follow(self, id: str) -> Iterator[str | Submission]:
        """The lines of its log from the beginning, until it has ended; where it says nothing for a while,
        how it stands. A connection that is lost is made again, and goes on where it was.

        Raises WorkersError where that takes too long.
        """
        seen = 0
        lost: float | None = None
        pending = ""
        while True:
            skip = seen
            try:
                for text in self._tail(id):
                    if isinstance(text, Submission):
                        lost = None
                        yield text
                        continue
                    fresh = text[skip:]
                    lost = None if fresh else lost
                    skip = max(0, skip - len(text))
                    seen += len(fresh)
                    *lines, pending = (pending + fresh).split("\n")
                    yield from lines
                if self._now(id).state not in ACTIVE:
                    if pending:
                        yield pending
                    return
            except _LostError as error:
                now = time.monotonic()
                lost = lost or now
                if self._has_ended(id):  # no more will come, whatever it is that does not
                    yield from [*pending.split("\n"), *self._rest_of_log(id, seen)]
                    return
                if now - lost > RECONNECT_SECONDS:
                    raise WorkersError(
                        f"the connection to {self.address} was lost ({error}) and does not come back; the "
                        f"job goes on: `jacjobs logs {id} --follow --address {self.address}`"
                    ) from None
            time.sleep(1.0)

    def submission(self, id: str) -> Submission:
        with self._asking():
            return _submission(self._client.get_job_info(id))

    # -- asking --------------------------------------------------------------------------------------------

    def _submit(self, id: str, entrypoint: str, environment: dict[str, Any], about: dict[str, str]) -> Sent:
        """An id is used once in the life of a cluster: a job that has ended is submitted under the next one,
        and finishes what its run lacks.
        """
        environment = {**environment, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}
        for number in itertools.count(1):
            taken = id if number == 1 else f"{id}-{number}"
            try:
                with self._asking():
                    self._client.submit_job(
                        entrypoint=entrypoint,
                        submission_id=taken,
                        runtime_env=environment,
                        metadata=about,
                        entrypoint_memory=DRIVER_BYTES,
                    )
            except WorkersError as error:
                if "already exists" not in str(error):
                    raise
                if self.submission(taken).state in ACTIVE:
                    return Sent(taken, attached=True)  # somebody was faster
            else:
                return Sent(taken)
        raise AssertionError

    def _has(self, package: str) -> bool:
        """Does the cluster still have what was uploaded as gcs://…?"""
        scheme, _, name = package.partition("://")
        with self._asking():
            return bool(self._client._do_request("GET", f"/api/packages/{scheme}/{name}").ok)

    def _has_ended(self, id: str) -> bool:
        try:
            return self._now(id).state not in ACTIVE
        except _LostError:
            return False

    def _rest_of_log(self, id: str, seen: int) -> list[str]:
        try:
            return str(self._client.get_job_logs(id))[seen:].splitlines()
        except Exception:  # what could not be followed may not be readable either
            return []

    def _now(self, id: str) -> Submission:
        """Raises _LostError where nobody answers."""
        try:
            return _submission(self._client.get_job_info(id))
        except Exception as error:
            raise _LostError(_first_line(error)) from None

    def _tail(self, id: str) -> Iterator[str | Submission]:
        """The log as it comes. Raises _LostError with the connection."""
        loop = asyncio.new_event_loop()
        stream = self._client.tail_job_logs(id).__aiter__()
        waiting: asyncio.Task[str] | None = None
        try:
            while True:
                waiting = waiting or loop.create_task(anext(stream))
                done, _ = loop.run_until_complete(asyncio.wait({waiting}, timeout=SILENCE_SECONDS))
                if not done:
                    now = self._now(id)
                    yield now
                    if now.state not in ACTIVE:
                        return
                    continue
                task, waiting = waiting, None
                yield task.result()
        except StopAsyncIteration:
            return
        except _LostError:
            raise
        except Exception as error:  # of Ray's, aiohttp's or the system's: all mean the same here
            raise _LostError(_first_line(error)) from None
        finally:
            if waiting is not None:
                waiting.cancel()
                loop.run_until_complete(asyncio.wait({waiting}))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """What Ray's client raises, in a sentence."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except JacjobsError:
            raise
        except AuthenticationError as error:
            missing = "Authentication failed" not in str(error)
            raise InputError.about(
                self.address,
                got="no token" if missing else "a token that is not this cluster's",
                expected="the one that the cluster was started with",
                do="set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH",
            ) from None
        except (ConnectionError, requests.exceptions.RequestException, ValueError, KeyError) as error:
            raise InputError.about(
                self.address,
                got=f"no answer of a Ray dashboard ({_first_line(error)})",
                expected="the address of one, http://HEAD:8265",
                do="check the address; `ray start --head` says it, `ray dashboard cluster.yaml` forwards it",
            ) from None
        except RuntimeError as error:
            raise WorkersError(f"{self.address} refused: {_first_line(error).rstrip('.')}") from None


class _LostError(Exception):
    """The connection was lost."""


def _client(address: str) -> JobSubmissionClient:
    """Ray would let the environment decide, whatever address it was given."""
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    kept = {name: os.environ.pop(name) for name in _OVERRIDING if name in os.environ}
    try:
        return JobSubmissionClient(address)
    finally:
        os.environ.update(kept)


def _knock(address: str) -> None:
    """Ray would wait for minutes at a door behind which nobody is."""
    url = urlsplit(address)
    try:
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        socket.create_connection((url.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, KeyError) as error:
        raise InputError.about(
            "cluster.address",
            got=f"{address}, where nobody answers ({_first_line(error)})",
            expected="the address of a Ray dashboard, http://HEAD:8265",
            do="check that the cluster is up and that its port is reachable from here",
        ) from None


def _submission(details: JobDetails) -> Submission:
    about = details.metadata or {}
    return Submission(
        id=details.submission_id or "",
        name=about.get("name", ""),
        path=about.get("path", ""),
        job=about.get("job", ""),
        digest=about.get("digest", ""),
        state=_state(str(details.status.value), details.driver_exit_code),
        exit_code=details.driver_exit_code,
        message=details.message or "",
        started=None if details.start_time is None else details.start_time / 1000,
        ended=None if details.end_time is None else details.end_time / 1000,
    )


def _state(status: str, exit_code: int | None) -> State:
    states: dict[str, State] = {
        "PENDING": "pending",
        "RUNNING": "running",
        "SUCCEEDED": "complete",
        "STOPPED": "stopped",
    }
    ended: dict[int | None, State] = {4: "incomplete", 75: "stopped"}
    return states.get(status) or ended.get(exit_code, "failed")


def _first_line(error: BaseException) -> str:
    """Of what was said; of a traceback of the server's, the last that says something."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    if "Traceback (most recent call last)" not in lines[0]:
        return lines[0]
    return next(line for line in reversed(lines) if any(map(str.isalnum, line)))
