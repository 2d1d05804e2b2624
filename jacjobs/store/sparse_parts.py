"""The parts of a sparse run: a record holds the columns and the values of a row's entries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jacjobs.shape import Box
from jacjobs.store.folder import Manifest, RunFolder, RunRecord
from jacjobs.store.parts import Part, Parts, lists_of
from jacjobs.store.schema import record_indices
from jacjobs.store.selection import Overlap
from jacjobs.store.writer import group_digest


def parts_of(folder: RunFolder, record: RunRecord, manifest: Manifest | None) -> Parts:
    """Raises StoreError as `Parts` does."""
    kind = SparseParts if record.layout == "sparse" else Parts
    return kind(folder, record, manifest)


class SparseParts(Parts):
    """What is read of a box is a `scipy.sparse.csr_array`: rows of all its points, one below the other."""

    def _values(self, file: pq.ParquetFile, part: Part, group: int, boxes: Sequence[Box]) -> Iterator[Any]:
        from scipy.sparse import csr_array

        table = file.read_row_group(group, columns=["columns", "values"], use_threads=False)
        columns, values = lists_of(table)
        lengths, others = _lengths(table, "columns"), _lengths(table, "values")
        if (
            len(lengths) != sum(box.points * box.lines for box in boxes)
            or not np.array_equal(lengths, others)
            or group_digest(columns, values) != self.digest(file.metadata, group)
            or not self._is_sorted(columns, lengths)
        ):
            raise self._others(part, group)
        if values.dtype == np.float16:  # SciPy has none
            values = values.astype(np.float32)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        first = 0
        for box in boxes:
            last = first + box.points * box.lines
            some = slice(ends[first], ends[last])
            yield csr_array(
                (values[some], columns[some], ends[first : last + 1] - ends[first]),
                shape=(last - first, self._length),
            )
            first = last

    def _is_sorted(self, columns: NDArray[Any], lengths: NDArray[np.int64]) -> bool:
        """Those of each row ascend, and are columns of J: what is not would lead SciPy out of its arrays."""
        if not len(columns):
            return True
        steps = np.diff(columns) > 0
        begins = np.cumsum(lengths)[:-1]
        steps[begins[(begins > 0) & (begins < len(columns))] - 1] = True
        return bool(steps.all()) and bool(columns.min() >= 0 and columns.max() < self._length)

    def _taken(self, values: Any, box: Box, overlap: Overlap) -> Any:
        """Their rows, of all points in common, and their columns."""
        points, lines, positions = overlap.here
        numbers = np.arange(box.points * box.lines).reshape(box.points, box.lines)
        rows = numbers[points][:, lines].reshape(-1)
        some = values if len(rows) == values.shape[0] else values[rows]
        return some if some.shape[1] == _count(overlap.there[2]) else some[:, positions]

    def _dense(self, values: Any, overlap: Overlap) -> NDArray[Any]:
        array: NDArray[Any] = values.toarray().reshape([_count(axis) for axis in overlap.there])
        return array

    def misplaced(self, table: pa.Table, boxes: Sequence[Box]) -> list[str]:
        columns = zip(*(record_indices(box, None)[:2] for box in boxes), strict=True)
        expected = dict(zip(("point", "row"), map(np.concatenate, columns), strict=True))
        wrong = [
            name
            for name, there in expected.items()
            if not np.array_equal(table.column(name).to_numpy(), there)
        ]
        lengths = _lengths(table, "columns")
        if not np.array_equal(lengths, _lengths(table, "values")) or not self._is_sorted(
            lists_of(table)[0], lengths
        ):
            wrong.append("columns")
        return wrong


def _lengths(table: pa.Table, name: str) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = table.column(name).combine_chunks().value_lengths().to_numpy()
    return lengths


def _count(some: slice) -> int:
    count: int = some.stop - some.start
    return count
