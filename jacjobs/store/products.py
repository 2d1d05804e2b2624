"""Products of J with vectors and with itself, streamed: memory is bounded, and results do not depend on it.

The stored matrices are lines, of rows or of columns. A product sums either along the lines, which each line
does for itself, or across them. Partial results are added up in the order of the records, whatever thread
was ready first, so the same dataset gives the same bits.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from jacjobs.store.memory import room
from jacjobs.store.parts import Parts
from jacjobs.store.selection import Axis, Overlap, Wanted

_limit: tuple[threading.Lock, list[Any]] = (threading.Lock(), [])
_Kernel = Callable[[Overlap, NDArray[Any]], NDArray[Any]]
_Result = TypeVar("_Result")
Place = tuple[slice, slice, slice]
"""Points, rows and columns."""


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """The limit is the process's: whoever comes first sets it, and the last to leave takes it back."""
    lock, inside = _limit
    with lock:
        inside.append(threadpool_limits(1, "blas") if not inside else None)
    try:
        yield
    finally:
        with lock:
            if len(inside) == 1:
                inside[0].restore_original_limits()
            inside.pop()


class Source:
    """What of the parts is multiplied: points, and a range of lines and of positions along them."""

    def __init__(self, parts: Parts, wanted: Wanted, dtype: np.dtype[Any], *, by_rows: bool) -> None:
        """`by_rows`: whether lines are rows of J, or else columns."""
        self._parts = parts
        self._wanted = wanted
        self._by_rows = by_rows
        # Sums in half precision are neither accurate nor fast.
        self._dtype = np.dtype(np.float32) if dtype == np.float16 else dtype

    # -- with vectors --------------------------------------------------------------------------------------

    def by_columns(self, v: NDArray[Any], *, total: bool) -> NDArray[Any]:
        """J[p] @ v[p]: v of shape (P or 1, n, k) gives (P, m, k); if `total`, the points' sum, (1, m, k)."""
        return self._along(v, total) if self._by_rows else self._across(v, total)

    def by_rows(self, u: NDArray[Any], *, total: bool) -> NDArray[Any]:
        """J[p].T @ u[p]: u of shape (P or 1, m, k) gives (P, n, k); summed likewise."""
        return self._across(u, total) if self._by_rows else self._along(u, total)

    def _along(self, v: NDArray[Any], total: bool) -> NDArray[Any]:
        """Each line times v, of shape (P or 1, length of a line, k)."""
        v = self._cast(v)

        def kernel(overlap: Overlap, values: NDArray[Any]) -> NDArray[Any]:
            points, _, positions = overlap.there
            return self._times(values, overlap, v[points if len(v) > 1 else slice(None), positions])

        return self._summed(kernel, self._wanted.extent[1], v, total, axis=1)

    def _across(self, u: NDArray[Any], total: bool) -> NDArray[Any]:
        """The lines, each times its entry of u, of shape (P or 1, lines, k)."""
        u = self._cast(u)

        def kernel(overlap: Overlap, values: NDArray[Any]) -> NDArray[Any]:
            points, lines, _ = overlap.there
            return self._transposed_times(values, overlap, u[points if len(u) > 1 else slice(None), lines])

        return self._summed(kernel, self._wanted.extent[2], u, total, axis=2)

    def _times(self, values: Any, overlap: Overlap, v: NDArray[Any]) -> NDArray[Any]:
        """Entries of some lines, by vectors of shape (points or 1, positions, k): (points, lines, k)."""
        made: NDArray[Any] = np.matmul(values, v)
        return made

    def _transposed_times(self, values: Any, overlap: Overlap, u: NDArray[Any]) -> NDArray[Any]:
        """Their transpose, by vectors of shape (points or 1, lines, k): (points, positions, k)."""
        made: NDArray[Any] = np.matmul(values.transpose(0, 2, 1), u)
        return made

    def _summed(
        self, kernel: _Kernel, length: int, v: NDArray[Any], total: bool, *, axis: int
    ) -> NDArray[Any]:
        """Add the kernel's results up where their boxes lie on `axis`, 1 the lines or 2 the positions."""
        self._parts.require(self._wanted)
        points = self._wanted.extent[0]
        out = room((1 if total else points, length, v.shape[2]), np.result_type(self._dtype, v))

        def work(overlap: Overlap, values: NDArray[Any]) -> tuple[slice, slice, NDArray[Any]]:
            made = kernel(overlap, self._cast(values))
            where = overlap.there
            if total:
                return slice(0, 1), where[axis], made.sum(0, keepdims=True)
            return where[0], where[axis], made

        # One thread each: BLAS's own threads would wait for each other, at half the speed.
        with _one_blas_thread():
            for some, there, made in self._parts.each(self._wanted, work):
                out[some, there] += made
        return out

    # -- with itself ---------------------------------------------------------------------------------------

    def matrix(self) -> NDArray[Any]:
        """All of it in memory, the rows of all points stacked: (P·m, n)."""
        J = self._read(self._wanted)
        J = J if self._by_rows else J.transpose(0, 2, 1)
        stacked: NDArray[Any] = J.reshape(-1, J.shape[2])
        return stacked

    @property
    def whole_rows(self) -> bool:
        """Whether each record is a row of J."""
        return self._by_rows and self._parts.stripe is None

    @property
    def dtype(self) -> np.dtype[Any]:
        """That products are made in."""
        return self._dtype

    def squared(self, v: NDArray[Any]) -> NDArray[Any]:
        """Jᵀ J v of all points' rows, stacked, in float64: v of shape (n,) or (n, k), the result (n, k).

        One pass where records are whole rows; else two, and a vector of P·m for each of v.
        """
        v = np.asarray(v, np.float64).reshape(1, len(v), -1)
        if not self.whole_rows:
            twice: NDArray[Any] = self.by_rows(self.by_columns(v, total=False), total=True)[0]
            return twice

        def kernel(_: Overlap, values: NDArray[Any]) -> NDArray[Any]:
            exact = values.astype(np.float64)
            with np.errstate(over="ignore", invalid="ignore"):
                made: NDArray[Any] = np.matmul(exact.transpose(0, 2, 1), np.matmul(exact, v))
            return made

        squared: NDArray[Any] = self._summed(kernel, v.shape[1], v, True, axis=2)[0]
        return squared

    def gram(self, memory_bytes: int) -> NDArray[Any]:
        """J Jᵀ of all points' rows, stacked: (P·m, P·m)."""
        if not self._by_rows:
            return self._stacked_pairs(memory_bytes)
        P, lines, _ = self._wanted.extent
        out = room((P * lines, P * lines), self._dtype)
        self._pairs(memory_bytes, out)
        return out

    def normal(self, memory_bytes: int) -> NDArray[Any]:
        """Jᵀ J of all points' rows, stacked: (n, n)."""
        P, lines, length = self._wanted.extent
        item = self._dtype.itemsize
        if self._by_rows:  # one pass: each panel of rows adds its own product
            out = room((length, length), self._dtype)
            step = max(1, memory_bytes // (4 * length * item))
            for start in range(0, P * lines, step):
                _add_square(out, self._panel(start, min(start + step, P * lines)), memory_bytes)
            return out
        out = room((lines, lines), self._dtype)
        points = memory_bytes // (4 * lines * length * item)
        if not points:  # not even one matrix fits
            for point in range(P):
                self._pairs(memory_bytes, out, point)
            return out
        for start in range(0, P, points):
            some = Axis(self._range(0)[start : start + points])
            read = self._read(self._wanted._replace(points=some))
            _add_square(out, read.transpose(0, 2, 1).reshape(-1, lines), memory_bytes)
        return out

    def _pairs(self, memory_bytes: int, out: NDArray[Any], point: int | None = None) -> None:
        """Add the products of all pairs of lines, stacked over the points, or of one point: two panels of
        lines are in memory at a time, and their product.
        """
        P, lines, length = self._wanted.extent
        first, count = (0, P * lines) if point is None else (point * lines, lines)
        item = self._dtype.itemsize
        step = max(1, min(memory_bytes // (4 * length * item), math.isqrt(memory_bytes // (4 * item))))
        panels = [(start, min(start + step, count)) for start in range(0, count, step)]
        for i, (low, high) in enumerate(panels):
            upper = self._panel(first + low, first + high)
            out[low:high, low:high] += upper @ upper.T
            for start, stop in panels[i + 1 :]:
                product = upper @ self._panel(first + start, first + stop).T
                out[low:high, start:stop] += product
                out[start:stop, low:high] += product.T

    def _stacked_pairs(self, memory_bytes: int) -> NDArray[Any]:
        """The products of all pairs of positions, of all points, summed over the lines: one pass over lines
        that are columns of J.
        """
        P, lines, length = self._wanted.extent
        out = room((P * length, P * length), self._dtype)
        step = max(1, memory_bytes // (4 * P * length * self._dtype.itemsize))
        for start in range(0, lines, step):
            some = Axis(self._range(1)[start : start + step])
            read = self._read(self._wanted._replace(lines=some))
            _add_square(out, read.transpose(1, 0, 2).reshape(read.shape[1], -1), memory_bytes)
        return out

    def _panel(self, start: int, stop: int) -> NDArray[Any]:
        """Lines start…stop of all points' lines, stacked: shape (lines, length)."""
        _, lines, length = self._wanted.extent
        rows = []
        while start < stop:
            point, line = divmod(start, lines)
            points, some = 1, min(lines - line, stop - start)
            if line == 0 and stop - start >= lines:
                points = (stop - start) // lines
            wanted = self._wanted._replace(
                points=Axis(self._range(0)[point : point + points]),
                lines=Axis(self._range(1)[line : line + some]),
            )
            rows.append(self._read(wanted).reshape(-1, length))
            start += points * some
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    # -- pieces --------------------------------------------------------------------------------------------

    def pieces(self, look: Callable[[Place, NDArray[Any]], _Result]) -> Iterator[_Result]:
        """`look` at all entries that are there, a piece at a time, in threads; what it says comes in the
        order of the records. It is given where the piece is, and its entries: (points, rows, columns).
        """

        def work(overlap: Overlap, values: NDArray[Any]) -> _Result:
            points, lines, positions = overlap.there
            if self._by_rows:
                return look((points, lines, positions), values)
            return look((points, positions, lines), values.transpose(0, 2, 1))

        return self._parts.each(self._wanted, work)

    # -- within --------------------------------------------------------------------------------------------

    def _range(self, axis: int) -> range:
        indices = self._wanted[axis].indices
        assert isinstance(indices, range)
        return indices

    def _read(self, wanted: Wanted) -> NDArray[Any]:
        out = room(wanted.extent, self._dtype, np.empty)
        self._parts.read(wanted, out)
        return out

    def _cast(self, values: Any) -> Any:
        return values.astype(self._dtype, copy=False) if values.dtype == np.float16 else values


def _add_square(out: NDArray[Any], panel: NDArray[Any], memory_bytes: int) -> None:
    """Add panel.T @ panel, some rows of it at a time."""
    step = max(1, memory_bytes // (4 * len(out) * out.itemsize))
    for start in range(0, len(out), step):
        out[start : start + step] += panel[:, start : start + step].T @ panel
