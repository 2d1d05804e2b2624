"""Where a run stands, from its folder alone, while it goes on and after every end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import jacjobs
from jacjobs.errors import InputError, StoppedError
from jacjobs.run import coordinator, journal
from jacjobs.store.attempt import Attempt
from jacjobs.store.folder import RunFolder
from jacjobs.store.lock import RunLock
from jacjobs.store.status import runs_below, status_of, statuses_below

POINTS = 60


def slow_problem(seconds: float = 0.05) -> jacjobs.Problem:
    def fn(x: torch.Tensor) -> torch.Tensor:
        time.sleep(seconds)
        return torch.outer(x, x)

    return jacjobs.Problem(fn, (torch.ones(POINTS, 64),), in_dims=0)


def submit(path: Path) -> jacjobs.Run:
    return jacjobs.submit(
        slow_problem(), path, address="inline", strategy="vjp/vmap", chunk=4096, structure="dense"
    )


def test_a_run_can_be_watched_and_stopped_by_whoever_sees_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in (
        (coordinator, "POLL_SECONDS"),
        (coordinator, "STOP_SECONDS"),
        (journal, "WRITE_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.05)
    run = submit(tmp_path / "run")
    assert status_of(run.path).state == "not begun"
    errors: list[Exception] = []

    def wait() -> None:
        try:
            run.wait()
        except StoppedError as error:
            errors.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    give_up = time.monotonic() + 60
    while not ((found := status_of(run.path)).last and found.last.blocks_done):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    assert found.state == "running"
    assert found.holder is not None
    assert found.holder.startswith("process ")
    assert found.last.blocks_total == run.plan.tiling.blocks
    RunFolder(run.path).request_stop()
    thread.join(60)
    assert len(errors) == 1
    found = status_of(run.path)
    assert found.state == "stopped"
    assert found.holder is None
    assert 0 < found.last.blocks_done < run.plan.tiling.blocks
    # The request does not outlive the attempt that it was made to.
    submit(tmp_path / "run").wait()
    found = status_of(run.path)
    assert (found.state, found.committed, found.last.number) == ("complete", 1.0, 2)
    manifest = jacjobs.open(run.path).manifest
    assert manifest is not None
    assert [attempt.state for attempt in manifest.attempts] == ["stopped", "complete"]
    assert not (tmp_path / "run" / "_jacjobs" / "attempts").exists()


def test_a_run_whose_writer_is_gone_was_interrupted(tmp_path: Path) -> None:
    run = submit(tmp_path / "run")
    code = (
        "import os, sys; from jacjobs.store.lock import RunLock; from jacjobs.store.place import place_of\n"
        "RunLock(place_of(sys.argv[1])).acquire(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, run.path], check=False)
    attempt = json.loads(SAMPLE_ATTEMPT)
    folder = RunFolder(run.path)
    folder.write_attempt(Attempt.model_validate(attempt))
    assert status_of(run.path).state == "interrupted"
    lock = RunLock(folder.place)
    lock.acquire()
    assert status_of(run.path).state == "running"
    lock.release()
    # A record that is damaged tells nothing, and is in nobody's way.
    (tmp_path / "run" / "_jacjobs" / "attempts" / "0001.json").write_text("{")
    assert status_of(run.path).state == "not begun"


SAMPLE_ATTEMPT = json.dumps(
    {
        "number": 1,
        "started": "2026-01-01T00:00:00+00:00",
        "host": "there",
        "pid": 1,
        "state": "running",
        "seconds": 1.0,
        "blocks_done": 1,
        "blocks_total": 2,
    }
)


def test_runs_below_a_folder_are_found_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    for name in ("b/deep/run", "a"):
        submit(tmp_path / name)
    (tmp_path / "c").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    submit(tmp_path / "d")
    (tmp_path / "d" / "_jacjobs" / "plan.json").write_text("{}")
    assert [path.relative_to(tmp_path).as_posix() for path in runs_below(tmp_path)] == [
        "a",
        "b/deep/run",
        "d",
    ]
    *_, (path, error) = statuses_below(tmp_path)
    assert path == tmp_path / "d"
    assert "digest" in str(error)
    with pytest.raises(InputError, match="nothing there"):
        status_of(tmp_path / "nowhere")
