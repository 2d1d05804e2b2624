"""An assembler: puts blocks together into parts and writes them. A plain class, safe to call from threads."""

from __future__ import annotations

import os
import threading
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jacjobs.planning.choice import IN_MEMORY_BYTES
from jacjobs.planning.planner import Plan
from jacjobs.run.ledger import BlockId
from jacjobs.shape import Rectangle
from jacjobs.store.commit import storing
from jacjobs.store.folder import RunFolder
from jacjobs.store.writer import PartRecord, PartWriter


@dataclass
class _Part:
    """A part on its way. Whole rows are written as they come; split ones wait in `matrix` for the rest."""

    writer: PartWriter
    matrix: NDArray[Any] | None
    lock: threading.RLock = field(default_factory=threading.RLock)
    next: int = 0
    early: dict[int, NDArray[np.generic]] = field(default_factory=dict)


class Assembler:
    """Blocks of a part are written in the order of their records, in whatever order they come."""

    def __init__(self, path: str | Path, plan: Plan, metadata: dict[str, str]) -> None:
        self._folder = RunFolder(path)
        self._plan = plan
        self._metadata = metadata
        self._parts: dict[int, _Part] = {}
        self._lock = threading.Lock()

    def absorb(self, block: BlockId, values: NDArray[np.generic]) -> PartRecord | None:
        """Take a block in. With the last block of its part, the part is committed and its record returned.

        Returns when `values` is needed no more. Raises StoreError where the part cannot be written.
        """
        part = self._part(block.part)
        with part.lock:
            try:
                if part.matrix is not None:
                    self._place(block, part, part.matrix, values)
                elif block.position == part.next:
                    self._write(block, part, values)
                else:
                    # A copy: the caller's memory (the object store's) must not be held for an unknown time.
                    part.early[block.position] = np.array(values)
                if part.next < self._plan.tiling.blocks_in(block.part):
                    return None
                if part.matrix is not None:
                    self._write_out(self._plan.tiling.part(block.part), part.writer, part.matrix)
                record = part.writer.commit()
            except BaseException:
                self.abandon(block.part)
                raise
            self._forget(block.part)
            return record

    def abandon(self, part: int) -> None:
        """Give a part up and remove what was written of it."""
        open_part = self._forget(part)
        if open_part is not None:
            with open_part.lock:
                open_part.writer.discard()

    def close(self) -> None:
        """Give up all parts that are open."""
        for part in list(self._parts):
            self.abandon(part)

    def _write(self, block: BlockId, part: _Part, values: NDArray[np.generic]) -> None:
        part.writer.add(self._plan.tiling.block(*block), values)
        part.next += 1
        while (early := part.early.pop(part.next, None)) is not None:
            part.writer.add(self._plan.tiling.block(block.part, part.next), early)
            part.next += 1

    def _place(self, block: BlockId, part: _Part, matrix: NDArray[Any], values: NDArray[np.generic]) -> None:
        """Put a block where it belongs in its part, whose blocks come in any order."""
        whole, piece = self._plan.tiling.part(block.part), self._plan.tiling.block(*block)
        matrix[
            piece.point_start - whole.point_start : piece.point_stop - whole.point_start,
            piece.row_start - whole.row_start : piece.row_stop - whole.row_start,
            piece.column_start : piece.column_stop,
        ] = values
        part.next += 1

    def _write_out(self, whole: Rectangle, writer: PartWriter, matrix: NDArray[Any]) -> None:
        """A row group at a time, so that writing needs no second matrix."""
        step = self._plan.row_group_rows
        for index in range(whole.points):
            point = whole.point_start + index
            for row in range(0, whole.rows, step):
                stop = min(row + step, whole.rows)
                piece = whole._replace(
                    point_start=point,
                    point_stop=point + 1,
                    row_start=whole.row_start + row,
                    row_stop=whole.row_start + stop,
                )
                writer.add(piece, matrix[index : index + 1, row:stop])

    def _part(self, number: int) -> _Part:
        with self._lock:
            if number not in self._parts:
                self._parts[number] = self._open(self._plan.tiling.part(number))
            return self._parts[number]

    def _open(self, part: Rectangle) -> _Part:
        matrix = self._matrix(part) if self._plan.tiling.splits_rows else None
        writer = PartWriter(
            self._folder.path,
            self._folder.scratch,
            part,
            self._plan.shape.dtype,
            compression=self._plan.compression,
            row_group_rows=self._plan.row_group_rows,
            metadata=self._metadata,
        )
        return _Part(writer, matrix)

    def _matrix(self, part: Rectangle) -> NDArray[Any]:
        """Room for a part: in memory, or in a scratch file that vanishes with its last user."""
        extent, dtype = (part.points, part.rows, part.columns), np.dtype(self._plan.shape.dtype)
        size = part.entries * dtype.itemsize
        if size <= IN_MEMORY_BYTES:
            return np.empty(extent, dtype)
        path = self._folder.scratch / f"matrix.{uuid.uuid4().hex}"
        with storing(path, size), path.open("w+b") as file:
            try:
                # Room is taken now: a disk that fills up under a mapped file kills the process.
                os.posix_fallocate(file.fileno(), 0, size)
                return np.memmap(file, dtype, "r+", shape=extent)
            finally:
                path.unlink()

    def _forget(self, number: int) -> _Part | None:
        with self._lock:
            return self._parts.pop(number, None)
