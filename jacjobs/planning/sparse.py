"""How a sparse J is cut, and what it takes: products of groups of columns or rows, in place of all of them.

A block is a range of products of a group each, at a range of points; a part is all rows of a range of points,
whose entries are put together in memory, since each product holds a few of every row. As the pattern itself
is held by every worker, a point's entries fit as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jacjobs.cost import CostModel
from jacjobs.planning.choice import WRITE_BYTES_PER_SECOND, Chooser, Resources, Timing, is_by_rows
from jacjobs.planning.geometry import (
    BLOCK_BYTES,
    BLOCK_SECONDS,
    BLOCKS_WANTED,
    IN_MEMORY_BYTES,
    PART_SECONDS,
    PARTS_WANTED,
    ROW_GROUP_BYTES,
    SMALLEST_BLOCK_BYTES,
    SMALLEST_PART_BYTES,
    Cut,
    Tiling,
    ceil,
    clamp,
    multiple,
)
from jacjobs.planning.options import Count
from jacjobs.shape import Compression, JacobianShape, Products, Rectangle, index_bytes

PATTERN_BYTES = 48
"""What a worker holds for each entry of the pattern: where it is, which product makes it, and where."""
ROW_BYTES = 18
"""What a record takes beside its entries: two indices of eight bytes, and what Parquet adds."""


Kind = Literal["columns", "rows"]
Ends = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
"""Numbers of entries, each with those before it."""


class Groups(BaseModel):
    """The products that make all entries of a point.

    columns, rows:  how many are of a group of columns, how many of a group of rows.
    ends:           how many entries the products 0:1, 0:2, … make together: those of columns come first.
    """

    model_config = ConfigDict(frozen=True)

    columns: Annotated[int, Field(ge=0)]
    rows: Annotated[int, Field(ge=0)]
    ends: Ends

    @model_validator(mode="after")
    def _has_as_many_ends_as_products(self) -> Self:
        if len(self.ends) != self.columns + self.rows:
            raise ValueError(f"{self.columns + self.rows:,} products end at {len(self.ends):,} places")
        return self

    @property
    def products(self) -> int:
        return self.columns + self.rows

    @property
    def entries(self) -> int:
        """Of a point."""
        return self.ends[-1]

    @property
    def kinds(self) -> list[Kind]:
        both: tuple[Kind, Kind] = ("columns", "rows")
        return [kind for kind in both if self.of(kind)]

    def of(self, kind: Kind) -> int:
        return self.columns if kind == "columns" else self.rows

    def seeds(self, shape: JacobianShape, like: Callable[[int, int], Any]) -> dict[str, Any]:
        """For a problem whose products take as long, whatever is in which group: of each kind, `like(how many
        columns or rows, groups)`.
        """
        sizes: dict[Kind, int] = {"columns": shape.columns, "rows": shape.rows}
        return {kind: like(sizes[kind], self.of(kind)) for kind in self.kinds}


class Pace(BaseModel):
    """How products of a kind are made. product_seconds: predicted; 0, where nobody knows."""

    model_config = ConfigDict(frozen=True)

    chunk: int
    product_seconds: float = 0.0


class SparseTiling(Cut):
    """Parts are ranges of points. Blocks are ranges of points, or ranges of products of one point, which end
    at `stops`; their entries are counted by `ends`, as in `Groups`.
    """

    layout: Literal["sparse"] = "sparse"
    part_points: Count
    block_points: Count
    stops: Annotated[tuple[Count, ...], Field(min_length=1)]
    ends: Ends

    @model_validator(mode="after")
    def _counts_entries_at_every_stop(self) -> Self:
        if len(self.ends) != len(self.stops):
            raise ValueError(f"{len(self.stops):,} ranges of products end at {len(self.ends):,} places")
        return self

    @property
    def parts(self) -> int:
        return ceil(self.points, self.part_points)

    def part(self, index: int) -> Rectangle:
        start = index * self.part_points
        stop = min(start + self.part_points, self.points)
        return Rectangle(start, stop, 0, self.rows, 0, self.columns)

    def bundle(self, index: int) -> Products:
        part = self.part(index)
        return self._products(part.point_start, part.point_stop, 0, len(self.stops))

    @property
    def blocks(self) -> int:
        whole, rest = divmod(self.points, self.part_points)
        each = whole * ceil(self.part_points, self.block_points) + ceil(rest, self.block_points)
        return each * len(self.stops)

    def blocks_in(self, bundle: int) -> int:
        return ceil(self.part(bundle).points, self.block_points) * len(self.stops)

    def block(self, bundle: int, index: int) -> Products:
        """In the order of points, then of products."""
        part = self.part(bundle)
        i, j = divmod(index, len(self.stops))
        start = part.point_start + i * self.block_points
        return self._products(start, min(start + self.block_points, part.point_stop), j, j + 1)

    @property
    def most_entries(self) -> int:
        """Of the largest block."""
        each = [end - before for before, end in itertools.pairwise((0, *self.ends))]
        return self.block_points * max(each)

    def _products(self, point_start: int, point_stop: int, first: int, last: int) -> Products:
        start = self.stops[first - 1] if first else 0
        entries = self.ends[last - 1] - (self.ends[first - 1] if first else 0)
        return Products(
            point_start, point_stop, start, self.stops[last - 1], entries * (point_stop - point_start)
        )


def tile_groups(
    shape: JacobianShape, groups: Groups, paces: dict[Kind, Pace], *, block_bytes: int = BLOCK_BYTES
) -> SparseTiling:
    """Cut J for chunks of these sizes. A block's products, whole as they are made, take at most `block_bytes`
    and BLOCK_SECONDS of work, but at least one chunk.
    """
    line_bytes: dict[Kind, int] = {"columns": shape.column_bytes, "rows": shape.row_bytes}
    point_bytes = sum(groups.of(kind) * line_bytes[kind] for kind in groups.kinds)
    most = clamp(
        shape.points * point_bytes // BLOCKS_WANTED, min(SMALLEST_BLOCK_BYTES, block_bytes), block_bytes
    )
    for kind in groups.kinds:
        if (seconds := paces[kind].product_seconds) > 0:
            most = min(most, int(BLOCK_SECONDS / seconds * line_bytes[kind]))
    points_at_once = max(max(1, paces[kind].chunk // groups.of(kind)) for kind in groups.kinds)
    if point_bytes <= most or points_at_once > 1:
        block_points = multiple(most // point_bytes, points_at_once, at_most=shape.points)
        stops = [groups.products]
    else:
        block_points = 1
        stops = list(_stops(groups, paces, line_bytes, most))
    entries_bytes = max(1, groups.entries * shape.item_bytes)
    part_bytes = clamp(shape.points * entries_bytes // PARTS_WANTED, SMALLEST_PART_BYTES, IN_MEMORY_BYTES)
    point_seconds = sum(groups.of(kind) * paces[kind].product_seconds for kind in groups.kinds)
    if point_seconds > 0:
        part_bytes = min(part_bytes, int(PART_SECONDS / point_seconds * entries_bytes))
    return SparseTiling(
        points=shape.points,
        rows=shape.rows,
        columns=shape.columns,
        part_points=multiple(part_bytes // entries_bytes, block_points, at_most=shape.points),
        block_points=block_points,
        stops=tuple(stops),
        ends=tuple(groups.ends[stop - 1] for stop in stops),
    )


def _stops(groups: Groups, paces: dict[Kind, Pace], line_bytes: dict[Kind, int], most: int) -> Iterator[int]:
    """Of ranges of products that are all of columns, or all of rows."""
    first = 0
    for kind in groups.kinds:
        count = groups.of(kind)
        step = multiple(most // line_bytes[kind], paces[kind].chunk, at_most=count)
        yield from (first + min(start + step, count) for start in range(0, count, step))
        first += count


def stored_bytes(shape: JacobianShape, entries: int) -> int:
    """Of all records, uncompressed."""
    return shape.points * (entries * (shape.item_bytes + index_bytes(shape.columns)) + shape.rows * ROW_BYTES)


def rows_in_a_group(shape: JacobianShape, entries: int) -> int:
    """How many records a row group has."""
    return max(1, ROW_GROUP_BYTES * shape.points * shape.rows // stored_bytes(shape, entries))


class SparseChooser(Chooser):
    """Compares strategies for the products of groups: those of columns with each other, and those of rows."""

    def __init__(
        self,
        shape: JacobianShape,
        groups: Groups,
        resources: Resources,
        models: Iterable[CostModel],
        timings: Sequence[Timing] = (),
        compression: Compression = "none",
        chunk: int | None = None,
    ) -> None:
        super().__init__(shape, resources, models, timings, compression, chunk)
        self.groups = groups

    def seeds(self, like: Callable[[int, int], Any]) -> dict[str, Any]:
        return self.groups.seeds(self._shape, like)

    def cut(self, paces: dict[Kind, Pace]) -> SparseTiling:
        """For all products."""
        return tile_groups(self._shape, self.groups, paces, block_bytes=self._most_block_bytes)

    def _cut(self, model: CostModel, chunk: int, product_seconds: float = 0.0) -> SparseTiling:
        """As if the others took as long."""
        paces = {
            kind: Pace(chunk=min(chunk, self.groups.of(kind)), product_seconds=product_seconds)
            for kind in self.groups.kinds
        }
        return self.cut(paces)

    def tiling(self, model: CostModel, chunk: int, product_seconds: float = 0.0) -> Tiling:
        raise NotImplementedError("a sparse J is cut for all kinds of products: `cut`")

    def _block_bytes(self, model: CostModel, chunk: int) -> int:
        """Products whole as they are made, and their entries; and the pattern."""
        block = self._cut(model, chunk).block(0, 0)
        length = self._shape.columns if is_by_rows(model.strategy) else self._shape.rows
        made = block.points * min(block.stop - block.start, self._products(model)) * length
        return (made + block.entries) * self._shape.item_bytes + self.groups.entries * PATTERN_BYTES

    def _wall_seconds(self, model: CostModel, chunk: int, product_seconds: float, compute: float) -> float:
        """Of the products of its kind, with their part of what is written."""
        tiling = self._cut(model, chunk, product_seconds)
        share = self._products(model) / self.groups.products
        io = (
            share * stored_bytes(self._shape, self.groups.entries) / WRITE_BYTES_PER_SECOND[self._compression]
        )
        workers = min(self._resources.workers, tiling.blocks)
        if self._resources.device.host:
            return (compute + io) / workers
        return max(compute / workers, io / 2)

    def _products(self, model: CostModel) -> int:
        return self.groups.of(kind_of(model.strategy))

    def _block_products(self, model: CostModel, chunk: int, product_seconds: float) -> int:
        stops = self._cut(model, chunk, product_seconds).stops
        return max(stop - start for start, stop in itertools.pairwise((0, *stops)))


def kind_of(strategy: str) -> Kind:
    """What a product of it is."""
    return "rows" if is_by_rows(strategy) else "columns"
