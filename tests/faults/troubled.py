"""A job whose function meets trouble at points that a test chooses while it runs: what the faults befall.

A trouble is a file in `folder`, named after the point; what it holds says what happens to whoever computes
that point next. So a troubled run and an undisturbed one are the same job, and must give the same bytes.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from jacjobs import Problem

ROWS, COLUMNS = 16, 8192
"""A matrix of float64 is 1 MiB, the smallest block: each point is a block of its own."""
NAN_AT = (3, 7)
HOLD_SECONDS = 240.0
EATEN_BYTES, BITE_BYTES = 3 << 30, 64 << 20
ROOM_BYTES = 256 << 20


def build(folder: str, points: int = 12) -> Problem:
    def fn(x: Tensor, number: Tensor) -> Tensor:
        trouble = meet(Path(folder), int(number))
        y = x.reshape(ROWS, -1).sum(1).sin() * x.sum()
        if trouble == "nan":
            row, column = NAN_AT
            y = y.index_add(0, torch.tensor([row]), _BrokenDerivative.apply(x[column]).reshape(1))
        return y

    X = torch.linspace(-1, 1, points * COLUMNS, dtype=torch.float64).reshape(points, COLUMNS)
    return Problem(fn, (X, torch.arange(points)), in_dims=0)


def meet(folder: Path, number: int) -> str | None:
    """Note the call, and let happen what is to happen at this point: "once …", to the first that comes."""
    with (folder / "calls").open("a") as calls:
        calls.write(f"{os.getpid()} {number}\n")
    file = folder / str(number)
    try:
        trouble = file.read_text()
        if trouble.startswith("once "):
            file.unlink()
    except FileNotFoundError:
        return None
    trouble = trouble.removeprefix("once ")
    (folder / f"met-{number}").write_text(str(os.getpid()))
    if trouble in ACTIONS:
        ACTIONS[trouble](file)
    return trouble


def hold(file: Path) -> None:
    """Wait until the test takes the file away."""
    give_up = time.monotonic() + HOLD_SECONDS
    while file.exists() and time.monotonic() < give_up:
        time.sleep(0.01)


def die(file: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(file: Path) -> None:
    time.sleep(HOLD_SECONDS)


def freeze(file: Path) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def fail(file: Path) -> None:
    raise ZeroDivisionError(f"no result at point {file.name}")


def lose_the_gpu(file: Path) -> None:
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def eat_memory(file: Path) -> None:
    """In bites, so that whoever watches the host's memory can see it."""
    eaten = []
    for _ in range(EATEN_BYTES // BITE_BYTES):
        eaten.append(torch.ones(BITE_BYTES // 8, dtype=torch.float64))
        time.sleep(0.05)
    hang(file)


def meet_a_limit(file: Path) -> None:
    """As under `ulimit -v`: the process may not have more addresses."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + ROOM_BYTES, hard))
    bytearray(2 * ROOM_BYTES)


ACTIONS = {
    "hold": hold,
    "die": die,
    "hang": hang,
    "freeze": freeze,
    "fail": fail,
    "lose the GPU": lose_the_gpu,
    "eat memory": eat_memory,
    "meet a limit": meet_a_limit,
}


class _BrokenDerivative(torch.autograd.Function):
    """NaN where it is asked for, and nowhere else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.masked_fill(grad != 0, float("nan"))
