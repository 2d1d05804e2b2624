"""Memory that runs out in the middle of a block: half the chunk, that chunk only, the same result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import jacrev, vmap

from jacjobs import Problem
from jacjobs.autodiff import block as block_module
from jacjobs.autodiff.block import Pace, ProductTooLargeError, compute_block
from jacjobs.autodiff.catalogue import STRATEGIES
from jacjobs.autodiff.strategy import Chunk
from jacjobs.autodiff.words import is_out_of_memory
from jacjobs.shape import Rectangle
from tests.functions import randn

W = randn(20, 18, seed=1)
BATCHED = [name for name in STRATEGIES if not name.endswith("/loop")]


def fn(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(W @ x)


class Device:
    """Stands for a device whose memory runs out: chunks above `limit` products raise, from the `after`-th
    chunk on.

    Counts the products that were made, those of failed chunks included.
    """

    def __init__(self, limit: int, after: int = 0, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.limit, self.after, self.error = limit, after, error
        self.sizes: list[int] = []
        self.failed: list[int] = []

    def watching(self, maker: Any) -> Any:
        device = self

        class Watched:
            makes, name, batching = maker.makes, maker.name, maker.batching

            def chunks(self, *arguments: Any, **options: Any) -> Iterator[Chunk]:
                for made in maker.chunks(*arguments, **options):
                    size = (made.points.stop - made.points.start) * (made.products.stop - made.products.start)
                    if size > device.limit and len(device.sizes) >= device.after:
                        device.failed.append(size)
                        raise device.error("CUDA out of memory. Tried to allocate 2 GiB")
                    device.sizes.append(size)
                    yield made

        return Watched()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.makers = {name: self.watching(maker) for name, maker in STRATEGIES.items()}
        monkeypatch.setattr(block_module, "strategy_named", lambda name: self.makers[name])


@pytest.mark.parametrize("strategy", BATCHED)
@pytest.mark.parametrize(("points", "chunk"), [(1, 8), (5, 48)])
def test_the_chunk_halves_and_only_that_chunk_is_made_again(
    strategy: str, points: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    X = randn(points, 18, seed=2)
    problem = Problem(fn, (X,), in_dims=0)
    whole = Rectangle(0, points, 0, 20, 0, 18)
    want = compute_block(problem, Pace(strategy, chunk), whole)
    products = points * (20 if STRATEGIES[strategy].makes == "rows" else 18)
    device = Device(limit=chunk // 2, after=1)
    device.install(monkeypatch)
    pace = Pace(strategy, chunk)
    got = compute_block(problem, pace, whole)
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(got, vmap(jacrev(fn))(X).numpy(), rtol=1e-12, atol=1e-14)
    assert len(device.failed) == 1
    assert sum(device.sizes) == products, "nothing but the failed chunk is made twice"
    assert pace.chunk == chunk // 2
    assert len(pace.retreats) == 1
    assert (
        f"out of memory with {strategy}, chunk {chunk}; went on with {strategy}, chunk {chunk // 2}"
        in (pace.retreats[0])
    )
    # The smaller chunk stays: the next block does not run into the same wall.
    compute_block(problem, pace, whole)
    assert len(device.failed) == 1


@pytest.mark.parametrize("held", [True, False])
def test_a_product_may_fit_when_the_one_before_it_is_on_the_host(
    held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU holds it until it is there. Where nothing was held, it is the product that is too large."""
    problem, whole = Problem(fn, (randn(18, seed=2),)), Rectangle(0, 1, 0, 20, 0, 18)
    device = Device(limit=0, after=3)
    device.install(monkeypatch)

    def settle(_: object) -> bool:
        device.limit = 1
        return held

    monkeypatch.setattr(block_module.Destination, "settle", settle)
    pace = Pace("vjp/vmap", 1, leaner=("vjp/loop",))
    got = compute_block(problem, pace, whole)
    np.testing.assert_allclose(got[0], jacrev(fn)(problem.leaves[0]).numpy(), rtol=1e-12, atol=1e-14)
    assert sum(device.sizes) == 20
    assert len(device.failed) == 1
    assert pace.strategy == ("vjp/vmap" if held else "vjp/loop")


def test_the_naive_way_starts_the_block_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above would find: a whole block repeated for one chunk."""
    problem, whole = Problem(fn, (randn(18, seed=2),)), Rectangle(0, 1, 0, 20, 0, 18)
    device = Device(limit=4, after=1)
    device.install(monkeypatch)
    monkeypatch.setattr(block_module, "_rest", lambda maker, part, done: [part])
    compute_block(problem, Pace("vjp/vmap", 8), whole)
    assert sum(device.sizes) > 20


def test_it_halves_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(fn, (randn(18, seed=2),))
    device = Device(limit=2, error=MemoryError)
    device.install(monkeypatch)
    pace = Pace("jvp/vmap", 12)
    got = compute_block(problem, pace, Rectangle(0, 1, 0, 20, 0, 18))
    np.testing.assert_allclose(got[0], jacrev(fn)(problem.leaves[0]).numpy(), rtol=1e-12)
    assert (device.failed, pace.chunk) == ([12, 6, 3], 1)


def test_one_product_too_large_is_left_to_a_leaner_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, whole = Problem(fn, (randn(18, seed=2),)), Rectangle(0, 1, 0, 20, 0, 18)
    device = Device(limit=0)
    device.install(monkeypatch)
    lean = STRATEGIES["vjp/loop"]
    device.makers["vjp/loop"] = lean
    pace = Pace("vjp/repeat", 4, leaner=("vjp/vmap", "vjp/loop"))
    got = compute_block(problem, pace, whole)
    np.testing.assert_allclose(got[0], jacrev(fn)(problem.leaves[0]).numpy(), rtol=1e-12)
    assert (pace.strategy, pace.chunk, pace.leaner) == ("vjp/loop", 1, [])
    assert len(pace.retreats) == 4
    device.makers["vjp/loop"] = device.watching(lean)
    with pytest.raises(ProductTooLargeError, match="vjp/loop"):
        compute_block(problem, Pace("vjp/vmap", 2, leaner=("vjp/loop",)), whole)


def test_what_is_an_allocators_error() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_the_users_own_errors_are_not_taken_for_it() -> None:
    working = True

    def fails_later(x: torch.Tensor) -> torch.Tensor:
        if working:
            return x.sin()
        raise ZeroDivisionError

    problem = Problem(fails_later, (randn(3),))
    assert problem.shape.rows == 3
    working = False
    with pytest.raises(ZeroDivisionError):
        compute_block(problem, Pace("vjp/vmap", 2), Rectangle(0, 1, 0, 3, 0, 3))
