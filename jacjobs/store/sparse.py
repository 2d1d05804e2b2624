"""Reading a sparse dataset back: `jacjobs.open(path)` of a run whose records hold a row's entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

from jacjobs.store.portrait import Grid, Piece, Portrait, look_of_all, stacked_grid
from jacjobs.store.products import Place, Source
from jacjobs.store.reader import JacobianDataset
from jacjobs.store.selection import Axis, Overlap, Wanted, parse_index

if TYPE_CHECKING:
    import torch


AT_ONCE = 1 << 24
"""Entries whose products are summed in one go: each sum goes over all of the result."""


class SparseDataset(JacobianDataset):
    """J on disk: P sparse matrices of m rows × n columns. Nothing is read before it is asked for.

    >>> J = jacjobs.open("runs/brusselator")
    >>> J[0]                        # one point's matrix, a scipy.sparse.csr_array of shape (m, n)
    >>> J[0, :100, "input"]         # some rows and columns of it
    >>> J[:10]                      # a list, of one for each point
    >>> J.normal()                  # Jᵀ J, sparse
    >>> scipy.sparse.linalg.spsolve(J[0], residual)

    Products with vectors are as those of a dense one, and streamed as they are. What returns all of J is
    sparse, with all points' rows stacked; `to_numpy` makes it dense, (P, m, n). What is stored in half
    precision is given in single: SciPy has no half.
    """

    def __getitem__(self, index: Any) -> Any:
        """`J[points, rows, columns]`: a csr_array for one point, else a list of them; rows and columns as
        SciPy indexes, or the name of a segment.

        Reads only the row groups that hold some of it. Raises StoreError where some of it is not there yet.
        """
        parsed = parse_index(index, self.shape, self._outputs, self._inputs)
        points, rows, columns = parsed.axes
        stacked = self._stacked(points, rows, columns)
        again = parsed.again[1:]
        whole = all(isinstance(each, slice) and each == slice(None) for each in again)
        each = [stacked[i * len(rows) : (i + 1) * len(rows)] for i in range(len(points))]
        made = each if whole else [matrix[again] for matrix in each]
        which = parsed.again[0]
        if isinstance(which, slice):
            return made[which]
        return made[which] if np.ndim(which) == 0 else [made[i] for i in np.ravel(which)]

    def to_scipy(self) -> csr_array:
        """All of J in memory: the (P·m) × n matrix of all points' rows, stacked."""
        P, m, n = self.shape
        return self._stacked(Axis(range(P)), Axis(range(m)), Axis(range(n)))

    def to_torch(self) -> torch.Tensor:
        """All of J in memory, on the CPU: the (P·m) × n matrix of all points' rows, a sparse CSR tensor."""
        import torch

        J = self.to_scipy()
        indptr, indices = (torch.from_numpy(np.array(part)) for part in (J.indptr, J.indices))
        return torch.sparse_csr_tensor(
            indptr, indices, torch.from_numpy(np.array(J.data)), J.shape, check_invariants=True
        )

    def gram(self, memory_bytes: int = 0) -> Any:
        """J Jᵀ of the (P·m) × n matrix of all points' rows: a csr_array (P·m, P·m). Takes J in memory."""
        J = self.to_scipy()
        return J @ J.T

    def normal(self, memory_bytes: int = 0) -> Any:
        """Jᵀ J of the (P·m) × n matrix of all points' rows, the matrix of the normal equations: a csr_array
        (n, n). One pass over J; takes some 200 MB of it beside the result.
        """
        n, source = self.shape[2], self._source()
        total = csr_array((n, n), dtype=source.dtype)
        waiting: list[csr_array] = []
        for rows in source.pieces(lambda _, rows: rows):
            waiting.append(rows)
            if sum(each.nnz for each in waiting) >= AT_ONCE:
                total, waiting = total + _square(waiting), []
        return csr_array(total + _square(waiting) if waiting else total)

    def portrait(self) -> Portrait:
        shape = self.shape
        stacked, grid = stacked_grid(shape)

        def look(there: Place, rows: csr_array) -> Piece:
            return _piece(there, rows, grid, shape[1], stacked=stacked)

        return look_of_all(self._source().pieces(look), shape, grid, stacked=stacked)

    # -- within --------------------------------------------------------------------------------------------

    def _source(self) -> SparseSource:
        wanted = Wanted(Axis(range(self.points)), Axis(self._rows), Axis(self._columns))
        return SparseSource(self._parts, wanted, self.dtype, by_rows=True)

    def _stacked(self, points: Axis, rows: Axis, columns: Axis) -> csr_array:
        """Rows of all these points, one below the other."""
        rows, columns = rows.shifted(self._rows.start), columns.shifted(self._columns.start)
        wanted = Wanted(points, rows, columns)
        self._parts.require(wanted)
        pieces: Sequence[csr_array] = list(self._parts.each(wanted, lambda _, some: some))
        if not pieces:
            return csr_array((len(points) * len(rows), len(columns)), dtype=self.dtype)
        return csr_array(vstack(pieces, format="csr"))


def _square(rows: list[csr_array]) -> csr_array:
    stacked = csr_array(vstack(rows, format="csr"))
    return csr_array(stacked.T @ stacked)


class SparseSource(Source):
    """What it multiplies are `csr_array`s: rows of some points, one below the other."""

    @property
    def whole_rows(self) -> bool:
        return False

    def pieces(self, look: Any) -> Any:
        return self._parts.each(self._wanted, lambda overlap, rows: look(overlap.there, self._cast(rows)))

    def _times(self, values: Any, overlap: Overlap, v: NDArray[Any]) -> NDArray[Any]:
        points, lines, _ = overlap.there
        extent = _length(points), _length(lines), v.shape[2]
        if len(v) == 1:
            one: NDArray[Any] = (values @ v[0]).reshape(extent)
            return one
        step = extent[1]
        return np.stack([values[i * step : (i + 1) * step] @ v[i] for i in range(extent[0])])

    def _transposed_times(self, values: Any, overlap: Overlap, u: NDArray[Any]) -> NDArray[Any]:
        points, step = _length(overlap.there[0]), _length(overlap.there[1])
        return np.stack(
            [values[i * step : (i + 1) * step].T @ u[i if len(u) > 1 else 0] for i in range(points)]
        )


def _piece(there: Place, rows: csr_array, grid: Grid, m: int, *, stacked: bool) -> Piece:
    """What a portrait needs of some rows, of points with m rows each."""
    entries = rows.tocoo()
    place = (*np.divmod(entries.row, _length(there[1])), entries.col)
    finite = np.isfinite(entries.data)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.where(finite, np.square(entries.data, dtype=np.float64), 0.0)
        sizes = np.abs(entries.data)
    some = entries.data[finite]
    size = rows.shape[0] * rows.shape[1]
    bounds = some if size == len(some) else np.append(some, 0)
    low, high = (float(bounds.min()), float(bounds.max())) if len(bounds) else (np.nan, np.nan)
    most, largest = 0.0, None
    if len(some):
        first = int(np.argmax(np.where(finite, sizes, -1)))
        most = float(sizes[first])
        largest = tuple(int(at[first]) + axis.start for at, axis in zip(place, there, strict=True))
    points, lines, columns = there
    down = place[1] + lines.start
    covered = lines
    if stacked:
        down = down + (place[0] + points.start) * m
        covered = slice(points.start * m + lines.start, (points.stop - 1) * m + lines.stop)
    shown = np.where(finite, sizes, np.inf)
    where, cells = grid.scatter(shown, down, place[2] + columns.start, (covered, columns))
    by_axis = [
        np.bincount(at, squares, _length(axis)).astype(np.float64)
        for at, axis in zip(place, there, strict=True)
    ]
    return Piece(
        there=there,
        entries=size,
        nonfinite=len(entries.data) - len(some),
        zeros=size - len(entries.data) + len(some) - int(np.count_nonzero(some)),
        low=low,
        high=high,
        most=most,
        largest=largest,
        squares=(by_axis[0], by_axis[1], by_axis[2]),
        cells=cells,
        where=where,
    )


def _length(axis: slice) -> int:
    count: int = axis.stop - axis.start
    return count
