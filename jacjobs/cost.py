"""What products cost, in numbers that know no device: the words between who estimates and who plans.

Pure Python, like `shape`: autodiff makes cost models by running a function once or twice, planning turns them
into bytes and seconds on a device, and the two never import each other.
"""

from __future__ import annotations

import re
from typing import Self

from pydantic import BaseModel, ConfigDict

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Work(_Frozen):
    """calls: operators called. flops: floating-point operations of products, convolutions and the like.

    moved_bytes: what the operators read and write.
    """

    calls: float = 0.0
    flops: float = 0.0
    moved_bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            calls=self.calls + other.calls,
            flops=self.flops + other.flops,
            moved_bytes=self.moved_bytes + other.moved_bytes,
        )

    def __sub__(self, other: Work) -> Work:
        """What is left, never less than nothing."""
        return Work(
            calls=max(0.0, self.calls - other.calls),
            flops=max(0.0, self.flops - other.flops),
            moved_bytes=max(0.0, self.moved_bytes - other.moved_bytes),
        )

    def times(self, factor: float) -> Work:
        return Work(
            calls=self.calls * factor, flops=self.flops * factor, moved_bytes=self.moved_bytes * factor
        )


class Probe(_Frozen):
    """What two chunks of one size took: the peak of memory, the work before the first, the work of one."""

    chunk: int
    peak_bytes: int
    setup: Work
    work: Work


class CostModel(_Frozen):
    """A strategy's cost over the chunks `step`, 2 · `step`, … `most`, as lines through two probes.

    A chunk is within one point (`step` 1: the point's graph, `setup`, serves all its chunks), or it is whole
    points (`step` their products: the graph belongs to the chunk).

    step:            chunks are multiples of it.
    most:            a larger chunk has nothing left to hold.
    fixed_bytes:     memory whatever the chunk, beside arguments and what the function captured.
    product_bytes:   memory for each product of the chunk.
    setup:           once for each point of each block; nothing where chunks are whole points.
    chunk_work:      of a chunk, whatever its size.
    product_work:    for each product.
    """

    strategy: str
    step: int
    most: int
    fixed_bytes: int
    product_bytes: float
    setup: Work
    chunk_work: Work
    product_work: Work

    @classmethod
    def through(cls, strategy: str, step: int, most: int, low: Probe, high: Probe) -> Self:
        """The line through two probes; where there is one (the same twice), in proportion to the chunk."""
        width = high.chunk - low.chunk
        slope = max(0.0, (high.peak_bytes - low.peak_bytes) / width) if width else low.peak_bytes / low.chunk
        each = (high.work - low.work).times(1 / width) if width else low.work.times(1 / low.chunk)
        return cls(
            strategy=strategy,
            step=step,
            most=most,
            # A convex peak lies above its chord outside the probes: what is extrapolated upward holds.
            fixed_bytes=max(0, round(high.peak_bytes - slope * high.chunk)),
            product_bytes=slope,
            setup=low.setup if step == 1 else Work(),
            chunk_work=low.work - each.times(low.chunk),
            product_work=each,
        )

    def peak_bytes(self, chunk: int) -> int:
        """Predicted peak while chunks of this size are made, one after another."""
        return self.fixed_bytes + round(self.product_bytes * chunk)

    def work(self, chunk: int) -> Work:
        """Of one chunk."""
        return self.chunk_work + self.product_work.times(chunk)

    def rounded(self, chunk: int) -> int:
        """The largest chunk that the model allows up to `chunk`; 0 if none."""
        chunk = min(chunk, self.most)
        return chunk - chunk % self.step


def parse_bytes(text: str) -> int | None:
    """`8GiB`, `512 MiB` in bytes; None if it is nothing of the kind."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(B|KiB|MiB|GiB|TiB)", text.strip())
    return int(float(found[1]) * UNITS[found[2]]) if found else None
