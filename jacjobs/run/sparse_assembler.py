"""An assembler of a sparse J: the entries of a part's points, from all of their products, row by row."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from jacjobs.planning.planner import Plan
from jacjobs.planning.sparse import SparseTiling
from jacjobs.run.assembler import Bundle, BundleAssembler
from jacjobs.run.messages import BlockId
from jacjobs.store.writer import SparsePartWriter
from jacjobs.structure.coloured import Coloured
from jacjobs.structure.colouring import rows_of


@dataclass
class _Entries(Bundle):
    """values: of a part's points, (points, entries), in the order of the pattern. elsewhere: blocks that came
    as triples, since the pattern lacked entries.
    """

    values: NDArray[Any] = field(default_factory=lambda: np.empty(0))
    elsewhere: dict[BlockId, NDArray[Any]] = field(default_factory=dict)


class SparseAssembler(BundleAssembler):
    def __init__(self, path: str | Path, plan: Plan, metadata: dict[str, str], coloured: Coloured) -> None:
        super().__init__(path, plan, metadata)
        assert isinstance(plan.tiling, SparseTiling)
        self._tiling = plan.tiling
        self._coloured = coloured

    def _open(self, number: int) -> _Entries:
        part = self._tiling.part(number)
        entries = self._coloured.entries
        values = np.empty((part.points, entries), self._plan.shape.dtype)
        return _Entries(SparsePartWriter(self._place, part, self._form, entries), values=values)

    def _take(self, block: BlockId, bundle: _Entries, values: NDArray[Any]) -> None:
        bundle.next += 1
        if values.dtype.names is not None:
            bundle.elsewhere[block] = np.array(values)
            return
        where = self._tiling.block(*block)
        first = where.point_start - self._tiling.part(block.bundle).point_start
        points = slice(first, first + where.points)
        bundle.values[points, self._coloured.share(where.start, where.stop).entries] = values

    def _complete(self, number: int, bundle: _Entries) -> None:
        part = self._tiling.part(number)
        for point in range(part.point_start, part.point_stop):
            values = bundle.values[point - part.point_start]
            bundle.writer.add(point, self._matrix(point, values, bundle.elsewhere))

    def _matrix(self, point: int, values: NDArray[Any], elsewhere: dict[BlockId, NDArray[Any]]) -> csr_array:
        regular = self._coloured.matrix(values)
        blocks = {block: self._tiling.block(*block) for block in elsewhere}
        mine = [b for b, where in blocks.items() if where.point_start <= point < where.point_stop]
        if not mine:
            return regular
        kept = np.ones(self._coloured.entries, bool)
        for block in mine:
            kept[self._coloured.share(blocks[block].start, blocks[block].stop).entries] = False
        some = [elsewhere[block][elsewhere[block]["point"] == point] for block in mine]
        rows = np.concatenate([rows_of(regular)[kept], *(each["row"] for each in some)])
        columns = np.concatenate([regular.indices[kept], *(each["column"] for each in some)])
        data = np.concatenate([values[kept], *(each["value"] for each in some)])
        order = np.lexsort((columns, rows))
        ends = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=regular.shape[0]))])
        return csr_array((data[order], columns[order], ends), shape=regular.shape)
