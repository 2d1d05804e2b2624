"""The command line as a user runs it, in processes of its own: killed, resumed, its memory watched."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

import jacjobs
from tests.conftest import JOBS

pytestmark = pytest.mark.ray
MIB = 1 << 20
BLOCK_MIB = 33
BOUND_BYTES = 1100 * MIB
"""For every process: Python with torch and Ray (450 MiB), the object store (330 MiB: ten blocks of 33 MiB,
counted in every process that maps them), and a block, its records and their compressed form in each of the
assembler's two threads (200 MiB)."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from jacjobs.cli.app import main; main()", *arguments]


def submit(out: Path, limit: int) -> list[str]:
    return command(
        "submit", str(JOBS / "digits-parameters.yaml"), "--out", str(out), "--set", f"params.limit={limit}"
    )


def start(arguments: list[str]) -> psutil.Popen:
    return psutil.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def family(process: psutil.Popen) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def parts(path: Path) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in path.glob("part-*.parquet")}


@pytest.mark.timeout(900)
def test_killed_five_times_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    limit = 512
    whole = tmp_path / "whole"
    subprocess.run(submit(whole, limit), check=True, capture_output=True, timeout=240)
    chance = random.Random(2)
    progress = []
    for kill in range(5):
        out = tmp_path / f"killed-{kill}"
        process = start(submit(out, limit))
        wait_for(lambda out=out: (out / "_jacjobs" / "lock.json").exists())
        # From before the first block to beyond the last: some kills come while parts are written.
        wait_for(lambda out=out, n=kill: len(list(out.glob("part-*"))) >= min(n, 3))
        time.sleep(chance.uniform(0, 0.4))
        for member in family(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGKILL)
        process.wait()
        progress.append(len(parts(out)))
        assert not (out / "_jacjobs" / "manifest.json").exists(), "killed too late to show anything"
        assert set(parts(out).items()) <= set(parts(whole).items())
        resumed = subprocess.run(command("resume", str(out)), capture_output=True, text=True, timeout=240)
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        assert parts(out) == parts(whole)
        assert jacjobs.open(out).complete
        assert not list((out / "_jacjobs" / "scratch").iterdir())
    assert len(set(progress)) > 1, f"always killed at the same place: {progress}"


def wait_for(condition, seconds: float = 120) -> None:  # type: ignore[no-untyped-def]
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


class Peak(NamedTuple):
    """MiB: everything resident, and without the pages of the object store that all processes share."""

    resident: int
    private: int


@pytest.mark.timeout(600)
def test_memory_of_every_process_is_bounded_and_does_not_grow_with_the_job(tmp_path: Path) -> None:
    small, large = (peak_memory(submit(tmp_path / str(limit), limit)) for limit in (256, 1024))
    print(f"peak MiB, by process: {small} at 256 images, {large} at 1,024")
    for peaks in (small, large):
        assert {"driver", "_WorkerActor", "_AssemblerActor", "_CoordinatorActor"} <= set(peaks)
        assert max(peak.resident for peak in peaks.values()) * MIB < BOUND_BYTES
    # Four times the work, and no more memory; but the parts of the small job have one block each, so none of
    # its blocks ever came early and had to be kept, as those in flight (two a worker) may in the large one.
    early = {"_AssemblerActor": 2 * 2 * BLOCK_MIB}
    for name in ("driver", "_WorkerActor", "_AssemblerActor", "_CoordinatorActor"):
        assert large[name].private < 1.1 * small[name].private + early.get(name, 0), name


def peak_memory(arguments: list[str]) -> dict[str, Peak]:
    """Peaks of a job's processes, the largest of those of one kind."""
    process = start(arguments)
    peaks: dict[str, Peak] = {}
    while process.poll() is None:
        for member in family(process):
            try:
                title = (member.cmdline() or [""])[0]
                memory = member.memory_info()
            except psutil.Error:
                continue
            # An actor's title is "ray::Class" or, at work, "ray::Class.method".
            name = title.removeprefix("ray::").split(".")[0] if title.startswith("ray::") else member.name()
            name = "driver" if member.pid == process.pid else name
            old = peaks.get(name, Peak(0, 0))
            peaks[name] = Peak(
                max(old.resident, memory.rss // MIB), max(old.private, (memory.rss - memory.shared) // MIB)
            )
        time.sleep(0.05)
    assert process.returncode == 0
    return peaks


def test_a_stop_ends_with_75_and_can_be_resumed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(submit(out, 1024))
    wait_for(lambda: len(list(out.glob("part-*"))) >= 1)
    os.kill(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=90)
    assert process.returncode == 75, printed
    assert "resume" in printed.splitlines()[-1]
    assert not jacjobs.open(out).complete
    resumed = subprocess.run(command("resume", str(out)), capture_output=True, text=True, timeout=240)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert jacjobs.open(out).to_numpy().shape == (1024, 10, 29914)
