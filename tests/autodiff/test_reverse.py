"""The reverse strategies against torch.func.jacrev in float64, chunk by chunk and block by block."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jacrev, vmap
from torch.utils import _pytree as pytree

from jacjobs import Problem
from jacjobs.autodiff.block import compute_block
from jacjobs.autodiff.catalogue import STRATEGIES, why_unsupported
from jacjobs.planning.options import ComputeOptions
from jacjobs.shape import Rectangle

torch.set_default_dtype(torch.float32)
W = torch.randn(4, 3, dtype=torch.float64)


def structured(p, x):  # type: ignore[no-untyped-def]
    """Dicts in and out, a scalar, an output that ignores p, an input that nothing uses."""
    return {"tanh": torch.tanh(W @ x) * p["s"], "sum": p["s"].sum() * x.prod(), "free": x[:2] ** 2}


SCALE = {"s": torch.randn(4, dtype=torch.float64), "unused": torch.randn(2, 2, dtype=torch.float64)}
POINTS = torch.randn(5, 3, dtype=torch.float64)
CASES = {
    "shared": Problem(structured, (SCALE, POINTS), 0, (None, 0)),
    "own": Problem(structured, (SCALE, POINTS), 1, (None, 0)),
    "both": Problem(structured, (SCALE, POINTS), (1, 0), (None, 0)),
    "axis 1": Problem(structured, (SCALE, POINTS.T), 1, (None, 1)),
    "one point": Problem(structured, (SCALE, POINTS[0]), (0, 1)),
    "batched": Problem(lambda x: torch.sin(x) @ W.T, (POINTS,), in_dims=0, batched=True),
    "batched shared": Problem(
        lambda p, x: torch.sin(x) * p["s"][:3], (SCALE, POINTS), in_dims=(None, 0), batched=True
    ),
    "scalar": Problem(lambda x: x.square().sum(), (POINTS,)),
    "0-dimensional": Problem(lambda x, y: x * y, (torch.tensor(2.0, dtype=torch.float64), POINTS)),
}


def oracle(problem: Problem) -> np.ndarray:
    """J from torch.func.jacrev, laid out as (P, m, n)."""
    args = pytree.tree_unflatten(problem.leaves, problem._spec)
    argnums = problem.argnums if len(problem.argnums) > 1 else problem.argnums[0]

    def fn(*args):  # type: ignore[no-untyped-def]
        if not problem.batched:
            return problem.fn(*args)
        return problem.fn(
            *[pytree.tree_map(lambda t: t[None], a) if d == 0 else a for a, d in zip(args, dims, strict=True)]
        )[0]

    flags = list(problem.carried)
    dims = []
    for spec in problem.argument_specs:
        own, flags = flags[: spec.num_leaves], flags[spec.num_leaves :]
        dims.append(0 if any(own) else None)
    take = jacrev(fn, argnums)
    tree = take(*args) if problem.in_dims is None else vmap(take, tuple(dims))(*args)
    leaves = iter(pytree.tree_leaves(tree))
    rows = [
        torch.cat([next(leaves).reshape(problem.points, o.size, i.size) for i in problem.shape.inputs], 2)
        for o in problem.shape.outputs
    ]
    return torch.cat(rows, 1).numpy()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_equals_jacrev(strategy: str, case: str, chunk: int) -> None:
    problem = CASES[case]
    shape = problem.shape
    whole = Rectangle(0, shape.points, 0, shape.rows, 0, shape.columns)
    got = compute_block(problem, strategy, whole, chunk)
    np.testing.assert_allclose(got, oracle(problem), rtol=1e-12, atol=1e-14)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), strategy=st.sampled_from(sorted(STRATEGIES)), case=st.sampled_from(sorted(CASES)))
def test_any_rectangle_by_any_chunk(data, strategy: str, case: str) -> None:  # type: ignore[no-untyped-def]
    problem = CASES[case]
    shape = problem.shape

    def extent(size: int) -> tuple[int, int]:
        start = data.draw(st.integers(0, size - 1))
        return start, data.draw(st.integers(start + 1, size))

    points, rows = extent(shape.points), extent(shape.rows)
    block = Rectangle(*points, *rows, 0, shape.columns)
    got = compute_block(problem, strategy, block, data.draw(st.integers(1, 40)))
    np.testing.assert_allclose(got, oracle(problem)[slice(*points), slice(*rows)], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_forward_passes_are_those_of_the_table(chunk: int) -> None:
    """Counted, not timed: one pass for loop and vmap, one a chunk for repeat."""
    m = 8
    for strategy, expected in (("vjp/loop", 1), ("vjp/vmap", 1), ("vjp/repeat", math.ceil(m / chunk))):
        calls = []

        def fn(x: torch.Tensor, calls: list[int] = calls) -> torch.Tensor:
            calls.append(1)
            return torch.sin(x)

        problem = Problem(fn, (torch.randn(m),))
        _ = problem.shape
        calls.clear()
        compute_block(problem, strategy, Rectangle(0, 1, 0, m, 0, m), chunk)
        assert len(calls) == expected, strategy


def test_bfloat16_is_stored_as_float32() -> None:
    problem = Problem(torch.sin, (torch.randn(4).bfloat16(),))
    got = compute_block(problem, "vjp/vmap", Rectangle(0, 1, 0, 4, 0, 4), 4)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[0], jacrev(torch.sin)(problem.leaves[0]).float().numpy())


def test_what_vmap_cannot_do_is_found_by_trying() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum().item() > 0 else x * 3

    problem = Problem(fn, (torch.rand(3, 4),), in_dims=0)
    assert why_unsupported(problem, "vjp/loop") is None
    assert "vmap" in str(why_unsupported(problem, "vjp/repeat"))


def test_options_know_all_strategies() -> None:
    for name in STRATEGIES:
        assert ComputeOptions(strategy=name).strategy == name  # type: ignore[arg-type]
