"""Runs in an object store, over the S3 protocol: whole, counted, with a server that fails, and killed.

Arrow's client tries a request that is refused, or answered with a 5xx, 31 times within 6 s.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import fs
from torch.func import jacrev, vmap

import jacjobs
from jacjobs.errors import InputError, StoreError
from jacjobs.planning import geometry
from jacjobs.store import commit
from jacjobs.store import place as place_module
from jacjobs.store.lock import NAME as LOCK
from jacjobs.store.place import ObjectStore, place_of
from tests.store.s3 import BUCKET, ENVIRONMENT, Request, S3Server

pytestmark = pytest.mark.timeout(120)
MIB = 1 << 20
GIVE_UP_SECONDS = 6.0
"""When Arrow stops trying one request."""
X = torch.linspace(-1, 1, 6000, dtype=torch.float64).reshape(600, 10)
W = torch.linspace(0, 1, 70, dtype=torch.float64).reshape(7, 10)
OPTIONS: dict[str, Any] = {"address": "inline", "strategy": "vjp/vmap", "chunk": 64}


def fn(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(W @ x) * x.sum()


PROBLEM = jacjobs.Problem(fn, (X,), in_dims=0)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, well behaved, its count at zero, its bucket empty."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(place_module, "SETTLE_SECONDS", 0.05)
    server.empty()
    server.answers.clear()
    yield server
    server.rule = None


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """J of 336 kB in six parts."""
    monkeypatch.setattr(geometry, "SMALLEST_PART_BYTES", 64 << 10)
    monkeypatch.setattr(geometry, "SMALLEST_BLOCK_BYTES", 16 << 10)


JOB = """
import sys, torch, jacjobs
from jacjobs.planning import geometry
from jacjobs.store import place

place.SETTLE_SECONDS = 0.05
geometry.SMALLEST_PART_BYTES, geometry.SMALLEST_BLOCK_BYTES = 64 << 10, 16 << 10
X = torch.linspace(-1, 1, 6000, dtype=torch.float64).reshape(600, 10)
W = torch.linspace(0, 1, 70, dtype=torch.float64).reshape(7, 10)
problem = jacjobs.Problem(lambda x: torch.tanh(W @ x) * x.sum(), (X,), in_dims=0)

def submit(path, **options):
    return jacjobs.submit(problem, path, strategy="vjp/vmap", chunk=64, **options).result()
"""
"""The same problem, for processes of their own."""
INLINE = JOB + "submit(sys.argv[1], address='inline')\n"
ON_A_CLUSTER = (
    JOB
    + """
import ray
ray.init(address=sys.argv[2], runtime_env={"env_vars": dict(credentials)}, log_to_driver=False)
submit(sys.argv[1], address="local", workers=1)
submit(sys.argv[3], address="inline")
""".replace("dict(credentials)", repr(ENVIRONMENT))
)


def local_parts(path: Path) -> dict[str, bytes]:
    return {part.name.removeprefix("part-"): part.read_bytes() for part in path.glob("part-*.parquet")}


def place(s3: S3Server, key: str) -> ObjectStore:
    made = place_of(s3.uri(key))
    assert isinstance(made, ObjectStore)
    return made


def writes_part(request: Request) -> bool:
    return request.name.startswith("part-") and request.method in ("PUT", "POST")


# -- whole jobs --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_a_job_in_a_bucket_is_jacrev_and_has_the_bytes_of_a_local_one(
    s3: S3Server, layout: str, tmp_path: Path
) -> None:
    uri = s3.uri("runs/a")
    jacjobs.submit(PROBLEM, uri, layout=layout, **OPTIONS).wait()
    J = jacjobs.open(uri)
    np.testing.assert_allclose(J.to_numpy(), vmap(jacrev(fn))(X).numpy(), rtol=1e-12, atol=1e-14)
    assert J.complete
    assert len(J.part_names) > 1
    verdict = jacjobs.verify(uri)
    assert verdict.sound, verdict.faults
    jacjobs.submit(PROBLEM, tmp_path / "a", layout=layout, **OPTIONS).wait()
    assert s3.parts("runs/a") == local_parts(tmp_path / "a")


def test_a_matrix_goes_through_spills_which_are_swept(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 MB, so that the upload of a part has more than one piece."""
    monkeypatch.setattr(geometry, "IN_MEMORY_BYTES", MIB)
    monkeypatch.setattr(geometry, "SMALLEST_PART_BYTES", 11 * MIB)
    A, x = torch.randn(3000, 500, dtype=torch.float64), torch.randn(500, dtype=torch.float64)
    problem = jacjobs.Problem(lambda x: torch.sin(A @ x), (x,))
    options = {"address": "inline", "strategy": "jvp/vmap", "chunk": 64, "layout": "rows"}
    run = jacjobs.submit(problem, s3.uri("runs/a"), **options)
    assert run.plan.tiling.spills
    J = run.result()
    np.testing.assert_allclose(J[0], jacrev(problem.fn)(x).numpy(), rtol=1e-12, atol=1e-14)
    assert jacjobs.verify(s3.uri("runs/a")).sound
    spilled = {a.request.key for a in s3.answers if a.completes and a.request.key.endswith(".spill")}
    assert spilled
    assert not [key for key in s3.objects() if key.endswith(".spill")]
    assert s3.count("UploadPart", "part-") > len(J.part_names) > 1
    jacjobs.submit(problem, tmp_path / "a", **options).wait()
    assert s3.parts("runs/a") == local_parts(tmp_path / "a")


def test_credentials_in_the_uri_are_refused_before_anything_is_written(s3: S3Server) -> None:
    uri = s3.uri("runs/a").replace("s3://", "s3://somebody:secret@")
    with pytest.raises(InputError, match="credentials in it") as refused:
        jacjobs.submit(PROBLEM, uri, **OPTIONS)
    assert "secret@" not in str(refused.value)
    assert s3.answers == []


# -- one upload to the final key ---------------------------------------------------------------------------


@pytest.mark.usefixtures("small_parts")
def test_every_part_is_uploaded_once_and_nothing_is_renamed(s3: S3Server) -> None:
    J = jacjobs.submit(PROBLEM, s3.uri("runs/a"), **OPTIONS).result()
    answers = list(s3.answers)
    completed = Counter(a.request.key for a in answers if a.completes)
    assert [completed[f"runs/a/{name}"] for name in J.part_names] == [1] * len(J.part_names)
    assert completed["runs/a/_jacjobs/plan.json"] == completed["runs/a/_jacjobs/manifest.json"] == 1
    assert not [a for a in answers if a.request.copies]
    assert {a.request.key for a in answers if a.request.operation == "DeleteObject"} == {f"runs/a/{LOCK}"}
    assert s3.uploads() == []
    files = {key for key in s3.objects("runs/a/") if not key.endswith("/") and key}
    assert files == {*J.part_names, "_jacjobs/plan.json", "_jacjobs/manifest.json"}


def test_a_rename_would_have_been_counted(s3: S3Server) -> None:
    """The naive way, of a file system: under another name first. The object is there twice for a while."""
    filesystem, key = fs.FileSystem.from_uri(s3.uri("naive"))
    with filesystem.open_output_stream(f"{key}/scratch") as stream:
        stream.write(b"x" * MIB)
    filesystem.move(f"{key}/scratch", f"{key}/part-1")
    assert [a.request.copies for a in s3.answers if a.request.copies] == [f"{BUCKET}/naive/scratch"]


# -- servers that fail -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_parts")
def test_a_server_that_goes_down_ends_the_run_with_a_sentence_and_is_asked_again_later(
    s3: S3Server, tmp_path: Path
) -> None:
    """Three requests are tried until the end: the upload, the record of the attempt, and the lock, which
    stays and is taken over.
    """
    uri = s3.uri("runs/a")
    completed = itertools.count()

    def down(request: Request) -> int | None:
        if request.operation == "CompleteMultipartUpload" and writes_part(request) and next(completed) == 2:
            s3.stop()
            return 503
        return None

    s3.rule = down
    error, seconds = failure(jacjobs.submit(PROBLEM, uri, **OPTIONS).wait)
    print(f"down in the middle, after {seconds:.1f} s: {error}")
    assert re.match(rf"cannot write s3://{BUCKET}/runs/a/part-\S+: .*Could not connect", error)
    assert seconds < 4 * GIVE_UP_SECONDS
    error, seconds = failure(lambda: jacjobs.submit(PROBLEM, uri, **OPTIONS))
    print(f"down from the beginning, after {seconds:.1f} s: {error}")
    assert re.match(rf"cannot read s3://{BUCKET}/runs/a.*: .*Could not connect", error)
    assert seconds < 2 * GIVE_UP_SECONDS
    s3.rule = None
    s3.start()
    assert len(s3.parts("runs/a")) == 2
    assert LOCK in s3.objects("runs/a/")
    jacjobs.submit(PROBLEM, uri, **OPTIONS).wait()
    jacjobs.submit(PROBLEM, tmp_path / "a", **OPTIONS).wait()
    assert s3.parts("runs/a") == local_parts(tmp_path / "a")


def failure(call: Any) -> tuple[str, float]:
    """The sentence, and how long it took."""
    began = time.monotonic()
    with pytest.raises((StoreError, InputError)) as failed:
        call()
    said = str(failed.value)
    assert "\n" not in said
    return said, time.monotonic() - began


@pytest.mark.usefixtures("small_parts")
def test_a_few_errors_of_the_server_are_survived(s3: S3Server, tmp_path: Path) -> None:
    """Every seventh request is answered with 503 or 500."""
    numbers = itertools.count()
    s3.rule = lambda request: {3: 503, 10: 500}.get(next(numbers) % 14)
    jacjobs.submit(PROBLEM, s3.uri("runs/a"), **OPTIONS).wait()
    s3.rule = None
    assert Counter(a.status for a in s3.answers if a.status >= 500).keys() == {500, 503}
    jacjobs.submit(PROBLEM, tmp_path / "a", **OPTIONS).wait()
    assert s3.parts("runs/a") == local_parts(tmp_path / "a")


@pytest.mark.usefixtures("small_parts")
def test_a_server_that_takes_no_part_is_named_and_the_same_submit_finishes_later(
    s3: S3Server, tmp_path: Path
) -> None:
    uri = s3.uri("runs/a")
    s3.rule = lambda request: 500 if request.operation == "UploadPart" and writes_part(request) else None
    error, seconds = failure(jacjobs.submit(PROBLEM, uri, **OPTIONS).wait)
    print(f"refused for good: {seconds:.1f} s: {error}")
    assert re.match(rf"cannot write s3://{BUCKET}/runs/a/part-\S+\.parquet: ", error)
    assert seconds < 3 * GIVE_UP_SECONDS
    s3.rule = None
    assert s3.parts("runs/a") == {}
    assert not jacjobs.open(uri).complete
    jacjobs.submit(PROBLEM, uri, **OPTIONS).wait()
    jacjobs.submit(PROBLEM, tmp_path / "a", **OPTIONS).wait()
    assert s3.parts("runs/a") == local_parts(tmp_path / "a")


@pytest.mark.usefixtures("small_parts")
def test_slow_answers_are_waited_for(s3: S3Server) -> None:
    """Of 1.5 s; from 3 s without a byte Arrow's client asks again."""
    numbers = itertools.count()
    slow = []

    def sleepy(request: Request) -> None:
        if writes_part(request) and next(numbers) in (4, 8):
            slow.append(request)
            time.sleep(1.5)

    s3.rule = sleepy
    J = jacjobs.submit(PROBLEM, s3.uri("runs/a"), **OPTIONS).result()
    assert len({request.operation for request in slow}) > 1
    np.testing.assert_allclose(J.to_numpy(), vmap(jacrev(fn))(X).numpy(), rtol=1e-12, atol=1e-14)


# -- uploads that are cut short ----------------------------------------------------------------------------

WHOLE = bytes(range(256)) * (12 * MIB // 256)


class Cut:
    """A file system whose streams do something before their second write, and else what `whole` does."""

    def __init__(self, whole: Any, what: Any) -> None:
        self._whole, self._what = whole, what

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def open_output_stream(self, path: str) -> Any:
        return _CutStream(self._whole.open_output_stream(path), self._what)


class _CutStream:
    def __init__(self, stream: Any, what: Any) -> None:
        self._stream, self._what, self._writes = stream, what, 0

    def write(self, data: bytes) -> int:
        self._writes += 1
        if self._writes == 2:
            self._what()
        return int(self._stream.write(data))

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> _CutStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def interrupt() -> None:
    """As Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)


def read_error() -> None:
    raise OSError(5, "Input/output error")


def naive(filesystem: Any, path: str) -> None:
    """Stream to the final key."""
    with filesystem.open_output_stream(path) as stream:
        for start in range(0, len(WHOLE), 8 * MIB):
            stream.write(WHOLE[start : start + 8 * MIB])


def ours(filesystem: Any, path: str) -> None:
    pending = commit.UploadedFile(filesystem, path)
    try:
        pending.write(WHOLE)
        pending.commit()
    finally:
        pending.discard()


@pytest.mark.parametrize(("way", "seen"), [(naive, 8 * MIB), (ours, len(WHOLE))])
def test_an_interrupted_upload_is_finished_first(s3: S3Server, way: Any, seen: int) -> None:
    """The naive way leaves 8 of 12 MiB, as an object like any other."""
    with pytest.raises(KeyboardInterrupt):
        way(Cut(place(s3, "cut")._filesystem, interrupt), f"{BUCKET}/cut")
    assert s3.objects() == {"cut": WHOLE[:seen]}


@pytest.mark.parametrize(("way", "seen"), [(naive, {"cut": 8 * MIB}), (ours, {})])
def test_an_upload_that_fails_half_way_leaves_nothing(s3: S3Server, way: Any, seen: dict[str, int]) -> None:
    """Since what is read cannot be: the local disk fails."""
    with pytest.raises(OSError, match="Input/output"):
        way(Cut(place(s3, "cut")._filesystem, read_error), f"{BUCKET}/cut")
    assert {key: len(data) for key, data in s3.objects().items()} == seen


# -- killed ------------------------------------------------------------------------------------------------


class Hold:
    """A rule that holds one request back: the `number`-th of an operation on parts below a key."""

    def __init__(self, operation: str, below: str, number: int) -> None:
        self._what = operation, below
        self._left = number
        self.held: Request | None = None
        self.reached, self.release = threading.Event(), threading.Event()

    def __call__(self, request: Request) -> None:
        operation, below = self._what
        if request.operation != operation or not request.key.startswith(f"{below}/part-"):
            return
        self._left -= 1
        if self._left == 0:
            self.held = request
            self.reached.set()
            self.release.wait(60)

    def let_go(self, server: S3Server) -> None:
        """And wait for what the server answers to a client that is gone."""
        self.release.set()
        give_up = time.monotonic() + 30
        while not any(answer.request is self.held for answer in server.answers):
            assert time.monotonic() < give_up
            time.sleep(0.01)


@pytest.mark.usefixtures("small_parts")
def test_killed_twice_resumed_to_the_same_bytes(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a part is uploaded, and while an upload is completed; the server goes on with what it has.

    An upload that its process does not complete is never seen. What was sent of it stays in the store until
    that removes it (a lifecycle rule): Arrow can neither list uploads nor abort them.
    """
    script = tmp_path / "job.py"
    script.write_text(INLINE)
    visible: list[int] = []
    for number, operation in ((3, "UploadPart"), (2, "CompleteMultipartUpload")):
        hold = Hold(operation, "runs/killed", number)
        s3.rule = hold
        with subprocess.Popen([sys.executable, script, s3.uri("runs/killed")]) as killed:
            try:
                if not visible:  # meanwhile
                    monkeypatch.setattr(sys, "argv", [str(script), s3.uri("runs/whole")])
                    runpy.run_path(str(script), run_name="__main__")
                assert hold.reached.wait(60)
            finally:
                killed.kill()
        assert killed.returncode == -signal.SIGKILL
        hold.let_go(s3)
        s3.rule = None
        assert json.loads(s3.objects("runs/killed/")[LOCK])["pid"] == killed.pid
        J = jacjobs.open(s3.uri("runs/killed"))
        assert not J.complete
        assert jacjobs.verify(s3.uri("runs/killed")).sound  # reads all of every part that can be seen
        parts = s3.parts("runs/killed")
        assert parts.items() <= s3.parts("runs/whole").items()
        visible.append(len(parts))
    assert visible == [2, 4]
    subprocess.run([sys.executable, script, s3.uri("runs/killed")], check=True, timeout=60)
    assert s3.parts("runs/killed") == s3.parts("runs/whole")
    assert LOCK not in s3.objects("runs/killed/")
    assert len(s3.uploads()) == 1
    assert jacjobs.verify(s3.uri("runs/killed")).sound


# -- a cluster ---------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("cluster")
def test_workers_of_a_cluster_find_endpoint_in_the_uri_and_credentials_in_the_runtime_environment(
    s3: S3Server, tmp_path: Path
) -> None:
    """A worker's environment is that in which Ray was started, here without credentials; what a program gives
    to `ray.init` comes on top. The endpoint travels with the path.
    """
    import ray

    address = ray.get_runtime_context().gcs_address
    script = [sys.executable, "-c", ON_A_CLUSTER, s3.uri("runs/ray"), address, str(tmp_path / "inline")]
    ran = subprocess.run(script, capture_output=True, text=True, timeout=220, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    J = jacjobs.open(s3.uri("runs/ray"))
    np.testing.assert_allclose(J.to_numpy(), vmap(jacrev(fn))(X).numpy(), rtol=1e-12, atol=1e-14)
    assert s3.parts("runs/ray") == local_parts(tmp_path / "inline")
