"""Forward mode where dual numbers meet constants, against torch's own."""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import jacfwd
from torch.overrides import TorchFunctionMode

import jacjobs
from jacjobs import Problem
from jacjobs.autodiff import constants
from jacjobs.autodiff.catalogue import STRATEGIES
from jacjobs.autodiff.constants import WithoutZeros
from jacjobs.autodiff.seeds import OneHot
from jacjobs.autodiff.strategy import corner
from jacjobs.transforms import jvp, vmap

OPERATORS: dict[str, Callable[[Any, Any], Tensor]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "Tensor.add": Tensor.add,
    "Tensor.sub": Tensor.sub,
    "Tensor.multiply": Tensor.multiply,
    "true_divide": torch.true_divide,
}
NUMBERS: Sequence[Any] = (0, 2, -1.5, 1j, np.float64(1.5), float("inf"))
DUALS = (torch.float32, torch.float64, torch.float16, torch.complex64)
CONSTANTS = (*DUALS, torch.int64, torch.bool)
SHAPES = ((), (1,), (3,), (2, 3), (2, 1), (0, 3))


def operand(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return (10 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 5).to(dtype)


def tangents(fn: Callable[[Tensor], Tensor], x: Tensor, *, ours: bool) -> tuple[Tensor, WithoutZeros | None]:
    """Two at once, without a graph."""
    seeds = torch.stack([operand(x.dtype, tuple(x.shape), seed) for seed in (5, 6)])
    mode: WithoutZeros | None = None

    def called(dual: Tensor) -> list[Tensor]:
        nonlocal mode
        if not ours:
            return [fn(dual)]
        with WithoutZeros() as mode:
            return [fn(dual)]

    with torch.no_grad():
        made = vmap(lambda seed: jvp(called, [x], [seed]), [seeds])[0]
    return made, mode


def compared(fn: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """To the bit. False where torch cannot do it."""
    try:
        want, _ = tangents(fn, x, ours=False)
    except (RuntimeError, TypeError) as error:
        with pytest.raises(type(error)):
            tangents(fn, x, ours=True)
        return False
    got, mode = tangents(fn, x, ours=True)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    return mode is not None and mode.met == 1


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_tangents_are_torchs_to_the_bit(name: str, swapped: bool) -> None:
    apply, met = OPERATORS[name], 0
    for dtypes, shapes in itertools.product(
        itertools.product(DUALS, CONSTANTS), itertools.product(SHAPES, repeat=2)
    ):
        x, c = operand(dtypes[0], shapes[0]), operand(dtypes[1], shapes[1], seed=1)
        met += compared((lambda x, c=c: apply(c, x)) if swapped else (lambda x, c=c: apply(x, c)), x)
    assert met > 400


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
@pytest.mark.parametrize("name", OPERATORS)
def test_so_they_are_with_numbers(name: str, number: Any) -> None:
    apply, met = OPERATORS[name], 0
    for dtype, swapped in itertools.product(DUALS, (False, True)):
        x = operand(dtype, (2, 3))
        met += compared((lambda x: apply(number, x)) if swapped else (lambda x: apply(x, number)), x)
    assert met >= 3


def shifted(x: Tensor) -> Tensor:
    """Constants of all kinds, on either side: seven, and a number less x, which torch has no zeros for."""
    one, three = torch.ones(()), torch.arange(3)
    return torch.cat([x + three, three - x, x * three, three / (2 + x * x), (1 - x) / 3, one.double() - x])


@pytest.mark.parametrize("strategy", ["jvp/vmap", "jvp/loop"])
def test_forward_mode_runs_no_python_of_torch_for_shapes(strategy: str) -> None:
    """Counted, not timed. torch's own jacfwd does, in each operator that meets a constant."""
    x = torch.randn(3)
    J = jacjobs.jacobian(shifted, strategy=strategy)
    assert torch.equal(J(x), jacfwd(shifted)(x))
    seen = {"jacjobs": 0, "jacfwd": 0}
    for who, run in {"jacjobs": J, "jacfwd": jacfwd(shifted)}.items():

        def count(frame: FrameType, event: str, _: Any, who: str = who) -> None:
            seen[who] += event == "call" and "_refs" in frame.f_code.co_filename

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            run(x)
        finally:
            sys.setprofile(before)
    assert seen["jacjobs"] == 0
    assert seen["jacfwd"] > 0


def test_a_function_that_meets_no_constants_is_not_looked_into_again(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []
    enter = WithoutZeros.__enter__
    monkeypatch.setattr(WithoutZeros, "__enter__", lambda mode: [entered.append(mode), enter(mode)][1])
    problem = Problem(lambda x: torch.tanh(x @ x.T).sin(), (torch.randn(3, 3),))
    columns(problem, "jvp/vmap")
    assert len(entered) == 1
    columns(problem, "jvp/vmap")
    columns(problem, "jvp/loop")
    assert len(entered) == 1
    problem = Problem(shifted, (torch.randn(3),))
    columns(problem, "jvp/vmap")
    columns(problem, "jvp/vmap")
    assert len(entered) == 3


def columns(problem: Problem, strategy: str) -> Tensor:
    """J at one point, of one output."""
    maker = STRATEGIES[strategy]
    n = problem.shape.columns
    chunks = maker.chunks(problem, corner(maker, problem, 1, n), OneHot(n), 1 if "loop" in strategy else n)
    return torch.cat([chunk.leaves[0].reshape(-1, problem.shape.rows) for chunk in chunks]).T


@pytest.mark.parametrize("fake_first", [False, True])
def test_what_fakes_show_is_what_data_show(fake_first: bool) -> None:
    """A plan's memory is predicted on fakes: by the operators that will run."""
    problem = Problem(shifted, (torch.randn(3),))
    met = []
    for fakes in (fake_first, not fake_first):
        x = problem.leaves[0]
        if fakes:
            with FakeTensorMode(allow_non_fake_inputs=True) as fake:
                _, mode = tangents(shifted, fake.from_tensor(x), ours=True)
        else:
            _, mode = tangents(shifted, x, ours=True)
        assert mode is not None
        met.append(mode.met)
    assert met == [7, 7]


def test_what_is_written_into_a_result_stays_there() -> None:
    def fn(x: Tensor) -> Tensor:
        y, z = x + 1, x - torch.zeros(3)
        y.mul_(2)
        z[0] = 5
        return torch.stack([x * 1, y, z])

    x = torch.randn(3)
    assert torch.equal(columns(Problem(fn, (x,)), "jvp/vmap"), jacfwd(fn)(x).reshape(9, 3))
    assert torch.equal(columns(Problem(fn, (x,)), "jvp/loop"), jacfwd(fn)(x).reshape(9, 3))


NESTED: dict[str, Callable[[Tensor], Tensor]] = {
    "grad": lambda x: torch.func.grad(lambda y: (2 * y * x + y * y / 3).sum())(x) * 2,
    "jvp": lambda x: torch.func.jvp(lambda y: 2 * y * y * x, (x,), (torch.ones(3),))[1] + 1,
    "vmap": lambda x: torch.func.vmap(lambda y: 2 * y / (y * x).sum())(x) - 1,
    "jacrev": lambda x: torch.func.jacrev(lambda y: (3 - y) * x)(2 * x) * x,
}


@pytest.mark.parametrize("strategy", ["jvp/vmap", "jvp/loop"])
@pytest.mark.parametrize("name", NESTED)
def test_transforms_within_the_function(name: str, strategy: str) -> None:
    if (name, strategy) == ("jvp", "jvp/loop"):
        pytest.skip("torch does not nest dual numbers outside of torch.func")
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    want = torch.autograd.functional.jacobian(NESTED[name], x)
    torch.testing.assert_close(jacjobs.jacobian(NESTED[name], strategy=strategy)(x), want)


@pytest.mark.parametrize("strategy", ["jvp/vmap", "jvp/loop"])
def test_a_graph_leads_through_as_before(strategy: str) -> None:
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    J = jacjobs.jacobian(lambda x: 2 * x * x * x / 3 + 1, strategy=strategy, create_graph=True)
    (second,) = torch.autograd.grad(J(x).sum(), x)
    torch.testing.assert_close(second, 4 * x)


def test_gradients_enabled_within_are_left_alone() -> None:
    weight = torch.randn(3, requires_grad=True)

    def fn(x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = 2 * x * weight
        return y / 3 + 1

    x = torch.randn(3)
    assert torch.equal(columns(Problem(fn, (x,)), "jvp/vmap"), jacfwd(fn)(x).detach())


def test_operands_with_a_way_of_their_own_are_asked() -> None:
    class Own(Tensor):
        asked = 0

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            cls.asked += 1
            return super().__torch_function__(func, types, args, kwargs)

    c = torch.randn(3).as_subclass(Own)
    x = torch.randn(3)
    got, mode = tangents(lambda x: (x * c).as_subclass(Tensor) * 2, x, ours=True)
    assert mode is not None
    assert mode.met == 1
    assert Own.asked > 0
    assert torch.equal(got, tangents(lambda x: (x * c).as_subclass(Tensor) * 2, x, ours=False)[0])


def test_what_is_no_number_may_know_what_to_do() -> None:
    class Length:
        def __rmul__(self, x: Tensor) -> Tensor:
            return x * 3

        def __radd__(self, x: Tensor) -> Tensor:
            return x + 3

        def __rtruediv__(self, x: Tensor) -> Tensor:
            return x / 3

    def fn(x: Tensor) -> Tensor:
        return (x * Length() + Length()) / Length()  # type: ignore[operator, no-any-return]

    x = torch.randn(3)
    assert torch.equal(columns(Problem(fn, (x,)), "jvp/vmap"), torch.eye(3))


BODIES: dict[str, Callable[[Tensor], Tensor]] = {
    "one": lambda x: x + 3,
    "two": lambda x: x * 2 + 1,
    "three": lambda x: torch.sin(x * 2) + 1,
    "both sides": lambda x: 2 / (3 - x * 2),
}


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("strategy", ["jvp/vmap", "jvp/loop"])
@pytest.mark.parametrize("body", BODIES)
def test_compiled_code_within_the_function(body: str, strategy: str, fullgraph: bool) -> None:
    """torch traces modes, too. Where it can do it without ours, it can do it with it."""
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)

    def products() -> Tensor:
        inner = torch.compile(BODIES[body], backend="eager", fullgraph=fullgraph)
        return columns(Problem(lambda x: 3 * inner(x) - 1, (x,)), strategy)

    def plain() -> Tensor:
        with pytest.MonkeyPatch.context() as without:
            without.setattr(constants, "_alone", lambda: False)
            return products()

    try:
        plain()
    except Exception as error:
        pytest.skip(f"torch cannot: {type(error).__name__}")
    finally:
        torch._dynamo.reset()
    torch.testing.assert_close(products(), jacfwd(lambda x: 3 * BODIES[body](x) - 1)(x))
    torch._dynamo.reset()


@pytest.mark.parametrize("strategy", ["jvp/vmap", "jvp/loop"])
def test_code_that_is_compiled_later(strategy: str) -> None:
    """Not in the first pass, but where values take another branch. And once, not in each pass."""
    seen = []

    def counted(graph: Any, _: Any) -> Any:
        seen.append(graph)
        return graph.forward

    inner = torch.compile(lambda x: torch.sin(x * 2) + 1, backend=counted)
    J = jacjobs.jacobian(lambda x: x * 2 if x[0] > 0 else inner(x) * 2, strategy=strategy)
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(J(x), 2 * torch.eye(3, dtype=torch.float64))
    for _ in range(3):
        torch.testing.assert_close(J(-x), torch.diag(4 * torch.cos(-2 * x)))
    assert len(seen) <= 1


def test_a_mode_of_the_callers_sees_what_it_saw() -> None:
    """One product, not one of values and one of tangents."""

    class Squashed(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            return torch.tanh(made) if func is Tensor.mul else made

    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    want = torch.diag(2 - 2 * torch.tanh(2 * x) ** 2)
    with Squashed():
        assert not constants._alone()
        for strategy in ("jvp/vmap", "jvp/loop"):
            torch.testing.assert_close(columns(Problem(lambda x: x * 2, (x,)), strategy), want)
    with torch.device("cpu"):
        assert constants._alone()


@pytest.mark.parametrize("strategy", ["jvp/vmap", "jvp/loop"])
def test_inference_mode_within_is_left_alone(strategy: str) -> None:
    def fn(x: Tensor) -> Tensor:
        with torch.inference_mode():
            y = x * 2
        return x * x + y.clone()

    x = torch.randn(3)
    assert torch.equal(columns(Problem(fn, (x,)), strategy), torch.diag(2 * x))


def test_what_cannot_be_looked_up_is_torchs() -> None:
    class Twice:
        def __eq__(self, _: object) -> bool:  # and so no hash
            return False

        def __call__(self, x: Tensor) -> Tensor:
            if torch.overrides.has_torch_function((x,)):
                made: Tensor = torch.overrides.handle_torch_function(self, (x,), x)
                return made
            return x * 2

    x = torch.randn(3)
    assert torch.equal(columns(Problem(Twice(), (x,)), "jvp/vmap"), 2 * torch.eye(3))


def test_many_points_say_nothing_of_one() -> None:
    """There the function is lifted, and what it meets is out of sight."""
    problem = Problem(shifted, (torch.randn(4, 3),), in_dims=0)
    maker = STRATEGIES["jvp/vmap"]
    for chunk in (12, 3):
        for _ in maker.chunks(problem, corner(maker, problem, 4, 3), OneHot(3), chunk):
            pass
        assert problem.kept.get(constants._PAYS) is (True if chunk == 3 else None)
    batched = Problem(lambda x: 2 * x + 1, (torch.randn(4, 3),), in_dims=0, batched=True)
    for _ in maker.chunks(batched, corner(maker, batched, 4, 3), OneHot(3), 12):
        pass
    assert batched.kept[constants._PAYS] is True


def test_where_a_rule_cannot_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def broken(*_: Any) -> tuple[Tensor, Tensor]:
        asked.append("rule")
        raise RuntimeError("no such kernel")

    x = torch.randn(3)
    rules = constants._Rules(broken, broken)
    monkeypatch.setattr(constants, "_RULES", dict.fromkeys(constants._RULES, rules))
    assert torch.equal(columns(Problem(shifted, (x,)), "jvp/vmap"), jacfwd(shifted)(x))
    assert len(asked) == 7


def test_want_of_memory_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def large(*_: Any) -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(constants, "_RULES", dict.fromkeys(constants._RULES, constants._Rules(large, large)))
    with pytest.raises(torch.OutOfMemoryError):
        tangents(shifted, torch.randn(3), ours=True)


def test_no_level_is_left_behind() -> None:
    def fn(x: Tensor) -> Tensor:
        y = 2 * x
        if y.shape:
            raise ArithmeticError("mine")
        return y

    for strategy in ("jvp/vmap", "jvp/loop"):
        with pytest.raises(ArithmeticError):
            columns(_unchecked(fn), strategy)
    assert forward_ad._current_level == -1
    assert not torch.overrides._get_current_function_mode_stack()


def _unchecked(fn: Callable[[Tensor], Tensor]) -> Problem:
    problem = Problem(lambda x: x, (torch.randn(3),))
    _ = problem.shape
    problem.fn = fn
    return problem
