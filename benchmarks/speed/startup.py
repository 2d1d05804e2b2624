"""How long a user waits: for the help, for a plan, and from `submit` to the first block, cold and warm."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

import jacjobs
from benchmarks import functions
from benchmarks.speed.end_to_end import warm_cluster
from benchmarks.speed.pairs import seconds_of

ROUNDS, QUICK_ROUNDS = 5, 2
TOOL = str(Path(sys.executable).parent / "jacjobs")


def measure(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    rounds = QUICK_ROUNDS if quick else ROUNDS
    help_seconds = [seconds_of(lambda: _run([TOOL, "--help"])) for _ in range(rounds + 1)][1:]
    python = [seconds_of(lambda: _run([sys.executable, "-c", "pass"])) for _ in range(rounds)]
    torch_import = [seconds_of(lambda: _run([sys.executable, "-c", "import torch"])) for _ in range(rounds)]
    yield _row("python -c pass, for comparison", python)
    yield _row("python -c 'import torch', for comparison", torch_import)
    yield _row("jacjobs --help", help_seconds)
    problem = functions.cnn()
    yield _row(
        "jacjobs.plan(problem), CNN", [seconds_of(lambda: jacjobs.plan(problem)) for _ in range(rounds)]
    )
    # In this order: a Ray that this process joins after it had two of its own ends its first actors.
    warm_cluster()
    try:
        warm = [_first_block(problem) for _ in range(rounds + 1)][1:]
    finally:
        ray.shutdown()
    cold = [_first_block(problem) for _ in range(max(1, rounds // 2))]
    yield _row("submit → first block, starting Ray", cold)
    yield _row("submit → first block, warm cluster", warm)


def _first_block(problem: jacjobs.Problem) -> float:
    with tempfile.TemporaryDirectory(prefix="jj") as folder:
        began = time.perf_counter()
        run = jacjobs.submit(problem, f"{folder}/run", workers=2, compression="none")
        while (now := run.progress()) is None or not now.blocks_done:
            if run.done():
                break
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        run.wait()
        return seconds


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _row(what: str, seconds: list[float]) -> dict[str, Any]:
    return {"what": what, "seconds": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
