"""An assembler: puts blocks together into parts and writes them. A plain class, safe to call from threads."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jacjobs.planning.geometry import MIB, Tiling
from jacjobs.planning.planner import Plan
from jacjobs.run.messages import BlockId
from jacjobs.shape import Box, Rectangle
from jacjobs.store.folder import RunFolder
from jacjobs.store.spill import Spill, Spilled, SpillWriter, spill_name
from jacjobs.store.writer import PartFormat, PartRecord, PartWriter

TRANSPOSE_BYTES = 32 * MIB
"""What a part that is read from spills takes in memory: it is written so much at a time."""


@dataclass
class Bundle:
    """A file on its way."""

    writer: Any
    lock: threading.RLock = field(default_factory=threading.RLock)
    next: int = 0
    """Blocks that are in it."""


class BundleAssembler(ABC):
    """Puts blocks together into files. Safe to call from threads."""

    def __init__(self, path: str | Path, plan: Plan, metadata: dict[str, str]) -> None:
        self._place = RunFolder(path).place
        self._plan = plan
        self._form = part_format(plan, metadata)
        self._bundles: dict[int, Any] = {}
        self._given_up: set[int] = set()
        self._closed = False
        self._lock = threading.Lock()

    @abstractmethod
    def _open(self, number: int) -> Any: ...

    @abstractmethod
    def _take(self, block: BlockId, bundle: Any, values: NDArray[np.generic]) -> None:
        """Take a block in, and count it once it is in the file or waits to be."""

    @abstractmethod
    def _complete(self, number: int, bundle: Any) -> None:
        """Write what waits; all blocks are there."""

    def absorb(self, block: BlockId, values: NDArray[np.generic]) -> PartRecord | Literal["spill"] | None:
        """Take a block in: its entries as the worker gives them.

        With the last block of a bundle its file is committed; returns the part's record, or "spill".
        Returns when `values` is needed no more. Raises StoreError where the file cannot be written; blocks
        of that bundle that come later are dropped, as are those of one that was given up.
        """
        bundle = self._bundle(block.bundle)
        if bundle is None:
            return None
        with bundle.lock:
            if block.bundle in self._given_up:  # while this waited for the lock
                return None
            try:
                self._take(block, bundle, values)
                if bundle.next < self._plan.tiling.blocks_in(block.bundle):
                    return None
                self._complete(block.bundle, bundle)
                record = bundle.writer.commit()
            except BaseException:
                self.abandon(block.bundle)
                raise
            with self._lock:
                del self._bundles[block.bundle]
            return record or "spill"

    def abandon(self, number: int) -> None:
        """Give a bundle up and remove what was written of it."""
        with self._lock:
            self._given_up.add(number)
            bundle = self._bundles.pop(number, None)
        if bundle is not None:
            with bundle.lock:
                bundle.writer.discard()

    def close(self) -> None:
        """Give up all bundles that are open, and open none from now on."""
        with self._lock:
            self._closed = True
        for number in list(self._bundles):
            self.abandon(number)

    def transpose(self, part: int) -> PartRecord:
        """Read a part from the spills of its matrix, and commit it.

        Raises StoreError where a spill cannot be read, or the part not written.
        """
        raise NotImplementedError("only a dense J has spills")

    def sweep(self, point: int) -> None:
        """Remove the spills of a point, as far as that goes: the end of the run removes what is left."""
        raise NotImplementedError("only a dense J has spills")

    def _bundle(self, number: int) -> Any:
        """None: it was given up."""
        with self._lock:
            if self._closed or number in self._given_up:
                return None
            if number not in self._bundles:
                self._bundles[number] = self._open(number)
            return self._bundles[number]


@dataclass
class _Lines(Bundle):
    """Whole lines are written as they come; pieces of lines wait in `matrix`."""

    matrix: NDArray[Any] | None = None
    early: dict[int, NDArray[np.generic]] = field(default_factory=dict)


class Assembler(BundleAssembler):
    """Of a dense J: blocks of a bundle are written in order, in whatever order they come."""

    def __init__(self, path: str | Path, plan: Plan, metadata: dict[str, str]) -> None:
        super().__init__(path, plan, metadata)
        assert isinstance(plan.tiling, Tiling)
        self._tiling = plan.tiling

    def _open(self, number: int) -> _Lines:
        rectangle = self._tiling.bundle(number)
        if self._tiling.spills:
            return _Lines(SpillWriter(self._place, rectangle, self._form.metadata["run"]))
        matrix = None
        if self._tiling.splits_lines:
            matrix = np.empty(self._box(rectangle).extent, self._plan.shape.dtype)
        return _Lines(PartWriter(self._place, rectangle, self._form), matrix=matrix)

    def _take(self, block: BlockId, bundle: _Lines, values: NDArray[np.generic]) -> None:
        """Entries of shape (points, lines, width)."""
        if bundle.matrix is not None:
            self._place_in(block, bundle, bundle.matrix, values)
        elif block.position == bundle.next:
            self._write(block, bundle, values)
        else:
            # A copy: the caller's memory (the object store's) must not be held for an unknown time.
            bundle.early[block.position] = np.array(values)

    def _complete(self, number: int, bundle: _Lines) -> None:
        if bundle.matrix is not None:
            # A row group at a time, so that writing needs no second matrix.
            for piece in self._box(self._tiling.bundle(number)).pieces(self._group_lines):
                bundle.writer.add(piece, self._cut(bundle.matrix, piece, number))

    def transpose(self, part: int) -> PartRecord:
        whole = self._box(self._tiling.part(part))
        spilled = Spilled(
            self._place,
            list(self._spills(whole.point_start)),
            self._form.metadata["run"],
            self._form.shape.dtype,
        )
        item_bytes = self._plan.shape.item_bytes
        lines = TRANSPOSE_BYTES // (whole.width * item_bytes)
        width = whole.width if lines else TRANSPOSE_BYTES // item_bytes
        if not lines and self._plan.stripe is not None:
            width = max(1, width // self._plan.stripe) * self._plan.stripe
        lines = max(1, lines // self._group_lines) * self._group_lines  # whole row groups
        writer = PartWriter(self._place, self._tiling.part(part), self._form)
        try:
            for piece in whole.pieces(lines, width=width):
                writer.add(piece, spilled.gather(piece))
            return writer.commit()
        except BaseException:
            writer.discard()
            raise

    def sweep(self, point: int) -> None:
        with contextlib.suppress(OSError):
            for bundle in self._tiling.bundles_of(point):
                self._place.remove(spill_name(self._tiling.bundle(bundle)))

    # -- blocks --------------------------------------------------------------------------------------------

    def _write(self, block: BlockId, bundle: _Lines, values: NDArray[np.generic]) -> None:
        bundle.writer.add(self._block(*block), values)
        bundle.next += 1
        while (early := bundle.early.pop(bundle.next, None)) is not None:
            bundle.writer.add(self._block(block.bundle, bundle.next), early)
            bundle.next += 1

    def _place_in(
        self, block: BlockId, bundle: _Lines, matrix: NDArray[Any], values: NDArray[np.generic]
    ) -> None:
        """Put a block where it belongs in its part, whose blocks come in any order."""
        self._cut(matrix, self._block(*block), block.bundle)[:] = values
        bundle.next += 1

    def _cut(self, matrix: NDArray[Any], box: Box, bundle: int) -> NDArray[Any]:
        """The entries of a box, of those of its part."""
        whole = self._box(self._tiling.bundle(bundle))
        return matrix[
            box.point_start - whole.point_start : box.point_stop - whole.point_start,
            box.line_start - whole.line_start : box.line_stop - whole.line_start,
            box.start : box.stop,
        ]

    @property
    def _group_lines(self) -> int:
        """Lines in a row group, about."""
        stripes = -(-self._tiling.length // (self._plan.stripe or self._tiling.length))
        return max(1, self._plan.group_records // stripes)

    def _spills(self, point: int) -> Iterator[Spill]:
        for number in self._tiling.bundles_of(point):
            blocks = [self._block(number, i) for i in range(self._tiling.blocks_in(number))]
            yield Spill(self._tiling.bundle(number), blocks)

    def _block(self, bundle: int, position: int) -> Box:
        return self._box(self._tiling.block(bundle, position))

    def _box(self, rectangle: Rectangle) -> Box:
        return rectangle.box(self._plan.layout)


def part_format(plan: Plan, metadata: dict[str, str]) -> PartFormat:
    """How the plan says that its parts are written."""
    return PartFormat(
        shape=plan.shape,
        layout=plan.layout,
        compression=plan.compression,
        stripe=plan.stripe,
        group_records=plan.group_records,
        metadata=metadata,
    )
