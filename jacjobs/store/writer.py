"""One part being written: boxes go in, in order; a committed Parquet file comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from jacjobs.errors import StoreError
from jacjobs.shape import Box, Compression, JacobianShape, Layout, Rectangle
from jacjobs.store.commit import storing
from jacjobs.store.place import Place
from jacjobs.store.schema import VALUES_PATH, part_name, part_records, part_schema

COMPRESSION: dict[Compression, dict[str, Any]] = {
    "none": {"compression": "none"},
    # Splitting floats into byte planes puts like beside like: signs and exponents then compress well.
    "zstd": {"compression": "zstd", "compression_level": 1, "use_byte_stream_split": [VALUES_PATH]},
    "lz4": {"compression": "lz4", "use_byte_stream_split": [VALUES_PATH]},
}
FOOTER_END = 8
"""A Parquet file ends with the length of its footer, in four bytes, and PAR1."""
MAGIC = b"PAR1"
PAGE_BYTES = 1 << 20
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


class PartWriter:
    """Writes a part box by box: memory holds one row group, however large the part is.

    `values` may be in any state after `add` returns; nothing keeps a reference to it.
    """

    def __init__(self, place: Place, part: Rectangle, form: PartFormat) -> None:
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
        self._schema = part_schema(form.layout, length, form.stripe, shape.dtype, metadata)
        self._bytes = part.entries * shape.item_bytes
        self._groups = ""
        with self._storing():
            self._pending = place.pending(self._name)
            try:
                self._writer = self._opened()
            except BaseException:
                self._pending.discard()
                raise

    def _opened(self) -> pq.ParquetWriter:
        return pq.ParquetWriter(
            self._pending,
            self._schema,
            use_dictionary=False,
            write_statistics=[field.name for field in self._schema if field.name != "values"],
            write_page_checksum=True,
            data_page_size=PAGE_BYTES,
            **COMPRESSION[self._form.compression],
        )

    def add(self, box: Box, values: NDArray[np.generic]) -> None:
        """Append entries, shape (points, lines, width); boxes come in the order of their records."""
        with self._storing():
            table = part_records(box, values, self._form.stripe, self._schema)
            size = self._form.group_records
            for start in range(0, table.num_rows, size):
                self._groups += group_digest(table.slice(start, size).column("values").chunk(0).flatten())
            self._writer.write_table(table, row_group_size=size)

    def commit(self) -> PartRecord:
        """Make the part visible under its final name, and say what it is."""
        with self._storing():
            self._writer.add_key_value_metadata({GROUPS: self._groups})
            self._writer.close()
            record = PartRecord(
                name=self._name,
                bytes=self._pending.nbytes,
                digest=self._pending.digest(),
                footer=xxhash.xxh3_128_hexdigest(footer_of(self._pending, self._pending.nbytes) or b""),
            )
            self._pending.commit()
        return record

    def discard(self) -> None:
        """Leave nothing behind."""
        try:
            self._writer.close()
        except (OSError, ValueError):
            pass  # a full disk: there is nothing to keep
        finally:
            self._pending.discard()

    def _storing(self) -> Any:
        return storing(self._place.at(self._name), self._bytes)


def group_digest(entries: pa.Array) -> str:
    """XXH3, 64 bits, in hexadecimal digits, of the entries of a row group, as they lie in memory."""
    return str(xxhash.xxh3_64_hexdigest(entries.to_numpy()))


def compressible(entries: NDArray[np.generic]) -> float:
    """The part of their bytes that compression (zstd, as parts are written) saves; negative if it adds."""
    sizes: list[int] = []
    for compression in ("none", "zstd"):
        sink = pa.BufferOutputStream()
        values = pa.field("values", pa.list_(pa.field("element", pa.from_numpy_dtype(entries.dtype))))
        flat = pa.array(np.ascontiguousarray(entries))
        lists = pa.ListArray.from_arrays(pa.array([0, len(flat)], pa.int32()), flat, type=values.type)
        pq.write_table(
            pa.table([lists], schema=pa.schema([values])),
            sink,
            use_dictionary=False,
            write_statistics=False,
            **COMPRESSION[compression],
        )
        sizes.append(sink.getvalue().size)
    plain, packed = sizes
    return 1 - packed / plain


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
