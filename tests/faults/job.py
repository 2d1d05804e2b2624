"""The job of `troubled.py`, in this process or by the command line in processes of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

import jacjobs
from jacjobs import api
from jacjobs.errors import JacjobsError
from jacjobs.jobspec import read_job
from jacjobs.store.attempt import Attempt
from tests.faults import troubled

ROOT = Path(__file__).parent.parent.parent
BLOCK_BYTES = troubled.ROWS * troubled.COLUMNS * 8
PART_BYTES = 4 * BLOCK_BYTES
MAIN = (
    f"from jacjobs.planning import geometry; geometry.SMALLEST_PART_BYTES = {PART_BYTES}; "
    "from jacjobs.cli.app import main; main()"
)
MARK = "JACJOBS_TEST_MARK"
"""In the environment of a command, and so of all that it starts."""


class TroubledJob:
    """A job file in `folder`, whose run is `folder/run`; each point is a block, four are a part."""

    def __init__(self, folder: Path, points: int = 12, **compute: Any) -> None:
        self.folder = folder
        self.out = folder / "run"
        self.points = points
        self._signals = folder / "signals"
        self._signals.mkdir(parents=True)
        self._mark = uuid.uuid4().hex
        self._started: list[psutil.Popen] = []
        shutil.copy(troubled.__file__, folder / "troubled.py")
        self.file = folder / "job.yaml"
        content = {
            "name": "troubled",
            "problem": "troubled.py:build",
            "params": {"folder": str(self._signals), "points": points},
            "compute": {"strategy": "vjp/loop", "chunk": 1, "check": "off", **compute},
            "output": {"path": str(self.out), "compression": "none"},
            "cluster": {"address": "local", "workers": 1},
        }
        self.file.write_text(yaml.safe_dump(content))

    # -- trouble -------------------------------------------------------------------------------------------

    def trouble(self, point: int, what: str) -> None:
        (self._signals / str(point)).write_text(what)

    def calm(self, point: int) -> None:
        """No more trouble there; whoever was held goes on."""
        (self._signals / str(point)).unlink()

    def who_met(self, point: int) -> int | None:
        """The process that met the trouble there; None while nobody has."""
        try:
            return int((self._signals / f"met-{point}").read_text() or 0) or None
        except FileNotFoundError:
            return None

    def wait_until_met(self, point: int, seconds: float = 120) -> int:
        wait_for(lambda: self.who_met(point), seconds)
        pid = self.who_met(point)
        assert pid is not None
        return pid

    def calls(self) -> Counter[int]:
        """How often workers computed each point, but for the first: they call the function there to see what
        it returns.
        """
        lines = (self._signals / "calls").read_text().splitlines()
        calls = [(int(pid), int(number)) for pid, number in map(str.split, lines)]
        return Counter(number for pid, number in calls if number and pid != os.getpid())

    # -- in this process -----------------------------------------------------------------------------------

    def submit(self, *settings: str) -> api.Run:
        """Settings are those of --set."""
        return api.submit_job(api.job_from_spec(read_job(self.file, list(settings)), self.folder))

    def failure(self, *settings: str) -> JacjobsError:
        """How a run ends that does not complete."""
        try:
            self.submit(*settings).wait()
        except JacjobsError as error:
            return error
        raise AssertionError("it completed")

    def check_resumed(self) -> None:
        """Resumed in this process, it ends with the bytes of an undisturbed run."""
        jacjobs.api.resume(self.out, address="inline").wait()
        assert parts(self.out) == self.undisturbed()

    def undisturbed(self) -> dict[str, bytes]:
        """The parts that this job makes when nothing happens."""
        whole = self.folder / "whole"
        self.submit(f"output.path={whole}", "cluster.address=inline").wait()
        return parts(whole)

    def last_attempt(self) -> Attempt:
        manifest = jacjobs.open(self.out).manifest
        assert manifest is not None
        return manifest.attempts[-1]

    # -- by the command line -------------------------------------------------------------------------------

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", MAIN, *arguments]

    def start(
        self, command: Sequence[str], env: dict[str, str] | None = None, **options: Any
    ) -> psutil.Popen:
        process = psutil.Popen(
            list(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, MARK: self._mark, **(env or {})},
            start_new_session=True,
            **options,
        )
        self._started.append(process)
        return process

    def relatives(self) -> list[psutil.Process]:
        """All processes that the commands started, and that live."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def end(self) -> None:
        for process in self._started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
            process.communicate()
        for process in self.relatives() if self._started else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def parts(run: Path) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in run.glob("part-*.parquet")}


def title(process: psutil.Process) -> str:
    """What a process calls itself: "ray::Class" or, at work, "ray::Class.method" is a Ray actor."""
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


def actors(kind: str, of: psutil.Process | None = None) -> list[psutil.Process]:
    """The processes of Ray actors of a class, among the descendants of this process or another."""
    family = (of or psutil.Process()).children(recursive=True)
    return [process for process in family if title(process).partition(".")[0] == f"ray::{kind}"]


class Ending(NamedTuple):
    """How a command ended. `says`: the sentence that it ended with, if that was one of ours."""

    code: int
    printed: str
    errors: str

    @property
    def says(self) -> str:
        sentences = [line for line in self.errors.splitlines() if line.startswith("jacjobs: ")]
        return sentences[-1].removeprefix("jacjobs: ") if sentences else self.errors


def ending(process: psutil.Popen, seconds: float = 120) -> Ending:
    """Wait for it."""
    printed, errors = process.communicate(timeout=seconds)
    return Ending(process.returncode, printed, errors)


def read_until(process: psutil.Popen, words: str) -> None:
    """Read what a command prints, up to a line with these words."""
    while words not in (line := process.stdout.readline()):
        assert line, "it ended"


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it never happened"
        time.sleep(0.01)
