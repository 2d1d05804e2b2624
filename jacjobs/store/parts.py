"""The parts of a run, read: in threads, a few row groups at a time, each compared with its digest.

What is read is what was written, or an error: the footer of a part holds a digest of every row group's
entries, the manifest one of the footer, and a part that is none of this run's is refused.
"""

from __future__ import annotations

import base64
import functools
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from jacjobs.errors import StoreError, TooLargeError
from jacjobs.shape import Box, Rectangle
from jacjobs.store.commit import reason
from jacjobs.store.folder import Manifest, RunFolder, RunRecord
from jacjobs.store.parquet import MAGIC
from jacjobs.store.place import Place
from jacjobs.store.schema import part_name, part_rectangle, part_schema, record_indices
from jacjobs.store.selection import Overlap, Wanted, boxes_of
from jacjobs.store.writer import GROUP_DIGITS, GROUPS, PartRecord, footer_of, group_digest

TASK_BYTES = 16 << 20
"""What a thread reads in one go."""
THREADS = len(os.sched_getaffinity(0))
WAITING = 16
"""Threads that mostly wait, for a disk or an object store."""
REMEMBERED = 64
"""Footers; each takes some 3 kB a row group."""
AHEAD = 2
"""Tasks under way for each thread: bounds memory."""
_COLUMNS = 4
"""Of a part: point, line, start (or of a sparse J: columns), values."""
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Part:
    """A part that is there; `record` is what the manifest says of it, if there is one yet."""

    name: str
    box: Box
    record: PartRecord | None = None


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One for the process: new threads for every product would each keep memory of their own."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="jacjobs-read")


class Parts:
    """The parts of one run. Remembers their footers; safe to use from threads."""

    def __init__(self, folder: RunFolder, record: RunRecord, manifest: Manifest | None) -> None:
        """What the manifest lists, or without one what is there.

        Raises StoreError where parts overlap, or the manifest does not list all of J, or is another run's.
        """
        if manifest is not None and (manifest.run, manifest.shape) != (record.run, record.shape):
            raise StoreError(f"the manifest of {folder} is not that of its plan; restore it")
        self._place: Place = folder.place
        self._run = record.run
        self._shape = record.shape
        self._layout, self.stripe = record.layout, record.stripe
        self._lines, self._length = record.shape.lines(record.layout)
        self._footers: dict[str, Any] = {}
        if manifest is None:
            named: list[tuple[str, PartRecord | None]] = [(name, None) for name in folder.part_names()]
        else:
            named = [(part.name, part) for part in manifest.parts]
        self.all = sorted(
            (Part(name, self._box(name), record) for name, record in named), key=lambda part: part.box
        )
        self.missing = self._gaps()
        if manifest is not None and self.missing:
            raise StoreError(f"the manifest of {folder} lists no part with {self.missing[0]}; restore it")

    def each(self, wanted: Wanted, function: Callable[[Overlap, Any], _Result | None]) -> Iterator[_Result]:
        """Apply `function` to what is wanted of each box: its overlap, and the entries in common, an array of
        the overlap's extent.

        In threads, but the results come in the order of the records. None is left out.
        """
        tasks = (
            (part, groups)
            for part in self.all
            if wanted.overlap(part.box) is not None
            for groups in self._tasks(part, wanted)
        )

        def work(task: tuple[Part, list[tuple[int, int, int]]]) -> list[_Result]:
            part, groups = task
            results = []
            for box, values in self._boxes(part, groups):
                overlap = wanted.overlap(box)
                if overlap is None:
                    continue
                if (result := function(overlap, self._taken(values, box, overlap))) is not None:
                    results.append(result)
            return results

        pool = _pool(os.getpid())  # a forked process has none of its parent's threads
        waiting: deque[Any] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(work, task))
                if len(waiting) >= AHEAD * THREADS:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def read(self, wanted: Wanted, out: NDArray[Any]) -> None:
        """Put what is wanted into `out`, of shape `wanted.extent`.

        Raises StoreError where some of it is not there yet, or a part cannot be read.
        """
        self.require(wanted)

        def fill(overlap: Overlap, values: Any) -> None:
            out[overlap.there] = self._dense(values, overlap)

        for _ in self.each(wanted, fill):
            pass

    def require(self, wanted: Wanted) -> None:
        """Raises StoreError where some of what is wanted is not there yet."""
        if not self.missing:
            return
        lacking = [gap for gap in self.missing if wanted.overlap(gap.box(self._layout)) is not None]
        if lacking:
            asked = len(wanted.points) * len(wanted.lines)
            lines = "columns" if self._layout == "columns" else "rows"
            there = sum(o.lines for part in self.all if (o := wanted.overlap(part.box)) is not None)
            raise StoreError(
                f"{self._place} holds {there:,} of the {asked:,} {lines} asked for: the run is not "
                f"finished, and {lacking[0]} is among what is missing; `jacjobs resume {self._place}` "
                "finishes it"
            )

    def check(self, names: Collection[str]) -> None:
        """Read the footers of these. Raises StoreError for one that is no part of this run, or damaged."""
        known = {part.name for part in self.all}
        for name in names:
            if name not in known:
                raise StoreError(f"{self._place.at(name)} is no part of this run; remove it")

        def look(part: Part) -> None:
            with self.open(part):
                pass

        with ThreadPoolExecutor(WAITING) as pool:
            for _ in pool.map(look, [part for part in self.all if part.name in names]):
                pass

    # -- one part ------------------------------------------------------------------------------------------

    @contextmanager
    def open(self, part: Part, *, page_checksums: bool = False) -> Iterator[pq.ParquetFile]:
        """Its footer checked: of this run, of this rectangle, and as the manifest knows it.

        Digests of the entries say more than the pages' checksums, which are for other readers, and `verify`.
        """
        where = self._place.at(part.name)
        try:
            with self._place.open(part.name) as file:
                metadata = self._footers.get(part.name)
                if metadata is None:
                    metadata = self._footers[part.name] = self._footer(file, part, where)
                    while len(self._footers) > REMEMBERED:
                        self._footers.pop(next(iter(self._footers)), None)
                yield pq.ParquetFile(file, metadata=metadata, page_checksum_verification=page_checksums)
        except MemoryError as error:
            raise TooLargeError.about(
                where, got=reason(error), expected="enough memory", do="free some, or read less at a time"
            ) from error
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _unreadable(where, error) from error

    def _footer(self, file: pa.NativeFile, part: Part, where: str) -> Any:
        size, known = file.size(), part.record
        if known is not None and size != known.bytes:
            raise StoreError(
                f"{where} has {size:,} bytes, not the {known.bytes:,} that were written; {_MEND}"
            )
        begin = MAGIC if known is not None else file.read_at(len(MAGIC), 0)
        footer = footer_of(file, size)
        if begin != MAGIC or footer is None:
            raise StoreError(f"{where} is cut short, or no Parquet file; {_MEND}")
        if known is not None and xxhash.xxh3_128_hexdigest(footer) != known.footer:
            raise StoreError(f"{where} was changed since it was written (its footer); {_MEND}")
        if any(sign in footer for sign in _EXTENSION):
            raise StoreError(f"{where} has columns of an extension type, as no part of ours does; {_MEND}")
        metadata = pq.read_metadata(pa.BufferReader(MAGIC + footer))
        self._check(metadata, part, where)
        return metadata

    def _check(self, metadata: Any, part: Part, where: str) -> None:
        own = metadata.metadata or {}
        run = own.get(b"jacjobs.run", b"").decode(errors="replace")
        if run != self._run:
            raise StoreError(f"{where} is a part of run {_said(run)}, not of {self._run}; {_MEND}")
        rectangle = own.get(b"jacjobs.rectangle", b"").decode(errors="replace")
        if rectangle != ",".join(map(str, part.box.rectangle(self._layout))):
            raise StoreError(f"{where} holds the entries {_said(rectangle)}, not those of its name; {_MEND}")
        schema = part_schema(self._layout, self._length, self.stripe, self._shape.dtype)
        if not metadata.schema.to_arrow_schema().equals(schema):
            raise StoreError(f"{where} does not have the columns of this run's parts; {_MEND}")
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if not metadata.num_rows == sum(counts) == self.records(part.box) or min(counts) < 0:
            raise StoreError(f"{where} has {sum(counts):,} records, not those of its rectangle; {_MEND}")
        if len(own.get(GROUPS.encode(), b"")) != GROUP_DIGITS * metadata.num_row_groups:
            raise StoreError(f"{where} lacks digests of its row groups; {_MEND}")

    def records(self, box: Box) -> int:
        """How many records hold the lines of a box."""
        return box.points * box.lines * -(-box.width // (self.stripe or box.width))

    def _tasks(self, part: Part, wanted: Wanted) -> Iterator[list[tuple[int, int, int]]]:
        """Row groups with anything wanted, a few at a time: (number, first record, last record)."""
        with self.open(part) as file:
            metadata = file.metadata
        some: list[tuple[int, int, int]] = []
        nbytes, first = 0, 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            last = first + group.num_rows
            if any(wanted.overlap(box) is not None for box in boxes_of(part.box, self.stripe, first, last)):
                some.append((number, first, last))
                nbytes += group.total_byte_size
            if nbytes >= TASK_BYTES:
                yield some
                some, nbytes = [], 0
            first = last
        if some:
            yield some

    def _boxes(self, part: Part, groups: Sequence[tuple[int, int, int]]) -> Iterator[tuple[Box, Any]]:
        with self.open(part) as file:
            for group, first, last in groups:
                boxes = list(boxes_of(part.box, self.stripe, first, last))
                yield from zip(boxes, self._values(file, part, group, boxes), strict=True)

    def _values(self, file: pq.ParquetFile, part: Part, group: int, boxes: Sequence[Box]) -> Iterator[Any]:
        """The entries of a row group, box by box: those that were written, by their digest."""
        # Arrow's threads would not help: there is one column.
        table = file.read_row_group(group, columns=["values"], use_threads=False)
        (flat,) = lists_of(table)
        counts = [box.entries for box in boxes]
        if len(flat) != sum(counts) or group_digest(flat) != self.digest(file.metadata, group):
            raise self._others(part, group)
        for box, values in zip(boxes, np.split(flat, np.cumsum(counts)[:-1]), strict=True):
            yield values.reshape(box.extent)

    def _taken(self, values: Any, box: Box, overlap: Overlap) -> Any:
        """What of a box's values is in common."""
        return overlap.take(values)

    def _dense(self, values: Any, overlap: Overlap) -> NDArray[Any]:
        """What `_taken` gave, as an array of the overlap's extent."""
        array: NDArray[Any] = values
        return array

    def _others(self, part: Part, group: int) -> StoreError:
        where = self._place.at(part.name)
        return StoreError(f"{where} has other entries in row group {group} than were written; {_MEND}")

    def digest(self, metadata: Any, group: int) -> str:
        """What the footer says is the digest of a row group's entries."""
        start = group * GROUP_DIGITS
        digests: bytes = metadata.metadata[GROUPS.encode()]
        return digests[start : start + GROUP_DIGITS].decode(errors="replace")

    def misplaced(self, table: pa.Table, boxes: Sequence[Box]) -> list[str]:
        """The columns of a row group that are not as the boxes say which it holds."""
        columns = zip(*(record_indices(box, self.stripe) for box in boxes), strict=True)
        point, line, start, stop = (np.concatenate(column) for column in columns)
        lengths = table.column("values").combine_chunks().value_lengths()
        found = {name: table.column(name) for name in table.column_names[:3]} | {"length of values": lengths}
        return [
            name
            for (name, has), expected in zip(found.items(), (point, line, start, stop - start), strict=True)
            if not np.array_equal(has.to_numpy(), expected)
        ]

    # -- coverage ------------------------------------------------------------------------------------------

    def _box(self, name: str) -> Box:
        rectangle = part_rectangle(name)
        if rectangle is None:
            raise StoreError(f"the manifest lists {name!r:.200}, which is no part of this run; restore it")
        shape = self._shape
        whole = Rectangle(0, shape.points, 0, shape.rows, 0, shape.columns)
        box = rectangle.box(self._layout)
        if (
            part_name(rectangle) != name
            or not all(whole[i] <= rectangle[i] < rectangle[i + 1] <= whole[i + 1] for i in (0, 2, 4))
            or box.width != self._length
        ):
            raise StoreError(f"{self._place.at(name)} is no part of this run; remove it")
        return box

    def _gaps(self) -> list[Rectangle]:
        """What no part holds. Parts of the same points lie side by side; those of others do not overlap."""
        gaps: list[Box] = []
        whole = Box(0, self._shape.points, 0, self._lines, 0, self._length)
        point, line, span = 0, self._lines, (0, 0)
        for part in self.all:
            box = part.box
            if (box.point_start, box.point_stop) != span:
                if line < self._lines:
                    gaps.append(whole._replace(point_start=span[0], point_stop=span[1], line_start=line))
                if box.point_start > point:
                    gaps.append(whole._replace(point_start=point, point_stop=box.point_start))
                if box.point_start < point:
                    raise self._overlap(part)
                span, point, line = (box.point_start, box.point_stop), box.point_stop, 0
            if box.line_start < line:
                raise self._overlap(part)
            if box.line_start > line:
                gaps.append(box._replace(line_start=line, line_stop=box.line_start))
            line = box.line_stop
        if line < self._lines:
            gaps.append(whole._replace(point_start=span[0], point_stop=span[1], line_start=line))
        if point < whole.point_stop:
            gaps.append(whole._replace(point_start=point))
        return [gap.rectangle(self._layout) for gap in gaps]

    def _overlap(self, part: Part) -> StoreError:
        return StoreError(
            f"{self._place.at(part.name)} overlaps another part; remove the one that is not ours"
        )


def lists_of(table: pa.Table) -> list[NDArray[Any]]:
    """The elements of the lists of a row group, end to end: of each column of lists, in their order."""
    columns = [table.column(field.name) for field in table.schema if field.type.num_fields]
    # `flatten` minds a slice, `values` does not
    return [column.combine_chunks().flatten().to_numpy() for column in columns]


def pages_of(group: Any) -> tuple[int, int] | None:
    """Where the pages of a row group begin and end, None unless those of its columns lie end to end: a wrong
    offset in a footer may lead to another page, whose checksum is right.

    Only for a row group that was read with all its columns. Where Arrow cannot make sense of a column's
    metadata, reading raises, but asking pyarrow for them ends the process.
    """
    if group.num_columns != _COLUMNS:
        return None
    begin = end = group.column(0).data_page_offset
    for column in map(group.column, range(_COLUMNS)):
        if column.has_dictionary_page or column.data_page_offset != end:
            return None
        end += column.total_compressed_size
    return begin, end


def _in_base64(text: bytes) -> Iterator[bytes]:
    """How it may stand in a longer text, encoded: the digits that are its own, by where they begin."""
    for before in range(3):
        digits = base64.b64encode(bytes(before) + text)
        yield digits[-(-8 * before // 6) : 8 * (before + len(text)) // 6]


_EXTENSION = tuple(_in_base64(b"ARROW:extension"))
"""What the Arrow schema in a footer says of extension types. Whatever looks at a footer makes those that are
registered, by code of whoever did that, which may trust what the file says: Ray Data 2.50 to 2.54 unpickles.
"""
_MEND = "remove it, then `jacjobs resume` makes it again"


def _said(text: str) -> str:
    """What a part says of itself, as an error says it: a stranger's may say anything."""
    return repr(text)[1:-1][:100] or "(none)"


def _unreadable(where: str, error: BaseException) -> StoreError:
    if isinstance(error, FileNotFoundError):
        return StoreError(f"{where} is missing; `jacjobs resume` makes it again")
    return StoreError(f"{where} cannot be read: {reason(error)}; {_MEND}")
