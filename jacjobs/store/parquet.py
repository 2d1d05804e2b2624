"""Parquet files of lists: what pyarrow writes, at several times its speed.

Parquet keeps two levels for every element of a list, which say where a list begins and whether the element is
there. A general writer finds them one by one, and run-length encodes them: four fifths of the time in which
pyarrow writes floats (docs/decisions/0029). The lists of a part have no gaps, and their lengths are known, so
their encoded levels are: some ten bytes a list, whatever its length. What is left to do for a page is its
checksum and, from where the entries lie in memory, the write itself.

Source: https://parquet.apache.org/docs/file-format/ and parquet.thrift, whose names the structures have.
"""

from __future__ import annotations

import base64
import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jacjobs.shape import Compression
from jacjobs.store.compact import Value, binary, boolean, i16, i32, i64, listed, struct, varint

MAGIC = b"PAR1"
PAGE_BYTES = 1 << 20
CREATED_BY = "jacjobs"

_PLAIN, _RLE, _BYTE_STREAM_SPLIT = 0, 3, 9
_CODECS: dict[Compression, tuple[int, pa.Codec | None]] = {
    "none": (0, None),
    "zstd": (6, pa.Codec("zstd", compression_level=1)),
    "lz4": (7, pa.Codec("lz4_raw")),
}
_INT64, _FIXED_LEN_BYTE_ARRAY = 2, 7
_TYPES = {"int32": 1, "int64": 2, "float16": _FIXED_LEN_BYTE_ARRAY, "float32": 4, "float64": 5}
_REQUIRED, _REPEATED = 0, 2
_CONVERTED_LIST, _LOGICAL_LIST, _LOGICAL_FLOAT16 = 3, 3, 15
_EMPTY = struct({})
_SHORT_LIST = 64
"""Elements. The levels of shorter lists take less as bits than as runs."""


class Sink(Protocol):
    nbytes: int
    """Written so far."""

    def write(self, data: Any) -> int: ...


class ListFile:
    """A file being written: records of integers and of lists of numbers, a row group at a time.

    `schema`: columns of int64, then columns of lists, fixed in length or not, of int32, int64, float16,
    float32 or float64; nothing in it is nullable. All lists of a record are of the same length. Its metadata
    become the file's.
    """

    def __init__(self, sink: Sink, schema: pa.Schema, compression: Compression) -> None:
        self._sink = sink
        self._schema = schema
        self._codec, self._compressor = _CODECS[compression]
        self._integers = [field for field in schema if field.type == pa.int64()]
        self._lists = [field for field in schema if field.type != pa.int64()]
        self._room = np.empty(0, np.uint8)
        self._groups: list[Value] = []
        self._records = 0
        sink.write(MAGIC)

    def add(
        self, indices: Sequence[NDArray[np.int64]], lengths: NDArray[np.int64], *lists: NDArray[Any]
    ) -> None:
        """Write a row group: the integers of its records, the lengths of their lists, and the elements of
        each column of lists end to end, shape (lengths.sum(),). One record at least.
        """
        began = self._sink.nbytes
        columns = [
            self._integer_column(field.name, column)
            for field, column in zip(self._integers, indices, strict=True)
        ]
        columns += [
            self._list_column(field, lengths, flat) for field, flat in zip(self._lists, lists, strict=True)
        ]
        self._groups.append(
            struct(
                {
                    1: listed(chunk for chunk, _ in columns),
                    2: i64(sum(plain for _, plain in columns)),
                    3: i64(len(lengths)),
                    5: i64(began),
                    6: i64(self._sink.nbytes - began),
                    7: i16(min(len(self._groups), 2**15 - 1)),
                }
            )
        )
        self._records += len(lengths)

    def close(self, metadata: Mapping[str, str]) -> bytes:
        """Write the footer, with more metadata than the schema's. Returns it, with the 8 bytes after it."""
        own = {**(self._schema.metadata or {}), **metadata}
        # How Arrow finds its types again: a fixed-size list is a list otherwise.
        own["ARROW:schema"] = base64.b64encode(self._schema.serialize())
        footer = struct(
            {
                1: i32(2),
                2: listed(self._elements()),
                3: i64(self._records),
                **({4: listed(self._groups)} if self._groups else {}),
                5: listed(struct({1: binary(key), 2: binary(value)}) for key, value in own.items()),
                6: binary(CREATED_BY),
                7: listed([struct({1: _EMPTY})] * len(self._schema)),  # statistics are ordered as types are
            }
        ).data
        end = footer + len(footer).to_bytes(4, "little") + MAGIC
        self._sink.write(end)
        return end

    # -- columns -------------------------------------------------------------------------------------------

    def _integer_column(self, name: str, values: NDArray[np.int64]) -> tuple[Value, int]:
        """A column chunk of one page, with statistics, by which readers skip it; its bytes, uncompressed."""
        values = np.ascontiguousarray(values, "<i8")
        low, high = (int(bound).to_bytes(8, "little", signed=True) for bound in (values.min(), values.max()))
        statistics = struct({3: i64(0), 5: binary(high), 6: binary(low), 7: boolean(True), 8: boolean(True)})
        offset = self._sink.nbytes
        plain = self._page(b"", values.view(np.uint8), len(values), _PLAIN)
        return self._chunk([name], _INT64, _PLAIN, len(values), plain, offset, {12: statistics}), plain

    def _list_column(
        self, field: pa.Field, lengths: NDArray[np.int64], flat: NDArray[Any]
    ) -> tuple[Value, int]:
        ends = np.cumsum(lengths)
        dtype = _element_dtype(field)
        raw = np.ascontiguousarray(flat, dtype).view(np.uint8)
        size = dtype.itemsize
        encoding = _PLAIN if self._compressor is None or dtype.kind == "i" else _BYTE_STREAM_SPLIT
        offset, plain, first, start = self._sink.nbytes, 0, 0, 0
        while first < len(lengths):
            # Whole records: at most so many bytes, or one.
            last = max(first + 1, int(np.searchsorted(ends, start + PAGE_BYTES // size, "right")))
            stop = int(ends[last - 1])
            page = raw[start * size : stop * size]
            some = lengths[first:last]
            planes = size if encoding == _BYTE_STREAM_SPLIT else 1
            plain += self._page(levels(some), page, slots(some), encoding, planes)
            first, start = last, stop
        path = [field.name, "list", field.type.value_field.name]
        return self._chunk(path, _TYPES[dtype.name], encoding, slots(lengths), plain, offset, {}), plain

    def _page(
        self, levels: bytes, values: NDArray[np.uint8], count: int, encoding: int, planes: int = 1
    ) -> int:
        """Write a data page. Returns its bytes with its header, uncompressed.

        planes: bytes of an element whose bytes are stored apart.
        """
        plain = len(levels) + values.nbytes
        pieces: list[Any] = [levels, values]
        if self._compressor is not None:
            pieces = [self._packed(self._compressor, levels, values, planes)]
        checksum = 0
        for piece in pieces:
            checksum = zlib.crc32(piece, checksum)
        header = struct(
            {
                1: i32(0),
                2: i32(plain),
                3: i32(sum(memoryview(piece).nbytes for piece in pieces)),
                4: i32(checksum - (checksum >> 31 << 32)),  # Thrift has no unsigned numbers
                5: struct({1: i32(count), 2: i32(encoding), 3: i32(_RLE), 4: i32(_RLE)}),
            }
        ).data
        for piece in [header, *pieces]:
            self._sink.write(piece)
        return len(header) + plain

    def _packed(self, codec: pa.Codec, levels: bytes, values: NDArray[np.uint8], planes: int) -> pa.Buffer:
        size = len(levels) + values.nbytes
        if size > len(self._room):
            self._room = np.empty(size, np.uint8)
        page = self._room[:size]
        page[: len(levels)] = np.frombuffer(levels, np.uint8)
        _split(values, page[len(levels) :], planes)
        return codec.compress(pa.py_buffer(page))

    def _chunk(
        self,
        path: Sequence[str],
        kind: int,
        encoding: int,
        count: int,
        plain: int,
        offset: int,
        more: dict[int, Value],
    ) -> Value:
        metadata = {
            1: i32(kind),
            2: listed([i32(_RLE), i32(encoding)]),
            3: listed(map(binary, path)),
            4: i32(self._codec),
            5: i64(count),
            6: i64(plain),
            7: i64(self._sink.nbytes - offset),
            9: i64(offset),
            **more,
        }
        return struct({2: i64(0), 3: struct(metadata)})

    def _elements(self) -> list[Value]:
        """The schema: a tree in preorder. A list has a level of its own between it and its elements."""
        integers = [
            struct({1: i32(_INT64), 3: i32(_REQUIRED), 4: binary(field.name)}) for field in self._integers
        ]
        return [
            struct({3: i32(_REQUIRED), 4: binary("schema"), 5: i32(len(self._schema))}),
            *integers,
            *itertools.chain.from_iterable(map(_list_elements, self._lists)),
        ]


def _list_elements(field: pa.Field) -> list[Value]:
    dtype = _element_dtype(field)
    half = dtype == np.float16
    element = {
        1: i32(_TYPES[dtype.name]),
        **({2: i32(2)} if half else {}),
        3: i32(_REQUIRED),
        4: binary(field.type.value_field.name),
        **({10: struct({_LOGICAL_FLOAT16: _EMPTY})} if half else {}),
    }
    whole = {
        3: i32(_REQUIRED),
        4: binary(field.name),
        5: i32(1),
        6: i32(_CONVERTED_LIST),
        10: struct({_LOGICAL_LIST: _EMPTY}),
    }
    return [struct(whole), struct({3: i32(_REPEATED), 4: binary("list"), 5: i32(1)}), struct(element)]


def _element_dtype(field: pa.Field) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(field.type.value_type.to_pandas_dtype())
    return dtype


def slots(lengths: NDArray[np.int64]) -> int:
    """Levels of lists of these lengths: one an element, and one for an empty list."""
    return int(lengths.sum()) + int(np.count_nonzero(lengths == 0))


def levels(lengths: NDArray[np.int64]) -> bytes:
    """Repetition and definition levels of lists without gaps, as a page begins with them.

    The first element of a list has repetition level 0, the others 1; all have definition level 1. An empty
    list has levels 0 and 0. Both are in Parquet's hybrid of runs and bits, after their size in four bytes:
    https://parquet.apache.org/docs/file-format/data-pages/encodings/#RLE
    """
    count = slots(lengths)
    empty = lengths == 0
    if lengths.max() <= 1:
        repetition = _run(count, 0)
    elif lengths.min() >= _SHORT_LIST:
        repetition = b"".join(
            [
                (_run(1, 0) + _run(length - 1, 1)) * sum(1 for _ in alike)
                for length, alike in itertools.groupby(lengths.tolist())
            ]
        )
    else:
        repetition = _without(count, _begins(lengths))
    definition = _without(count, _begins(lengths)[empty]) if empty.any() else _run(count, 1)
    return b"".join(len(part).to_bytes(4, "little") + part for part in (repetition, definition))


def _begins(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the first level of each list is."""
    each = np.maximum(lengths, 1)
    begins: NDArray[np.int64] = np.cumsum(each) - each
    return begins


def _without(count: int, places: NDArray[np.int64]) -> bytes:
    """So many levels, as bits: 0 at these places, 1 elsewhere."""
    bits = np.ones(count, np.uint8)
    bits[places] = 0
    packed = np.packbits(bits, bitorder="little").tobytes()
    return varint(len(packed) << 1 | 1) + packed


def compressed_bytes(entries: NDArray[Any], compression: Compression) -> int:
    """What entries take in a page, without its levels."""
    raw = np.ascontiguousarray(entries).reshape(-1).view(np.uint8)
    _, codec = _CODECS[compression]
    if codec is None:
        return raw.nbytes
    page = np.empty_like(raw)
    _split(raw, page, entries.itemsize)
    return int(codec.compress(pa.py_buffer(page)).size)


def _split(raw: NDArray[np.uint8], into: NDArray[np.uint8], planes: int) -> None:
    """The first bytes of all elements, then the second ones, …: like beside like, which compresses well.
    Parquet's BYTE_STREAM_SPLIT.
    """
    into.reshape(planes, -1)[:] = raw.reshape(-1, planes).T


def _run(length: int, level: int) -> bytes:
    return varint(length << 1) + bytes((level,))
