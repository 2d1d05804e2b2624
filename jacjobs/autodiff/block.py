"""The chunk loop: a block's products, streamed chunk by chunk into a buffer on the host.

The device never holds a block, only the chunk in hand. Where even that is too much, the chunk is made again
in halves, and what follows in chunks of the smaller size.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jacjobs.autodiff.catalogue import COMPILED, strategy_named
from jacjobs.autodiff.strategy import Chunk, Strategy, flat, products_of, seeds_of
from jacjobs.autodiff.words import is_out_of_memory
from jacjobs.errors import OUT_OF_MEMORY
from jacjobs.problem import Problem
from jacjobs.shape import Rectangle


class ProductTooLargeError(Exception):
    """Not even one product of the leanest strategy fits the memory; `__cause__` is what the allocator
    said.
    """


@dataclass
class Pace:
    """How products are made now: a strategy and a chunk, which shrink when memory runs out and stay so.

    leaner:   strategies to go on with, one product at a time, when one product of `strategy` is too much.
    retreats: what happened, in words, since they were last taken.
    """

    strategy: str
    chunk: int
    leaner: Sequence[str] = ()
    retreats: list[str] = field(default_factory=list)

    def retreat(self, where: Rectangle, error: BaseException) -> None:
        """To half the chunk, or to a leaner strategy. Raises ProductTooLargeError where there is none."""
        before = self.strategy, self.chunk
        if self.chunk > 1:
            self.chunk //= 2
        elif self.leaner:
            self.strategy, *self.leaner = self.leaner
        else:
            raise ProductTooLargeError(self.strategy) from error
        self.retreats.append(
            f"{where}: {OUT_OF_MEMORY} {before[0]}, chunk {before[1]:,}; went on with {self.strategy}, "
            f"chunk {self.chunk:,}"
        )


def compute_block(
    problem: Problem, pace: Pace, block: Rectangle, dtype: str | None = None
) -> NDArray[np.generic]:
    """Entries of `block`: shape (points, rows, columns), in the dtype that J is stored as, or `dtype`.

    Products lie in one piece each: where they are columns, the array is a transposed view. A block of a
    strategy that makes rows has all columns, one of a strategy that makes columns all rows.
    `pace` is changed where memory runs out: only the chunk that failed is made again.
    Raises what the user's function raises, and ProductTooLargeError.
    """
    by_rows = strategy_named(pace.strategy).makes == "rows"
    host = _buffer(problem, block, by_rows=by_rows, dtype=dtype)
    left = [block]
    while left:
        maker, rectangle = strategy_named(pace.strategy), left.pop(0)
        done: tuple[slice, slice] | None = None
        failure = None
        try:
            for there in _filled(problem, maker, rectangle, pace.chunk, host, block):
                done = there
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # its frames hold the tensors that were too many
        if failure is not None:
            pace.retreat(rectangle, failure)
            left = _rest(maker, rectangle, done) + left
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    if pace.strategy in COMPILED and (news := COMPILED[pace.strategy].news(problem)) is not None:
        pace.retreats.append(news)
    if _on_cuda(problem):
        torch.cuda.synchronize()
    return host.numpy() if by_rows else host.transpose(1, 2).numpy()


def time_chunks(
    problem: Problem,
    strategy: str,
    block: Rectangle,
    chunk: int,
    enough_seconds: float,
    *,
    copied: bool = True,
) -> tuple[float, float]:
    """Seconds before the first chunk of `block` (a graph, say), and of one chunk: the median of those made.

    Stops after `enough_seconds`, but makes two chunks at least, where there are two. The copy to the host
    counts; `copied=False`: there is none.
    """
    maker = strategy_named(strategy)
    if copied:
        host = _buffer(problem, block, by_rows=maker.makes == "rows")
        chunks: Iterator[object] = _filled(problem, maker, block, chunk, host, block)
    else:
        chunks = (None for _ in maker.chunks(problem, block, seeds_of(maker, problem), chunk))
    marks = [time.perf_counter()]
    for _ in chunks:
        if _on_cuda(problem):
            torch.cuda.synchronize()
        marks.append(time.perf_counter())
        if len(marks) > 2 and marks[-1] - marks[0] > enough_seconds:
            break
    first, *others = [after - before for before, after in itertools.pairwise(marks)]
    if not others:
        return 0.0, first
    one = statistics.median(others)
    return max(0.0, first - one), one


def _buffer(problem: Problem, block: Rectangle, *, by_rows: bool, dtype: str | None = None) -> torch.Tensor:
    """(points, products, what one product holds): a product lies in one piece, so a chunk is one copy."""
    shape = problem.shape
    lengths = (block.rows, shape.columns) if by_rows else (block.columns, shape.rows)
    stored = getattr(torch, dtype or shape.dtype)
    return torch.empty((block.points, *lengths), dtype=stored, pin_memory=_on_cuda(problem))


def _filled(
    problem: Problem, maker: Strategy, part: Rectangle, chunk: int, host: torch.Tensor, block: Rectangle
) -> Iterator[tuple[slice, slice]]:
    """Put the products of `part` into the buffer of `block`; yields what is there, chunk by chunk."""
    seeds = seeds_of(maker, problem)
    first = products_of(maker, block)[0]
    for made in maker.chunks(problem, part, seeds, chunk):
        _copy(made, host, block.point_start, first, whole=_on_cuda(problem))
        there = made.points, made.products
        del made
        yield there


def _rest(maker: Strategy, part: Rectangle, done: tuple[slice, slice] | None) -> list[Rectangle]:
    """What of `part` is left after the chunk `done`: of its points, and the points after them."""
    if done is None:
        return [part]
    points, products = done
    stop = products_of(maker, part)[1]
    rest = []
    if products.stop < stop:
        same = part._replace(point_start=points.start, point_stop=points.stop)
        ahead: dict[str, Any] = {f"{maker.makes[:-1]}_start": products.stop}
        rest.append(same._replace(**ahead))
    if points.stop < part.point_stop:
        rest.append(part._replace(point_start=points.stop))
    return rest


def _copy(chunk: Chunk, host: torch.Tensor, point: int, product: int, *, whole: bool) -> None:
    """Put a chunk where it belongs in a buffer that begins at `point` and `product`.

    `whole` gathers its leaves first, so that one transfer suffices.
    """
    points = slice(chunk.points.start - point, chunk.points.stop - point)
    products = slice(chunk.products.start - product, chunk.products.stop - product)
    # A function that differentiates inside itself leaves a graph on its tangents.
    made = [leaf.detach() for leaf in chunk.leaves]
    leaves = [torch.cat([flat(leaf) for leaf in made], dim=2)] if whole else made
    start = 0
    for leaf in leaves:
        size = leaf[0, 0].numel()
        # A leaf that lies in another order is put in order by this copy, not by one before it.
        host[points, products, start : start + size].view(leaf.shape).copy_(leaf, non_blocking=whole)
        start += size


def _on_cuda(problem: Problem) -> bool:
    return any(problem.leaves[index].is_cuda for index in problem.wanted)
