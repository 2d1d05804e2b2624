"""Compiled chunks: the same products, in chunks of one size; and plain ones where code is of no use."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacfwd, jacrev, vmap

import jacjobs
from jacjobs.autodiff import compiled as compiling
from jacjobs.autodiff.block import Pace, compute_block
from jacjobs.autodiff.catalogue import COMPILED
from jacjobs.autodiff.compiled import Products
from jacjobs.errors import InputError
from jacjobs.problem import Problem
from jacjobs.shape import Rectangle
from tests.functions import CASES, randn

needs_a_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
W = randn(13, 7, seed=3)


def fn(x: Tensor) -> Tensor:
    return torch.tanh(W @ torch.sin(x))


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> list[Products]:
    """What would be compiled runs as it is; each time that something would be."""
    asked: list[Products] = []

    def compile_(products: Products, **_: bool) -> Products:
        asked.append(products)
        return products

    monkeypatch.setattr(compiling, "_compile", compile_)
    return asked


def whole(problem: Problem, strategy: str, chunk: int) -> Any:
    shape = problem.shape
    every = Rectangle(0, shape.points, 0, shape.rows, 0, shape.columns)
    return torch.from_numpy(compute_block(problem, Pace(strategy, chunk), every))


@needs_a_compiler
@pytest.mark.parametrize("strategy", COMPILED)
def test_real_code_makes_what_jacrev_makes(strategy: str) -> None:
    problem = Problem(fn, (randn(7),))
    torch.testing.assert_close(whole(problem, strategy, 5)[0], jacrev(fn)(problem.leaves[0]))
    code = COMPILED[strategy].code(problem)
    assert code.reason is None
    assert list(code.sizes) == [(1, 5, True)]
    other = problem.with_leaves([randn(7, seed=9)])
    torch.testing.assert_close(whole(other, strategy, 5)[0], jacrev(fn)(other.leaves[0]))
    assert COMPILED[strategy].code(other) is code, "compiled once for all values"


@needs_a_compiler
def test_jacobian_takes_compiled_code_where_it_is_faster() -> None:
    """A chain of small operators: calling each takes far longer than what it does."""

    def chain(x: Tensor) -> Tensor:
        for _ in range(60):
            x = torch.sin(x) * 1.01 + 0.1
        return x

    x = randn(40).float()
    J = jacjobs.jacobian(chain, compile=True)
    torch.testing.assert_close(J(x), jacrev(chain)(x), rtol=1e-4, atol=1e-5)
    (choice,) = J.choices
    assert choice.strategy in COMPILED
    torch.testing.assert_close(J(2 * x), jacrev(chain)(2 * x), rtol=1e-4, atol=1e-5)


@needs_a_compiler
@pytest.mark.parametrize(
    "name", [".item()", "control flow on values", "activation checkpointing", "old custom Function"]
)
def test_what_cannot_be_compiled_is_computed_all_the_same(name: str) -> None:
    """Whatever torch says of it, the values are right."""
    case = CASES[name]
    got = jacjobs.jacobian(case.fn, compile=True)(*case.args)
    torch.testing.assert_close(got, case.by(case.plain or case.fn)(*case.args), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("strategy", COMPILED)
@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 13, 26, 40, 1000])
def test_any_chunk_covers_all_products_at_all_points(
    strategy: str, chunk: int, uncompiled: list[Products]
) -> None:
    """Chunks of one size, though it does not divide what there is; those of fewer points are plain."""
    x = randn(5, 7)
    problem = Problem(fn, (x,), in_dims=0)
    torch.testing.assert_close(whole(problem, strategy, chunk), vmap(jacrev(fn))(x))
    assert len(COMPILED[strategy].code(problem).sizes) == 1
    assert len(uncompiled) == 1


def images(x: dict[str, Tensor], y: Tensor) -> list[Tensor]:
    return [torch.outer(y, x["a"].sum(0)).sin(), (x["a"] * x["b"].prod()).cos(), y.prod() * x["b"].sum()]


@pytest.mark.parametrize("strategy", ["vjp/vmap", "jvp/vmap"])
@pytest.mark.parametrize("chunk", [2, 5, 15, 21, 1000])
@pytest.mark.parametrize("points", [False, True])
def test_jacobian_has_the_leaves_that_jacrev_has(
    strategy: str, chunk: int, points: bool, uncompiled: list[Products]
) -> None:
    """Leaves of several axes and of none, by rows and by columns."""
    many = (3,) if points else ()
    args = {"a": randn(*many, 2, 4), "b": randn(*many, 2, 2)}, randn(*many, 3)
    J = jacjobs.jacobian(
        images, (0, 1), in_dims=0 if points else None, strategy=strategy, chunk=chunk, compile=True
    )
    plain = jacrev(images, (0, 1))
    for _ in range(2):
        torch.testing.assert_close(J(*args), vmap(plain)(*args) if points else plain(*args))
    assert J.choices[0].strategy in COMPILED
    assert len(uncompiled) == 1


@pytest.mark.parametrize("in_dims", [None, 0, 1])
@pytest.mark.parametrize("strategy", ["vjp/vmap", "jvp/vmap"])
def test_all_of_j_at_once_is_of_each_call_and_outlives_code_that_fails(
    in_dims: int | None, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = False
    calls = 0

    def compile_(products: Products, **_: bool) -> Products:
        def called(*args: Any) -> list[Tensor]:
            nonlocal calls
            calls += 1
            if broken:
                raise RuntimeError("no longer")
            return products(*args)

        return called

    monkeypatch.setattr(compiling, "_compile", compile_)
    J = jacjobs.jacobian(fn, in_dims=in_dims, strategy=strategy, chunk=1000, compile=True)
    plain = jacrev(fn) if in_dims is None else vmap(jacrev(fn), in_dims)
    shape = {None: (7,), 0: (3, 7), 1: (7, 3)}[in_dims]
    for seed in range(4):
        broken = seed == 3
        x = randn(*shape, seed=seed)
        want = plain(x)  # in inference mode, torch 2.11 makes zeros of it
        with monkeypatch.context() as later:
            if 0 < seed < 3:
                later.delattr(compiling.Compiled, "chunks")
            torch.testing.assert_close(J(x), want)
        with torch.inference_mode():
            torch.testing.assert_close(J(x), want)
    assert calls == 7, "six calls that worked, and none after the one that failed"


SCALE = 2.0


class Scaled:
    def __init__(self) -> None:
        self.by = [3.0]
        self.weight = W

    def __call__(self, x: Tensor) -> Tensor:
        return SCALE * self.by[0] * (self.weight @ x)


CHUNKS = [("vjp/vmap", 13), ("vjp/vmap", 5), ("jvp/vmap", 7), ("jvp/vmap", 2)]
"""All products, which come from seeds that code makes itself, and some."""


@needs_a_compiler
@pytest.mark.parametrize(("strategy", "chunk"), CHUNKS)
def test_code_is_made_anew_where_what_the_function_reads_has_changed(
    strategy: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A global, what hangs on the function, a matrix of other strides; and the layout of an argument."""
    of, x = Scaled(), randn(7)
    J = jacjobs.jacobian(of, strategy=strategy, chunk=chunk, compile=True)
    torch.testing.assert_close(J(x), 6 * W)
    monkeypatch.setitem(globals(), "SCALE", 5.0)
    torch.testing.assert_close(J(x), 15 * W)
    of.by[0] = 1.0
    torch.testing.assert_close(J(x), 5 * W)
    of.weight = (2 * W).t().contiguous().t()
    torch.testing.assert_close(J(x), 10 * W)
    torch.testing.assert_close(J(torch.stack([x, x], dim=1)[:, 0]), 10 * W)
    assert_compiled(J)


@needs_a_compiler
@pytest.mark.parametrize(("strategy", "chunk"), CHUNKS)
def test_code_is_made_anew_where_a_variable_around_the_function_has_changed(
    strategy: str, chunk: int
) -> None:
    on = True

    def either(x: Tensor) -> Tensor:
        return W @ (x.sin() if on else x.cos())

    J, x = jacjobs.jacobian(either, strategy=strategy, chunk=chunk, compile=True), randn(7)
    torch.testing.assert_close(J(x), W * x.cos())
    on = False
    torch.testing.assert_close(J(x), -W * x.sin())
    assert_compiled(J)


@needs_a_compiler
@pytest.mark.parametrize(("strategy", "chunk"), CHUNKS)
def test_an_argument_is_not_taken_for_a_tensor_that_the_function_has_captured(
    strategy: str, chunk: int
) -> None:
    x, y = randn(7), randn(7, seed=8)
    J = jacjobs.jacobian(lambda a: W @ (a.sin() * x), strategy=strategy, chunk=chunk, compile=True)
    for at in (x, y):
        torch.testing.assert_close(J(at), W * (at.cos() * x))
    assert_compiled(J)


@pytest.mark.parametrize(
    "source",
    [
        "L['at_point'].__closure__[0].cell_contents.fn.by[0]",
        "dict(type(L['problem'].fn).__mro__[1].__dict__)['scale']",
        "G['__import_torch_helpers'].SCALE",
        "G['__import___main__'].SCALE",
        "G['__import_jacjobs_of_mine'].SCALE",
        "L['leaves'][0]",
        "",
    ],
)
def test_what_may_change_is_looked_at(source: str) -> None:
    assert compiling._may_change(source)


def assert_compiled(J: Any) -> None:
    (ready,) = J._ready
    assert ready.choice.strategy in COMPILED
    code = ready._problem.kept[ready.choice.strategy]
    assert code.reason is None


@needs_a_compiler
def test_nothing_is_looked_at_before_a_call_but_what_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []

    def watched(guards: Any) -> list[bool]:
        answers = [compiling._may_change(guard.orig_guard.name) for guard in guards]
        kept.extend(g.orig_guard.name for g, answer in zip(guards, answers, strict=True) if answer)
        return answers

    monkeypatch.setattr(compiling, "_watched", watched)
    whole(Problem(Scaled(), (randn(7),)), "jvp/compiled", 7)
    sources = {name.partition("[")[2].partition("]")[0].strip("'") for name in kept if name}
    assert {"leaves", "seeds", "problem"} <= sources
    assert not [name for name in kept if "torch" in name or "pytree" in name or "jacjobs" in name]
    assert any(name.endswith("].fn.by[0]") for name in kept), kept
    assert any("SCALE" in name for name in kept), kept


@pytest.mark.parametrize("strategy", COMPILED)
def test_a_part_of_the_products_with_parameters_in_a_dictionary(
    strategy: str, uncompiled: list[Products]
) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 6)).double()
    problem = Problem.parameters(network, randn(4, 3))
    want = whole(problem, "vjp/vmap", 1000)
    torch.testing.assert_close(whole(problem, strategy, 60), want)
    rows, columns = problem.shape.rows, problem.shape.columns
    part = Rectangle(1, 3, 2, 6, 0, columns)
    if COMPILED[strategy].makes == "columns":
        part = Rectangle(1, 3, 0, rows, 5, 40)
    for chunk in (3, 9, 100):
        got = compute_block(problem, Pace(strategy, chunk), part)
        torch.testing.assert_close(torch.from_numpy(got), want[part.slices])


@pytest.mark.parametrize("strategy", COMPILED)
def test_wrong_code_is_found_by_its_first_chunk_and_not_used(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(products: Products, **_: bool) -> Products:
        return lambda *arguments: [leaf * (1 + 1e-6) for leaf in products(*arguments)]

    monkeypatch.setattr(compiling, "_compile", wrong)
    problem = Problem(fn, (randn(7),))
    torch.testing.assert_close(whole(problem, strategy, 5), whole(problem, "vjp/vmap", 5))
    reason = COMPILED[strategy].code(problem).reason
    assert reason is not None
    assert "differ from those of" in reason
    plain = jacjobs.jacobian(fn, compile=True)
    plain(randn(7))
    assert plain.choices[0].strategy not in COMPILED


def test_code_that_gives_nan_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def nan(products: Products, **_: bool) -> Products:
        return lambda *arguments: [leaf * torch.nan for leaf in products(*arguments)]

    monkeypatch.setattr(compiling, "_compile", nan)
    problem = Problem(fn, (randn(7),))
    torch.testing.assert_close(whole(problem, "vjp/compiled", 5), whole(problem, "vjp/vmap", 5))


def test_where_there_is_no_compiler_products_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(products: Products, **_: bool) -> Products:
        def call(*arguments: Any) -> Any:
            raise RuntimeError("no C++ compiler was found\nand more")

        return call

    monkeypatch.setattr(compiling, "_compile", broken)
    problem = Problem(fn, (randn(7),))
    pace, every = Pace("jvp/compiled", 3), Rectangle(0, 1, 0, 13, 0, 7)
    for _ in range(2):
        got = torch.from_numpy(compute_block(problem, pace, every))
        torch.testing.assert_close(got, whole(problem, "vjp/vmap", 5))
    assert pace.retreats == ["jvp/compiled goes on as jvp/vmap: RuntimeError: no C++ compiler was found"]


def test_out_of_memory_is_told_and_halves_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(products: Products, **_: bool) -> Products:
        def call(leaves: Any, seeds: Any, several: bool) -> Any:
            if seeds[0].shape[0] > 2:
                raise torch.OutOfMemoryError("too much")
            return products(leaves, seeds, several)

        return call

    monkeypatch.setattr(compiling, "_compile", small)
    problem = Problem(fn, (randn(7),))
    pace = Pace("vjp/compiled", 8)
    got = compute_block(problem, pace, Rectangle(0, 1, 0, 13, 0, 7))
    torch.testing.assert_close(torch.from_numpy(got), whole(problem, "vjp/vmap", 5))
    assert pace.chunk == 2
    assert len(pace.retreats) == 2


def test_random_functions_are_not_compiled(uncompiled: list[Products]) -> None:
    problem = Problem(lambda x: torch.dropout(x * 1.0, 0.5, True), (randn(7),)).seeded(3)
    torch.testing.assert_close(whole(problem, "vjp/compiled", 3), whole(problem, "vjp/vmap", 3))
    assert not uncompiled


def test_compiled_code_cannot_be_differentiated_again() -> None:
    with pytest.raises(InputError, match=r"create_graph=True with compile=True"):
        jacjobs.jacobian(torch.sin, create_graph=True, compile=True)


def test_forward_mode_works_where_compiling_it_failed() -> None:
    """torch leaves its level of dual numbers entered then, and allows of no second one."""

    def outer(u: Tensor) -> Tensor:
        return u[:, None] * u[None, :]

    points = randn(3, 4)
    for _ in range(2):
        jac = jacjobs.jacobian(outer, in_dims=0, strategy="jvp/vmap", chunk=12, compile=True)
        torch.testing.assert_close(jac(points), vmap(jacfwd(outer))(points))


@needs_a_compiler
@pytest.mark.parametrize("most", [6, 500])
def test_long_chains_are_several_kernels(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """What one kernel writes is kept until it returns, however long it is."""
    from torch._inductor import config
    from torch._inductor.utils import run_and_get_code

    def path(u: Tensor) -> Tensor:
        states = []
        for _ in range(8):
            u = u + 0.1 * (u.roll(1) - u) * u
            states.append(u)
        return torch.stack(states)

    monkeypatch.setattr(compiling, "KERNEL_ARGUMENTS", most)
    x = randn(6)
    jac = jacjobs.jacobian(path, strategy="jvp/vmap", chunk=6, compile=True)
    with config.patch(force_disable_caches=True):
        J, (code,) = run_and_get_code(jac, x)
    torch.testing.assert_close(J, jacfwd(path)(x))
    assert (code.count("async_compile.cpp_pybinding(") > 1) == (most == 6)
