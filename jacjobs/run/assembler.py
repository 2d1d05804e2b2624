"""An assembler: puts blocks together into parts and writes them. A plain class, safe to call from threads."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jacjobs.planning.planner import Plan
from jacjobs.run.ledger import BlockId
from jacjobs.store.folder import RunFolder
from jacjobs.store.writer import PartRecord, PartWriter


@dataclass
class _Part:
    writer: PartWriter
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
            if block.position != part.next:
                # A copy: the caller's memory (the object store's) must not be held for an unknown time.
                part.early[block.position] = np.array(values)
                return None
            try:
                self._write(block, part, values)
                if part.next < self._plan.tiling.blocks_in(block.part):
                    return None
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

    def _part(self, number: int) -> _Part:
        with self._lock:
            if number not in self._parts:
                self._parts[number] = _Part(
                    PartWriter(
                        self._folder.path,
                        self._folder.scratch,
                        self._plan.tiling.part(number),
                        self._plan.shape.dtype,
                        compression=self._plan.compression,
                        row_group_rows=self._plan.row_group_rows,
                        metadata=self._metadata,
                    )
                )
            return self._parts[number]

    def _forget(self, number: int) -> _Part | None:
        with self._lock:
            return self._parts.pop(number, None)
