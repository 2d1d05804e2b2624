"""A pattern and its groups as workers, assemblers and files take them: which product makes which entry.

As no two columns of a group share a row, each entry of the pattern is one element of one product. Products
are numbered: those of groups of columns first (a sum of columns of J, m elements), then those of groups of
rows (n elements). No torch: who assembles needs none.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from jacjobs.structure.colouring import Colouring, Grouping, Numbers, rows_of


class Coloured:
    """pattern: (m, n), boolean, rows sorted. grouping: of all its entries."""

    def __init__(self, pattern: csr_array, grouping: Grouping) -> None:
        self.pattern, self.grouping = pattern, grouping
        self._shares: dict[tuple[int, int], Share] = {}
        self._lock = threading.Lock()

    @property
    def columns(self) -> int:
        """Groups of columns."""
        return 0 if self.grouping.columns is None else self.grouping.columns.groups

    @property
    def rows(self) -> int:
        """Groups of rows."""
        return 0 if self.grouping.rows is None else self.grouping.rows.groups

    @property
    def products(self) -> int:
        """Of a point."""
        return self.columns + self.rows

    @property
    def entries(self) -> int:
        return int(self.pattern.nnz)

    @functools.cached_property
    def product_of(self) -> NDArray[np.int32]:
        """Which product makes each entry, in their order."""
        by_rows = self.grouping.by_rows
        made = np.empty(self.entries, np.int32)
        if self.grouping.columns is not None:
            made[~by_rows] = self.grouping.columns.colours[self.pattern.indices[~by_rows]]
        if self.grouping.rows is not None:
            made[by_rows] = self.columns + self.grouping.rows.colours[rows_of(self.pattern)[by_rows]]
        return made

    @functools.cached_property
    def full_rows(self) -> NDArray[np.bool_] | None:
        """Where some rows are made whole, and the rest by columns: which; else None."""
        if not self.columns or not self.rows:
            return None
        full = self._touched(rows_of(self.pattern), self.pattern.shape[0], by_rows=True)
        other = self._touched(rows_of(self.pattern), self.pattern.shape[0], by_rows=False)
        return None if (full & other).any() else full

    @functools.cached_property
    def full_columns(self) -> NDArray[np.bool_] | None:
        """Where some columns are made whole, and the rest by rows: which; else None."""
        if not self.columns or not self.rows or self.full_rows is not None:
            return None
        return self._touched(self.pattern.indices, self.pattern.shape[1], by_rows=False)

    def _touched(self, lines: Numbers, count: int, *, by_rows: bool) -> NDArray[np.bool_]:
        """Of so many lines, those with entries that products of this kind make."""
        touched = np.zeros(count, bool)
        touched[lines[self.grouping.by_rows == by_rows]] = True
        return touched

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """How many entries products 0:1, 0:2, … have together."""
        counts = np.bincount(self.product_of, minlength=self.products)
        return tuple(np.cumsum(counts).tolist())

    def share(self, start: int, stop: int) -> Share:
        """What products start:stop hold. Remembered: all blocks of a plan together are a place an entry."""
        with self._lock:
            if (start, stop) not in self._shares:
                self._shares[start, stop] = Share(self, start, stop)
            return self._shares[start, stop]

    def matrix(self, values: NDArray[Any]) -> csr_array:
        """With these in place of all entries, (entries,): one point's J."""
        return csr_array((values, self.pattern.indices, self.pattern.indptr), shape=self.pattern.shape)

    # -- as arrays -----------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it, for a file or another process; `of_arrays` takes them."""
        kept = {
            "shape": np.array(self.pattern.shape, np.int64),
            "indptr": self.pattern.indptr,
            "indices": self.pattern.indices,
            "by_rows": np.packbits(self.grouping.by_rows),
        }
        for kind, colouring in (("columns", self.grouping.columns), ("rows", self.grouping.rows)):
            if colouring is not None:
                kept[f"{kind}_colours"] = _narrow(colouring.colours)
        return kept

    @classmethod
    def of_arrays(cls, kept: Mapping[str, NDArray[Any]]) -> Coloured:
        m, n = kept["shape"].tolist()
        indices = kept["indices"]
        pattern = csr_array((np.ones(len(indices), bool), indices, kept["indptr"]), shape=(m, n))
        by_rows = np.unpackbits(kept["by_rows"], count=len(indices)).astype(bool)
        columns, rows = (_kept(kept.get(f"{kind}_colours")) for kind in ("columns", "rows"))
        return cls(pattern, Grouping(columns, rows, by_rows))


class Share:
    """Entries of a pattern, in its order: those that some products make.

    entries:        their numbers among all.
    rows, columns:  where they are in J.
    by_rows:        whether a product of rows makes each; else it is one of columns.
    """

    def __init__(self, coloured: Coloured, start: int, stop: int) -> None:
        made_by = coloured.product_of
        self.entries: NDArray[Any] = np.flatnonzero((made_by >= start) & (made_by < stop)).astype(
            _small(coloured.entries)
        )
        m, n = coloured.pattern.shape
        self.rows = rows_of(coloured.pattern)[self.entries].astype(_small(m))
        self.columns = coloured.pattern.indices[self.entries]
        self.by_rows = coloured.grouping.by_rows[self.entries]
        product = made_by[self.entries].astype(np.int64)
        of_columns = (product - start) * m + self.rows
        of_rows = (product - max(start, coloured.columns)) * n + self.columns
        places = np.where(self.by_rows, of_rows, of_columns)
        self._places = places.astype(_small(int(places.max(initial=0))))

    def taken(self, of_columns: NDArray[Any] | None, of_rows: NDArray[Any] | None) -> NDArray[Any]:
        """The entries' values, (points, entries).

        of_columns:  those of columns among the products, (points, how many, m); None, if there are none.
        of_rows:     those of rows, (points, how many, n).
        """
        halves = [
            (made.reshape(len(made), -1), which)
            for made, which in ((of_columns, ~self.by_rows), (of_rows, self.by_rows))
            if made is not None
        ]
        if len(halves) == 1:
            one: NDArray[Any] = halves[0][0].take(self._places, axis=1)
            return one
        values = np.empty((len(halves[0][0]), len(self.entries)), np.result_type(*(m for m, _ in halves)))
        for made, which in halves:
            values[:, which] = made.take(self._places[which], axis=1)
        return values


def _kept(colours: Numbers | None) -> Colouring | None:
    return None if colours is None else Colouring(colours, int(colours.max(initial=-1)) + 1, "kept")


def _small(largest: int) -> type:
    """The integers that go so far."""
    return np.int32 if largest < 2**31 else np.int64


def _narrow(colours: Numbers) -> NDArray[Any]:
    return colours.astype(np.int16 if colours.max(initial=0) < 2**15 else np.int32)
