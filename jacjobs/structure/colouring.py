"""Groups of columns (or rows) of which no two have an entry in the same row (or column): a product makes one.

A sum of columns that share no row can be told apart again, entry by entry, by the pattern; so a Jacobian
whose columns fall into c groups takes c products, however many columns it has. The fewest groups are as hard
to find as the fewest colours of a graph; greedy ones, in some orders, come close.

Sources: A. Curtis, M. Powell, J. Reid, "On the estimation of sparse Jacobian matrices", J. Inst. Maths
Applics 13 (1974); A. Gebremedhin, F. Manne, A. Pothen, "What color is your Jacobian?", SIAM Review 47 (2005),
whose orders these are; T. Coleman, J. Moré, "Estimation of sparse Jacobian matrices and graph coloring
problems", SIAM J. Numer. Anal. 20 (1983).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array

Numbers = NDArray[np.int64]
NONE = -1
"""In place of a colour."""
MANY_MORE = 4
"""Groups of the other kind, if there must be so many times more of them, are not looked for."""
MOST_STEPS_DOWN = 4
"""So many ways to tell full lines from others are tried."""
MOST_STEPS = 5_000_000
"""Orders that look at all pairs of columns of a row are tried for so many pairs at most: some seconds."""


class Colouring(NamedTuple):
    """colours: of each column (or row), 0 to groups - 1. order: that gave the fewest."""

    colours: Numbers
    groups: int
    order: str


class Grouping(NamedTuple):
    """How all entries of a pattern are made.

    columns, rows:  groups of columns, each of which is one forward product, and of rows, each a reverse one;
                    None: there are none.
    by_rows:        of each entry of the pattern, in its order, whether a product of rows makes it.
    """

    columns: Colouring | None
    rows: Colouring | None
    by_rows: NDArray[np.bool_]

    @property
    def products(self) -> int:
        return sum(each.groups for each in (self.columns, self.rows) if each is not None)


def group(pattern: csr_array) -> Grouping:
    """The fewest products."""
    return min(groupings(pattern), key=lambda each: each.products)


def groupings(pattern: csr_array, *, all_kinds: bool = False) -> list[Grouping]:
    """Products of columns alone, of rows alone, and of both, where that takes fewer: a few lines are much
    fuller than the others (an arrow).

    all_kinds: of columns alone and of rows alone too, where the other takes many times fewer for sure.

    Lines of one kind are taken out of the others' groups, the fullest first, wherever their lengths fall to
    less than half: a bidirectional colouring by a row or a column partition.

    Source: T. Coleman, A. Verma, "The efficient computation of sparse Jacobian matrices using automatic
    differentiation", SIAM J. Sci. Comput. 19 (1998).
    """
    entries = rows_of(pattern), pattern.indices
    lengths_of = [np.bincount(entries[i], minlength=pattern.shape[i]) for i in (0, 1)]
    # As many groups of columns as the fullest row has entries there must be, and the other way round.
    fewest_of = [int(lengths.max(initial=0)) for lengths in lengths_of]
    alone: list[Grouping] = []
    both: list[Grouping] = []
    for rows_first in sorted((False, True), key=lambda rows_first: fewest_of[rows_first]):
        for full in _fullest(lengths_of[rows_first]):
            hopeless = bool(alone) and fewest_of[rows_first] > MANY_MORE * alone[0].products
            if hopeless and not full.any() and not all_kinds:
                continue
            # Entries of full rows are made by rows and the others by columns, or the other way round.
            apart = full[entries[rows_first]]
            by_rows = ~apart if rows_first else apart
            made = Grouping(
                colour_columns(_part(pattern, ~by_rows)) if not by_rows.all() else None,
                colour_rows(_part(pattern, by_rows)) if by_rows.any() else None,
                by_rows,
            )
            (both if full.any() else alone).append(made)
    fewest = min(each.products for each in alone)
    both = [each for each in both if each.products < fewest]
    return [*alone, *sorted(both, key=lambda each: each.products)[:1]]


def _fullest(lengths: Numbers) -> list[NDArray[np.bool_]]:
    """No lines; and those that are longer than all others by more than twice, for each such step."""
    steps = np.sort(lengths)[::-1]
    falls = np.flatnonzero(steps[1:] < steps[:-1] / 2)[:MOST_STEPS_DOWN]
    return [np.zeros(len(lengths), bool), *(lengths >= steps[fall] for fall in falls)]


def _part(pattern: csr_array, wanted: NDArray[np.bool_]) -> csr_array:
    """The pattern without the entries that are not wanted."""
    ends = np.concatenate([[0], np.cumsum(wanted)])
    indices = pattern.indices[wanted]
    return csr_array((np.ones(len(indices), bool), indices, ends[pattern.indptr]), shape=pattern.shape)


def rows_of(pattern: csr_array) -> Numbers:
    """The row of each entry, in their order."""
    return np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr))


def colour_columns(pattern: csr_array) -> Colouring:
    """The fewest groups of columns, of several orders."""
    return _best(csc_array(pattern), csr_array(pattern))


def colour_rows(pattern: csr_array) -> Colouring:
    """The fewest groups of rows, of several orders."""
    return _best(csc_array(pattern.T), csr_array(pattern.T))


def _best(columns: csc_array, rows: csr_array) -> Colouring:
    lengths = np.diff(rows.indptr).astype(np.int64)
    # As many groups as the fullest row has entries, there must be.
    fewest = int(lengths.max(initial=0))
    best: Colouring | None = None
    for name, order in ORDERS.items():
        if best is not None and (best.groups <= fewest or (name in SLOW and (lengths**2).sum() > MOST_STEPS)):
            continue
        colours = greedy(columns, order(columns, rows))
        count = int(colours.max(initial=-1)) + 1
        if best is None or count < best.groups:
            best = Colouring(colours, count, name)
    assert best is not None
    return best


def greedy(columns: csc_array, order: Numbers) -> Numbers:
    """Each column, in this order, gets the first colour that none of those with which it shares a row has;
    one without entries gets NONE, and so is in no group.

    Of every row, the colours that its columns have are bits of a number: so it takes a step an entry.
    """
    taken = [0] * columns.shape[0]
    colours = np.full(columns.shape[1], NONE)
    starts, rows = columns.indptr.tolist(), columns.indices.tolist()
    for column in order.tolist():
        mine = rows[starts[column] : starts[column + 1]]
        if not mine:
            continue
        used = 0
        for row in mine:
            used |= taken[row]
        bit = ~used & (used + 1)  # the lowest that is not set
        for row in mine:
            taken[row] |= bit
        colours[column] = bit.bit_length() - 1
    return colours


# -- orders --------------------------------------------------------------------------------------------------


def natural(columns: csc_array, rows: csr_array) -> Numbers:
    return np.arange(columns.shape[1])


def largest_first(columns: csc_array, rows: csr_array) -> Numbers:
    """Columns that share rows with most others go first."""
    return np.argsort(-_degrees(columns, rows), kind="stable")


def smallest_last(columns: csc_array, rows: csr_array) -> Numbers:
    """The column that shares rows with the fewest of those left goes last, again and again."""
    first = range(columns.shape[1])
    return _lowest_first(columns, rows, _degrees(columns, rows), first)[::-1]


def incidence(columns: csc_array, rows: csr_array) -> Numbers:
    """The column that shares rows with most of those that are coloured goes next."""
    most = int(_degrees(columns, rows).max(initial=0))
    first = range(columns.shape[1] - 1, -1, -1)
    return _lowest_first(columns, rows, np.full(columns.shape[1], most), first)


def _lowest_first(columns: csc_array, rows: csr_array, scores: Numbers, first: Sequence[int]) -> Numbers:
    """Again and again the column of the lowest score; those that share rows with it then lose one a row.

    Columns wait in a bucket for each score, at first in the order `first`, of which the last goes first; one
    whose score has changed since is passed over.
    """
    left = scores.tolist()
    buckets: list[list[int]] = [[] for _ in range(max(left, default=0) + 1)]
    for column in first:
        buckets[left[column]].append(column)
    starts, of_column = columns.indptr.tolist(), columns.indices.tolist()
    row_starts, of_row = rows.indptr.tolist(), rows.indices.tolist()
    done = [False] * len(left)
    order: list[int] = []
    lowest = 0
    while len(order) < len(left):
        while not buckets[lowest]:
            lowest += 1
        column = buckets[lowest].pop()
        if done[column] or left[column] != lowest:
            continue
        done[column] = True
        order.append(column)
        for row in of_column[starts[column] : starts[column + 1]]:
            for other in of_row[row_starts[row] : row_starts[row + 1]]:
                if not done[other]:
                    left[other] -= 1
                    buckets[left[other]].append(other)
                    lowest = min(lowest, left[other])
    return np.array(order, np.int64)


ORDERS: dict[str, Callable[[Any, Any], Numbers]] = {
    "natural": natural,
    "largest first": largest_first,
    "incidence": incidence,
    "smallest last": smallest_last,
}
SLOW = ("incidence", "smallest last")


def _degrees(columns: csc_array, rows: csr_array) -> Numbers:
    """Of each column, how many others it shares rows with, once a row."""
    lengths = np.diff(rows.indptr)
    sums = np.add.reduceat(np.append(lengths[columns.indices] - 1, 0), columns.indptr[:-1])
    return np.where(np.diff(columns.indptr) > 0, sums, 0)
