"""`jacjobs.jacobian` in the place of jacrev: the same result, differentiable again, within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap

import jacjobs
from jacjobs.autodiff.catalogue import STRATEGIES
from jacjobs.autodiff.meter import Meter
from jacjobs.errors import FunctionError, InputError
from tests.functions import CASES

W, B, X1 = torch.randn(7, 5), torch.randn(7), torch.randn(5)
MODEL = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
PARAMETERS = {name: p.detach() for name, p in MODEL.named_parameters()}


def predict(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """The function of torch's tutorial on Jacobians and Hessians."""
    return torch.nn.functional.linear(x, weight, bias).tanh()


# Functions of torch's documentation and tutorials for jacrev, jacfwd and hessian: (fn, args, argnums).
# https://docs.pytorch.org/docs/stable/generated/torch.func.jacrev.html (jacfwd, hessian),
# https://docs.pytorch.org/docs/stable/generated/torch.autograd.functional.jacobian.html (and hessian),
# https://docs.pytorch.org/tutorials/intermediate/jacobians_hessians.html
EXAMPLES: dict[str, tuple[Any, tuple[Any, ...], Any]] = {
    "jacrev: sin": (torch.sin, (torch.randn(5),), 0),
    "jacrev: aux without aux": (lambda x: x.sin(), (torch.randn(5),), 0),
    "jacrev: two arguments": (lambda x, y: x + y**2, (torch.randn(5), torch.randn(5)), 0),
    "jacrev: argnums 1": (lambda x, y: x + y**2, (torch.randn(5), torch.randn(5)), 1),
    "jacrev: argnums (0, 1)": (lambda x, y: x + y**2, (torch.randn(5), torch.randn(5)), (0, 1)),
    "jacrev: 0-dimensional": (torch.sin, (torch.randn([]),), 0),
    "jacrev: of jacrev": (jacrev(torch.sin), (torch.randn(3),), 0),
    "jacfwd: sum of squares": (lambda x: x.sin().sum(), (torch.randn(5),), 0),
    "jacfwd: of jacfwd": (jacfwd(torch.sin), (torch.randn(4),), 0),
    "hessian: of sin sum": (grad(lambda x: x.sin().sum()), (torch.randn(5),), 0),
    "autograd: exp reducer": (lambda x: x.exp().sum(dim=1), (torch.rand(2, 2),), 0),
    "autograd: exp adder": (lambda x, y: 2 * x.exp() + 3 * y, (torch.rand(2), torch.rand(2)), (0, 1)),
    "autograd: power reducer": (grad(lambda x: x.pow(3).sum()), (torch.rand(2, 2),), 0),
    "autograd: power adder": (
        grad(lambda x, y: (2 * x.pow(2) + 3 * y.pow(2)).sum()),
        (torch.rand(2), torch.rand(2)),
        0,
    ),
    "tutorial: predict, weight": (predict, (W, B, X1), 0),
    "tutorial: predict, bias": (predict, (W, B, X1), 1),
    "tutorial: predict, x": (predict, (W, B, X1), 2),
    "tutorial: predict, weight and bias": (predict, (W, B, X1), (0, 1)),
    "tutorial: hessian of predict": (jacrev(predict, argnums=2), (W, B, X1), 2),
    "tutorial: functional_call": (lambda p, x: functional_call(MODEL, p, (x,)), (PARAMETERS, X1), 0),
    "tutorial: Laplacian's function": (
        grad(lambda x: torch.exp(-x.square().sum()) + (x**3).prod()),
        (torch.randn(4),),
        0,
    ),
    "whirlwind tour: dict out": (lambda x: {"sin": x.sin(), "norm": x.norm()}, (torch.randn(4),), 0),
}


def equal(got: Any, want: Any, **tolerance: float) -> None:
    assert torch.utils._pytree.tree_structure(got) == torch.utils._pytree.tree_structure(want)
    torch.testing.assert_close(got, want, **tolerance)


@pytest.mark.parametrize("name", EXAMPLES)
def test_public_examples_give_the_same(name: str) -> None:
    fn, args, argnums = EXAMPLES[name]
    want = jacrev(fn, argnums)(*args)
    equal(jacjobs.jacobian(fn, argnums)(*args), want)
    equal(jacfwd(fn, argnums)(*args), want)
    for strategy in STRATEGIES:
        if name == "jacfwd: of jacfwd" and strategy.startswith("jvp/"):
            continue  # torch nests no dual numbers
        equal(jacjobs.jacobian(fn, argnums, strategy=strategy, chunk=2)(*args), want)


def test_hessian_of_the_documentation() -> None:
    x = torch.randn(5)
    H = jacjobs.jacobian(jacjobs.jacobian(lambda x: x.sin().sum(), create_graph=True))(x)
    equal(H, hessian(lambda x: x.sin().sum())(x))


@pytest.mark.parametrize("name", [name for name in CASES if name != "nested structure"])
def test_a_strategy_is_picked_without_help(name: str) -> None:
    """Also where jacrev or jacfwd fail: checkpointing, old custom functions, control flow, .item()."""
    case = CASES[name]
    got = jacjobs.jacobian(case.fn)(*case.args)
    want = case.by(case.plain or case.fn)(*case.args)
    equal(got, want, rtol=1e-9, atol=1e-11)


def test_what_torch_func_cannot_do_is_done() -> None:
    """The peers fail where this does not: else the test above would show nothing."""
    case = CASES["activation checkpointing"]
    with pytest.raises(RuntimeError):
        jacrev(case.fn)(*case.args)
    case = CASES["old custom Function"]
    with pytest.raises(RuntimeError):
        jacrev(case.fn)(*case.args)
    case = CASES["fused attention"]
    with pytest.raises(NotImplementedError):
        jacfwd(case.fn)(*case.args)


@pytest.mark.parametrize("outer", STRATEGIES)
@pytest.mark.parametrize("inner", STRATEGIES)
def test_second_derivatives_by_every_pair(inner: str, outer: str) -> None:
    """Where the outer strategy cannot see through the inner one, it is refused with a reason."""
    x = torch.randn(3, dtype=torch.float64)

    def fn(x: Tensor) -> Tensor:
        return torch.sin(x) * x.prod()

    once = jacjobs.jacobian(fn, strategy=inner, chunk=2, create_graph=True)
    if outer in ("vjp/loop", "vjp/vmap"):
        equal(jacjobs.jacobian(once, strategy=outer)(x), jacrev(jacrev(fn))(x))
    else:
        try:
            got = jacjobs.jacobian(once, strategy=outer)(x)
        except (FunctionError, InputError):
            return
        equal(got, jacrev(jacrev(fn))(x))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_third_derivatives(strategy: str) -> None:
    x = torch.randn(3, dtype=torch.float64)

    def fn(x: Tensor) -> Tensor:
        return torch.exp(x[:2]) * (x**4).sum()

    J = jacjobs.jacobian
    once = J(fn, strategy=strategy, create_graph=True)
    twice = J(once, create_graph=True)
    equal(J(twice)(x), jacrev(jacrev(jacrev(fn)))(x))


def test_gradients_flow_through_to_what_was_captured() -> None:
    x, scale = torch.randn(4, dtype=torch.float64), torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    for strategy in STRATEGIES:
        J = jacjobs.jacobian(lambda x: torch.sin(scale * x), strategy=strategy, create_graph=True)(x)
        (got,) = torch.autograd.grad(J.square().sum(), scale)
        want = grad(lambda s: jacrev(lambda x: torch.sin(s * x))(x).square().sum())(scale.detach())
        torch.testing.assert_close(got, want)
        assert not jacjobs.jacobian(lambda x: torch.sin(scale * x), strategy=strategy)(x).requires_grad


def test_inside_a_transform_it_is_jacrev() -> None:
    points = torch.randn(6, 3)
    equal(vmap(jacjobs.jacobian(torch.sin))(points), vmap(jacrev(torch.sin))(points))


@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
@pytest.mark.parametrize("chunk", ["auto", 2, 6, 12, 1000])
def test_at_many_points_it_is_jacrev_under_vmap(strategy: str, chunk: Any) -> None:
    """Points in the inputs, in what is not differentiated, in a later axis; nested structures."""
    W, x = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)

    def layer(weight: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(weight["W"] @ x)
        return y, y.sum() * x[:2]

    for argnums, in_dims, args in (
        (1, (None, 0), ({"W": W}, x)),
        (0, (None, 0), ({"W": W}, x)),
        ((0, 1), (None, 1), ({"W": W}, x.T)),
        (1, (None, 0), ({"W": W}, x[:1])),
    ):
        want = vmap(jacrev(layer, argnums), in_dims)(*args)
        got = jacjobs.jacobian(layer, argnums, in_dims=in_dims, strategy=strategy, chunk=chunk)(*args)
        equal(got, want)


def test_a_graph_of_many_points_is_refused() -> None:
    with pytest.raises(InputError, match=r"create_graph=True with in_dims.*put torch.func.vmap around"):
        jacjobs.jacobian(torch.sin, in_dims=0, create_graph=True)


def test_entries_have_places_of_their_own() -> None:
    """Also where gradients are one tensor, or expanded from one."""
    for fn in (lambda a, b: a + b, lambda a, b: (a.sum() + b.sum()).expand(3), lambda a, b: a * 1):
        x = torch.randn(3)
        for strategy in STRATEGIES:
            for chunk in (1, 3):
                J, K = jacjobs.jacobian(fn, (0, 1), strategy=strategy, chunk=chunk)(x, x)
                want_J, want_K = J.clone(), K.clone()
                J[0, 0] += 1
                want_J[0, 0] += 1
                assert torch.equal(J, want_J)
                assert torch.equal(K, want_K)


def kernel_residual(count: int, bumps: int) -> tuple[Any, Tensor, Tensor]:
    """`count` residuals of `bumps` + 1 parameters: weights of Gaussian bumps, and their width. And J."""
    points = torch.linspace(0, 1, count, dtype=torch.float64)
    squares = (points[:, None] - torch.linspace(0, 1, bumps, dtype=torch.float64)) ** 2

    def residual(theta: Tensor) -> Tensor:
        return torch.exp(-squares / theta[bumps] ** 2) @ theta[:bumps] - torch.sin(points)

    theta = torch.cat([torch.randn(bumps, dtype=torch.float64), torch.full((1,), 0.05, dtype=torch.float64)])
    values = torch.exp(-squares / theta[bumps] ** 2)
    width = (values * 2 * squares / theta[bumps] ** 3) @ theta[:bumps]
    return residual, theta, torch.cat([values, width[:, None]], 1)


def test_the_kernel_residual_fits_a_small_budget() -> None:
    """The 10,000 × 1,001 residual that needs tens of GiB at once, at a twentieth of its size and budget."""
    residual, theta, want = kernel_residual(2000, 250)
    with Meter() as tracker:
        J = jacjobs.jacobian(residual, memory="50MiB")(theta)
    torch.testing.assert_close(J, want)
    assert tracker.peak < 50 * 2**20 + J.nbytes
    with Meter() as naive:
        jacfwd(residual)(theta)
    assert naive.peak > 1 << 30


def test_the_budget_bounds_the_memory() -> None:
    """What is said is kept: a smaller budget has a smaller peak."""
    A = torch.randn(300, 300)

    def fn(x: Tensor) -> Tensor:
        return torch.sin(A @ torch.tanh(A @ x))

    peaks = []
    x = torch.randn(300)
    for memory in ("4MiB", "1MiB", "300KiB"):
        with Meter() as tracker:
            J = jacjobs.jacobian(fn, memory=memory)(x)
        peaks.append(tracker.peak - J.nbytes)
        equal(J, jacrev(fn)(x), rtol=1e-4, atol=1e-2)
    assert peaks[0] > peaks[1] > peaks[2]
    assert peaks[1] < 1.05 * 2**20
    with pytest.raises(MemoryError, match=r"needs [\d,]+ bytes.*budget is 10 bytes"):
        jacjobs.jacobian(fn, memory=10)(x)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_callers_grad_mode_does_not_matter(strategy: str) -> None:
    x = torch.randn(3)
    want = jacrev(torch.sin)(x)
    J = jacjobs.jacobian(torch.sin, strategy=strategy)
    with torch.no_grad():
        equal(J(x), want)
    with torch.inference_mode():
        made_here = x.clone()
        equal(J(x), want)
        equal(J(made_here), want)
    equal(J(made_here), want)


def without_tangents() -> Any:
    return torch.autograd.forward_ad._set_fwd_grad_enabled(False)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode, without_tangents])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("in_dims", [None, 0, 1])
@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
def test_nor_where_points_differ_from_samples_in_their_axis(
    strategy: str, in_dims: int | None, first: bool, off: Callable[[], Any]
) -> None:
    """In the first call and in later ones: `W @ x` of many x puts their axis last."""
    W = torch.randn(3, 4)
    x = torch.randn({None: (4,), 0: (5, 4), 1: (4, 5)}[in_dims])
    plain = jacrev(lambda x: W @ x.sin())
    want = plain(x) if in_dims is None else vmap(plain, in_dims)(x)
    J = jacjobs.jacobian(lambda x: W @ x.sin(), in_dims=in_dims, strategy=strategy)
    if not first:
        J(x)
    with off():
        equal(J(x), want)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
def test_nor_for_a_result_with_a_graph(strategy: str, off: Callable[[], Any]) -> None:
    x = torch.randn(4).requires_grad_()
    J = jacjobs.jacobian(torch.sin, strategy=strategy, create_graph=True)
    for _ in range(2):
        with off():
            equal(J(x).detach(), torch.diag(x.detach().cos()))


def test_a_parameter_is_of_the_kind_of_a_tensor() -> None:
    x = torch.randn(3)
    J = jacjobs.jacobian(torch.sin)
    for each in (x, torch.nn.Parameter(x), x):
        equal(J(each), jacrev(torch.sin)(x))
    assert len(J.choices) == 1


def test_the_choice_is_made_once_for_arguments_of_one_kind() -> None:
    calls = []

    def fn(x: Tensor, power: int) -> Tensor:
        calls.append(1)
        return x**power

    J = jacjobs.jacobian(fn)
    for size, power in ((3, 2), (3, 2), (4, 2), (3, 3)):
        x = torch.randn(size)
        equal(J(x, power), jacrev(lambda x, p=power: x**p)(x))
    calls.clear()
    J(torch.randn(3), 2)
    assert len(calls) == 1


def test_wrong_arguments_are_refused() -> None:
    x = torch.randn(3)
    with pytest.raises(InputError, match="strategy: got 'vjp/magic', expected auto or vjp/vmap"):
        jacjobs.jacobian(torch.sin, strategy="vjp/magic")(x)
    with pytest.raises(InputError, match="chunk: got 0"):
        jacjobs.jacobian(torch.sin, chunk=0)(x)
    with pytest.raises(InputError, match="memory: got 'lots'"):
        jacjobs.jacobian(torch.sin, memory="lots")(x)
    with pytest.raises(InputError, match=r"got torch.int64, expected a floating-point tensor"):
        jacjobs.jacobian(torch.sin)(torch.arange(3))
    with pytest.raises(FunctionError, match="ValueError: math domain error"):
        jacjobs.jacobian(lambda x: x * math.sqrt(-1))(x)
