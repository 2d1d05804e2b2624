"""What all of J looks like, from one pass over it: norms, extremes, and a picture of a few hundred cells.

Memory does not grow with J, but for a number for each point, row and column.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jacjobs.errors import TooLargeError
from jacjobs.store.products import Place, Source

HEIGHT, WIDTH = 360, 640
"""Cells of the picture, at most. A matrix with fewer rows or columns has a cell for each."""
STACKED_ROWS = 512
"""Matrices of several points stand below each other in the picture while they have no more rows together."""
LONGEST_AXIS = 1 << 28
"""2 GiB of norms."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Portrait:
    """Figures of the entries that are there and finite.

    shape:         (P, m, n).
    entries:       how many there are; `nonfinite` of them are NaN or infinite, `zeros` exactly zero.
    low, high:     the least and the greatest; NaN where there is none.
    largest:       (point, row, column) of the first that is largest by absolute value; None if all are zero.
    point_norms:   Frobenius norms, shape (P,).
    row_norms:     over all points and columns, shape (m,).
    column_norms:  over all points and rows, shape (n,).
    cells:         the largest absolute value in each cell, shape (at most HEIGHT, at most WIDTH). A cell with
                   an entry that is not finite is infinite; one where nothing is there is NaN.
    stacked:       cells go down the rows of all points, one matrix below the other; else each is of the same
                   rows of all points.
    """

    shape: tuple[int, int, int]
    entries: int
    nonfinite: int
    zeros: int
    low: float
    high: float
    largest: tuple[int, ...] | None
    point_norms: Floats
    row_norms: Floats
    column_norms: Floats
    cells: Floats
    stacked: bool

    @property
    def norm(self) -> float:
        """Frobenius."""
        return float(np.linalg.norm(self.point_norms))


@dataclass(frozen=True)
class Piece:
    """Of one box: the sums of squares along each axis, and the rest as in `Portrait`."""

    there: Place
    entries: int
    nonfinite: int
    zeros: int
    low: float
    high: float
    most: float
    largest: tuple[int, ...] | None
    squares: tuple[Floats, Floats, Floats]
    cells: Floats
    where: tuple[slice, slice]


def portrait_of(source: Source, shape: tuple[int, int, int]) -> Portrait:
    """Read J once, in threads. Raises TooLargeError where a number for each row or column is too much."""
    m = shape[1]
    stacked, grid = stacked_grid(shape)

    seen = [0.0]
    """The largest absolute value so far, of any thread's pieces: only what is larger is looked for."""

    def look(there: Place, values: NDArray[Any]) -> Piece:
        with np.errstate(over="ignore", invalid="ignore"):
            exact = np.square(values, dtype=np.float64)
        by_line = exact.sum(2)
        finite = None
        if not np.isfinite(by_line).all():  # an entry is not finite, or its square is not
            finite = np.isfinite(values)
            exact[~finite] = 0
            by_line = exact.sum(2)
        some = values if finite is None else values[finite]
        low, high = (some.min(), some.max()) if some.size else (np.nan, np.nan)
        sizes = np.abs(values)
        most, largest = float(np.fmax(np.abs(low), np.abs(high))), None
        if most >= seen[0]:
            seen[0] = most
            place = np.argmax(sizes if finite is None else np.where(finite, sizes, -1))
            largest = tuple(
                int(index) + axis.start
                for index, axis in zip(np.unravel_index(place, values.shape), there, strict=True)
            )
        if finite is not None:
            sizes[~finite] = np.inf
        if stacked:
            lines = sizes.reshape(-1, sizes.shape[2])
            first = there[0].start * m + there[1].start
        else:
            lines, first = sizes.max(0), there[1].start
        where, cells = grid.reduce(lines, first, there[2].start)
        return Piece(
            there=there,
            entries=values.size,
            nonfinite=values.size - some.size,
            zeros=some.size - int(np.count_nonzero(some)),
            low=float(low),
            high=float(high),
            most=most,
            largest=largest,
            squares=(by_line.sum(1), by_line.sum(0), exact.sum((0, 1))),
            cells=cells,
            where=where,
        )

    return look_of_all(source.pieces(look), shape, grid, stacked=stacked)


def stacked_grid(shape: tuple[int, int, int]) -> tuple[bool, Grid]:
    """Whether matrices stand below each other, and the cells. Raises TooLargeError as `portrait_of` does."""
    P, m, n = shape
    if max(shape) > LONGEST_AXIS:
        raise TooLargeError.about(
            "figures of J", got=f"{max(shape):,} along an axis", expected=f"at most {LONGEST_AXIS:,}"
        )
    stacked = m == 1 or P * m <= STACKED_ROWS
    return stacked, Grid(P * m if stacked else m, n)


def look_of_all(
    pieces: Iterable[Piece], shape: tuple[int, int, int], grid: Grid, *, stacked: bool
) -> Portrait:
    """The pieces together, in their order."""
    squares = tuple(np.zeros(length) for length in shape)
    cells = np.full(grid.shape, np.nan)
    entries = nonfinite = zeros = 0
    low = high = np.nan
    most, largest = 0.0, None
    for piece in pieces:
        entries, zeros = entries + piece.entries, zeros + piece.zeros
        nonfinite += piece.nonfinite
        low, high = float(np.fmin(low, piece.low)), float(np.fmax(high, piece.high))
        if piece.most > most:
            most, largest = piece.most, piece.largest
        for total, there, some in zip(squares, piece.there, piece.squares, strict=True):
            total[there] += some
        np.fmax(cells[piece.where], piece.cells, out=cells[piece.where])
    return Portrait(
        shape=shape,
        entries=entries,
        nonfinite=nonfinite,
        zeros=zeros,
        low=low,
        high=high,
        largest=largest,
        point_norms=np.sqrt(squares[0]),
        row_norms=np.sqrt(squares[1]),
        column_norms=np.sqrt(squares[2]),
        cells=cells,
        stacked=stacked,
    )


class Grid:
    """A matrix of `rows` × `columns`, divided into cells as equally as it goes."""

    def __init__(self, rows: int, columns: int) -> None:
        self._sizes = rows, columns
        self.shape = min(rows, HEIGHT), min(columns, WIDTH)

    def reduce(self, values: NDArray[Any], row: int, column: int) -> tuple[tuple[slice, slice], Floats]:
        """The cells that `values` meet, whose first is at (row, column), and the largest value in each."""
        down, first = self._cells(0, row, values.shape[0])
        right, second = self._cells(1, column, values.shape[1])
        largest = np.maximum.reduceat(np.maximum.reduceat(values, second, 1), first, 0)
        return (down, right), largest.astype(np.float64)

    def scatter(
        self, values: NDArray[Any], rows: NDArray[Any], columns: NDArray[Any], extent: tuple[slice, slice]
    ) -> tuple[tuple[slice, slice], Floats]:
        """The cells that the extent meets, and the largest of the values in each, 0 where there is none."""
        down, _ = self._cells(0, extent[0].start, extent[0].stop - extent[0].start)
        right, _ = self._cells(1, extent[1].start, extent[1].stop - extent[1].start)
        cells = np.zeros((down.stop - down.start, right.stop - right.start))
        (high, wide), (tall, long) = self.shape, self._sizes
        there = rows * high // tall - down.start, columns * wide // long - right.start
        np.maximum.at(cells, there, values.astype(np.float64))
        return (down, right), cells

    def _cells(self, axis: int, start: int, length: int) -> tuple[slice, NDArray[np.int64]]:
        """Those that start:start + length meets, and where in it each begins."""
        size, cells = self._sizes[axis], self.shape[axis]
        low, high = start * cells // size, (start + length - 1) * cells // size
        begins = [max(0, -(-cell * size // cells) - start) for cell in range(low, high + 1)]
        return slice(low, high + 1), np.array(begins)
