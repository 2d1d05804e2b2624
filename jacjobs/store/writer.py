"""One part being written: blocks go in, in order; a committed Parquet file comes out."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from jacjobs.shape import Rectangle
from jacjobs.store.commit import PendingFile, storing
from jacjobs.store.schema import VALUES_PATH, part_name, part_records, part_schema

_COMPRESSION: dict[str, dict[str, Any]] = {
    "none": {"compression": "none"},
    # Splitting floats into byte planes puts like beside like: signs and exponents then compress well.
    "zstd": {"compression": "zstd", "compression_level": 1, "use_byte_stream_split": [VALUES_PATH]},
    "lz4": {"compression": "lz4", "use_byte_stream_split": [VALUES_PATH]},
}


class PartRecord(BaseModel):
    """What the manifest says of a part."""

    model_config = ConfigDict(frozen=True)

    name: str
    bytes: int
    sha256: str


class PartWriter:
    """Writes a part block by block: memory holds one row group, however large the part is.

    `values` may be in any state after `add` returns; nothing keeps a reference to it.
    """

    def __init__(
        self,
        folder: Path,
        scratch: Path,
        part: Rectangle,
        dtype: str,
        *,
        compression: str,
        row_group_rows: int,
        metadata: dict[str, str],
    ) -> None:
        extent = ",".join(map(str, part))
        self._schema = part_schema(part.columns, dtype, {**metadata, "dtype": dtype, "rectangle": extent})
        self._row_group_rows = row_group_rows
        self._bytes = part.entries * np.dtype(dtype).itemsize
        self._pending = PendingFile(folder / part_name(part), scratch)
        with storing(self._pending.path, self._bytes):
            self._writer = pq.ParquetWriter(
                self._pending.path,
                self._schema,
                use_dictionary=False,
                write_statistics=["point", "row", "start"],
                **_COMPRESSION[compression],
            )

    def add(self, block: Rectangle, values: NDArray[np.generic]) -> None:
        """Append a block; blocks come in the order of their records."""
        with storing(self._pending.path, self._bytes):
            self._writer.write_table(
                part_records(block, values, self._schema), row_group_size=self._row_group_rows
            )

    def commit(self) -> PartRecord:
        """Make the part visible under its final name, and say what it is."""
        with storing(self._pending.path, self._bytes):
            self._writer.close()
            record = describe(self._pending.path, self._pending.final.name)
            self._pending.commit()
        return record

    def discard(self) -> None:
        """Leave nothing behind."""
        try:
            self._writer.close()
        except OSError:
            pass  # a full disk: there is nothing to keep
        finally:
            self._pending.discard()


def describe(path: Path, name: str) -> PartRecord:
    """Size and digest of a file, by reading it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return PartRecord(name=name, bytes=path.stat().st_size, sha256=digest)
