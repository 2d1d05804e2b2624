"""Spills: blocks on disk, from which the parts of a matrix are read when all its blocks are there.

A block of products that cross the lines of the layout holds a piece of every line. It is stored as it is,
(lines, width) in one stretch of bytes, so that the pieces of neighbouring lines lie together: a part reads
one range of each block. That is two passes over the disk, each in long stretches (external transposition:
D. Knuth, The Art of Computer Programming, vol. 3, 5.4).

A spill is committed as a part is: what is visible is complete, and stays over a crash. After its blocks come
the digests of their bands of lines (XXH3, 64 bits), which every read compares, and one of the run and the
rectangle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from jacjobs.errors import StoreError
from jacjobs.shape import Box, Rectangle
from jacjobs.store.commit import reading, storing
from jacjobs.store.place import Place
from jacjobs.store.schema import part_name, part_rectangle

SPILLS = "_jacjobs/spills"
BAND_BYTES = 64 << 10
"""What has a digest of its own; a read is widened to whole bands."""
_SUFFIX = ".spill"
_TAG_BYTES = 16
_DIGEST = np.dtype("<u8")


class SpillWriter:
    """Has the methods of a `PartWriter`."""

    def __init__(self, place: Place, spill: Rectangle, run: str) -> None:
        self._where = place.at(spill_name(spill))
        self._tag = _tag(run, spill)
        self._digests: list[int] = []
        with storing(self._where):
            self._pending = place.pending(spill_name(spill))

    def add(self, box: Box, values: NDArray[np.generic]) -> None:
        lines = np.ascontiguousarray(values).reshape(box.lines, box.width)
        with storing(self._where, lines.nbytes):
            self._digests += _band_digests(lines, _band_lines(box, lines.itemsize))
            self._pending.write(lines.data.cast("B"))

    def commit(self) -> None:
        with storing(self._where):
            self._pending.write(np.array(self._digests, _DIGEST).tobytes() + self._tag)
            self._pending.commit()

    def discard(self) -> None:
        self._pending.discard()


class Spill(NamedTuple):
    """A spill, and its blocks as boxes, in their order."""

    rectangle: Rectangle
    blocks: Sequence[Box]


def spill_name(spill: Rectangle) -> str:
    return f"{SPILLS}/{part_name(spill).removesuffix('.parquet')}{_SUFFIX}"


def spilled(place: Place) -> set[Rectangle]:
    """What is there: the rectangles of all spills."""
    with reading(place.at(SPILLS)):
        names = [name.removesuffix(_SUFFIX) for name in place.files(SPILLS) if name.endswith(_SUFFIX)]
    return {rectangle for name in names if (rectangle := part_rectangle(name + ".parquet")) is not None}


class Spilled:
    """A matrix in spills. Raises StoreError for a spill that is missing, damaged, or another run's."""

    def __init__(self, place: Place, spills: Sequence[Spill], run: str, dtype: str) -> None:
        self._place = place
        self._spills = spills
        self._run = run
        self._dtype = np.dtype(dtype)
        self._digests: dict[Rectangle, NDArray[np.uint64]] = {}

    def gather(self, box: Box) -> NDArray[np.generic]:
        """The entries of `box`, shape (1, lines, width)."""
        out = np.empty((box.lines, box.width), self._dtype)
        for spill in self._spills:
            wanted = [b for b in spill.blocks if max(box.start, b.start) < min(box.stop, b.stop)]
            if not wanted:
                continue
            name = spill_name(spill.rectangle)
            with reading(self._place.at(name)), self._place.open(name) as file:
                digests = self._digests_of(spill, file)
                offset, band = 0, 0
                for block in spill.blocks:
                    if block in wanted:
                        piece = self._lines(spill, file, block, offset, digests[band:], box)
                        low, high = max(box.start, block.start), min(box.stop, block.stop)
                        out[:, low - box.start : high - box.start] = piece[
                            :, low - block.start : high - block.start
                        ]
                    offset += block.entries * self._dtype.itemsize
                    band += _band_count(block, self._dtype.itemsize)
        return out[None]

    def _lines(
        self,
        spill: Spill,
        file: pa.NativeFile,
        block: Box,
        offset: int,
        digests: NDArray[np.uint64],
        box: Box,
    ) -> NDArray[np.generic]:
        """The lines of `box` of a block, which begins at `offset`: read as whole bands, and compared."""
        step, line_bytes = _band_lines(block, self._dtype.itemsize), block.width * self._dtype.itemsize
        first, last = box.line_start - block.line_start, box.line_stop - block.line_start
        low, high = first // step * step, min(-(-last // step) * step, block.lines)
        data = file.read_at((high - low) * line_bytes, offset + low * line_bytes)
        if len(data) != (high - low) * line_bytes:
            raise self._damaged(spill)
        lines = np.frombuffer(data, self._dtype).reshape(high - low, block.width)
        found = np.fromiter(_band_digests(lines, step), _DIGEST)
        if not np.array_equal(found, digests[low // step :][: len(found)]):
            raise self._damaged(spill)
        return lines[first - low : last - low]

    def _digests_of(self, spill: Spill, file: pa.NativeFile) -> NDArray[np.uint64]:
        if spill.rectangle not in self._digests:
            item = self._dtype.itemsize
            content = sum(block.entries for block in spill.blocks) * item
            length = sum(_band_count(block, item) for block in spill.blocks) * _DIGEST.itemsize
            data = file.read_at(length + _TAG_BYTES, content)
            if len(data) != length + _TAG_BYTES or data[length:] != _tag(self._run, spill.rectangle):
                raise self._damaged(spill)
            self._digests[spill.rectangle] = np.frombuffer(data[:length], _DIGEST)
        return self._digests[spill.rectangle]

    def _damaged(self, spill: Spill) -> StoreError:
        where = self._place.at(spill_name(spill.rectangle))
        return StoreError(f"{where} is damaged, or another run's; remove it, then `jacjobs resume`")


def _band_lines(block: Box, item_bytes: int) -> int:
    """Lines in a band of a block."""
    return max(1, BAND_BYTES // (block.width * item_bytes))


def _band_count(block: Box, item_bytes: int) -> int:
    return -(-block.lines // _band_lines(block, item_bytes))


def _band_digests(lines: NDArray[np.generic], step: int) -> Iterator[int]:
    """Of lines that begin with a band, a digest for each."""
    for start in range(0, len(lines), step):
        yield xxhash.xxh3_64_intdigest(lines[start : start + step].data.cast("B"))


def _tag(run: str, spill: Rectangle) -> bytes:
    return xxhash.xxh3_128_digest(f"{run} {','.join(map(str, spill))}".encode())
