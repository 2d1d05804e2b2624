"""Is a dataset what its run wrote? Digests, geometry, and every record; no code of the job is run."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from jacjobs.errors import StoreError
from jacjobs.store.commit import reading, reason
from jacjobs.store.folder import MANIFEST, PLAN, RunFolder
from jacjobs.store.parquet import MAGIC
from jacjobs.store.parts import Part, Parts, lists_of, pages_of
from jacjobs.store.schema import part_rectangle
from jacjobs.store.selection import boxes_of
from jacjobs.store.sparse_parts import parts_of
from jacjobs.store.writer import FOOTER_END, describe, group_digest


@dataclass(frozen=True)
class Fault:
    """What is wrong, and with which file of the run's folder."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass(frozen=True)
class Verdict:
    """What `verify` saw.

    faults:    what is wrong; nothing, if all is well.
    parts:     how many were read, `nbytes` of them.
    complete:  whether the run is; of one that is not, what is there was looked at.
    """

    faults: tuple[Fault, ...]
    parts: int
    nbytes: int
    complete: bool

    @property
    def sound(self) -> bool:
        return not self.faults


def verify_run(path: str) -> Verdict:
    """Read all of the dataset at `path`, and compare it with what its run said that it wrote.

    Raises InputError where there is no run.
    """
    folder = RunFolder(path)
    folder.require_run()
    faults: list[Fault] = []
    parts = None
    with reading(folder):
        complete = "manifest.json" in folder.place.files("_jacjobs")
    for name in [PLAN, MANIFEST] if complete else [PLAN]:
        faults += _json_faults(folder, name)
    nbytes = 0
    if not faults:
        try:
            parts = parts_of(folder, folder.record(), folder.manifest())
        except StoreError as error:
            faults.append(Fault(_file_of(error, folder), str(error)))
    if parts is not None:
        with reading(folder):
            sizes = folder.place.files()
        faults += _strangers(sizes, {part.name for part in parts.all})
        for part in parts.all:
            found, size = _part_faults(folder, parts, part, sizes.get(part.name))
            faults += found
            nbytes += size
    return Verdict(tuple(faults), 0 if parts is None else len(parts.all), nbytes, complete)


def _json_faults(folder: RunFolder, name: str) -> Iterator[Fault]:
    """The file says its own digest, which covers its values; how they are laid out is compared too."""
    try:
        _ = folder.record() if name == PLAN else folder.manifest()
        with reading(folder.place.at(name)):
            raw = folder.place.read(name)
    except StoreError as error:
        yield Fault(name, str(error))
        return
    if (json.dumps(json.loads(raw), indent=2) + "\n").encode() != raw:
        yield Fault(name, "was changed since it was written (its layout); restore it")


def _strangers(names: Collection[str], known: set[str]) -> Iterator[Fault]:
    """Files that other readers would take for parts."""
    for name in sorted(names):
        if name not in known and (part_rectangle(name) or name.endswith(".parquet")):
            yield Fault(name, "is no part of this run; remove it")


def _part_faults(folder: RunFolder, parts: Parts, part: Part, nbytes: int | None) -> tuple[list[Fault], int]:
    """What is wrong with a part of so many bytes, and how many were read: its digest, or where nobody knows
    that, and where it is right, its records.
    """
    if nbytes is not None and part.record is not None and nbytes != part.record.bytes:
        return [Fault(part.name, _difference(nbytes, part.record.bytes))], 0
    try:
        with reading(folder.place.at(part.name)):
            found = describe(folder.place, part.name)
        if part.record is not None and found != part.record:
            return [Fault(part.name, _difference(found.bytes, part.record.bytes))], found.bytes
        with parts.open(part, page_checksums=True) as file:
            return [
                Fault(part.name, what) for what in _record_faults(parts, part, file, found.bytes)
            ], found.bytes
    except StoreError as error:
        return [Fault(part.name, str(error))], 0


def _difference(nbytes: int, expected: int) -> str:
    if nbytes != expected:
        return (
            f"has {nbytes:,} bytes, not the {expected:,} that were written; remove it, then `jacjobs resume`"
        )
    return "was changed since it was written (its digest differs); remove it, then `jacjobs resume`"


def _record_faults(parts: Parts, part: Part, file: pq.ParquetFile, nbytes: int) -> Iterator[str]:
    """Every record once, in order, each with the entries that its place says; and nothing between them."""
    first, end = 0, len(MAGIC)
    for number in range(file.metadata.num_row_groups):
        try:
            table = file.read_row_group(number, use_threads=False)
        except (OSError, ValueError, pa.ArrowException) as error:
            yield f"row group {number} cannot be read: {reason(error)}; remove it, then `jacjobs resume`"
            return
        last = first + file.metadata.row_group(number).num_rows
        if table.num_rows != last - first:
            yield f"row group {number} has {table.num_rows:,} records, not {last - first:,}; remove it"
            return
        boxes = list(boxes_of(part.box, parts.stripe, first, last))
        if group_digest(*lists_of(table)) != parts.digest(file.metadata, number):
            yield f"row group {number} has other entries than were written; remove it, then `jacjobs resume`"
        for column in parts.misplaced(table, boxes):
            yield f"row group {number} has other records than its place says ({column}); remove it"
        pages = pages_of(file.metadata.row_group(number))
        if pages is None or pages[0] != end:
            yield f"row group {number} does not lie where the footer says; remove it, then `jacjobs resume`"
            return
        first, end = last, pages[1]
    if end + file.metadata.serialized_size + FOOTER_END != nbytes:
        yield "has more in it than its footer says; remove it, then `jacjobs resume`"


def _file_of(error: StoreError, folder: RunFolder) -> str:
    """The file that an error names first, relative to the run's folder."""
    said = str(error).removeprefix(folder.place.at("")).split()[0]
    return said if part_rectangle(said) else MANIFEST
