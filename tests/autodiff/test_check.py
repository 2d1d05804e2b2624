"""Freivalds' check: it finds what is wrong, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from jacjobs import Problem
from jacjobs.autodiff.block import Pace, compute_block
from jacjobs.autodiff.check import CHECKERS, SHARE, Checker
from jacjobs.autodiff.words import tolerance
from jacjobs.problem import Problem as _Problem
from jacjobs.shape import Rectangle
from tests.functions import randn

MODES = [(makes, by) for makes, names in CHECKERS.items() for by in names]


def network(m: int, n: int, dtype: torch.dtype, points: int = 1) -> Problem:
    W1, W2 = torch.randn(32, n, dtype=dtype), torch.randn(m, 32, dtype=dtype)
    return Problem(
        lambda x: W2 @ torch.tanh(W1 @ x / n**0.5), (torch.randn(points, n, dtype=dtype),), in_dims=0
    )


def whole(problem: _Problem) -> Rectangle:
    shape = problem.shape
    return Rectangle(0, shape.points, 0, shape.rows, 0, shape.columns)


def strategy_of(makes: str) -> str:
    return "vjp/vmap" if makes == "rows" else "jvp/vmap"


@pytest.mark.parametrize(("makes", "by"), MODES)
def test_a_single_wrong_entry_in_float64(makes: str, by: str) -> None:
    """Relative size 1e-3, anywhere: every one of 200 is found."""
    problem = network(30, 40, torch.float64)
    J = compute_block(problem, Pace(strategy_of(makes), 64), whole(problem))
    checker = Checker(problem, makes, by, 64, every_point=True)
    assert checker.check(whole(problem), J).passed
    chance = np.random.default_rng(0)
    for _ in range(200):
        wrong = J.copy()
        entry = 0, chance.integers(30), chance.integers(40)
        wrong[entry] *= 1 + 1e-3
        assert not checker.check(whole(problem), wrong).passed, entry


@pytest.mark.parametrize(("makes", "by"), MODES)
def test_a_wrong_row_or_column_in_float32(makes: str, by: str) -> None:
    problem = network(30, 40, torch.float32)
    J = compute_block(problem, Pace(strategy_of(makes), 64), whole(problem))
    checker = Checker(problem, makes, by, 64, every_point=True)
    clean = checker.check(whole(problem), J)
    assert clean.passed
    assert clean.error < tolerance(torch.float32) / 10
    axis = 1 if makes == "rows" else 2
    for i in range(30):
        swapped = np.copy(J)
        index = [(i + 1) % 30 if k == i else k for k in range(J.shape[axis])]
        assert not checker.check(whole(problem), np.take(swapped, index, axis)).passed, i
        zeroed = np.copy(J)
        zeroed[(0, i) if makes == "rows" else (0, slice(None), i)] = 0
        if makes == "rows" and not np.any(J[0, i]):
            continue
        assert not checker.check(whole(problem), zeroed).passed, i


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_no_false_alarm_in_ten_thousand_blocks(dtype: torch.dtype) -> None:
    """Random networks of random sizes and scales, 10,000 points checked in each dtype."""
    checked, worst = 0, 0.0
    chance = np.random.default_rng(1)
    while checked < 10_000:
        m, n = (int(size) for size in chance.integers(1, 40, 2))
        problem = network(m, n, dtype, points=250)
        scale = 10.0 ** chance.integers(-3, 3)
        inner = problem.fn
        problem = Problem(lambda x, f=inner, s=scale: s * f(x), tuple(problem.leaves), in_dims=0)
        makes = ("rows", "columns")[checked // 250 % 2]
        J = compute_block(problem, Pace(strategy_of(makes), 10_000), whole(problem))
        checker = Checker(problem, makes, CHECKERS[makes][0], 250, every_point=True)
        finding = checker.check(whole(problem), J)
        assert finding.passed, (m, n, scale, finding)
        checked += finding.points
        worst = max(worst, finding.error)
    print(f"{dtype}: worst {worst:.1e}, allowed {tolerance(dtype):.1e}")


@pytest.mark.parametrize(("m", "expected"), [(10, 20), (1000, 100), (1, 2)])
def test_a_sample_of_points_keeps_within_its_share(m: int, expected: int) -> None:
    problem = network(m, 8, torch.float64, points=100)
    checker = Checker(problem, "rows", "jvp/vmap", 50, every_point=False)
    J = compute_block(problem, Pace("vjp/vmap", 5000), whole(problem))
    finding = checker.check(whole(problem), J)
    assert finding.passed
    assert finding.points == expected
    assert finding.points <= max(1, 100 * m * SHARE)


def test_row_blocks_of_a_large_matrix_share_one_product() -> None:
    calls = []
    W = torch.randn(50, 20, dtype=torch.float64)

    def fn(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return torch.sin(W @ x)

    problem = Problem(fn, (torch.randn(20, dtype=torch.float64),))
    checker = Checker(problem, "rows", "jvp/vmap", 10, every_point=False)
    blocks = [Rectangle(0, 1, r, r + 10, 0, 20) for r in range(0, 50, 10)]
    values = [compute_block(problem, Pace("vjp/vmap", 10), block) for block in blocks]
    calls.clear()
    assert all(checker.check(b, v).passed for b, v in zip(blocks, values, strict=True))
    assert len(calls) == 1


def test_nan_is_not_the_checks_business() -> None:
    problem = Problem(torch.sqrt, (torch.tensor([[0.0, 1.0], [4.0, 9.0]]),), in_dims=0)
    J = compute_block(problem, Pace("vjp/vmap", 4), whole(problem))
    assert not np.isfinite(J).all()
    assert Checker(problem, "rows", "jvp/vmap", 4, every_point=True).check(whole(problem), J).passed


def test_memory_that_runs_out_while_checking_halves_the_points(monkeypatch: pytest.MonkeyPatch) -> None:
    W = randn(4, 5, seed=8)
    problem = Problem(lambda x: torch.tanh(W @ x), (randn(20, 5, seed=9),), in_dims=0)
    J = compute_block(problem, Pace("vjp/vmap", 8), whole(problem))
    checker = Checker(problem, "rows", "jvp/vmap", 16, every_point=True)
    maker, sizes = checker._by, []

    class Small:
        def chunks(self, problem: Problem, block: Rectangle, seeds: Any, chunk: int) -> Any:
            sizes.append(chunk)
            if chunk > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return maker.chunks(problem, block, seeds, chunk)

    monkeypatch.setattr(checker, "_by", Small())
    assert checker.check(whole(problem), J).passed
    assert sizes == [16, 8, 4]
