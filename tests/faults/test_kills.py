"""SIGKILL at a random moment of a run, of a worker, an assembler or the driver; then the bytes are compared.

JACJOBS_KILLS says how many (100 for a release; in CI a few).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

import jacjobs
from tests.faults.job import actors, parts, wait_for
from tests.faults.killed import BYTES, submit

KILLS = int(os.environ.get("JACJOBS_KILLS", "8"))
NAIVE_KILLS = 8
PATIENCE_SECONDS = 240
TITLES = {"worker": "WorkerActor", "assembler": "AssemblerActor"}

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def undisturbed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    submit(path, "inline").wait()
    return parts(path)


@pytest.mark.timeout(120 * KILLS)
def test_a_kill_at_any_moment_changes_no_byte(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    chance = random.Random(KILLS)
    for number in range(KILLS):
        victim = ("worker", "assembler", "driver", "process")[number % 4]
        path = tmp_path / str(number)
        how_far = 0
        while not how_far:  # a kill that came after the end shows nothing
            if victim in TITLES:
                how_far = kill_an_actor(victim, path, chance)
            else:
                address = ray.get_runtime_context().gcs_address if victim == "driver" else "inline"
                how_far = kill_the_driver(path, address, chance)
        assert set(parts(path).items()) <= set(undisturbed.items()), f"after kill {number}, of the {victim}"
        submit(path, "inline").wait()
        assert parts(path) == undisturbed, f"after kill {number}, of the {victim}"
        assert jacjobs.verify(path).sound
        print(f"kill {number}, of the {victim}: {how_far - 1} of {len(undisturbed)} parts were there")
        begin_again(path)


@pytest.mark.timeout(120 * NAIVE_KILLS)
def test_the_naive_way_fails(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """Written straight to its final name, a part that is half there is taken for complete."""
    chance = random.Random(0)
    for number in range(NAIVE_KILLS):
        path = tmp_path / str(number)
        kill_the_driver(path, "inline", chance, "naive")
        if not set(parts(path).items()) <= set(undisturbed.items()):
            return
    pytest.fail(f"{NAIVE_KILLS} kills of a process that writes straight to the final name did no harm")


def kill_an_actor(kind: str, path: Path, chance: random.Random) -> int:
    """At a random moment between the first block and the last. Returns how many parts were there, and one
    more; 0 if the run was over.
    """
    moment = chance.random()
    run = submit(path, "local", workers=2)
    wait_for(lambda: written(path) > moment, PATIENCE_SECONDS)
    time.sleep(chance.uniform(0, 0.05))
    there = len(parts(path))
    for victim in actors(TITLES[kind])[:1]:
        victim.send_signal(signal.SIGKILL)
    manifest = run.wait()
    if not manifest.attempts[-1].failures_total:
        return begin_again(path)
    assert manifest.attempts[-1].failures[0].who.startswith(kind)
    return 1 + there


def kill_the_driver(path: Path, address: str, chance: random.Random, *how: str) -> int:
    """As `kill_an_actor`. What the driver started on the cluster ends with it, sooner or later."""
    moment = chance.random()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.killed", str(path), address, *how],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: written(path) > moment or process.poll() is not None, PATIENCE_SECONDS)
    time.sleep(chance.uniform(0, 0.05))
    process.kill()
    said, _ = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), said
    return begin_again(path) if (path / "_jacjobs" / "manifest.json").exists() else 1 + len(parts(path))


def written(path: Path) -> float:
    """The part of J's bytes that is on the disk, in parts or on its way."""
    files = [*path.glob("part-*"), *(path / "_jacjobs" / "scratch").glob("part-*")]
    nbytes = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # renamed in the meantime
            nbytes += file.stat().st_size
    return nbytes / BYTES


def begin_again(path: Path) -> int:
    shutil.rmtree(path)
    return 0
