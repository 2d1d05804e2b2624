"""Jobs sent to a real cluster by its Jobs API: followed, stopped, resumed, attached to, refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import jacjobs
from jacjobs.jobspec import read_job
from jacjobs.remote.shipment import pack
from tests.faults import troubled
from tests.faults.job import Ending, TroubledJob, ending, parts, read_until, wait_for
from tests.ports import free_port
from tests.remote.door import Door, saying
from tests.remote.head import TOKEN, Head, head

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    with head(uuid.uuid4().hex) as started:
        yield started


class Sent:
    """A job whose folder travels, and its troubles, which do not."""

    def __init__(self, cluster: Head, folder: Path, points: int = 12) -> None:
        self.cluster = cluster
        self.job = TroubledJob(folder / "here", points)
        self.out = self.job.out
        self.file = folder / "sent" / "job.yaml"
        self.file.parent.mkdir()
        shutil.copy(troubled.__file__, self.file.parent)
        content = yaml.safe_load(self.job.file.read_text())
        content["name"] = self.name = folder.name
        content["cluster"]["address"] = cluster.address
        self.file.write_text(yaml.safe_dump(content))

    def command(self, *arguments: str, elsewhere: bool = True) -> list[str]:
        where = ["--address", self.cluster.address] if elsewhere else []
        return [sys.executable, "-m", "jacjobs", *arguments, *where]

    def run(self, *arguments: str, env: dict[str, str] | None = None, elsewhere: bool = True) -> Ending:
        command = self.command(*arguments, elsewhere=elsewhere)
        environment = self.cluster.environment if env is None else env
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
        return Ending(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> object:
        return self.job.start(self.command(*arguments), env=self.cluster.environment)

    def state(self) -> str:
        content = json.loads(self.run("status", self.name, "--json").printed)
        assert content["path"] == str(self.out)
        return str(content["state"])


@pytest.fixture
def sent(cluster: Head, tmp_path: Path) -> Iterator[Sent]:
    job = Sent(cluster, tmp_path)
    yield job
    job.job.end()


def test_a_job_is_sent_and_followed_to_its_end(sent: Sent) -> None:
    done = sent.run("submit", str(sent.file))
    assert done.code == 0, done.errors
    lines = done.printed.splitlines()
    assert lines[0].startswith(f"submitted: jacjobs-{sent.name}-")
    assert lines[1].startswith("J is 12 × 16 × 8,192 float64, 12.0 MiB: vjp/loop")
    assert lines[-2].startswith(f"complete: 1 part, 12.0 MiB in {sent.out}")
    assert not done.errors, "what Ray says of itself is left out"
    assert parts(sent.out) == sent.job.undisturbed()
    assert sent.state() == "complete"
    listed = {row["name"]: row for row in json.loads(sent.run("list", "--json").printed)}
    assert listed[sent.name]["state"] == "complete"
    told = [
        json.loads(line) for line in sent.run("logs", sent.name, "--log-format", "json").printed.splitlines()
    ]
    assert told[-1]["event"] == "complete"
    assert told[-1]["bytes"] == sum(path.stat().st_size for path in sent.out.glob("part-*"))


def test_a_second_submit_attaches_ctrl_c_detaches_and_the_job_goes_on(sent: Sent) -> None:
    sent.job.trouble(7, "hold")
    first = sent.start("submit", str(sent.file))
    sent.job.wait_until_met(7)
    second = sent.start("submit", str(sent.file))
    read_until(second, "runs already: ")
    read_until(second, "J is ")
    for process in (first, second):
        os.kill(process.pid, signal.SIGINT)
        left = ending(process)
        assert left.code == 75
        assert left.says.startswith("left; the job goes on: ")
    assert sent.state() == "running"
    following = sent.start("logs", sent.name, "--follow")
    sent.job.calm(7)
    done = ending(following)
    assert done.code == 0, done.errors
    assert "complete: 1 part" in done.printed
    calls = sent.job.calls()
    assert {calls[point] for point in range(2, 12)} == {1}, "each was computed once; the first are looked at"
    assert len(sent.run("list", "--json").printed.split(f'"name": "{sent.name}"')) == 2, "submitted once"


def test_a_job_that_is_stopped_keeps_its_parts_and_is_resumed(sent: Sent) -> None:
    sent.job.trouble(9, "hold")
    following = sent.start("submit", str(sent.file))
    sent.job.wait_until_met(9)
    stopped = sent.run("stop", sent.name)
    assert stopped.printed.startswith(f"asked jacjobs-{sent.name}-")
    read_until(following, "stopping: no new blocks")  # asked is not heard: what is left takes milliseconds
    sent.job.calm(9)
    left = ending(following)
    assert left.code == 75
    assert left.says.startswith("stopped on request; what was committed stays")
    assert sent.state() == "stopped"
    assert jacjobs.open(sent.out).missing
    again = sent.run("stop", sent.name)
    assert again.code == 2
    assert "got a job that has ended, stopped, expected one that runs" in again.says
    before = sent.job.calls()
    resumed = sent.run("resume", sent.name)
    assert resumed.code == 0, resumed.errors
    assert resumed.printed.splitlines()[0].split(" at ")[0].endswith("-2")
    assert parts(sent.out) == sent.job.undisturbed()
    assert sum(sent.job.calls().values()) < sum(before.values()) + 12, "what was there was not computed again"


def test_the_users_error_arrives_with_its_traceback_and_its_exit_code(sent: Sent) -> None:
    sent.job.trouble(5, "fail")
    done = sent.run("submit", str(sent.file))
    assert done.code == 3
    assert "no result at point 5" in done.says
    assert 'in fail\n    raise ZeroDivisionError(f"no result at point {file.name}")' in done.errors
    assert sent.state() == "failed"


def test_a_connection_that_is_lost_is_made_again(sent: Sent) -> None:
    """Through a door that is shut while the job is held, and opened again."""
    sent.job.trouble(7, "hold")
    with Door(sent.cluster.address) as door:
        command = [sys.executable, "-m", "jacjobs", "submit", str(sent.file), "--address", door.address]
        following = sent.job.start(command, env=sent.cluster.environment)
        sent.job.wait_until_met(7)
        read_until(following, "J is ")
        door.shut()
        sent.job.calm(7)
        wait_for(lambda: sent.state() == "complete")
        door.open()
        done = ending(following)
    assert done.code == 0, done.errors
    assert done.printed.count("complete: 1 part") == 1
    assert "J is " not in done.printed, "what was told before is not told again"


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "got no token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nonexistent"}, "got no token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN[::-1]}, "got a token that is not this cluster's"),
    ],
    ids=["none", "none found", "wrong"],
)
def test_a_token_that_is_missing_or_wrong(
    sent: Sent, mode: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment = {**clean, "HOME": str(tmp_path), **mode}
    done = sent.run("submit", str(sent.file), env=environment)
    assert done.code == 2
    assert done.says.startswith(f"{sent.cluster.address}: {sentence}")
    assert len(done.errors.strip().splitlines()) == 1, "one sentence, nothing else"
    assert not sent.out.exists()


def test_nobody_there_nobody_of_that_name_and_somebody_else(sent: Sent) -> None:
    nobody = sent.run("list", "--address", f"http://127.0.0.1:{free_port()}", elsewhere=False)
    assert nobody.code == 2
    assert "where nobody answers" in nobody.says
    with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi") as address:
        other = sent.run("list", "--address", address, elsewhere=False)
    assert other.code == 2
    assert "no answer of a Ray dashboard" in other.says
    old = b'{"ray_version": "2.9.3", "ray_commit": "0", "version": "4", "session_name": "s"}'
    with saying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(old), old)) as address:
        other = sent.run("list", "--address", address, elsewhere=False)
    assert other.code == 2
    assert "got Ray 2.9.3, expected 2.50 or later" in other.says
    unknown = sent.run("status", "no-such-job")
    assert unknown.code == 2
    assert "expected one of those there" in unknown.says


def test_a_cluster_that_lacks_what_jacjobs_needs(sent: Sent, tmp_path: Path) -> None:
    """Its Python is another one, which has less: the sentence names what."""
    environment = tmp_path / "less"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    package = next(Path(p) for p in sys.path if (Path(p) / "packaging").is_dir())
    target = environment / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    for part in (package / "packaging", *package.glob("packaging-*.dist-info")):
        shutil.copytree(part, target / part.name)
    shipment = pack(read_job(sent.file, []), sent.file, tmp_path / "stage")
    done = subprocess.run(
        [str(environment / "bin" / "python"), *shipment.entrypoint.split()[1:]],
        cwd=shipment.folder,
        env={"PYTHONPATH": str(tmp_path / "stage")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    event = json.loads(done.stdout)
    assert event["exit_code"] == 2
    lacks = event["message"].partition(" lacks ")[2].partition("; install")[0].split(", ")
    assert any(one.startswith("torch") for one in lacks)
    assert not any(one.startswith("packaging") for one in lacks)


def test_an_occurrence_is_sent_and_no_other_one_beside_it(sent: Sent) -> None:
    """The cluster's jobs say what goes on, wherever the runs are."""
    content = yaml.safe_load(sent.file.read_text())
    content["schedule"] = {"cron": "@yearly"}
    content["output"]["path"] += "-{scheduled:%Y}"
    sent.file.write_text(yaml.safe_dump(content))
    sent.job.trouble(7, "hold")
    first = sent.run("submit", str(sent.file), "--scheduled", "2024-01-01", "--no-follow")
    assert first.code == 0, first.errors
    sent.job.wait_until_met(7)
    second = sent.run("submit", str(sent.file), "--scheduled", "2025-01-01")
    assert second.code == 77
    assert "the occurrence of 2025-01-01T00:00:00+00:00 was skipped: jacjobs-" in second.says
    again = sent.start("submit", str(sent.file), "--scheduled", "2024-01-01")
    read_until(again, "runs already: ")
    sent.job.calm(7)
    assert ending(again).code == 0
    run = sent.out.with_name(f"{sent.out.name}-2024")
    assert parts(run) == sent.job.undisturbed()
    assert not sent.out.with_name(f"{sent.out.name}-2025").exists()
