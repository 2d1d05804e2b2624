"""A worker of a sparse J: products of groups of columns or rows, and from them the entries of the pattern.

A pattern may be wrong: a user's own, or one that holds at another point. So blocks are checked as those of a
dense J are, line by line (a line is a column for products of columns, a row for those of rows): its entries,
multiplied by a random vector, against one product of the other mode. An entry that the pattern lacks is
missing in its own line, and was added to one in another. Those lines are then made again, each alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from jacjobs.autodiff.block import Pace, compute_block
from jacjobs.autodiff.catalogue import eager_name
from jacjobs.autodiff.check import FLOOR_EPS, Checker, judge, largest
from jacjobs.autodiff.words import tolerance
from jacjobs.errors import CheckError
from jacjobs.planning.planner import Plan
from jacjobs.planning.sparse import Kind
from jacjobs.problem import Problem
from jacjobs.run.messages import Findings
from jacjobs.run.worker import RECOMPUTED_BY, BlockWorker, Computed, chunk_on
from jacjobs.shape import Products, Rectangle
from jacjobs.structure.coloured import Coloured, Share
from jacjobs.structure.colouring import NONE
from jacjobs.structure.compression import Grouped

SUSPICIOUS_EPS = 4.0
"""A line that is off by so many roundings of the largest is made again, alone. So a small entry that the
pattern lacks is seen beside large ones; where it was rounding, only time is lost."""
MOST_UNKNOWN = 1000
"""Lines of a point that are not finite, or whose product is not: so many are made again, alone."""
SLAB_BYTES = 64 << 20
"""Of lines that are made alone: whole, so much at a time."""


def triples(points: Any, rows: Any, columns: Any, values: NDArray[Any]) -> NDArray[Any]:
    """Entries wherever they are: a structured array of point, row, column, value."""
    dtype = [("point", np.int64), ("row", np.int64), ("column", np.int64), ("value", values.dtype)]
    made = np.empty(len(values), dtype)
    made["point"], made["row"], made["column"], made["value"] = points, rows, columns, values
    return made


class SparseWorker(BlockWorker):
    """Computes blocks of a sparse J."""

    def __init__(self, problem: Problem, plan: Plan, coloured: Coloured, device: str = "cpu") -> None:
        super().__init__(problem, plan, device)
        self._coloured = coloured
        pace = Pace(plan.strategy, chunk_on(plan, plan.chunk, device), plan.leaner)
        first: Kind = "columns" if plan.by_columns else "rows"
        self._halves = [_Half(self._problem, plan, coloured, first, pace, plan.checked_by)]
        if plan.second is not None:
            pace = Pace(plan.second.strategy, chunk_on(plan, plan.second.chunk, device))
            self._halves.append(_Half(self._problem, plan, coloured, "rows", pace, plan.second.checked_by))

    def _paces(self) -> list[Pace]:
        return [half.pace for half in self._halves]

    def _computed(self, where: Products) -> Computed:
        share = self._coloured.share(where.start, where.stop)
        made = {half.kind: half.products(where) for half in self._halves}
        values = share.taken(made.get("columns"), made.get("rows"))
        del made

        def place(index: NDArray[np.int64]) -> str:
            if values.dtype.names is not None:
                point, row, column, _ = values[index[0]]
            else:
                point = where.point_start + index[0]
                row, column = share.rows[index[1]], share.columns[index[1]]
            return f"point {point}, row {row}, column {column}"

        findings = Findings(nonfinite=self._nonfinite(where, values, place))
        for half in self._halves:
            values, findings = half.checked(where, share, values, findings)
        values = self._as_stored(values)
        entries = values if values.dtype.names is None else values["value"]
        nonfinite = self._nonfinite(where, entries, place)
        return Computed(values, findings._replace(nonfinite=nonfinite))

    def _as_stored(self, values: NDArray[Any]) -> NDArray[Any]:
        """In the dtype that J is stored as: checked are entries as they were computed."""
        dtype = np.dtype(self._plan.shape.dtype)
        with np.errstate(over="ignore"):  # what does not fit is infinite, and noticed as that
            if values.dtype.names is None:
                return values.astype(dtype, copy=False)
            return triples(values["point"], values["row"], values["column"], values["value"].astype(dtype))


class _Half:
    """Products of one kind: how they are made, and checked.

    A line is a column of J, if products are of columns, else a row; a place is where in it an entry is.
    """

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        coloured: Coloured,
        kind: Kind,
        pace: Pace,
        checked_by: str | None,
    ) -> None:
        colouring = getattr(coloured.grouping, kind)
        self.kind, self.pace = kind, pace
        self._problem, self._plan, self._pattern = problem, plan, coloured.pattern
        self._colours, self._count = colouring.colours, colouring.groups
        self._first = 0 if kind == "columns" else coloured.columns
        self._grouped = self._times(colouring.colours, colouring.groups)
        by_columns = kind == "columns"
        self._whole_lines = coloured.full_columns if by_columns else coloured.full_rows
        """Which lines these products make, where the other half makes the rest."""
        self._not_places = coloured.full_rows if by_columns else coloured.full_columns
        """In which places the other half makes all entries."""
        self._checker = None
        if checked_by is not None:
            self._checker = Checker(
                problem,
                kind,
                checked_by,
                plan.check_points,
                every_point=plan.check_all,
                zeros=self._not_places,
            )

    # -- products ------------------------------------------------------------------------------------------

    def products(self, where: Products) -> NDArray[Any] | None:
        """Those of a block that are of this kind, (points, how many, m or n)."""
        start, stop = self._within(where)
        if start >= stop:
            return None
        return self._lines(self._grouped, self.pace, (where.point_start, where.point_stop), (start, stop))

    def _within(self, where: Products) -> tuple[int, int]:
        return max(where.start - self._first, 0), min(where.stop - self._first, self._count)

    def _times(self, colours: NDArray[Any], count: int) -> Problem:
        return self._problem.times({self.kind: Grouped(colours, count)})

    def _lines(
        self, problem: Problem, pace: Pace, points: tuple[int, int], products: tuple[int, int]
    ) -> NDArray[Any]:
        m, n = self._pattern.shape
        by_rows = self.kind == "rows"
        extent = (*products, 0, n) if by_rows else (0, m, *products)
        made = compute_block(problem, pace, Rectangle(*points, *extent))
        return made if by_rows else made.transpose(0, 2, 1)

    # -- the check -----------------------------------------------------------------------------------------

    def checked(
        self, where: Products, share: Share, values: NDArray[Any], findings: Findings
    ) -> tuple[NDArray[Any], Findings]:
        """The block, as triples where the pattern lacked entries; `values` may be triples already.

        Raises CheckError.
        """
        start, stop = self._within(where)
        if self._checker is None or start >= stop:
            return values, findings
        first, last = self._checker.chosen(where.point_start, where.point_stop, stop - start)
        error, wrong = self._wrong(where, share, values, first, last)
        findings = findings._replace(
            checked=max(findings.checked, last - first), error=max(findings.error, error)
        )
        if not wrong:
            return values, findings
        everywhere = where.point_start, where.point_stop  # where one point is wrong, others may be
        _, wrong = self._wrong(where, share, values, *everywhere)
        # Of a compiled strategy, what it compiles: for a few lines that takes too long.
        for by in (eager_name(self.pace.strategy), RECOMPUTED_BY[self.kind]):
            mended = self._mended(where, share, values, wrong, by)
            error, still = self._wrong(where, share, mended, *everywhere, floor_eps=FLOOR_EPS)
            if not still:
                count = sum(map(len, wrong.values()))
                word = (
                    f"{where}: differs from products of the other mode, as where the pattern lacks entries; "
                    f"made again by {by}: {count:,} {self.kind}, each alone"
                )
                retreats = (*findings.retreats, word)
                return mended, findings._replace(error=error, recomputed=True, retreats=retreats)
        raise CheckError(
            f"{where} of the Jacobian, whose {self.kind} were made again by {by}, each alone, differs from "
            f"the products of the other mode by {error:.1e}, relative (allowed: "
            f"{tolerance(self._problem.precision):.1e}); a custom derivative is wrong, or the function has "
            "none there; mend it, or --set compute.check=off"
        )

    def _wrong(
        self,
        where: Products,
        share: Share,
        values: NDArray[Any],
        start: int,
        stop: int,
        *,
        floor_eps: float = SUSPICIOUS_EPS,
    ) -> tuple[float, dict[int, NDArray[np.int64]]]:
        """Of points start:stop, the worst error, relative; of those with any, the lines that are wrong."""
        assert self._checker is not None
        lines = self._compared(*self._within(where))
        worst, wrong = 0.0, {}
        for point, expected in zip(range(start, stop), self._checker.products(start, stop), strict=True):
            line, place, entries = self._mine(*_entries_at(where, share, values, point))
            exact = entries.astype(np.float64)
            with np.errstate(all="ignore"):
                sums = np.bincount(line, exact * self._checker.vector[place], minlength=len(expected))
                norms = np.sqrt(np.bincount(line, np.square(exact), minlength=len(expected)))
                residuals = np.abs(sums - expected)
            scale = largest(expected)
            error, found = judge(norms[lines], residuals[lines], self._checker.precision, scale, floor_eps)
            worst = max(worst, error)
            if floor_eps < FLOOR_EPS:  # what cannot be compared may lack something too
                others = np.flatnonzero(~np.isfinite(norms[lines]) | ~np.isfinite(expected[lines]))
                found = np.union1d(found, others[:MOST_UNKNOWN])
            if len(found):
                wrong[point] = lines[found]
        return worst, wrong

    def _compared(self, start: int, stop: int) -> NDArray[np.int64]:
        """The lines of products start:stop of this kind; and with the first of them, those of none."""
        mine = (self._colours >= start) & (self._colours < stop)
        if start == 0 and self._whole_lines is None:
            mine |= self._colours == NONE
        return np.flatnonzero(mine)

    def _mine(
        self, rows: NDArray[Any], columns: NDArray[Any], values: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Line, place and value of those entries that are made by this half."""
        line, place = (columns, rows) if self.kind == "columns" else (rows, columns)
        mine = self._makes(line, place)
        return (line, place, values) if mine is None else (line[mine], place[mine], values[mine])

    def _makes(self, line: NDArray[Any], place: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Which entries; None: all."""
        if self._not_places is not None:
            others: NDArray[np.bool_] = self._not_places[place]
            return ~others
        if self._whole_lines is None:
            return None
        mine: NDArray[np.bool_] = self._whole_lines[line]
        return mine

    def _mended(
        self,
        where: Products,
        share: Share,
        values: NDArray[Any],
        wrong: dict[int, NDArray[np.int64]],
        by: str,
    ) -> NDArray[Any]:
        """All entries of the block, those of wrong lines made again, each line alone."""
        parts = []
        for point in range(where.point_start, where.point_stop):
            rows, columns, entries = _entries_at(where, share, values, point)
            if point not in wrong:
                parts.append(triples(point, rows, columns, entries))
                continue
            by_columns = self.kind == "columns"
            line, place = (columns, rows) if by_columns else (rows, columns)
            again = np.isin(line, wrong[point])
            if (mine := self._makes(line, place)) is not None:
                again &= mine
            parts.append(triples(point, rows[~again], columns[~again], entries[~again]))
            for line, place, some in self._alone(point, wrong[point], by):
                parts.append(triples(point, *((place, line) if by_columns else (line, place)), some))
        return np.concatenate(parts)

    def _alone(
        self, point: int, lines: NDArray[np.int64], by: str
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]]:
        """Line, place and value of the entries of some lines: those in the pattern, and what is not zero."""
        m, n = self._pattern.shape
        pattern = self._pattern if self.kind == "rows" else self._by_columns
        length = n if self.kind == "rows" else m
        step = max(1, SLAB_BYTES // (length * self._problem.shape.item_bytes))
        for first in range(0, len(lines), step):
            some = lines[first : first + step]
            colours = np.full(m if self.kind == "rows" else n, NONE)
            colours[some] = np.arange(len(some))
            pace = Pace(by, min(self.pace.chunk, len(some)), self.pace.leaner)
            made = self._lines(self._times(colours, len(some)), pace, (point, point + 1), (0, len(some)))[0]
            there = made != 0
            inside = pattern[some]
            there[np.repeat(np.arange(len(some)), np.diff(inside.indptr)), inside.indices] = True
            which, place = np.nonzero(there)
            line = some[which]
            if (mine := self._makes(line, place)) is not None:
                which, place, line = which[mine], place[mine], line[mine]
            yield line, place, made[which, place]

    @functools.cached_property
    def _by_columns(self) -> csr_array:
        """The pattern, transposed."""
        return csr_array(self._pattern.T)


def _entries_at(
    where: Products, share: Share, values: NDArray[Any], point: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Rows, columns and values of a block's entries at a point."""
    if values.dtype.names is None:
        return share.rows, share.columns, values[point - where.point_start]
    some = values[values["point"] == point]
    return some["row"], some["column"], some["value"]
