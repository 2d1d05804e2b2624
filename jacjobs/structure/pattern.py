"""Which of n inputs each element of a tensor depends on: a boolean matrix, in compressed sparse rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

Index = NDArray[np.int64]
NONE = -1
"""In an index of rows: an element that depends on nothing."""


class TooDenseError(Exception):
    """The pattern has more entries than are worth keeping; says how many."""


class Pattern:
    """Row i of `matrix` (elements, n), sorted: the inputs that element i depends on. Never changed."""

    def __init__(self, matrix: csr_array, most: int) -> None:
        """`most`: entries that a pattern may have. Raises TooDenseError."""
        if matrix.nnz > most:
            raise TooDenseError(f"{matrix.nnz:,} entries, of {most:,} allowed")
        if not matrix.has_sorted_indices:
            matrix.sort_indices()
        self.matrix = matrix
        self._most = most

    @classmethod
    def of(cls, indptr: Index, indices: NDArray[Any], n: int, most: int) -> Pattern:
        small = np.int32 if max(len(indices), n) < 2**31 else np.int64
        data = np.ones(len(indices), bool)
        matrix = csr_array(
            (data, indices.astype(small, copy=False), indptr.astype(small, copy=False)),
            shape=(len(indptr) - 1, n),
        )
        return cls(matrix, most)

    @classmethod
    def inputs(cls, start: int, size: int, n: int, most: int) -> Pattern:
        """Of elements that are the inputs start:start + size."""
        return cls.of(np.arange(size + 1), np.arange(start, start + size), n, most)

    @classmethod
    def empty(cls, size: int, n: int, most: int) -> Pattern:
        """Of elements that depend on nothing."""
        return cls(csr_array((size, n), dtype=bool), most)

    def __len__(self) -> int:
        count: int = self.matrix.shape[0]
        return count

    @property
    def n(self) -> int:
        size: int = self.matrix.shape[1]
        return size

    def rows(self, index: Index) -> Pattern:
        """Of elements that depend on what those of `index` do, or on NONE."""
        if len(index) == len(self) and np.array_equal(index, np.arange(len(self))):
            return self
        indptr, indices = self.matrix.indptr, self.matrix.indices
        there = index != NONE
        known = np.where(there, index, 0)
        counts = np.where(there, indptr[known + 1] - indptr[known], 0).astype(np.int64)
        ends = np.concatenate([[0], np.cumsum(counts)])
        if ends[-1] > self._most:
            raise TooDenseError(f"{ends[-1]:,} entries, of {self._most:,} allowed")
        places = np.repeat(indptr[known] - ends[:-1], counts) + np.arange(ends[-1])
        return Pattern.of(ends, indices[places], self.n, self._most)

    def __or__(self, other: Pattern) -> Pattern:
        """Of elements that depend on what those of both do, one by one."""
        return self if other is self else Pattern(self.matrix + other.matrix, self._most)

    def below(self, other: Pattern) -> Pattern:
        """The elements of both, end to end."""
        a, b = self.matrix, other.matrix
        indptr = np.concatenate([a.indptr, a.nnz + b.indptr[1:].astype(np.int64)])
        return Pattern.of(indptr, np.concatenate([a.indices, b.indices]), self.n, self._most)

    def grouped(self, groups: Index, count: int) -> Pattern:
        """Of `count` elements, which depend on what those of their group do; `groups` says whose each is."""
        elements = np.arange(len(self))
        return self.mapped(groups, elements, count)

    def mapped(self, to: Index, source: Index, count: int) -> Pattern:
        """Of `count` elements: element to[i] depends on what source[i] does, for every i."""
        sums = csr_array((np.ones(len(to), bool), (to, source)), shape=(count, len(self)))
        # What they can have, if none of a row's elements depend on the same: some rows at a time, as many as
        # can be no more than all may have.
        each = np.diff(self.matrix.indptr).astype(np.int64)
        most = np.cumsum(sums.astype(np.int64) @ each)
        parts, first, entries = [], 0, 0
        while first < count:
            before = most[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(most, before + self._most, "right")))
            parts.append(sums[first:last] @ self.matrix)
            entries += parts[-1].nnz
            if entries > self._most:
                raise TooDenseError(f"more than {self._most:,} entries")
            first = last
        if len(parts) <= 1:
            return Pattern(parts[0], self._most) if parts else Pattern.empty(0, self.n, self._most)
        return Pattern(csr_array(vstack(parts, format="csr")), self._most)
