"""The chunk loop: a block's products, streamed chunk by chunk into a buffer on the host.

The device never holds a block, only the chunk in hand. A GPU holds the one before it, too, if that is large:
it is on its way to the host while the next is computed. Where even that is too much, the chunk is made again
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
from torch import Tensor

from jacjobs.autodiff.catalogue import COMPILED, strategy_named
from jacjobs.autodiff.device import HOST, device_of, give_back, side_stream, wait_for
from jacjobs.autodiff.strategy import Chunk, Strategy, flat, products_of, seeds_of
from jacjobs.autodiff.words import is_out_of_memory
from jacjobs.errors import OUT_OF_MEMORY
from jacjobs.problem import Problem
from jacjobs.shape import Rectangle

SMALL_BYTES = 4 << 20
"""A chunk of a GPU that holds less of J is on the host sooner than another stream has been told of it."""


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
    maker = strategy_named(pace.strategy)
    there = Destination(problem, maker, block, dtype=dtype)
    left = [block]
    while left:
        maker, rectangle = strategy_named(pace.strategy), left.pop(0)
        done: tuple[slice, slice] | None = None
        failure = None
        try:
            for put in there.filled(problem, maker, rectangle, pace.chunk):
                done = put
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # its frames hold the tensors that were too many
        if failure is not None:
            left = _rest(maker, rectangle, done) + left
            made_room = there.settle()
            if pace.chunk > 1 or not made_room:  # else a single product, without the one before it, may do
                pace.retreat(rectangle, failure)
                if maker.name in COMPILED:
                    COMPILED[maker.name].forget(problem)
            gc.collect()
            give_back()
    if pace.strategy in COMPILED and (news := COMPILED[pace.strategy].news(problem)) is not None:
        pace.retreats.append(news)
    there.settle()
    made = there.entries
    return made.numpy() if maker.makes == "rows" else made.transpose(1, 2).numpy()


class Destination:
    """A block's entries, where chunks are put: on the host, or on the device where they were made.

    (points, products, what one product holds): a product lies in one piece, so a chunk is one copy.
    """

    def __init__(
        self,
        problem: Problem,
        maker: Strategy,
        block: Rectangle,
        *,
        dtype: str | None = None,
        device: torch.device = HOST,
    ) -> None:
        shape, source = problem.shape, device_of(problem)
        lengths = (block.rows, shape.columns) if maker.makes == "rows" else (block.columns, shape.rows)
        self._way = WayToHost(source) if source.type == "cuda" and device == HOST else None
        self._origin = block.point_start, products_of(maker, block)[0]
        self.entries = torch.empty(
            (block.points, *lengths),
            dtype=getattr(torch, dtype or shape.dtype),
            device=device,
            pin_memory=self._way is not None,
        )

    def filled(
        self, problem: Problem, maker: Strategy, part: Rectangle, chunk: int
    ) -> Iterator[tuple[slice, slice]]:
        """Put the products of `part` where they belong; yields what is there, chunk by chunk."""
        for made in maker.chunks(problem, part, seeds_of(maker, problem), chunk):
            self._put(made)
            there = made.points, made.products
            del made
            yield there

    def settle(self) -> bool:
        """Wait until all that was put is there. Returns whether that let go of memory of the device."""
        return self._way is not None and self._way.settle()

    def _put(self, chunk: Chunk) -> None:
        point, product = self._origin
        points = slice(chunk.points.start - point, chunk.points.stop - point)
        products = slice(chunk.products.start - product, chunk.products.stop - product)
        there = self.entries[points, products]
        # A function that differentiates inside itself leaves a graph on its tangents.
        made = [leaf.detach() for leaf in chunk.leaves]
        if self._way is not None:
            self._way.send(made, there)
            return
        start = 0
        for leaf in made:
            size = leaf[0, 0].numel()
            # A leaf that lies in another order is put in order by this copy, not by one before it.
            there[..., start : start + size].view(leaf.shape).copy_(leaf)
            start += size


class WayToHost:
    """From a GPU into pinned memory, on a stream of its own, while the GPU goes on with its work.

    At most one chunk is on its way, and held on the device until it is there. What is small does not wait for
    another, and goes between the products: docs/decisions/0034.
    https://docs.pytorch.org/tutorials/intermediate/pinmem_nonblock.html
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, side_stream(device)
        self._made, self._arrived = torch.cuda.Event(), torch.cuda.Event()
        self._held: Tensor | None = None

    def send(self, leaves: list[Tensor], there: Tensor) -> None:
        """Leaves of a chunk, in one piece: memory is faster here."""
        if there.nbytes < SMALL_BYTES:
            there.copy_(_in_one_piece(leaves, there.dtype), non_blocking=True)
            return
        self._let_go()
        whole = _in_one_piece(leaves, there.dtype)
        self._made.record(torch.cuda.current_stream(self._device))
        self._stream.wait_event(self._made)
        with torch.cuda.stream(self._stream):
            there.copy_(whole, non_blocking=True)
            self._arrived.record(self._stream)
        self._held = whole

    def settle(self) -> bool:
        """Wait until all that was sent is there. Returns whether something was held."""
        held = self._let_go()
        wait_for(self._device)
        return held

    def _let_go(self) -> bool:
        if self._held is None:
            return False
        self._arrived.synchronize()
        self._held = None
        return True


def _in_one_piece(leaves: list[Tensor], dtype: torch.dtype) -> Tensor:
    """(points, products, width), contiguous."""
    if len(leaves) == 1:
        return flat(leaves[0]).to(dtype, memory_format=torch.contiguous_format)
    return torch.cat([flat(leaf) for leaf in leaves], dim=2).to(dtype)


def time_chunks(
    problem: Problem,
    strategy: str,
    block: Rectangle,
    chunk: int,
    enough_seconds: float,
    *,
    into: torch.device | None = HOST,
) -> tuple[float, float]:
    """Seconds before the first chunk of `block` (a graph, say), and of one chunk: the median of those made.

    Stops after `enough_seconds`, but makes two chunks at least, where there are two. The copy `into` the
    host's memory, or a device's, counts; None: there is none.
    """
    maker, device = strategy_named(strategy), device_of(problem)
    if into is not None:
        there = Destination(problem, maker, block, device=into)
        chunks: Iterator[object] = there.filled(problem, maker, block, chunk)
    else:
        chunks = (None for _ in maker.chunks(problem, block, seeds_of(maker, problem), chunk))
    wait_for(device)
    marks = [time.perf_counter()]
    for _ in chunks:
        wait_for(device)
        marks.append(time.perf_counter())
        if len(marks) > 2 and marks[-1] - marks[0] > enough_seconds:
            break
    first, *others = [after - before for before, after in itertools.pairwise(marks)]
    if not others:
        return 0.0, first
    one = statistics.median(others)
    return max(0.0, first - one), one


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
