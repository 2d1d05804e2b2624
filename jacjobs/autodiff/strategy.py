"""The interface that all strategies share, and how a block is cut into chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from jacjobs.autodiff.seeds import OneHot, SeedMaker
from jacjobs.problem import Problem
from jacjobs.shape import JacobianShape, Rectangle


class Chunk(NamedTuple):
    """Finished products, on the device.

    products: which rows (of a strategy that makes rows) or which columns.
    leaves:   `leaves[l]` has shape (points, products, size of leaf l), or (points, products, *shape of leaf
              l): of input leaf l where products are rows of J, of output leaf l where they are columns.
    """

    points: slice
    products: slice
    leaves: list[Tensor]


def flat(leaf: Tensor) -> Tensor:
    """A leaf of a chunk, detached, as (points, products, size)."""
    return leaf.detach().reshape(*leaf.shape[:2], -1)


class Strategy(ABC):
    """A product and a batching. Stateless: one instance serves all problems."""

    product: ClassVar[Literal["vjp", "jvp", "double-vjp"]]
    batching: ClassVar[Literal["loop", "repeat", "vmap", "compiled"]]

    @property
    def name(self) -> str:
        return f"{self.product}/{self.batching}"

    @property
    def makes(self) -> Literal["rows", "columns"]:
        """What one product is of J."""
        return "rows" if self.product == "vjp" else "columns"

    @property
    def shares_graph(self) -> bool:
        """Whether the chunks of a point come from one graph, which is made before the first."""
        return self.product != "jvp" and self.batching in ("loop", "vmap")

    @abstractmethod
    def chunks(
        self,
        problem: Problem,
        block: Rectangle,
        seeds: SeedMaker,
        chunk: int,
        *,
        create_graph: bool = False,
    ) -> Iterator[Chunk]:
        """The products of `block`, at most `chunk` at once, each pair of point and product exactly once.

        A strategy that makes rows gives them whole, one that makes columns too: of the block it uses the
        points and the extent of the products. With `create_graph` the products can be differentiated
        again, with respect to the leaves and to whatever `fn` captured; without, graphs live no longer than
        the chunks that need them, and a chunk no longer than the consumer holds it: let go of one before
        asking for the next.
        """


def products_of(strategy: Strategy, block: Rectangle) -> tuple[int, int]:
    """The extent of `block` along the axis of the strategy's products."""
    if strategy.makes == "rows":
        return block.row_start, block.row_stop
    return block.column_start, block.column_stop


def count_lines(strategy: Strategy, shape: JacobianShape) -> int:
    """How many rows (or columns) a point has: products by one-hot seeds."""
    return shape.rows if strategy.makes == "rows" else shape.columns


def count_products(strategy: Strategy, problem: Problem) -> int:
    """How many products a point has: one a row (or column), or one a seed of the problem's own."""
    seeds = problem.seeds.get(strategy.makes)
    return count_lines(strategy, problem.shape) if seeds is None else int(seeds.count)


def seeds_of(strategy: Strategy, problem: Problem) -> SeedMaker:
    """For all products of a point: the problem's own, or one-hot ones."""
    own: SeedMaker | None = problem.seeds.get(strategy.makes)
    return OneHot(count_lines(strategy, problem.shape)) if own is None else own


def corner(strategy: Strategy, problem: Problem, points: int, products: int) -> Rectangle:
    """The first so many products of the first so many points, or of as many as there are."""
    points = min(points, problem.points)
    products = min(products, count_products(strategy, problem))
    return products_between(strategy, problem.shape, (0, points), (0, products))


def products_between(
    strategy: Strategy, shape: JacobianShape, points: tuple[int, int], products: tuple[int, int]
) -> Rectangle:
    """Some products, whole, at some points: ranges of both."""
    if strategy.makes == "rows":
        return Rectangle(*points, *products, 0, shape.columns)
    return Rectangle(*points, 0, shape.rows, *products)


def point_groups(block: Rectangle, products: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Ranges of points handled at once: as many as have all their products in one chunk, at least one."""
    group = max(1, chunk // products)
    for start in range(block.point_start, block.point_stop, group):
        yield start, min(start + group, block.point_stop)


def product_ranges(start: int, stop: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `chunk` products; the last may be shorter."""
    for first in range(start, stop, chunk):
        yield first, min(first + chunk, stop)
