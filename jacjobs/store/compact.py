"""Thrift's compact protocol, as much of it as Parquet's headers and footer take; for writing only.

A value is its kind and its bytes. Parquet's structures (`parquet.py`) are dictionaries from a field's number
to its value.

Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

_TRUE, _FALSE, _I16, _I32, _I64, _BINARY, _LIST, _STRUCT = 1, 2, 4, 5, 6, 8, 9, 12
_LONG_LIST = 15
"""Where a list's length would stand, if it does not fit there."""


class Value(NamedTuple):
    kind: int
    data: bytes


def varint(number: int) -> bytes:
    """Of a number that is not negative: seven bits a byte, the lowest first (ULEB128)."""
    if number < 0x80:
        return bytes((number,))
    digits = bytearray()
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def i16(number: int) -> Value:
    return Value(_I16, _zigzag(number))


def i32(number: int) -> Value:
    return Value(_I32, _zigzag(number))


def i64(number: int) -> Value:
    return Value(_I64, _zigzag(number))


def boolean(value: bool) -> Value:
    """In a struct only: its kind says all."""
    return Value(_TRUE if value else _FALSE, b"")


def binary(data: bytes | str) -> Value:
    data = data.encode() if isinstance(data, str) else data
    return Value(_BINARY, varint(len(data)) + data)


def listed(values: Iterable[Value]) -> Value:
    """Of values of one kind; one at least."""
    values = list(values)
    kind, count = values[0].kind, len(values)
    head = bytes((count << 4 | kind,)) if count < _LONG_LIST else bytes((0xF0 | kind,)) + varint(count)
    return Value(_LIST, head + b"".join([value.data for value in values]))


def struct(fields: dict[int, Value]) -> Value:
    """Fields in the order of their numbers, which are at most 15 apart."""
    pieces, last = [], 0
    for number, value in fields.items():
        pieces += [bytes(((number - last) << 4 | value.kind,)), value.data]
        last = number
    return Value(_STRUCT, b"".join(pieces) + b"\0")


def _zigzag(number: int) -> bytes:
    return varint(number << 1 if number >= 0 else (-number << 1) - 1)
