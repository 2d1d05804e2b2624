"""How J is cut: into parts (one file each), and each part into blocks (one unit of work each).

Rectangles follow from a few numbers by arithmetic, so a plan of a million blocks is as small as one of ten.
Nothing here depends on how many workers there are: one worker and a hundred write the same bytes.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from jacjobs.shape import JacobianShape, Rectangle

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


class Tiling(BaseModel):
    """A grid of parts, each a grid of blocks. The last of each row or column of a grid may be smaller."""

    model_config = ConfigDict(frozen=True)

    points: int
    rows: int
    columns: int
    part_points: int
    part_rows: int
    block_points: int
    block_rows: int
    block_columns: int

    @property
    def splits_rows(self) -> bool:
        """Do blocks hold pieces of rows? Then a part is put together before it is written."""
        return self.block_columns < self.columns

    @property
    def parts(self) -> int:
        return _ceil(self.points, self.part_points) * self._parts_a_point

    @property
    def _parts_a_point(self) -> int:
        return _ceil(self.rows, self.part_rows)

    @property
    def blocks(self) -> int:
        """All blocks of all parts. A part has one of at most four sizes: whole or cut short, either way."""
        total = 0
        for point_parts, points in _split(self.points, self.part_points):
            for row_parts, rows in _split(self.rows, self.part_rows):
                total += point_parts * row_parts * self._blocks(points, rows)
        return total

    def _blocks(self, points: int, rows: int) -> int:
        """How many a part of so many points and rows has."""
        a_row = _ceil(self.columns, self.block_columns)
        return _ceil(points, self.block_points) * _ceil(rows, self.block_rows) * a_row

    def part(self, index: int) -> Rectangle:
        """Parts in the order of (point, row)."""
        i, j = divmod(index, self._parts_a_point)
        point, row = i * self.part_points, j * self.part_rows
        return Rectangle(
            point,
            min(point + self.part_points, self.points),
            row,
            min(row + self.part_rows, self.rows),
            0,
            self.columns,
        )

    def blocks_in(self, part: int) -> int:
        whole = self.part(part)
        return self._blocks(whole.points, whole.rows)

    def block(self, part: int, index: int) -> Rectangle:
        """Blocks of a part in the order of (point, row, column).

        Written one after another, records are sorted, unless rows are split.
        """
        whole = self.part(part)
        rest, k = divmod(index, _ceil(self.columns, self.block_columns))
        i, j = divmod(rest, _ceil(whole.rows, self.block_rows))
        point = whole.point_start + i * self.block_points
        row = whole.row_start + j * self.block_rows
        column = k * self.block_columns
        return Rectangle(
            point,
            min(point + self.block_points, whole.point_stop),
            row,
            min(row + self.block_rows, whole.row_stop),
            column,
            min(column + self.block_columns, self.columns),
        )


def tile(
    shape: JacobianShape,
    chunk: int,
    *,
    by_columns: bool = False,
    product_seconds: float = 0.0,
    block_bytes: int = BLOCK_BYTES,
) -> Tiling:
    """Cut J for chunks of `chunk` products: ranges of points where a block holds whole matrices, else ranges
    of rows, or, where a product is a column, of columns.

    A block is at most `block_bytes` and `BLOCK_SECONDS` of work, at `product_seconds` each, but at least one
    chunk, so that a large chunk is not cut short. A part holds whole rows: where blocks are ranges of columns
    it holds whole matrices, however large.
    """
    products, product_bytes = shape.rows, shape.row_bytes
    if by_columns:
        products, product_bytes = shape.columns, shape.column_bytes
    block_bytes = _clamp(
        shape.total_bytes // BLOCKS_WANTED, min(SMALLEST_BLOCK_BYTES, block_bytes), block_bytes
    )
    part_bytes = _clamp(shape.total_bytes // PARTS_WANTED, SMALLEST_PART_BYTES, PART_BYTES)
    if product_seconds > 0:
        block_bytes = min(block_bytes, int(BLOCK_SECONDS / product_seconds * product_bytes))
        part_bytes = min(part_bytes, int(PART_SECONDS / product_seconds * product_bytes))
    chunk_points = max(1, chunk // products)
    block_products = products
    if shape.matrix_bytes <= block_bytes or chunk_points > 1:
        block_points = _multiple(block_bytes // shape.matrix_bytes, chunk_points, at_most=shape.points)
    else:
        block_points = 1
        block_products = _multiple(block_bytes // product_bytes, chunk, at_most=products)
    block_rows = shape.rows if by_columns else block_products
    if block_rows == shape.rows or shape.matrix_bytes <= part_bytes:
        part_points = _multiple(part_bytes // shape.matrix_bytes, block_points, at_most=shape.points)
        part_rows = shape.rows
    else:
        part_points = 1
        part_rows = _multiple(part_bytes // shape.row_bytes, block_rows, at_most=shape.rows)
    return Tiling(
        points=shape.points,
        rows=shape.rows,
        columns=shape.columns,
        part_points=part_points,
        part_rows=part_rows,
        block_points=block_points,
        block_rows=block_rows,
        block_columns=block_products if by_columns else shape.columns,
    )


def _multiple(wanted: int, unit: int, *, at_most: int) -> int:
    """The largest multiple of `unit` up to `wanted`, at least one unit, and no more than there is."""
    return min(max(1, wanted // unit) * unit, at_most)


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _ceil(total: int, unit: int) -> int:
    return -(-total // unit)


def _split(total: int, unit: int) -> list[tuple[int, int]]:
    """(how many, how large): the whole units in `total`, and the rest."""
    whole, rest = divmod(total, unit)
    return [(count, size) for count, size in ((whole, unit), (1, rest)) if count and size]
