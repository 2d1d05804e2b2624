"""The shape of a Jacobian and rectangles of it: the words that every layer shares.

Pure Python, no torch: `jacjobs.open` reads a dataset without importing torch, and the three siblings
autodiff, plan and store, which never import each other, speak of the same rectangles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

# The dtypes that a dataset can hold, and their width. bfloat16 has no Parquet type: it is computed as
# bfloat16 and stored as float32, which holds each of its values exactly.
ITEM_BYTES = {"float16": 2, "float32": 4, "float64": 8}


DenseLayout = Literal["rows", "columns"]
Layout = Literal["rows", "columns", "sparse"]
"""What a record of a dataset holds: (a stripe of) a row of J, or of a column; or of a row, the entries that
may be other than zero.
"""
Compression = Literal["none", "zstd", "lz4"]


def index_bytes(columns: int) -> int:
    """Of a column's number, as a sparse J of so many is stored."""
    return 4 if columns <= 2**31 else 8


class Rectangle(NamedTuple):
    """Points × rows × columns of J, half-open: the extent of a block, of a part, of a chunk."""

    point_start: int
    point_stop: int
    row_start: int
    row_stop: int
    column_start: int
    column_stop: int

    @property
    def points(self) -> int:
        return self.point_stop - self.point_start

    @property
    def rows(self) -> int:
        return self.row_stop - self.row_start

    @property
    def columns(self) -> int:
        return self.column_stop - self.column_start

    @property
    def entries(self) -> int:
        return self.points * self.rows * self.columns

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Its entries, as an index into J: (points, rows, columns)."""
        return slice(*self[0:2]), slice(*self[2:4]), slice(*self[4:6])

    def box(self, layout: Layout) -> Box:
        """The same entries, as lines of a dataset with this layout."""
        return Box(*self[0:2], *self[4:6], *self[2:4]) if layout == "columns" else Box(*self)

    def __str__(self) -> str:
        return (
            f"points {self.point_start}:{self.point_stop}, rows {self.row_start}:{self.row_stop}, "
            f"columns {self.column_start}:{self.column_stop}"
        )


class Products(NamedTuple):
    """Products start:stop of some points, each of a group of columns or of rows: a block of a sparse J.

    entries: those of J that they hold, at all of the points.
    """

    point_start: int
    point_stop: int
    start: int
    stop: int
    entries: int

    @property
    def points(self) -> int:
        return self.point_stop - self.point_start

    def __str__(self) -> str:
        return f"points {self.point_start}:{self.point_stop}, products {self.start}:{self.stop}"


class Box(NamedTuple):
    """Points × lines × positions along the line, half-open: a rectangle as a dataset's layout sees it.

    A line is what a record holds (a stripe of): a column in layout `columns`, a row of J in the others.
    """

    point_start: int
    point_stop: int
    line_start: int
    line_stop: int
    start: int
    stop: int

    @property
    def points(self) -> int:
        return self.point_stop - self.point_start

    @property
    def lines(self) -> int:
        return self.line_stop - self.line_start

    @property
    def width(self) -> int:
        return self.stop - self.start

    @property
    def extent(self) -> tuple[int, int, int]:
        """(points, lines, width): the shape of its entries."""
        return self.points, self.lines, self.width

    @property
    def entries(self) -> int:
        return self.points * self.lines * self.width

    def pieces(self, lines: int, *, points: int = 1, width: int | None = None) -> Iterator[Box]:
        """It in pieces of so many points and lines, and so much of each line, in the order of records.

        They are in that order if pieces of several points hold all lines, and those of several lines all of
        each.
        """
        for point, line, start in itertools.product(
            range(self.point_start, self.point_stop, points),
            range(self.line_start, self.line_stop, lines),
            range(self.start, self.stop, width or self.width),
        ):
            yield Box(
                point,
                min(point + points, self.point_stop),
                line,
                min(line + lines, self.line_stop),
                start,
                min(start + (width or self.width), self.stop),
            )

    def rectangle(self, layout: Layout) -> Rectangle:
        """The same entries, as rows and columns of J."""
        return Rectangle(*self[0:2], *self[4:6], *self[2:4]) if layout == "columns" else Rectangle(*self)


class Segment(BaseModel):
    """The slice of rows or columns that belongs to one leaf of the output or input pytree."""

    model_config = ConfigDict(frozen=True)

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.stop - self.start


def segments_of(named_shapes: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[Segment, ...]:
    """Lay leaves end to end, in order: `[("w", (2, 3)), ("b", (2,))]` → w = 0:6, b = 6:8."""
    segments, start = [], 0
    for name, shape in named_shapes:
        stop = start + math.prod(shape)
        segments.append(Segment(name=name, start=start, stop=stop, shape=shape))
        start = stop
    return tuple(segments)


Tree = int | dict[str, Any]
"""The structure of a pytree, as JSON: a leaf is its number; `{"list": […]}`, `{"tuple": […]}` and
`{"dict": […], "keys": […]}` hold others. A node of another type stands as a tuple of its children."""


class Structure(BaseModel):
    """What `torch.func.jacrev` would return: outputs outside, inputs inside; leaves are segments, by number.

    has_points: whether each leaf has the leading axis of points that `in_dims` adds.
    """

    model_config = ConfigDict(frozen=True)

    outputs: Tree
    inputs: Tree
    has_points: bool


class JacobianShape(BaseModel):
    """J is `points` matrices of `rows` × `columns`, stored as `dtype`.

    origin: the dtype that it was computed in.
    """

    model_config = ConfigDict(frozen=True)

    points: int
    rows: int
    columns: int
    dtype: str
    outputs: tuple[Segment, ...]
    inputs: tuple[Segment, ...]
    origin: str = ""
    structure: Structure | None = None

    def lines(self, layout: Layout) -> tuple[int, int]:
        """How many lines a matrix has in this layout, and the length of each."""
        return (self.columns, self.rows) if layout == "columns" else (self.rows, self.columns)

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, n entries."""
        return self.columns * self.item_bytes

    @property
    def column_bytes(self) -> int:
        """Bytes of one column, m entries."""
        return self.rows * self.item_bytes

    def product_bytes(self, *, by_rows: bool) -> int:
        """Bytes of what one product is of J: a row or a column."""
        return self.row_bytes if by_rows else self.column_bytes

    @property
    def matrix_bytes(self) -> int:
        """Bytes of one point's matrix, m × n entries."""
        return self.rows * self.row_bytes

    @property
    def total_bytes(self) -> int:
        return self.points * self.matrix_bytes

    def __str__(self) -> str:
        return f"{self.points:,} × {self.rows:,} × {self.columns:,} {self.dtype}"
