"""A small job that is really run, and can be held while it holds the lock of its run."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from jacjobs.jobspec import read_job
from jacjobs.scheduling.jobs import ScheduledJob

PROBLEM = """
import time
from pathlib import Path
import torch
from jacjobs import Problem

HERE = Path(__file__).parent

def f(W, x):
    # Not while it is planned: whoever holds the lock writes `held`, and waits for `hold` to go.
    locks = list((HERE / "runs").glob("*/_jacjobs/lock.json"))
    while locks and (HERE / "hold").exists():
        for lock in locks:
            (lock.parent / "held").touch()
        time.sleep(0.05)
    return torch.tanh(W @ x)

def build(points, size):
    W = torch.linspace(-1, 1, size * size).reshape(size, size)
    x = torch.linspace(-1, 1, points * size).reshape(points, size)
    return Problem(f, (W, x), argnums=1, in_dims=(None, 0))
"""


def small_job(
    folder: Path, cron: str, *, points: int = 4, size: int = 4, name: str = "small", more: str = ""
) -> ScheduledJob:
    """In `folder`, with its runs in `folder/runs`. While `folder/hold` is there, runs that begin wait.

    With a size of 512 each point is a block.
    """
    (folder / "small.py").write_text(PROBLEM)
    file = folder / f"{name}.yaml"
    file.write_text(
        f"name: {name}\nproblem: small.py:build\nparams: {{points: {points}, size: {size}}}\n"
        f'output: {{path: "{folder}/runs/{name}-{{scheduled:%Y%m%dT%H%M%S}}"}}\n'
        f"compute: {{strategy: vjp/vmap, chunk: {size}, check: 'off'}}\n"
        f'cluster: {{address: inline}}\nschedule: {{cron: "{cron}"{more}}}\n'
    )
    spec = read_job(file, [])
    assert spec.schedule is not None
    return ScheduledJob(file, spec, spec.schedule)


def wait_for(
    condition: Callable[[], object], child: subprocess.Popen[str] | None = None, seconds: float = 120
) -> None:
    """Fails if the child ends first, or nothing comes for very long."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert child is None or child.poll() is None, f"ended with {child.returncode}"
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.1)
