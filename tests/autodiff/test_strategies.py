"""The nine strategies against torch.func in float64: every cell, chunk by chunk and block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jacrev, vmap
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from jacjobs import Problem, jacobian
from jacjobs.autodiff.block import Pace, compute_block
from jacjobs.autodiff.catalogue import COMPILED, STRATEGIES
from jacjobs.autodiff.guards import check_function
from jacjobs.autodiff.legality import try_strategies
from jacjobs.autodiff.reverse import TRANSFORM
from jacjobs.autodiff.seeds import OneHot
from jacjobs.errors import InputError
from jacjobs.planning.geometry import Tiling
from jacjobs.planning.options import ComputeOptions
from jacjobs.shape import Rectangle
from tests.functions import CASES as FUNCTIONS

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
    got = compute_block(problem, Pace(strategy, chunk), whole(problem))
    np.testing.assert_allclose(got, oracle(problem), rtol=1e-12, atol=1e-14)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), strategy=st.sampled_from(sorted(STRATEGIES)), case=st.sampled_from(sorted(CASES)))
def test_any_rectangle_by_any_chunk(data, strategy: str, case: str) -> None:  # type: ignore[no-untyped-def]
    problem = CASES[case]
    shape = problem.shape

    def extent(size: int) -> tuple[int, int]:
        start = data.draw(st.integers(0, size - 1))
        return start, data.draw(st.integers(start + 1, size))

    points, rows, columns = extent(shape.points), (0, shape.rows), (0, shape.columns)
    if STRATEGIES[strategy].makes == "rows":
        rows = extent(shape.rows)
    else:
        columns = extent(shape.columns)
    got = compute_block(
        problem, Pace(strategy, data.draw(st.integers(1, 40))), Rectangle(*points, *rows, *columns)
    )
    want = oracle(problem)[slice(*points), slice(*rows), slice(*columns)]
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def whole(problem: Problem) -> Rectangle:
    shape = problem.shape
    return Rectangle(0, shape.points, 0, shape.rows, 0, shape.columns)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_matrix(name: str, strategy: str) -> None:
    """Nine strategies × all functions × chunks × dtypes: equal to the reference, or refused as documented."""
    case = FUNCTIONS[name]
    problem = case.problem()
    verdict = try_strategies(problem, [strategy])[strategy]
    assert verdict.reason == case.unsupported.get(strategy)
    if verdict.error is not None or "differ" in (verdict.reason or ""):
        return
    want = case.reference().numpy()
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        typed = case.problem(dtype)
        for chunk in (1, 3, 1000):
            got = compute_block(typed, Pace(strategy, chunk), whole(typed))[0]
            assert got.dtype == str(dtype).removeprefix("torch.")
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["dense", "softmax", "piecewise", "attention", "nested structure"])
def test_half_precision(name: str, dtype: torch.dtype, strategy: str) -> None:
    want = FUNCTIONS[name].reference().numpy()
    problem = FUNCTIONS[name].problem(dtype)
    assert problem.shape.dtype == ("float16" if dtype is torch.float16 else "float32")
    assert try_strategies(problem, [strategy])[strategy].reason is None
    got = compute_block(problem, Pace(strategy, 4), whole(problem))[0].astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * torch.finfo(dtype).eps * np.abs(want).max())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_mixed_precision_under_autocast(strategy: str) -> None:
    W = [torch.randn(6, 6) for _ in range(2)]

    def fn(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (W[0] @ torch.tanh(W[1] @ x[:, None])).float()[:, 0]

    x = torch.randn(6)
    problem = Problem(fn, (x,))
    assert problem.precision is torch.bfloat16
    assert try_strategies(problem, [strategy])[strategy].reason is None
    want = jacrev(lambda x: W[0] @ torch.tanh(W[1] @ x))(x).numpy()
    got = compute_block(problem, Pace(strategy, 3), whole(problem))[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * 2**-8 * np.abs(want).max())


def test_inputs_and_outputs_of_different_dtypes() -> None:
    def fn(x: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return [x["single"].double() * x["double"], x["single"].half()]

    args = {"single": torch.rand(3), "double": torch.rand(3, dtype=torch.float64)}
    problem = Problem(fn, (args,))
    assert problem.shape.dtype == "float64"
    want = np.block(
        [[np.diag(args["double"]), np.diag(args["single"].double())], [np.eye(3), np.zeros((3, 3))]]
    )
    for strategy in STRATEGIES:
        got = compute_block(problem, Pace(strategy, 2), whole(problem))[0]
        np.testing.assert_allclose(got, want, rtol=1e-6)


CALLS: dict[str, Callable[[int, int, int], tuple[int, int]]] = {
    "vjp/loop": lambda m, n, k: (1, m),
    "vjp/repeat": lambda m, n, k: (-(-m // k), -(-m // k)),
    "vjp/vmap": lambda m, n, k: (1, -(-m // k)),
    "jvp/loop": lambda m, n, k: (n, 0),
    "jvp/repeat": lambda m, n, k: (-(-n // k), 0),
    "jvp/vmap": lambda m, n, k: (-(-n // k), 0),
    "double-vjp/loop": lambda m, n, k: (1, 1 + n),
    "double-vjp/repeat": lambda m, n, k: (-(-n // k), 2 * -(-n // k)),
    "double-vjp/vmap": lambda m, n, k: (1, 1 + -(-n // k)),
}
"""Calls of fn and of autograd.grad for one m × n point at chunk k: the tables of the modules' docstrings."""


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_calls_are_those_of_the_tables(strategy: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    m, n = 7, 5
    W = torch.randn(m, n)
    calls, backwards = [], []
    grad = torch.autograd.grad

    def fn(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return torch.sin(W @ x)

    def counted(*args: Any, **kwargs: Any) -> Any:
        backwards.append(1)
        return grad(*args, **kwargs)

    problem = Problem(fn, (torch.randn(n),))
    block = whole(problem)
    calls.clear()
    monkeypatch.setattr(torch.autograd, "grad", counted)
    compute_block(problem, Pace(strategy, chunk), block)
    assert (len(calls), len(backwards)) == CALLS[strategy](m, n, chunk)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tied_weights_count_once_and_buffers_stay(strategy: str) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(4, 4).double()
            self.second = torch.nn.Linear(4, 4).double()
            self.second.weight = self.first.weight
            self.norm = torch.nn.BatchNorm1d(4).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.second(torch.tanh(self.first(x))))

    module = Tied().eval()
    module.norm.running_mean.uniform_()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    x = torch.randn(5, 4, dtype=torch.float64)
    problem = Problem.parameters(module, x)
    check_function(problem)
    assert problem.shape.columns == 16 + 4 + 4 + 4 + 4
    assert [s.name for s in problem.shape.inputs] == [name for name, _ in module.named_parameters()]

    def one(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, weights, (x[None],))[0]

    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    tree = vmap(jacrev(one), (None, 0))(weights, x)
    want = torch.cat([tree[name].flatten(2) for name in weights], 2).numpy()
    got = compute_block(problem, Pace(strategy, 10), whole(problem))
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13)
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_hessians_are_symmetric_and_right(strategy: str) -> None:
    A = torch.randn(4, 4, dtype=torch.float64)

    def energy(x: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(A @ x, 0) + (x**3).prod()

    points = torch.randn(3, 4, dtype=torch.float64)
    problem = Problem.hessian(energy, (points,), in_dims=0)
    assert try_strategies(problem, [strategy])[strategy].reason is None
    got = compute_block(problem, Pace(strategy, 5), whole(problem))
    np.testing.assert_allclose(got, vmap(torch.func.hessian(energy))(points).numpy(), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(got, got.transpose(0, 2, 1), rtol=1e-12, atol=1e-12)


def _energy(x: torch.Tensor) -> torch.Tensor:
    return torch.logsumexp(torch.tanh(W @ x), 0) + (x**3).prod()


def _by_plain_autograd(x: torch.Tensor) -> torch.Tensor:
    if not x.requires_grad:
        x.requires_grad_()
    return torch.autograd.grad(_energy(x), x, create_graph=True)[0]


def _checkpointed(x: torch.Tensor) -> torch.Tensor:
    energy: torch.Tensor = checkpoint(_energy, x, use_reentrant=False)
    return energy


@pytest.mark.parametrize(
    ("problem", "transformed"),
    {
        "a gradient": (Problem.hessian(_energy, (POINTS[0],)), True),
        "a gradient by torch.func": (Problem(torch.func.grad(_energy), (POINTS[0],)), True),
        "a Jacobian inside": (Problem(jacrev(lambda x: torch.sin(x) * x.sum()), (POINTS[0],)), True),
        "at many points": (Problem.hessian(_energy, (POINTS,), in_dims=0), True),
        "plain autograd": (Problem(_by_plain_autograd, (POINTS[0],)), None),
        "saved-tensor hooks": (Problem.hessian(_checkpointed, (POINTS[0],)), False),
    }.values(),
    ids=["gradient", "torch.func", "Jacobian", "points", "plain autograd", "hooks"],
)
def test_torch_func_makes_the_graph_of_what_differentiates_inside_itself_where_it_can(
    problem: Problem, transformed: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None: whichever."""
    monkeypatch.setattr("jacjobs.autodiff.reverse.SMALL", 0)
    assert problem.differentiates
    for chunk in (1, 2, 9):
        got = compute_block(problem, Pace("vjp/vmap", chunk), whole(problem))
        plain = compute_block(problem, Pace("vjp/loop", 1), whole(problem))
        np.testing.assert_allclose(got, plain, rtol=1e-9, atol=1e-11)
    if transformed is not None:
        assert problem.kept.get(TRANSFORM, True) == transformed


def test_a_small_one_has_an_ordinary_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The transform's own half millisecond is more than the copies that it spares."""
    monkeypatch.delattr("torch.func.vjp")
    problem = Problem.hessian(_energy, (POINTS[0],))
    got = compute_block(problem, Pace("vjp/vmap", 9), whole(problem))
    np.testing.assert_allclose(got[0], torch.func.hessian(_energy)(POINTS[0]), rtol=1e-9, atol=1e-11)
    assert TRANSFORM not in problem.kept


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name.startswith("jvp/")])
def test_forward_mode_records_no_graph_of_captured_weights(strategy: str) -> None:
    """jacfwd does, to no use: five times the memory, a quarter more time."""
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(weight @ x)

    problem = Problem(network, (torch.randn(3, dtype=torch.float64),))
    want = torch.func.jacfwd(network)(problem.leaves[0])
    assert want.requires_grad
    chunks = STRATEGIES[strategy].chunks(problem, whole(problem), OneHot(3), 3)
    made = [leaf for chunk in chunks for leaf in chunk.leaves]
    assert not any(leaf.requires_grad for leaf in made)
    torch.testing.assert_close(torch.cat(made, 1)[0].T, want.detach())


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name.startswith("jvp/")])
def test_forward_mode_records_one_where_the_function_fails_without(strategy: str) -> None:
    """Attention in `eval()` takes a way of its own without gradients, one that has no forward mode."""
    attention = torch.nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64).eval()
    problem = Problem(lambda x: attention(x, x, x)[0], (torch.randn(1, 3, 4, dtype=torch.float64),))
    got = compute_block(problem, Pace(strategy, 5), whole(problem))
    np.testing.assert_allclose(got, compute_block(problem, Pace("vjp/loop", 1), whole(problem)), atol=1e-12)


def test_forward_mode_goes_on_where_a_branch_needs_gradients() -> None:
    weight = torch.ones(3, requires_grad=True)

    def branching(x: torch.Tensor) -> torch.Tensor:
        factor = torch.autograd.grad((weight**3).sum(), weight)[0].detach() if x[0] > 0 else 1.0
        return x * factor

    jac = jacobian(branching, strategy="jvp/loop")
    for sign, factor in ((-1, 1.0), (1, 3.0)):
        torch.testing.assert_close(jac(sign * torch.ones(3)), factor * torch.eye(3))


def test_what_does_not_differentiate_inside_itself_says_so() -> None:
    assert not any(problem.differentiates for problem in CASES.values())
    assert not Problem(lambda x: vmap(torch.sin)(x), (POINTS,)).differentiates


def test_a_hessian_needs_a_scalar() -> None:
    with pytest.raises(InputError, match="one tensor of one element"):
        _ = Problem.hessian(torch.sin, (torch.randn(3),)).shape


def test_bfloat16_is_stored_as_float32() -> None:
    problem = Problem(torch.sin, (torch.randn(4).bfloat16(),))
    got = compute_block(problem, Pace("vjp/vmap", 4), Rectangle(0, 1, 0, 4, 0, 4))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[0], jacrev(torch.sin)(problem.leaves[0]).float().numpy())


def test_options_know_all_strategies() -> None:
    for name in (*STRATEGIES, *COMPILED):
        assert ComputeOptions(strategy=name).strategy == name  # type: ignore[arg-type]


@settings(max_examples=80, deadline=None)
@given(data=st.data(), strategy=st.sampled_from(sorted(STRATEGIES)))
def test_shape_chunk_block_and_order_of_points_never_change_the_result(data, strategy: str) -> None:  # type: ignore[no-untyped-def]
    """Random P × m × n, cut into random blocks with ragged tails, computed in any order, points permuted."""
    P, m, n = (data.draw(st.integers(1, 7), label=name) for name in "Pmn")
    generator = torch.Generator().manual_seed(P * 100 + m * 10 + n)
    W = torch.randn(m, n, dtype=torch.float64, generator=generator)
    points = torch.randn(P, n, dtype=torch.float64, generator=generator)
    want = (1 - torch.tanh(points @ W.T) ** 2)[:, :, None] * W  # the closed form
    order = torch.tensor(data.draw(st.permutations(range(P))))
    problem = Problem(lambda x: torch.tanh(W @ x), (points[order],), in_dims=0)
    by_columns = STRATEGIES[strategy].makes == "columns"
    tiling = Tiling(
        points=P,
        rows=m,
        columns=n,
        part_points=P,
        part_lines=m,
        block_points=data.draw(st.integers(1, P)),
        block_rows=m if by_columns else data.draw(st.integers(1, m)),
        block_columns=data.draw(st.integers(1, n)) if by_columns else n,
    )
    got = np.full((P, m, n), np.nan)
    for index in data.draw(st.permutations(range(tiling.blocks))):
        b = tiling.block(0, index)
        got[b.slices] = compute_block(problem, Pace(strategy, data.draw(st.integers(1, 50))), b)
    np.testing.assert_allclose(got, want[order].numpy(), rtol=1e-12, atol=1e-15)
