"""The interface that all strategies share, and how a block is cut into chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from torch import Tensor

from jacjobs.autodiff.seeds import SeedMaker
from jacjobs.problem import Problem
from jacjobs.shape import Rectangle


class Chunk(NamedTuple):
    """Finished products, on the device: `leaves[l]` has shape (points, rows, size of input leaf l)."""

    points: slice
    rows: slice
    leaves: list[Tensor]


class Strategy(ABC):
    """A product and a batching. Stateless: one instance serves all problems."""

    product: ClassVar[str]
    batching: ClassVar[str]

    @property
    def name(self) -> str:
        return f"{self.product}/{self.batching}"

    @abstractmethod
    def chunks(self, problem: Problem, block: Rectangle, seeds: SeedMaker, chunk: int) -> Iterator[Chunk]:
        """The products of `block`, at most `chunk` at once, each pair of point and row exactly once.

        Graphs live no longer than the chunks that need them: the consumer holds one chunk at a time.
        """


def point_groups(block: Rectangle, chunk: int) -> Iterator[tuple[int, int]]:
    """Ranges of points that one graph serves: as many as have all their rows in one chunk, at least one."""
    group = max(1, chunk // block.rows)
    for start in range(block.point_start, block.point_stop, group):
        yield start, min(start + group, block.point_stop)


def row_ranges(block: Rectangle, chunk: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `chunk` rows; the last may be shorter."""
    for start in range(block.row_start, block.row_stop, chunk):
        yield start, min(start + chunk, block.row_stop)
