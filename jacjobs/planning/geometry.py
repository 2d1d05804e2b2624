"""How J is cut: into parts (one file each) and into blocks (one unit of work each), in bundles.

Rectangles follow from a few numbers by arithmetic, so a plan of a million blocks is as small as one of ten.
Nothing here depends on how many workers there are: one worker and a hundred write the same bytes.

A line is what a record of the dataset holds: a row of J in layout `rows`, a column in layout `columns`. Where
products are lines (reverse mode to rows, forward mode to columns), a block is whole lines. Where they cross
them, a block of one large matrix holds a piece of every line. Then a part, which holds whole lines, needs all
blocks of the matrix: one that is small enough is put together in memory, and the blocks of a larger one go
into spills, files beside the dataset from which its parts are read when all are there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from jacjobs.planning.options import Count
from jacjobs.shape import Box, DenseLayout, JacobianShape, Products, Rectangle

MIB = 1 << 20
BLOCK_BYTES = 64 * MIB
"""Loses little when a worker dies, and keeps the memory of workers and assemblers bounded."""
SMALLEST_BLOCK_BYTES = MIB
"""Below this, handing a block out costs more than computing it."""
BLOCKS_WANTED = 64
"""A small J is cut finer than BLOCK_BYTES: enough blocks for workers to share and progress to be seen."""
PART_BYTES = 256 * MIB
SMALLEST_PART_BYTES = 32 * MIB
PARTS_WANTED = 8
"""Parts are written beside each other; a small J still gets a few."""
BLOCK_SECONDS = 30.0
PART_SECONDS = 300.0
"""Where products take long, a block and a part hold fewer: a crash costs so much of a worker's time."""
IN_MEMORY_BYTES = 64 * MIB
"""A matrix whose blocks cross its lines is put together in memory up to this size, else from spills: a block
more for each worker, since as many parts are open.
"""
ROW_GROUP_BYTES = 2 * MIB
"""What is read for one row of J, at least; larger groups are no faster, in reading or in writing."""
STRIPE_BYTES = 16 * MIB
"""A longer line is cut into records of so much."""


class Cut(BaseModel, ABC):
    """What a run knows of how J is cut: blocks come in bundles, each of which is assembled into one file."""

    model_config = ConfigDict(frozen=True)

    points: Count
    rows: Count
    columns: Count

    @property
    @abstractmethod
    def parts(self) -> int: ...

    @abstractmethod
    def part(self, index: int) -> Rectangle:
        """Parts in the order of their records."""

    @property
    @abstractmethod
    def blocks(self) -> int:
        """All blocks of all bundles."""

    @abstractmethod
    def blocks_in(self, bundle: int) -> int: ...

    @abstractmethod
    def block(self, bundle: int, index: int) -> Rectangle | Products: ...

    @abstractmethod
    def bundle(self, index: int) -> Rectangle | Products:
        """What its blocks cover together."""

    @property
    def bundles(self) -> int:
        return self.parts

    def point_of(self, bundle: int) -> int:
        """The first of its points."""
        return self.bundle(bundle).point_start

    @property
    def spills(self) -> bool:
        """Do blocks go into spills first?"""
        return False

    def bundles_of(self, point: int) -> range:
        """The spills of a point."""
        return range(0)

    def points_at_once(self, workers: int) -> int:
        """How many points may have spills that are not transposed yet."""
        return self.points


class Tiling(Cut):
    """A grid of parts and a grid of blocks. The last of each row or column of a grid may be smaller.

    Blocks come in bundles, whose blocks are assembled in order into one file: into a part, or, where
    `spill_blocks` says of how many blocks, into a spill.
    """

    layout: DenseLayout = "rows"
    part_points: Count
    part_lines: Count
    block_points: Count
    block_rows: Count
    block_columns: Count
    spill_blocks: Annotated[int, Field(ge=0)] = 0

    @property
    def lines(self) -> int:
        """Lines of one matrix."""
        return self.rows if self.layout == "rows" else self.columns

    @property
    def length(self) -> int:
        """Entries of one line."""
        return self.columns if self.layout == "rows" else self.rows

    @property
    def splits_lines(self) -> bool:
        """Do blocks hold pieces of lines? Then a part is put together before it is written."""
        return self._block_width < self.length

    @property
    def spills(self) -> bool:
        return self.spill_blocks > 0

    @property
    def _block_lines(self) -> int:
        return self.block_rows if self.layout == "rows" else self.block_columns

    @property
    def _block_width(self) -> int:
        return self.block_columns if self.layout == "rows" else self.block_rows

    # -- parts ---------------------------------------------------------------------------------------------

    @property
    def parts(self) -> int:
        return ceil(self.points, self.part_points) * self._parts_a_point

    @property
    def _parts_a_point(self) -> int:
        return ceil(self.lines, self.part_lines)

    def part(self, index: int) -> Rectangle:
        """Parts in the order of (point, line)."""
        i, j = divmod(index, self._parts_a_point)
        point, line = i * self.part_points, j * self.part_lines
        return Box(
            point,
            min(point + self.part_points, self.points),
            line,
            min(line + self.part_lines, self.lines),
            0,
            self.length,
        ).rectangle(self.layout)

    def parts_of(self, point: int) -> range:
        """Of a point whose parts hold no other."""
        return range(point * self._parts_a_point, (point + 1) * self._parts_a_point)

    # -- bundles and blocks --------------------------------------------------------------------------------

    @property
    def bundles(self) -> int:
        return self.points * self._spills_a_point if self.spills else self.parts

    @property
    def _spills_a_point(self) -> int:
        return ceil(ceil(self.length, self._block_width), self.spill_blocks)

    def bundles_of(self, point: int) -> range:
        return range(point * self._spills_a_point, (point + 1) * self._spills_a_point)

    def bundle(self, index: int) -> Rectangle:
        if not self.spills:
            return self.part(index)
        point, i = divmod(index, self._spills_a_point)
        step = self.spill_blocks * self._block_width
        start, stop = i * step, min((i + 1) * step, self.length)
        return Box(point, point + 1, 0, self.lines, start, stop).rectangle(self.layout)

    @property
    def blocks(self) -> int:
        """All blocks of all bundles. A part has one of at most four sizes: whole or cut short, either way."""
        if self.spills:
            return self.points * ceil(self.length, self._block_width)
        total = 0
        for point_parts, points in _split(self.points, self.part_points):
            for line_parts, lines in _split(self.lines, self.part_lines):
                total += point_parts * line_parts * self._blocks(points, lines, self.length)
        return total

    def _blocks(self, points: int, lines: int, width: int) -> int:
        return (
            ceil(points, self.block_points) * ceil(lines, self._block_lines) * ceil(width, self._block_width)
        )

    def blocks_in(self, bundle: int) -> int:
        return self._blocks(*self.bundle(bundle).box(self.layout).extent)

    def block(self, bundle: int, index: int) -> Rectangle:
        """Blocks of a bundle in the order of (point, line, position along the line).

        Written one after another, records are sorted, unless lines are split.
        """
        whole = self.bundle(bundle).box(self.layout)
        rest, k = divmod(index, ceil(whole.width, self._block_width))
        i, j = divmod(rest, ceil(whole.lines, self._block_lines))
        point = whole.point_start + i * self.block_points
        line = whole.line_start + j * self._block_lines
        start = whole.start + k * self._block_width
        return Box(
            point,
            min(point + self.block_points, whole.point_stop),
            line,
            min(line + self._block_lines, whole.line_stop),
            start,
            min(start + self._block_width, whole.stop),
        ).rectangle(self.layout)

    def points_at_once(self, workers: int) -> int:
        """Enough to keep all workers busy with the next while the parts of one are written, and no more,
        since each takes a matrix of disk.
        """
        return min(self.points, 1 + ceil(2 * workers, self._spills_a_point))


def tile(
    shape: JacobianShape,
    chunk: int,
    *,
    by_columns: bool = False,
    layout: DenseLayout = "rows",
    product_seconds: float = 0.0,
    block_bytes: int = BLOCK_BYTES,
) -> Tiling:
    """Cut J for chunks of `chunk` products: ranges of points where a block holds whole matrices, else ranges
    of products, which are rows or columns of one matrix.

    A block is at most `block_bytes` and `BLOCK_SECONDS` of work, at `product_seconds` each, but at least one
    chunk, so that a large chunk is not cut short.
    """
    products, product_bytes = shape.rows, shape.row_bytes
    if by_columns:
        products, product_bytes = shape.columns, shape.column_bytes
    block_bytes = clamp(
        shape.total_bytes // BLOCKS_WANTED, min(SMALLEST_BLOCK_BYTES, block_bytes), block_bytes
    )
    part_bytes = clamp(shape.total_bytes // PARTS_WANTED, SMALLEST_PART_BYTES, PART_BYTES)
    seconds_bytes = part_bytes
    if product_seconds > 0:
        block_bytes = min(block_bytes, int(BLOCK_SECONDS / product_seconds * product_bytes))
        seconds_bytes = min(part_bytes, int(PART_SECONDS / product_seconds * product_bytes))
    chunk_points = max(1, chunk // products)
    block_products = products
    if shape.matrix_bytes <= block_bytes or chunk_points > 1:
        block_points = multiple(block_bytes // shape.matrix_bytes, chunk_points, at_most=shape.points)
    else:
        block_points = 1
        block_products = multiple(block_bytes // product_bytes, chunk, at_most=products)
    lines, length = shape.lines(layout)
    splits_lines = is_crossed(layout, by_columns=by_columns) and block_products < products
    spill_blocks, part_points, part_lines = 0, 1, lines
    if splits_lines and shape.matrix_bytes > IN_MEMORY_BYTES:
        # What is lost with a crash is a spill; parts are soon read again.
        spill_blocks = max(1, seconds_bytes // (block_products * product_bytes))
        part_lines = multiple(part_bytes // (length * shape.item_bytes), 1, at_most=lines)
    elif splits_lines:
        most = min(seconds_bytes, IN_MEMORY_BYTES)
        part_points = multiple(most // shape.matrix_bytes, block_points, at_most=shape.points)
    elif block_products == products or shape.matrix_bytes <= seconds_bytes:
        part_points = multiple(seconds_bytes // shape.matrix_bytes, block_points, at_most=shape.points)
    else:
        part_lines = multiple(seconds_bytes // product_bytes, block_products, at_most=lines)
    return Tiling(
        points=shape.points,
        rows=shape.rows,
        columns=shape.columns,
        layout=layout,
        part_points=part_points,
        part_lines=part_lines,
        block_points=block_points,
        block_rows=shape.rows if by_columns else block_products,
        block_columns=block_products if by_columns else shape.columns,
        spill_blocks=spill_blocks,
    )


def is_crossed(layout: DenseLayout, *, by_columns: bool) -> bool:
    """Do products run across the lines of this layout?"""
    return by_columns == (layout == "rows")


def stripe_of(length: int, item_bytes: int) -> int | None:
    """How many entries of a line a record holds; None: all of them."""
    return STRIPE_BYTES // item_bytes if length * item_bytes > STRIPE_BYTES else None


def records_in_a_group(length: int, item_bytes: int) -> int:
    """How many records a row group has."""
    return max(1, ROW_GROUP_BYTES // ((stripe_of(length, item_bytes) or length) * item_bytes))


def multiple(wanted: int, unit: int, *, at_most: int) -> int:
    """The largest multiple of `unit` up to `wanted`, at least one unit, and no more than there is."""
    return min(max(1, wanted // unit) * unit, at_most)


def clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def ceil(total: int, unit: int) -> int:
    return -(-total // unit)


def _split(total: int, unit: int) -> list[tuple[int, int]]:
    """(how many, how large): the whole units in `total`, and the rest."""
    whole, rest = divmod(total, unit)
    return [(count, size) for count, size in ((whole, unit), (1, rest)) if count and size]
