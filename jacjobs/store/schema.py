"""What a part looks like: its name, its columns and its metadata."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jacjobs.shape import Rectangle

FORMAT = 1
"""Version of the format. A reader refuses a higher one."""

_NAME = re.compile(r"part-p(\d+)-(\d+)-r(\d+)-(\d+)-c(\d+)-(\d+)\.parquet")
VALUES_PATH = "values.list.element"
"""Parquet's name for the column of entries."""


def part_name(part: Rectangle) -> str:
    """The name follows from the rectangle, so a part computed twice is one file. Names sort as records."""
    p, r, c = part[0:2], part[2:4], part[4:6]
    return f"part-p{p[0]:09d}-{p[1]:09d}-r{r[0]:09d}-{r[1]:09d}-c{c[0]:09d}-{c[1]:09d}.parquet"


def part_rectangle(name: str) -> Rectangle | None:
    """The rectangle that a file name stands for, None if it is not a part's name."""
    match = _NAME.fullmatch(name)
    return Rectangle(*map(int, match.groups())) if match else None


def part_schema(columns: int, dtype: str, metadata: dict[str, str] | None = None) -> pa.Schema:
    """Layout `rows`: `values[k]` is `J[point][row, start + k]`."""
    value = pa.field("element", pa.from_numpy_dtype(np.dtype(dtype)), nullable=False)
    return pa.schema(
        [
            pa.field("point", pa.int64(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("start", pa.int64(), nullable=False),
            pa.field("values", pa.list_(value, columns), nullable=False),
        ],
        metadata={f"jacjobs.{key}": value for key, value in (metadata or {}).items()},
    )


def part_records(block: Rectangle, values: NDArray[np.generic], schema: pa.Schema) -> pa.Table:
    """The records of a block, `values` of shape (points, rows, columns), without a copy of the values."""
    records = block.points * block.rows
    points = np.repeat(np.arange(block.point_start, block.point_stop), block.rows)
    rows = np.tile(np.arange(block.row_start, block.row_stop), block.points)
    starts = np.full(records, block.column_start)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    lists = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("values").type)
    return pa.table([pa.array(points), pa.array(rows), pa.array(starts), lists], schema=schema)
