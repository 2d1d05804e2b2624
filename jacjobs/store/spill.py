"""Spills: blocks on disk, from which the parts of a matrix are read when all its blocks are there.

A block of products that cross the lines of the layout holds a piece of every line. It is stored as it is,
(lines, width) in one stretch of bytes, so that the pieces of neighbouring lines lie together: a part reads
one range of each block. That is two passes over the disk, each in long stretches, whatever the size of the
matrix (external transposition: D. Knuth, The Art of Computer Programming, vol. 3, 5.4).

A spill is committed as a part is: what is visible is complete, and stays over a crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jacjobs.errors import StoreError
from jacjobs.shape import Box, Rectangle
from jacjobs.store.commit import reading, storing
from jacjobs.store.place import Place
from jacjobs.store.schema import part_name, part_rectangle

SPILLS = "_jacjobs/spills"
_SUFFIX = ".spill"


class SpillWriter:
    """Has the methods of a `PartWriter`."""

    def __init__(self, place: Place, spill: Rectangle) -> None:
        self._where = place.at(spill_name(spill))
        with storing(self._where):
            self._pending = place.pending(spill_name(spill))

    def add(self, box: Box, values: NDArray[np.generic]) -> None:
        with storing(self._where, values.nbytes):
            self._pending.write(np.ascontiguousarray(values).data.cast("B"))

    def commit(self) -> None:
        with storing(self._where):
            self._pending.commit()

    def discard(self) -> None:
        self._pending.discard()


class SpilledBlock(NamedTuple):
    """Where a block is: in the spill of this name, from this byte on."""

    name: str
    offset: int
    box: Box


def spill_name(spill: Rectangle) -> str:
    return f"{SPILLS}/{part_name(spill).removesuffix('.parquet')}{_SUFFIX}"


def spilled(place: Place) -> set[Rectangle]:
    """What is there: the rectangles of all spills."""
    with reading(place.at(SPILLS)):
        names = [name.removesuffix(_SUFFIX) for name in place.files(SPILLS) if name.endswith(_SUFFIX)]
    return {rectangle for name in names if (rectangle := part_rectangle(name + ".parquet")) is not None}


def gather(place: Place, blocks: Sequence[SpilledBlock], box: Box, dtype: str) -> NDArray[np.generic]:
    """The entries of `box`, shape (1, lines, width), from the blocks of its matrix."""
    out = np.empty((box.lines, box.width), dtype)
    item = out.itemsize
    for name, offset, block in blocks:
        low, high = max(box.start, block.start), min(box.stop, block.stop)
        if low >= high:
            continue
        line_bytes = block.width * item
        first = offset + (box.line_start - block.line_start) * line_bytes
        with reading(place.at(name)), place.open(name) as file:
            data = file.read_at(box.lines * line_bytes, first)
        if len(data) != box.lines * line_bytes:
            raise StoreError(f"{place.at(name)} is cut short; remove it, then `jacjobs resume`")
        piece = np.frombuffer(data, dtype).reshape(box.lines, block.width)
        out[:, low - box.start : high - box.start] = piece[:, low - block.start : high - block.start]
    return out[None]
