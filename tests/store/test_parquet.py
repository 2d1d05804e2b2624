"""Files of lists against pyarrow's own: the same tables for every reader, in a fraction of the time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.speed.pairs import in_turns, ratio
from jacjobs.shape import Compression
from jacjobs.store import parquet
from jacjobs.store.parquet import ListFile, compressed_bytes, levels
from jacjobs.store.schema import part_schema

COMPRESSIONS: tuple[Compression, ...] = ("none", "zstd", "lz4")
DTYPES = ("float16", "float32", "float64")


class Bytes:
    def __init__(self) -> None:
        self._file = io.BytesIO()
        self.nbytes = 0

    def write(self, data: Any) -> int:
        self.nbytes += (written := self._file.write(data))
        return written

    @property
    def value(self) -> bytes:
        return self._file.getvalue()


class Nothing:
    """Takes all, and keeps none of it."""

    closed = False
    nbytes = 0

    def write(self, data: Any) -> int:
        self.nbytes += (written := memoryview(data).nbytes)
        return written

    def tell(self) -> int:
        return self.nbytes

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def table_of(schema: pa.Schema, lengths: NDArray[np.int64], flat: NDArray[Any]) -> pa.Table:
    count = np.arange(len(lengths))
    kind = schema.field("values").type
    entries = pa.array(flat)
    if pa.types.is_fixed_size_list(kind):
        lists: pa.Array = pa.FixedSizeListArray.from_arrays(entries, type=kind)
    else:
        ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        lists = pa.ListArray.from_arrays(ends, entries, type=kind)
    return pa.table([pa.array(count // 3), pa.array(count - 5), pa.array(count * 0), lists], schema=schema)


def written(table: pa.Table, compression: Compression, group: int) -> bytes:
    sink = Bytes()
    file = ListFile(sink, table.schema, compression)
    for start in range(0, len(table), group):
        some = table.slice(start, group).combine_chunks()
        lists = some.column("values").chunk(0)
        indices = [some.column(i).to_numpy() for i in range(3)]
        file.add(indices, lists.value_lengths().to_numpy().astype(np.int64), lists.flatten().to_numpy())
    end = file.close({"later": "said"})
    assert sink.value.endswith(end)
    return sink.value


def by_pyarrow(table: pa.Table, compression: Compression, group: int) -> bytes:
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression=compression,
        use_dictionary=False,
        write_statistics=["point", "row"] + (["start"] if "start" in table.column_names else []),
        row_group_size=group,
    )
    return sink.getvalue()


def entries(count: int, dtype: str) -> NDArray[Any]:
    return np.random.default_rng(count).standard_normal(count).astype(dtype)


def a_table(lengths: list[int], dtype: str, *, fixed: bool) -> pa.Table:
    schema = part_schema("rows", lengths[0], None if fixed else 1, dtype, {"run": "abc", "dtype": dtype})
    sizes = np.array(lengths, np.int64)
    return table_of(schema, sizes, entries(int(sizes.sum()), dtype))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "lists"])
def test_a_file_is_as_pyarrow_would_write_it(compression: Compression, dtype: str, fixed: bool) -> None:
    table = a_table([100] * 30, dtype, fixed=fixed)
    ours, theirs = (write(table, compression, 7) for write in (written, by_pyarrow))
    mine, other = (pq.ParquetFile(pa.BufferReader(data)) for data in (ours, theirs))
    assert mine.schema.equals(other.schema)
    assert mine.schema_arrow.equals(table.schema)
    assert mine.read().equals(table)
    kept = {key: value for key, value in mine.metadata.metadata.items() if key != b"later"}
    assert kept == other.metadata.metadata
    assert mine.metadata.metadata[b"later"] == b"said"
    for group in range(other.metadata.num_row_groups):
        for column in range(4):
            a, b = (file.metadata.row_group(group).column(column) for file in (mine, other))
            assert a.statistics == b.statistics
            assert (a.path_in_schema, a.physical_type, a.compression, a.num_values) == (
                b.path_in_schema,
                b.physical_type,
                b.compression,
                b.num_values,
            )
        a, b = (file.metadata.row_group(group) for file in (mine, other))
        assert a.num_rows == b.num_rows
        assert a.total_byte_size == sum(a.column(i).total_uncompressed_size for i in range(4))


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.one_of(
        st.lists(st.integers(1, 9), min_size=1, max_size=40),
        st.lists(st.sampled_from([1, 63, 64, 65, 128, 300]), min_size=1, max_size=12),
        st.tuples(st.integers(1, 700), st.integers(1, 9)).map(lambda pair: [pair[0]] * pair[1]),
    ),
    dtype=st.sampled_from(DTYPES),
    compression=st.sampled_from(COMPRESSIONS),
    page=st.sampled_from([1, 256, 1 << 20]),
    group=st.integers(1, 50),
)
def test_lists_of_any_length_are_read_back(
    lengths: list[int], dtype: str, compression: Compression, page: int, group: int
) -> None:
    table = a_table(lengths, dtype, fixed=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "PAGE_BYTES", page)
        data = written(table, compression, group)
    read = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
    read.validate(full=True)
    assert read.equals(table)


def sparse_table(lengths: list[int], columns: int, dtype: str) -> pa.Table:
    schema = part_schema("sparse", columns, None, dtype, {"run": "abc"})
    ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    where = (
        np.random.default_rng(1)
        .integers(columns, size=sum(lengths))
        .astype(schema.field("columns").type.value_type.to_pandas_dtype())
    )
    lists = [
        pa.ListArray.from_arrays(ends, pa.array(flat), type=schema.field(name).type)
        for name, flat in (("columns", where), ("values", entries(sum(lengths), dtype)))
    ]
    count = np.arange(len(lengths))
    return pa.table([pa.array(count // 3), pa.array(count - 5), *lists], schema=schema)


def sparse_written(table: pa.Table, compression: Compression, group: int) -> bytes:
    sink = Bytes()
    file = ListFile(sink, table.schema, compression)
    for start in range(0, len(table), group):
        some = table.slice(start, group).combine_chunks()
        lists = [some.column(name).chunk(0) for name in ("columns", "values")]
        lengths = lists[0].value_lengths().to_numpy().astype(np.int64)
        indices = [some.column(i).to_numpy() for i in range(2)]
        file.add(indices, lengths, *(each.flatten().to_numpy() for each in lists))
    file.close({})
    return sink.value


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.one_of(
        st.lists(st.integers(0, 5), min_size=1, max_size=40),
        st.lists(st.sampled_from([0, 1]), min_size=1, max_size=40),
        st.lists(st.sampled_from([0, 64, 130]), min_size=1, max_size=12),
    ),
    columns=st.sampled_from([10, 2**31 + 1]),
    dtype=st.sampled_from(DTYPES),
    compression=st.sampled_from(COMPRESSIONS),
    page=st.sampled_from([1, 256, 1 << 20]),
    group=st.integers(1, 50),
)
def test_rows_of_a_sparse_j_are_read_back_those_without_entries_too(
    lengths: list[int], columns: int, dtype: str, compression: Compression, page: int, group: int
) -> None:
    table = sparse_table(lengths, columns, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "PAGE_BYTES", page)
        data = sparse_written(table, compression, group)
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    read = file.read()
    read.validate(full=True)
    assert read.equals(table)
    theirs = pq.ParquetFile(pa.BufferReader(by_pyarrow(table, compression, group)))
    assert file.schema.equals(theirs.schema)
    for number in range(file.metadata.num_row_groups):
        for column in range(4):
            ours, other = (f.metadata.row_group(number).column(column) for f in (file, theirs))
            assert ours.num_values == other.num_values


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_other_readers_read_a_sparse_j(compression: Compression, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = sparse_table([0, 3, 0, 0, 7, 1] * 20, 1000, "float64")
    path.write_bytes(sparse_written(table, compression, 13))
    assert pl.read_parquet(path)["columns"].to_list() == table["columns"].to_pylist()
    rows = duckdb.sql(f"select * from '{path}' where row >= 20").fetchall()
    assert [row[3] for row in rows] == table["values"].to_pylist()[25:]
    assert [row[2] for row in rows] == table["columns"].to_pylist()[25:]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_other_readers_read_it(compression: Compression, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for lengths in ([1] * 50, [7] * 50, [500] * 50):
        table = a_table(lengths, "float32", fixed=True)
        path.write_bytes(written(table, compression, 13))
        values = table["values"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        frame = pl.read_parquet(path)
        assert frame.schema["values"] == pl.Array(pl.Float32, lengths[0])
        np.testing.assert_array_equal(frame["values"].to_numpy(), values)
        rows = duckdb.sql(f"select * from '{path}' where row >= 20").fetchall()
        assert [row[1] for row in rows] == list(range(20, 45))
        np.testing.assert_array_equal(np.array([row[3] for row in rows], np.float32), values[25:])


def test_pages_carry_their_checksums() -> None:
    table = a_table([100] * 30, "float32", fixed=True)
    data = bytearray(written(table, "none", 30))
    chunk = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(0).column(3)
    data[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    pq.ParquetFile(pa.BufferReader(bytes(data))).read()
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(pa.BufferReader(bytes(data)), page_checksum_verification=True).read()


def test_levels_take_next_to_nothing() -> None:
    assert len(levels(np.full(64, 4096))) < 1000
    assert len(levels(np.full(2**18, 1))) < 20
    assert len(levels(np.full(2**16, 4))) < 2**15 + 20  # a bit an element


def test_compression_saves_what_pyarrow_saves() -> None:
    flat = entries(1 << 18, "float32")
    flat.view(np.uint32)[:] &= 0xFFFF0000
    table = table_of(part_schema("rows", 4096, None, "float32"), np.full(64, 4096), flat)
    plain, packed = (len(by_pyarrow(table, compression, 64)) for compression in ("none", "zstd"))
    assert len(written(table, "zstd", 64)) < 0.5 * plain
    assert compressed_bytes(flat, "zstd") < packed  # pyarrow was not told to split the bytes
    assert compressed_bytes(flat, "none") == flat.nbytes


def test_it_takes_less_time_than_pyarrow() -> None:
    """Paired and without a disk; seen: a fifth of the time."""
    table = a_table([4096] * 2048, "float32", fixed=True)
    lists = table.column("values").chunk(0)
    flat, lengths = lists.flatten().to_numpy(), np.full(256, 4096)
    indices = [table.column(i).to_numpy()[:256] for i in range(3)]

    def ours() -> None:
        file = ListFile(Nothing(), table.schema, "none")
        for start in range(0, len(flat), 1 << 20):
            file.add(indices, lengths, flat[start : start + (1 << 20)])
        file.close({})

    def theirs() -> None:
        sink = pa.PythonFile(Nothing(), mode="w")
        with pq.ParquetWriter(
            sink, table.schema, compression="none", use_dictionary=False, write_page_checksum=True
        ) as writer:
            writer.write_table(table, row_group_size=256)

    seconds = in_turns({"pyarrow": theirs, "ours": ours}, 7)
    assert ratio(seconds["pyarrow"], seconds["ours"]) > 2
