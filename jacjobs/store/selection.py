"""Which entries are wanted, and where they lie: arithmetic on indices, no files.

An index of NumPy's becomes, axis by axis, the sorted indices that must be read; what was read is then indexed
again, by NumPy itself, to give exactly what NumPy would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jacjobs.errors import InputError
from jacjobs.shape import Box, Segment


@dataclass(frozen=True)
class Axis:
    """Sorted, distinct indices along one axis: a range with a positive step, or an array."""

    indices: range | NDArray[np.int64]

    def __len__(self) -> int:
        size: int = len(self.indices)
        return size

    def inside(self, start: int, stop: int) -> tuple[slice, slice | NDArray[np.int64]] | None:
        """What of them lies in start:stop: their places in the selection, and their distances from `start`.

        None if nothing does.
        """
        wanted = self.indices
        if isinstance(wanted, range):
            step = wanted.step
            first = max(0, -(-(start - wanted.start) // step))
            last = min(len(wanted), -(-(stop - wanted.start) // step))
            if first >= last:
                return None
            return slice(first, last), slice(wanted[first] - start, wanted[last - 1] - start + 1, step)
        first, last = np.searchsorted(wanted, (start, stop)).tolist()
        return (slice(first, last), wanted[first:last] - start) if first < last else None

    def shifted(self, by: int) -> Axis:
        """For an axis that begins so much later."""
        wanted = self.indices
        if isinstance(wanted, range):
            return Axis(range(wanted.start + by, wanted.stop + by, wanted.step))
        return Axis(wanted + by)


class Wanted(NamedTuple):
    """The entries at all combinations of these points, lines, and positions along the line."""

    points: Axis
    lines: Axis
    positions: Axis

    @property
    def extent(self) -> tuple[int, int, int]:
        return len(self.points), len(self.lines), len(self.positions)

    def overlap(self, box: Box) -> Overlap | None:
        """What of it lies in `box`; None if nothing does."""
        found = (
            self.points.inside(box.point_start, box.point_stop),
            self.lines.inside(box.line_start, box.line_stop),
            self.positions.inside(box.start, box.stop),
        )
        if found[0] is None or found[1] is None or found[2] is None:
            return None
        return Overlap((found[0][0], found[1][0], found[2][0]), (found[0][1], found[1][1], found[2][1]))


class Overlap(NamedTuple):
    """Places of the common entries in what is wanted, and in the box."""

    there: tuple[slice, slice, slice]
    here: tuple[slice | NDArray[np.int64], ...]

    @property
    def lines(self) -> int:
        """(point, line) pairs in common."""
        points, lines, _ = self.there
        count: int = (points.stop - points.start) * (lines.stop - lines.start)
        return count

    def take(self, values: NDArray[Any]) -> NDArray[Any]:
        """The common entries, of a box's `values`."""
        points, lines, positions = self.here
        taken: NDArray[Any] = values[points][:, lines][:, :, positions]
        return taken


def boxes_of(part: Box, stripe: int | None, first: int, last: int) -> Iterator[Box]:
    """What records first…last of a part hold, as boxes, in order.

    Whole matrices make one box, the cut ones before and after them one each, and cut lines one each: however
    many records there are, there are few boxes. The stripes of a line lie end to end, as the line does.
    """
    stripe = stripe or part.width
    stripes = -(-part.width // stripe)
    record = first
    while record < last:
        line, k = divmod(record, stripes)
        point, line = divmod(line, part.lines)
        points, lines, some = 1, 1, min(stripes - k, last - record)
        if some == stripes:
            lines = min(part.lines - line, (last - record) // stripes)
            if lines == part.lines:
                points = (last - record) // (lines * stripes)
        start = part.start + k * stripe
        yield Box(
            part.point_start + point,
            part.point_start + point + points,
            part.line_start + line,
            part.line_start + line + lines,
            start,
            min(start + some * stripe, part.stop),
        )
        record += points * lines * some


# -- indices of NumPy's ------------------------------------------------------------------------------------


class Index(NamedTuple):
    """An index into (points, rows, columns): what to read of each axis, and the index into what was read."""

    axes: tuple[Axis, Axis, Axis]
    again: tuple[Any, ...]


def parse_index(
    index: Any, shape: tuple[int, int, int], outputs: Sequence[Segment], inputs: Sequence[Segment]
) -> Index:
    """Take an index apart: integers, slices, arrays of integers or of bool, `...`, names of segments.

    Raises IndexError as NumPy does, and InputError for a name that no segment has.
    """
    items = list(index) if isinstance(index, tuple) else [index]
    if any(item is Ellipsis for item in items):
        place = next(i for i, item in enumerate(items) if item is Ellipsis)
        items[place : place + 1] = [slice(None)] * (4 - len(items))
    if len(items) > 3 or any(item is Ellipsis for item in items):
        raise IndexError(f"too many indices: got {len(items)}, J has 3 axes (points, rows, columns)")
    items += [slice(None)] * (3 - len(items))
    names: tuple[Sequence[Segment], ...] = ((), outputs, inputs)
    parsed = [_axis(item, size, named) for item, size, named in zip(items, shape, names, strict=True)]
    points, rows, columns = (axis for axis, _ in parsed)
    return Index((points, rows, columns), tuple(again for _, again in parsed))


def _axis(item: Any, size: int, names: Sequence[Segment]) -> tuple[Axis, Any]:
    if isinstance(item, str):
        segment = find_segment(names, item)
        item = slice(segment.start, segment.stop)
    if isinstance(item, slice):
        wanted = range(size)[item]
        if wanted.step < 0:
            return Axis(wanted[::-1]), slice(None, None, -1)
        return Axis(wanted), slice(None)
    if item is None:
        raise IndexError("None adds no axis here; index the array that comes back")
    array = np.asarray(item)
    if array.dtype == bool and array.ndim == 1:
        if len(array) != size:
            raise IndexError(f"a mask of {len(array)} for an axis of {size}")
        array = np.flatnonzero(array)
    if array.size == 0:
        array = array.astype(np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise IndexError(
            f"got {item!r}; J takes integers, slices, arrays of integers or bool, and names of segments"
        )
    array = array.astype(np.int64)
    wrong = (array < -size) | (array >= size)
    if wrong.any():
        raise IndexError(f"index {array[wrong].flat[0]} is out of bounds for an axis of {size}")
    array = np.where(array < 0, array + size, array)
    if array.ndim == 0:
        return Axis(range(int(array), int(array) + 1)), 0
    distinct, again = np.unique(array, return_inverse=True)
    return Axis(distinct), again.reshape(array.shape)


def find_segment(segments: Sequence[Segment], name: str) -> Segment:
    """Raises InputError for a name that none has."""
    for segment in segments:
        if segment.name == name:
            return segment
    known = ", ".join(segment.name for segment in segments) or "none"
    raise InputError.about("segment", got=repr(name), expected=f"one of: {known}")
