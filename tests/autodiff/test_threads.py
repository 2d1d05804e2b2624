"""Products made in several threads of one process at once: torch's dual numbers know only one."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import jacjobs
from jacjobs.autodiff.block import Pace, compute_block
from jacjobs.autodiff.catalogue import STRATEGIES
from jacjobs.shape import Rectangle

W = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
X = torch.linspace(0, 1, 6, dtype=torch.float64).reshape(2, 3)
EXPECTED = torch.func.vmap(torch.func.jacrev(lambda x: torch.tanh(W @ x)))(X).numpy()
WHOLE = Rectangle(0, 2, 0, 4, 0, 3)
THREADS = 4
FORWARD = [name for name in STRATEGIES if name.startswith("jvp/")]
ROOT = Path(__file__).parent.parent.parent


def wrong(strategy: str, times: int) -> int:
    """How often it is, or an error, in one thread."""
    problem = jacjobs.Problem(lambda x: torch.tanh(W @ x), (X,), in_dims=0)
    found = 0
    for _ in range(times):
        try:
            J = compute_block(problem, Pace(strategy, 2), WHOLE, "float64")
        except RuntimeError:
            found += 1
        else:
            found += not np.allclose(J, EXPECTED, rtol=1e-12)
    return found


def wrong_in_threads(strategy: str, times: int) -> int:
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(lambda _: wrong(strategy, times), range(THREADS)))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_threads_do_not_disturb_each_other(strategy: str) -> None:
    assert wrong_in_threads(strategy, 150) == 0


def draws(times: int) -> int:
    """How often a seeded function does not draw what it draws alone."""
    problem = jacjobs.Problem(lambda x: x * torch.rand(64).double().sum(), (X,), in_dims=0).seeded(7)
    first = torch.rand(64, generator=torch.Generator().manual_seed(7)).double().sum()
    made = (problem.call_one(problem.at_point(0))[0] for _ in range(times))
    return sum(not torch.equal(y, X[0] * first) for y in made)


def draws_in_threads(times: int) -> int:
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(lambda _: draws(times), range(THREADS)))


def test_threads_do_not_draw_each_others_numbers() -> None:
    assert draws_in_threads(500) == 0


@pytest.mark.parametrize(
    ("module", "naive"),
    [
        *[("jacjobs.autodiff.forward", f"wrong_in_threads({name!r}, 150)") for name in FORWARD],
        ("jacjobs.problem", "draws_in_threads(500)"),
    ],
)
def test_without_turns_they_do(module: str, naive: str) -> None:
    """The naive way, which the tests above would catch. In a process of its own: torch may crash it."""
    code = (
        f"import contextlib, {module}; {module}.ALONE = contextlib.nullcontext()\n"
        "from tests.autodiff.test_threads import *\n"
        f"sys.exit(any({naive} for _ in range(20)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=120).returncode
