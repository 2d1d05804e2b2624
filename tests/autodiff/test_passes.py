"""Graphs of chunks are rewritten where that spares work, and compute what they did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.func import jacfwd, jacrev
from torch.fx.experimental.proxy_tensor import make_fx

import jacjobs
from jacjobs.autodiff import matmul, passes
from jacjobs.autodiff.block import Pace, compute_block
from jacjobs.autodiff.catalogue import COMPILED
from jacjobs.autodiff.seeds import AllOneHot, OneHot, identity
from jacjobs.problem import Problem
from jacjobs.shape import Rectangle
from tests.autodiff.test_compiled import needs_a_compiler
from tests.functions import randn

aten: Any = torch.ops.aten
N = 6
W, V, d, e = randn(N, N, seed=1), randn(N, 4, seed=2), randn(N, seed=3), randn(N, N, seed=4)
ARGUMENTS = (W, V, d, e)


def graph_of(fn: Callable[..., Tensor], *args: Tensor) -> fx.GraphModule:
    return make_fx(fn, tracing_mode="fake")(*args)


def calls(module: fx.GraphModule, target: Any) -> int:
    return len(module.graph.find_nodes(op="call_function", target=target))


def rewritten(
    rewrite: Callable[[fx.Graph], None], fn: Callable[..., Tensor], *args: Tensor
) -> fx.GraphModule:
    """The graph of `fn`, rewritten; it still computes what `fn` does."""
    module = graph_of(fn, *args)
    rewrite(module.graph)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    made = fn(*args)
    # Sums of float32, in another order.
    rounding = {"atol": 1e-3, "rtol": 0} if made.dtype == torch.float32 else {}
    torch.testing.assert_close(module(*args), made, **rounding)
    return module


def seeds(like: Tensor) -> Tensor:
    made: Tensor = identity(like.new_empty(0), N)
    return made


DIAGONAL: dict[str, Callable[..., Tensor]] = {
    "identity": lambda W, V, d, e: seeds(W) @ V,
    "rows scaled": lambda W, V, d, e: (seeds(W) * d) @ V,
    "the other way round": lambda W, V, d, e: (d * seeds(W)) @ V,
    "twice": lambda W, V, d, e: (seeds(W) * d * (1 - d * d)) @ V,
    "by a number": lambda W, V, d, e: (2.5 * (seeds(W) * d)) @ V,
    "by a matrix": lambda W, V, d, e: (seeds(W) * e) @ V,
    "by a column": lambda W, V, d, e: (seeds(W) * d[:, None]) @ V,
    "columns scaled": lambda W, V, d, e: W @ (seeds(W) * d),
    "transposed": lambda W, V, d, e: (V.permute(1, 0) @ (seeds(W) * d).permute(1, 0)).permute(1, 0),
    "in an order of its own": lambda W, V, d, e: (seeds(W) * d).clone() @ V,
}


@pytest.mark.parametrize("name", DIAGONAL)
def test_a_product_with_a_diagonal_matrix_is_a_choice_of_rows(name: str) -> None:
    assert calls(graph_of(DIAGONAL[name], *ARGUMENTS), aten.mm.default) == 1
    assert calls(rewritten(passes.choose_rows, DIAGONAL[name], *ARGUMENTS), aten.mm.default) == 0


FULL: dict[str, Callable[..., Tensor]] = {
    "something was added": lambda W, V, d, e: (seeds(W) + e) @ V,
    "rows were exchanged": lambda W, V, d, e: torch.roll(seeds(W), 1, 0) @ V,
    "a product before": lambda W, V, d, e: (W @ W * e) @ V,
    "sums of rows": lambda W, V, d, e: (seeds(W).sum(0) * e) @ V,
}


@pytest.mark.parametrize("name", FULL)
def test_no_other_matrix_is_taken_for_one(name: str) -> None:
    before = calls(graph_of(FULL[name], *ARGUMENTS), aten.mm.default)
    assert calls(rewritten(passes.choose_rows, FULL[name], *ARGUMENTS), aten.mm.default) == before


def test_an_identity_that_is_left_is_a_comparison_of_indices() -> None:
    module = rewritten(passes.write_identities_out, lambda x: identity(x, N) * 2 + x, randn(N, N))
    assert calls(module, identity) == 0


def test_zeros_are_not_added() -> None:
    def fn(W: Tensor, x: Tensor, y: Tensor) -> Tensor:
        nothing = torch.full([], 0.0, dtype=torch.float64).expand(N, N)
        return (nothing * x).sum(1) + y + (nothing @ W).permute(1, 0) * x

    module = rewritten(passes.drop_zeros, fn, W, d, randn(N, seed=5))
    assert calls(module, aten.sum.dim_IntList) == 0
    kept = rewritten(
        passes.drop_zeros, lambda x: torch.full([], 0.0, dtype=torch.float64).expand(N, N).sum(1) + x[:1], d
    )
    assert calls(kept, aten.add.Tensor) == 1, "what is added to zeros has another shape"
    ones = rewritten(passes.drop_zeros, lambda x: torch.full([], 1.0, dtype=torch.float64).expand(N) + x, d)
    assert calls(ones, aten.add.Tensor) == 1


def test_copies_are_left_out_unless_they_are_given_back() -> None:
    def copied(x: Tensor) -> Tensor:
        return aten.copy(x.new_empty(N, N), x.permute(1, 0))

    assert calls(rewritten(passes.drop_copies, lambda x: copied(x) * 2, e), aten.copy.default) == 0
    assert calls(rewritten(passes.drop_copies, copied, e), aten.copy.default) == 1
    wider = rewritten(passes.drop_copies, lambda x: aten.copy(x.new_empty(3, N), x) * 2, d)
    assert calls(wider, aten.copy.default) == 1


def test_a_small_result_that_is_expanded_is_written_whole() -> None:
    for fn, count in (
        (lambda x: x.expand(3, N), 1),
        (lambda x: x.expand(3, N) * 2, 0),
        (lambda x: x.expand(1, N), 0),
        (lambda x: x.expand(100_000, N), 0),
    ):
        module = rewritten(passes.write_results_whole, fn, d)
        assert calls(module, aten.clone.default) == count
        assert count == 0 or module(d).is_contiguous()


def test_a_large_product_with_a_vector_goes_to_onednn() -> None:
    def product(W: Tensor, x: Tensor) -> Tensor:
        return (W * x).sum(1)

    large, x = randn(1024, 2048).float(), randn(2048).float()
    module = rewritten(matmul.use_faster, product, large, x)
    assert calls(module, torch.ops.jacjobs.mv.default) == int(torch.backends.mkldnn.is_available())
    for W_, x_ in ((large.double(), x.double()), (large[:64], x), (large[:, ::2], x[::2])):
        assert calls(rewritten(matmul.use_faster, product, W_, x_), torch.ops.jacjobs.mv.default) == 0
    kept = rewritten(matmul.use_faster, lambda W, x: (W * x).sum(1, keepdim=True), large, x)
    assert calls(kept, torch.ops.jacjobs.mv.default) == 0


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
def test_a_matrix_that_makes_a_value_and_its_tangents_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "MKL_AT_HOME", False)
    W, T, x = randn(1024, 2048).float() / 45, randn(2048, 16).float() / 45, randn(2048).float()
    ops = torch.ops.jacjobs

    def forward(W: Tensor, T: Tensor, x: Tensor) -> Tensor:
        return (1 - (W * x).sum(1).square())[:, None] * (W @ T)

    joined = rewritten(matmul.use_faster, forward, W, T, x)
    assert calls(joined, ops.mm_mv.default) == 1
    assert calls(joined, ops.mm.default) == calls(joined, ops.mv.default) == 0

    def layers(W: Tensor, V: Tensor, T: Tensor, x: Tensor) -> Tensor:
        return (V * (W * x).sum(1)).sum(1)[:, None] * (V @ (W @ T))

    both = rewritten(matmul.use_faster, layers, W, W.t().contiguous(), T, x)
    assert calls(both, ops.mm_mv.default) == 2, "what one makes is what the next takes"

    def chained(W: Tensor, T: Tensor, x: Tensor) -> Tensor:
        return W @ (T * (W * x).sum(1).sum())

    many = rewritten(matmul.use_faster, forward, W, randn(2048, 200).float() / 45, x)
    for kept in (rewritten(matmul.use_faster, chained, W, T, x), many):
        assert calls(kept, ops.mm_mv.default) == 0, "one needs the other, or reading once more is no matter"
        assert calls(kept, ops.mm.default) == calls(kept, ops.mv.default) == 1
    monkeypatch.setattr(matmul, "MKL_AT_HOME", True)
    apart = rewritten(matmul.use_faster, forward, W, T, x)
    assert calls(apart, ops.mm.default) == calls(apart, ops.mv.default) == 1, "reading twice is faster there"


def test_code_made_for_another_maker_s_processor_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """From torch's cache, which several machines may share."""
    names = []
    for at_home in (False, True):
        monkeypatch.setattr(matmul, "MKL_AT_HOME", at_home)
        names.append(passes.ChunkPass(forward=True).uuid())
    assert len(set(names)) == 2


def test_all_seeds_are_those_of_one_hot() -> None:
    for dtype in (torch.float32, torch.float64):
        options: dict[str, Any] = {"dtype": dtype, "device": torch.device("cpu")}
        torch.testing.assert_close(AllOneHot(7)(0, 7, **options), OneHot(7)(0, 7, **options))


@needs_a_compiler
@pytest.mark.parametrize(("strategy", "jacobian"), [("vjp/compiled", jacrev), ("jvp/compiled", jacfwd)])
def test_a_chunk_of_all_of_j_makes_a_product_less(
    strategy: str, jacobian: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three layers; a chunk that is a part of J makes all three products."""
    weights = [randn(160, 160, seed=i) / 13 for i in range(3)]

    def network(x: Tensor) -> Tensor:
        for weight in weights:
            x = torch.tanh(weight @ x)
        return x

    made: list[int] = []
    use_faster = matmul.use_faster

    def count(graph: fx.Graph) -> None:
        use_faster(graph)
        made.append(len(graph.find_nodes(op="call_function", target=torch.ops.jacjobs.mm.default)))
        assert not graph.find_nodes(op="call_function", target=aten.copy.default)
        assert not graph.find_nodes(op="call_function", target=aten.full.default)

    monkeypatch.setattr(matmul, "use_faster", count)
    monkeypatch.setattr(matmul, "LEAST_FLOPS", dict.fromkeys(matmul.LEAST_FLOPS, 4_000_000))
    x = randn(160)
    for chunk, products in ((160, 2), (80, 3)):
        problem = Problem(network, (x,))
        with torch._inductor.config.patch(force_disable_caches=True):
            J = compute_block(problem, Pace(strategy, chunk), Rectangle(0, 1, 0, 160, 0, 160))
        assert COMPILED[strategy].code(problem).reason is None
        torch.testing.assert_close(torch.from_numpy(J)[0], jacobian(network)(x))
        assert made.pop() == products


@needs_a_compiler
@pytest.mark.parametrize("strategy", ["vjp/vmap", "jvp/vmap"])
def test_a_linear_function_keeps_its_matrix_to_itself(strategy: str) -> None:
    """J is equal to the matrix, and nothing but a choice of all its rows; it is another tensor."""
    matrix = randn(64, 64).float()
    J = jacjobs.jacobian(lambda x: matrix @ x, strategy=strategy, chunk=64, compile=True)
    made = J(torch.zeros(64))
    assert J.choices[0].strategy == strategy.replace("vmap", "compiled")
    torch.testing.assert_close(made, matrix)
    made.zero_()
    assert matrix.abs().min() > 0


@needs_a_compiler
def test_trees_and_points_get_their_seeds_too() -> None:
    def fn(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.outer(a, b).sin(), (a * b.sum()).double()

    a, b = randn(3), randn(4)
    want = jacrev(fn, (0, 1))(a, b)
    for strategy, chunk in (("vjp/vmap", 15), ("jvp/vmap", 7)):
        got = jacjobs.jacobian(fn, (0, 1), strategy=strategy, chunk=chunk, compile=True)(a, b)
        torch.testing.assert_close(got, want)
    x = randn(5, 8)
    J = jacjobs.jacobian(torch.sin, in_dims=0, strategy="vjp/vmap", chunk=40, compile=True)
    torch.testing.assert_close(J(x), torch.func.vmap(jacrev(torch.sin))(x))
    assert J.choices[0].strategy == "vjp/compiled"
