"""One part being written: entries go in, in order; a committed Parquet file comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from jacjobs.errors import StoreError
from jacjobs.shape import Box, Compression, JacobianShape, Layout, Rectangle, index_bytes
from jacjobs.store.commit import storing
from jacjobs.store.parquet import MAGIC, ListFile, compressed_bytes
from jacjobs.store.place import Place
from jacjobs.store.schema import index_dtype, part_name, part_schema, record_indices

FOOTER_END = 8
"""A Parquet file ends with the length of its footer, in four bytes, and PAR1."""
READ_BYTES = 8 << 20


GROUPS = "jacjobs.groups"
"""Key of the metadata that hold the digests of the row groups' entries, end to end."""
GROUP_DIGITS = 16


class PartRecord(BaseModel):
    """What the manifest says of a part: digests (XXH3, 128 bits) of the file, and of its footer."""

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int
    digest: str
    footer: str


class PartFormat(BaseModel):
    """How the parts of a run are written.

    stripe:         entries of a line in a record; None: all.
    group_records:  records in a row group.
    metadata:       what every part says of itself, besides its rectangle and dtype.
    """

    model_config = ConfigDict(frozen=True)

    shape: JacobianShape
    layout: Layout = "rows"
    compression: Compression = "none"
    stripe: int | None = None
    group_records: int
    metadata: dict[str, str]


class _Writer:
    """A part on its way. `_add` keeps no reference to what it is given."""

    def __init__(self, place: Place, part: Rectangle, form: PartFormat, nbytes: int) -> None:
        """nbytes: about how much it will be, for whoever has to find room for it."""
        shape = form.shape
        self._form = form
        self._place = place
        self._name = part_name(part)
        metadata = {
            **form.metadata,
            "dtype": shape.dtype,
            "origin": shape.origin or shape.dtype,
            "layout": form.layout,
            "rectangle": ",".join(map(str, part)),
        }
        length = shape.lines(form.layout)[1]
        schema = part_schema(form.layout, length, form.stripe, shape.dtype, metadata)
        self._bytes = nbytes
        self._groups = ""
        with self._storing():
            self._pending = place.pending(self._name, cached=False)
            try:
                self._file = ListFile(self._pending, schema, form.compression)
            except BaseException:
                self._pending.discard()
                raise

    def _add(
        self, indices: Sequence[NDArray[np.int64]], lengths: NDArray[np.int64], *lists: NDArray[Any]
    ) -> None:
        """Append records, of these indices and lists, all lists of a column end to end."""
        ends = np.concatenate([[0], np.cumsum(lengths)])
        with self._storing():
            for first in range(0, len(lengths), self._form.group_records):
                group = slice(first, first + self._form.group_records)
                some = slice(ends[first], ends[min(group.stop, len(lengths))])
                entries = [each[some] for each in lists]
                self._groups += group_digest(*entries)
                self._file.add([index[group] for index in indices], lengths[group], *entries)

    def commit(self) -> PartRecord:
        """Make the part visible under its final name, and say what it is."""
        with self._storing():
            footer = self._file.close({GROUPS: self._groups})
            record = PartRecord(
                name=self._name,
                bytes=self._pending.nbytes,
                digest=self._pending.digest(),
                footer=xxhash.xxh3_128_hexdigest(footer),
            )
            self._pending.commit()
        return record

    def discard(self) -> None:
        """Leave nothing behind."""
        self._pending.discard()

    def _storing(self) -> Any:
        return storing(self._place.at(self._name), self._bytes)


class PartWriter(_Writer):
    """Writes a part box by box: memory holds one row group, however large the part is."""

    def __init__(self, place: Place, part: Rectangle, form: PartFormat) -> None:
        super().__init__(place, part, form, part.entries * form.shape.item_bytes)

    def add(self, box: Box, values: NDArray[np.generic]) -> None:
        """Append entries, shape (points, lines, width); boxes come in the order of their records."""
        point, line, start, stop = record_indices(box, self._form.stripe)
        self._add((point, line, start), stop - start, np.ascontiguousarray(values).reshape(-1))


class SparsePartWriter(_Writer):
    """Writes a part of a sparse J point by point."""

    def __init__(self, place: Place, part: Rectangle, form: PartFormat, entries: int) -> None:
        """entries: of each point."""
        each = form.shape.item_bytes + index_bytes(form.shape.columns)
        super().__init__(place, part, form, part.points * entries * each)
        self._waiting: list[tuple[int, Any]] = []
        self._points = max(1, form.group_records // form.shape.rows)
        """Of a row group, where it holds several."""

    def add(self, point: int, matrix: Any) -> None:
        """Append a point's J: a `scipy.sparse.csr_array`, sorted. Points come in order; those of a row group
        are kept until they are all there.
        """
        self._waiting.append((point, matrix))
        if len(self._waiting) >= self._points:
            self._write()

    def commit(self) -> PartRecord:
        self._write()
        return super().commit()

    def _write(self) -> None:
        if not self._waiting:
            return
        points, matrices = zip(*self._waiting, strict=True)
        self._waiting = []
        rows, n = matrices[0].shape
        columns = [matrix.indices.astype(index_dtype(n), copy=False) for matrix in matrices]
        lengths = [np.diff(matrix.indptr).astype(np.int64) for matrix in matrices]
        self._add(
            (np.repeat(points, rows), np.tile(np.arange(rows), len(points))),
            np.concatenate(lengths),
            np.concatenate(columns),
            np.concatenate([matrix.data for matrix in matrices]),
        )


def group_digest(*entries: NDArray[Any]) -> str:
    """XXH3, 64 bits, in hexadecimal digits, of the entries of a row group, as they lie in memory: of a sparse
    J, their columns and then their values.
    """
    digest = xxhash.xxh3_64()
    for each in entries:
        raw: Any = each  # any array is a buffer, but not to mypy
        digest.update(raw)
    return str(digest.hexdigest())


def compressible(entries: NDArray[np.generic]) -> float:
    """The part of their bytes that compression (zstd, as parts are written) saves; negative if it adds."""
    return 1 - compressed_bytes(entries, "zstd") / entries.nbytes


def footer_of(file: Any, nbytes: int) -> bytes | None:
    """The footer of a Parquet file of so many bytes, with those that end the file; None if it has none."""
    end = file.read_at(FOOTER_END, max(0, nbytes - FOOTER_END))
    length = int.from_bytes(end[:4], "little") + FOOTER_END
    if end[4:] != MAGIC or length > nbytes:
        return None
    footer: bytes = file.read_at(length, nbytes - length)
    return footer


def describe(place: Place, name: str) -> PartRecord:
    """Size and digests of a part that is there, by reading it."""
    digest, nbytes = xxhash.xxh3_128(), 0
    with place.open(name) as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
            nbytes += len(data)
        footer = footer_of(file, nbytes)
    if footer is None:
        raise StoreError(f"{place.at(name)} is no Parquet file; remove it, then `jacjobs resume`")
    return PartRecord(
        name=name,
        bytes=nbytes,
        digest=digest.hexdigest(),
        footer=xxhash.xxh3_128_hexdigest(footer),
    )
