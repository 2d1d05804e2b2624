"""Tangents are put last where that is known of every operator, and J stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx
from torch._inductor import config as inductor
from torch.func import jacfwd
from torch.fx.experimental.proxy_tensor import make_fx

import jacjobs
from jacjobs.autodiff.innermost import put_tangents_innermost
from jacjobs.autodiff.passes import rotate
from tests.autodiff.test_compiled import needs_a_compiler
from tests.functions import randn

aten: Any = torch.ops.aten
TENTH = torch.tensor(0.1, dtype=torch.float64)
SCALE, INDEX = randn(7, seed=1), torch.tensor([3, 0, 0, 6, 5, 1, 2])


def history(u: Tensor) -> Tensor:
    states = torch.zeros(3, 7, dtype=u.dtype)
    for step in range(3):
        u = u + 0.1 * (u.roll(1) - u) * u
        states[step] = u
    return states


def columns(u: Tensor) -> Tensor:
    states = torch.zeros(7, 4, dtype=u.dtype) + u[:, None]
    states[:, 1] = u * u
    states[2:4, 2:] = states[2:4, :2].clone() * 2
    return states


def grid(u: Tensor) -> Tensor:
    return u * (u.roll(1, 0) + u.roll(-1, 1) - 2 * u.roll((1, 2), (0, 1)))


LINE, PLANE = randn(7, seed=2), randn(4, 7, seed=3)
KNOWN: dict[str, tuple[Callable[[Tensor], Any], Tensor]] = {
    "roll": (lambda u: u.roll(1) - u * u.roll(-2), LINE),
    "index": (lambda u: u[INDEX] * SCALE, LINE),
    "an index of several axes": (lambda u: u[INDEX[:6].reshape(2, 3)] ** 2, LINE),
    "boundaries": (lambda u: torch.cat([u[:1] * 0, u[2:] - u[:-2], u.new_zeros(2)]), LINE),
    "periodic": (lambda u: torch.cat([u[-1:], u[:-1]]) * u, LINE),
    "steps": (lambda u: u[::2] * u[1::3].sum(), LINE),
    "nothing but values in a part": (lambda u: torch.cat([u * u, SCALE]), LINE),
    "stack": (lambda u: torch.stack([u, u * u, u.sin()], 1), LINE),
    "columns": (columns, LINE),
    "where": (lambda u: torch.where(u > 0, u.tanh(), u * SCALE), LINE),
    "energy": (lambda u: (u * u.roll(1)).sum(), LINE),
    "sums": (lambda u: (u * u).sum(0) + u.sum(1, keepdim=True).square(), PLANE),
    "mean": (lambda u: u - u.mean(), LINE),
    "outer": (lambda u: u[:, None] * u[None, :] + SCALE, LINE),
    "grid": (grid, PLANE),
    "transposed": (lambda u: (u.T * SCALE[:, None]).roll(1, 0), PLANE),
    "flat": (lambda u: (u.flatten().roll(1).reshape(7, 4) ** 2)[1:, 2], PLANE),
    "softmax": (lambda u: F.softmax(u, 0).roll(1), LINE),
    "more digits in a number": (lambda u: u.roll(1) * TENTH * u, LINE.float()),
    "one number": (lambda u: u[2] * u[3] * SCALE, LINE),
    "single precision": (lambda u: (u.float() * 2).roll(1).double() * u, LINE),
    "several outputs": (lambda u: (u.roll(1), {"a": u * 2, "b": u.sum()}), LINE),
    "a constant": (lambda u: (u * 2, SCALE * 1), LINE),
}
UNKNOWN: dict[str, tuple[Callable[[Tensor], Any], Tensor]] = {
    "written into zeros": (history, LINE),
    "product": (lambda u: torch.tanh(torch.outer(SCALE, SCALE) @ u).roll(1), LINE),
    "sorted": (lambda u: u.sort().values.roll(1), LINE),
    "an index of two axes": (lambda u: u[INDEX[:3] % 4, INDEX[:3]], PLANE),
}


def chunk_of(fn: Callable[[Tensor], Any], x: Tensor, in_dims: int | None = None) -> fx.GraphModule:
    """All columns, as torch's compiler has them when it asks for rewriting; no code is made."""
    seen: list[fx.GraphModule] = []

    def stop(graph: fx.Graph) -> None:
        seen.append(fx.GraphModule({}, copied(graph)))
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch, inductor.patch(force_disable_caches=True):
        patch.setattr("jacjobs.autodiff.passes.put_tangents_innermost", stop)
        jacjobs.jacobian(fn, in_dims=in_dims, strategy="jvp/vmap", chunk=x.numel(), compile=True)(x)
    return seen[0]


def copied(graph: fx.Graph) -> fx.Graph:
    own, nodes = fx.Graph(), {}
    own.output(own.graph_copy(graph, nodes))
    for old, new in nodes.items():
        new.meta = dict(old.meta)
    return own


def run(module: fx.GraphModule) -> list[Tensor]:
    """With numbers of no meaning, for the function's argument and what it captured."""
    likes = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    made: list[Tensor] = module(
        *[
            randn(*like.shape, seed=i).to(like.dtype)
            if like.is_floating_point()
            else torch.arange(like.numel()).view(like.shape) % 3
            for i, like in enumerate(likes)
        ]
    )
    return made


def rewritten(module: fx.GraphModule) -> bool:
    """Whether it was; without dead code."""
    before = {node.name for node in module.graph.nodes}
    put_tangents_innermost(module.graph)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return {node.name for node in module.graph.nodes} != before


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_keeps_its_entries_and_has_tangents_last(name: str) -> None:
    module = chunk_of(*KNOWN[name])
    want = run(module)
    assert rewritten(module)
    for got, before in zip(run(module), want, strict=True):
        torch.testing.assert_close(got, before)
        assert got.dtype == before.dtype
    outputs = module.graph.output_node().all_input_nodes
    assert any(node.target is aten.permute.default for node in outputs)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_stays_as_it_was(name: str) -> None:
    module = chunk_of(*UNKNOWN[name])
    assert not rewritten(module)


@pytest.mark.parametrize("name", ["roll", "energy", "sums"])
def test_at_many_points(name: str) -> None:
    fn, x = KNOWN[name]
    module = chunk_of(fn, torch.stack([x, 2 * x, x.sin()]), in_dims=0)
    want = run(module)
    assert rewritten(module)
    torch.testing.assert_close(run(module), want)


ROTATIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "by one": (lambda u: torch.cat([u[-1:], u[:-1]]), 1),
    "back by two": (lambda u: torch.cat([u[2:], u[:2]]), 1),
    "of rows": (lambda u: torch.cat([u[:, 3:], u[:, :3]], -1), 1),
    "not all": (lambda u: torch.cat([u[3:], u[:2]]), 0),
    "not to the end": (lambda u: torch.cat([u[2:-1], u[:2]]), 0),
    "not in order": (lambda u: torch.cat([u[:2], u[2:]]), 0),
    "along another axis": (lambda u: torch.cat([u[:, 2:], u[:, :2]], 0)[:, :1] if u.ndim > 1 else u, 0),
    "of two": (lambda u: torch.cat([u[2:], u.sin()[:2]]), 0),
    "with steps": (lambda u: torch.cat([aten.slice(u, 0, 0, 6), aten.slice(u, 0, 0, 6, 2)]), 0),
    "of three": (lambda u: torch.cat([u[4:], u[2:4], u[:2]]), 0),
}


@pytest.mark.parametrize("name", ROTATIONS)
def test_the_end_and_the_beginning_are_read_where_they_lie(name: str) -> None:
    fn, times = ROTATIONS[name]
    x = randn(6, 4, seed=4)
    module = make_fx(fn, tracing_mode="fake")(x)
    rotate(module.graph)
    module.graph.lint()
    module.recompile()
    torch.testing.assert_close(module(x), fn(x))
    assert len(module.graph.find_nodes(op="call_function", target=aten.index.Tensor)) == times


@needs_a_compiler
def test_real_code_has_tangents_innermost() -> None:
    """And so J, whose columns they are, lies as it is written."""
    fn, x = KNOWN["roll"]
    jac = jacjobs.jacobian(fn, strategy="jvp/vmap", chunk=7, compile=True)
    for _ in range(2):
        J = jac(x)
        torch.testing.assert_close(J, jacfwd(fn)(x))
        assert J.is_contiguous()
    assert jac.choices[0].strategy == "jvp/compiled"
