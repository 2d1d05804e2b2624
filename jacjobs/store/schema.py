"""What a part looks like: its name, its columns and its metadata. docs/format.md describes it to others."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jacjobs.shape import Box, Layout, Rectangle, index_bytes

FORMAT = 1
"""Version of the format. A reader refuses a higher one."""

_NUMBER = "([0-9]{9,19})"
_NAME = re.compile(rf"part-p{_NUMBER}-{_NUMBER}-r{_NUMBER}-{_NUMBER}-c{_NUMBER}-{_NUMBER}\.parquet")


def part_name(part: Rectangle) -> str:
    """The name follows from the rectangle, so a part computed twice is one file. Names sort as records."""
    p, r, c = part[0:2], part[2:4], part[4:6]
    return f"part-p{p[0]:09d}-{p[1]:09d}-r{r[0]:09d}-{r[1]:09d}-c{c[0]:09d}-{c[1]:09d}.parquet"


def part_rectangle(name: str) -> Rectangle | None:
    """The rectangle that a file name stands for, None if it is not a part's name."""
    match = _NAME.fullmatch(name)
    return Rectangle(*map(int, match.groups())) if match else None


def part_schema(
    layout: Layout, length: int, stripe: int | None, dtype: str, metadata: dict[str, str] | None = None
) -> pa.Schema:
    """Layout `rows`: `values[k]` is `J[point][row, start + k]`; `columns`: `J[point][start + k, column]`;
    `sparse`: `J[point][row, columns[k]]`, and no other entry of that row is other than zero.

    Lines that are cut into stripes are lists of any length, since the last stripe of a line may be shorter.
    """
    value = pa.field("element", pa.from_numpy_dtype(np.dtype(dtype)), nullable=False)
    if layout == "sparse":
        index = pa.field("element", pa.from_numpy_dtype(index_dtype(length)), nullable=False)
        where, values = pa.field("columns", pa.list_(index), nullable=False), pa.list_(value)
    else:
        where = pa.field("start", pa.int64(), nullable=False)
        values = pa.list_(value) if stripe else pa.list_(value, length)
    return pa.schema(
        [
            pa.field("point", pa.int64(), nullable=False),
            pa.field("column" if layout == "columns" else "row", pa.int64(), nullable=False),
            where,
            pa.field("values", values, nullable=False),
        ],
        metadata={f"jacjobs.{key}": value for key, value in (metadata or {}).items()},
    )


def index_dtype(columns: int) -> np.dtype[Any]:
    """Of the columns of a sparse J."""
    return np.dtype(f"i{index_bytes(columns)}")


def record_indices(box: Box, stripe: int | None) -> tuple[NDArray[np.int64], ...]:
    """(point, line, start, stop) of every record of a box, in their order."""
    starts = np.arange(box.start, box.stop, stripe or box.width)
    each = box.lines * len(starts)
    points = np.repeat(np.arange(box.point_start, box.point_stop), each)
    lines = np.tile(np.repeat(np.arange(box.line_start, box.line_stop), len(starts)), box.points)
    start = np.tile(starts, box.points * box.lines)
    return points, lines, start, np.minimum(start + (stripe or box.width), box.stop)
