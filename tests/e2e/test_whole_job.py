"""The command line as a user runs it, in processes of its own: its memory watched, stopped, resumed."""

from __future__ import annotations

import os
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
from tests.faults.job import wait_for

pytestmark = pytest.mark.ray
MIB = 1 << 20
PARTS = 8
BLOCK_MIB_A_POINT = 10 * 29914 * 4 / MIB
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


class Peak(NamedTuple):
    """MiB: everything resident, and without the pages of the object store that all processes share."""

    resident: int
    private: int


@pytest.mark.timeout(600)
def test_memory_of_every_process_is_bounded_and_does_not_grow_with_the_job(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first, second = peaks_of_halves(submit(out, 1024), out)
    print(f"peak MiB, by process: {first} until half of the parts were there, {second} after that")
    record = jacjobs.open(out).record
    block = record.plan["tiling"]["block_points"] * BLOCK_MIB_A_POINT
    in_flight = {"AssemblerActor": 2 * 2}  # of two a worker, it may have to keep all
    for name in ("driver", "WorkerActor", "AssemblerActor", "CoordinatorActor"):
        assert max(first[name].resident, second[name].resident) * MIB < BOUND_BYTES
        # Half a GiB of J, 32 blocks, went through all of them meanwhile, and none has kept them.
        assert second[name].private < first[name].private + in_flight.get(name, 1) * block, name


def peaks_of_halves(arguments: list[str], out: Path) -> tuple[dict[str, Peak], dict[str, Peak]]:
    """Peaks of a job's processes, the largest of those of one kind, until half of its parts are there, and
    after that.
    """
    process = start(arguments)
    halves: tuple[dict[str, Peak], dict[str, Peak]] = {}, {}
    while process.poll() is None:
        peaks = halves[len(list(out.glob("part-*"))) >= PARTS / 2]
        for member in family(process):
            try:
                title = (member.cmdline() or [""])[0]
                # An actor's title is "ray::Class" or, at work, "ray::Class.method".
                name = (
                    title.removeprefix("ray::").split(".")[0] if title.startswith("ray::") else member.name()
                )
                memory = member.memory_info()
            except psutil.Error:  # it has ended since it was listed
                continue
            name = "driver" if member.pid == process.pid else name
            old = peaks.get(name, Peak(0, 0))
            peaks[name] = Peak(
                max(old.resident, memory.rss // MIB), max(old.private, (memory.rss - memory.shared) // MIB)
            )
        time.sleep(0.05)
    assert process.returncode == 0
    assert len(list(out.glob("part-*"))) == PARTS
    return halves


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
