"""A thousand damaged datasets: each is noticed, and none gives a wrong number.

Nine small datasets are damaged in all the ways that storage, transfers and hands damage files. `verify` must
name the file; a reader must get the right numbers or an error, whatever is wrong, and the process must live.

What cannot be noticed: of a run without a manifest nobody knows the digests. A bit there that changes nothing
for our reader (in a statistic, in the name of the writer, in what a page header says twice) is not found. Nor
is a part that is gone: it counts as not written yet.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
from scipy.sparse import issparse

import jacjobs
from jacjobs.errors import InputError, StoreError
from jacjobs.shape import JacobianShape, Rectangle, segments_of
from jacjobs.store import parquet, parts
from jacjobs.store.folder import MANIFEST, PLAN
from jacjobs.store.schema import part_name, part_rectangle
from tests.store.datasets import Form, write_dataset

Files = dict[str, bytes]
DIGESTS = ("digest", "footer")


@dataclass
class Base:
    """A dataset, and another run of the same shape and form.

    nowhere:  the name of a part that is not there, if there is such a part.
    """

    name: str
    path: Path
    J: np.ndarray
    files: Files
    foreign: Files
    complete: bool = True
    nowhere: str | None = None

    @property
    def parts(self) -> list[str]:
        return sorted(name for name in self.files if part_rectangle(name))

    def put(self, files: Files) -> None:
        """Make the folder hold these files."""
        there = files_of(self.path)
        for name in there.keys() - files.keys():
            (self.path / name).unlink()
        for name, content in files.items():
            if there.get(name) != content:
                (self.path / name).write_bytes(content)


def files_of(folder: Path) -> Files:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


FORMS = {
    "float32": ("float32", (3, 8, 6), Form(part_lines=4)),
    "zstd": ("float16", (5, 6, 40), Form(layout="columns", compression="zstd", part_points=2)),
    "lz4": ("float64", (2, 9, 31), Form(compression="lz4", part_lines=3, group_records=2)),
    # Arrow ends a page at the earliest after 1,024 entries: row groups of three pages.
    "pages": ("float16", (1, 8, 640), Form(part_lines=4, group_records=4)),
    "stripes": ("float32", (2, 7, 8), Form(layout="columns", stripe=3, part_lines=4, group_records=5)),
    "unfinished": ("float32", (2, 8, 12), Form(compression="zstd", part_lines=4)),
    "unfinished stripes": ("float64", (2, 8, 7), Form(stripe=3, part_lines=4, group_records=5)),
    "sparse": ("float64", (3, 8, 9), Form(layout="sparse")),
    "sparse zstd": ("float32", (4, 9, 40), Form(layout="sparse", compression="zstd", part_points=2)),
    "unfinished sparse": ("float32", (2, 8, 12), Form(layout="sparse")),
    "half": ("float16", (3, 6, 6), Form(layout="columns", compression="lz4", part_lines=3, group_records=2)),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Base]:
    root = tmp_path_factory.mktemp("with a space")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "PAGE_BYTES", 256)
        made = [written(root, name) for name in FORMS]
    return [*made, submitted(root)]


def written(root: Path, name: str) -> Base:
    dtype, extent, form = FORMS[name]
    points, rows, columns = extent
    shape = JacobianShape(
        points=points,
        rows=rows,
        columns=columns,
        dtype=dtype,
        outputs=segments_of([("y", (rows,))]),
        inputs=segments_of([("a", (columns // 2,)), ("b", (columns - columns // 2,))]),
    )
    complete = not name.startswith("unfinished") and name != "half"
    without = 1 if name == "half" else None
    chance = np.random.default_rng(len(name))
    J, other = (chance.standard_normal(extent).astype(dtype) for _ in range(2))
    if form.layout == "sparse":
        J, other = (np.where(chance.random(extent) < 0.4, entries, 0) for entries in (J, other))
    for folder, run, entries in ((root / name, "0123", J), (root / f"another {name}", "4567", other)):
        write_dataset(folder, shape, entries, form, run=run, without=without, finished=complete)
    base = Base(name, root / name, J, files_of(root / name), files_of(root / f"another {name}"), complete)
    if without is not None:
        base.nowhere = part_name(jacjobs.open(base.path).missing[0])
    return base


def submitted(root: Path) -> Base:
    """What a job leaves: one part."""
    path, other = root / "job", root / "another job"
    for folder, seed in ((path, 1), (other, 2)):
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
        problem = jacjobs.Problem(lambda x: torch.sin(x) * x.sum(), (x,), in_dims=0)
        jacjobs.submit(problem, folder, address="inline", strategy="vjp/vmap", chunk=4).wait()
    return Base("job", path, jacjobs.open(path).to_numpy(), files_of(path), files_of(other))


# -- damage --------------------------------------------------------------------------------------------------


class Damage(NamedTuple):
    """The files of a damaged dataset, those that `verify` must name (or any, if there are none), and what was
    done, for messages.
    """

    files: Files
    named: set[str]
    what: str


def flipped(chance: np.random.Generator, base: Base) -> Damage:
    """One bit anywhere in a part, or a few."""
    name = chance.choice(base.parts)
    raw = np.frombuffer(base.files[name], np.uint8).copy()
    bits = chance.choice(raw.size * 8, chance.choice([1, 1, 1, 2, 5]), replace=False)
    np.bitwise_xor.at(raw, bits // 8, (1 << bits % 8).astype(np.uint8))
    return changed(base, name, raw.tobytes(), f"bits {bits}")


def flipped_at_the_edges(chance: np.random.Generator, base: Base) -> Damage:
    """A bit in the magic bytes, in the first page header, or in the length of the footer."""
    name = chance.choice(base.parts)
    raw = bytearray(base.files[name])
    at = int(chance.choice([*range(32), *range(-8, 0)]))
    raw[at] ^= 1 << int(chance.integers(8))
    return changed(base, name, bytes(raw), f"a bit of byte {at}")


def overwritten(chance: np.random.Generator, base: Base) -> Damage:
    """A stretch of zeros or of noise."""
    name = chance.choice(base.parts)
    raw = base.files[name]
    size = int(chance.integers(1, 200))
    at = int(chance.integers(len(raw)))
    stretch = bytes(size) if chance.random() < 0.5 else chance.bytes(size)
    return changed(base, name, (raw[:at] + stretch + raw[at + size :])[: len(raw)], f"{size} bytes at {at}")


def cut(chance: np.random.Generator, base: Base) -> Damage:
    name = chance.choice(base.parts)
    raw = base.files[name]
    keep = int(chance.choice([0, 1, 7, 8, 11, len(raw) - 1, len(raw) - 8, chance.integers(len(raw))]))
    return changed(base, name, raw[:keep], f"cut to {keep}")


def longer(chance: np.random.Generator, base: Base) -> Damage:
    """Bytes after the end, or before it: noise, zeros, the file once more, its footer once more."""
    name = chance.choice(base.parts)
    raw = base.files[name]
    footer = raw[-8 - int.from_bytes(raw[-8:-4], "little") :]
    more = [chance.bytes(int(chance.integers(1, 100))), bytes(512), raw, footer, b"PAR1"]
    which = int(chance.integers(len(more)))
    content = more[which] + raw if chance.random() < 0.2 else raw + more[which]
    return changed(base, name, content, f"longer by {which}")


def exchanged(chance: np.random.Generator, base: Base) -> Damage:
    """Two parts under each other's names."""
    one, other = chance.choice(base.parts, 2, replace=False)
    files = base.files | {one: base.files[other], other: base.files[one]}
    return Damage(files, {one, other}, f"{one} <-> {other}")


def copied(chance: np.random.Generator, base: Base) -> Damage:
    """A part once more: where another belongs, overlapping, outside J, or under a name that is no part's."""
    name = chance.choice(base.parts)
    r = part_rectangle(name)
    assert r is not None
    names = [
        "x.parquet",
        "part-0.parquet",
        name.replace("part-p", "part-p0"),
        part_name(r._replace(point_stop=r.point_stop + 1)),
        part_name(Rectangle(*(number + 100 for number in r))),
        part_name(r._replace(row_start=r.row_start + 1)),
    ]
    new = chance.choice([n for n in [*names, base.nowhere] if n is not None and n not in base.files])
    # Of two parts that overlap, nobody can say which one is ours without a manifest.
    named = {new} if base.complete else set()
    return Damage(base.files | {new: base.files[name]}, named, f"{name} -> {new}")


def deleted(chance: np.random.Generator, base: Base) -> Damage:
    name = chance.choice(base.parts)
    return Damage({n: c for n, c in base.files.items() if n != name}, {name}, f"without {name}")


def foreign(chance: np.random.Generator, base: Base) -> Damage:
    """A part of another run of the same shape, under the name of ours."""
    name = chance.choice(base.parts)
    return changed(base, name, base.foreign[name], "of another run")


def json_flipped(chance: np.random.Generator, base: Base) -> Damage:
    name = chance.choice([PLAN, MANIFEST] if base.complete else [PLAN])
    raw = bytearray(base.files[name])
    bit = int(chance.integers(len(raw) * 8))
    raw[bit // 8] ^= 1 << bit % 8
    return changed(base, name, bytes(raw), f"bit {bit}")


def json_edited(chance: np.random.Generator, base: Base) -> Damage:
    """An edit that leaves good JSON: nobody thought of the digest. Or the other run's file; or half of it."""
    name = chance.choice([PLAN, MANIFEST] if base.complete else [PLAN])
    content = json.loads(base.files[name])
    how = int(chance.integers(7 if name == MANIFEST else 6))
    if how == 0:
        key = chance.choice(["points", "rows", "columns"])
        content["shape"][key] += int(chance.integers(1, 3))
    elif how == 1:
        del content[chance.choice(sorted(content))]
    elif how == 2:
        content["shape"]["inputs"][0]["name"] = "renamed"
    elif how == 3:
        content["format"] = chance.choice([0, 2, 99]).item()
    elif how == 4:
        half = base.files[name][: int(chance.integers(len(base.files[name])))]
        return changed(base, name, half, f"cut to {len(half)}")
    elif how == 5:
        return changed(base, name, b"[]\n" if chance.random() < 0.5 else b"", "emptied")
    else:
        one, other = chance.permutation([(i, key) for i in range(len(content["parts"])) for key in DIGESTS])[
            :2
        ]
        parts = content["parts"]
        (i, a), (j, b) = (int(one[0]), one[1]), (int(other[0]), other[1])
        parts[i][a], parts[j][b] = parts[j][b], parts[i][a]
    return changed(base, name, json_bytes(content), f"edit {how}")


def forged(chance: np.random.Generator, base: Base) -> Damage:
    """An edit whose author thought of the digest: the manifest knows the plan and the parts all the same."""
    if chance.random() < 0.5:
        name, content = PLAN, json.loads(base.files[PLAN])
        content["shape"]["inputs"][0]["name"] = "renamed"
        damage = changed(base, PLAN, json_bytes(signed(content)), "forged plan")
        return damage._replace(named={MANIFEST})  # which says so
    content = json.loads(base.files[MANIFEST])
    part = content["parts"][int(chance.integers(len(content["parts"])))]
    key = chance.choice(["digest", "footer", "bytes", "name"])
    name = part["name"]
    if key == "name":
        part["name"] = name = name.replace("part-p", "part-p0")
    else:
        part[key] = part["bytes"] + 1 if key == "bytes" else "0" * 32
    return changed(base, MANIFEST, json_bytes(signed(content)), f"forged {key}")._replace(named={name})


def changed(base: Base, name: str, content: bytes, what: str) -> Damage:
    return Damage(base.files | {name: content}, {name}, f"{name}: {what}")


def json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def signed(content: dict[str, Any]) -> dict[str, Any]:
    del content["digest"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return {**content, "digest": xxhash.xxh3_128_hexdigest(text.encode())}


Kind = Callable[[np.random.Generator, Base], Damage]
KINDS: dict[Kind, int] = {
    flipped: 350,
    flipped_at_the_edges: 70,
    overwritten: 80,
    cut: 80,
    longer: 60,
    exchanged: 50,
    copied: 70,
    deleted: 40,
    foreign: 50,
    json_flipped: 60,
    json_edited: 60,
    forged: 30,
}


def fits(kind: Kind, base: Base) -> bool:
    return {exchanged: len(base.parts) > 1, forged: base.complete}.get(kind, True)


def corruptions(kind: Kind, bases: list[Base]) -> Iterator[tuple[Base, Damage, np.random.Generator]]:
    """All of a kind, the bases in turn; the same in every run of the tests. Restores the bases."""
    fit = [base for base in bases if fits(kind, base)]
    for number in range(KINDS[kind]):
        chance = np.random.default_rng([list(KINDS).index(kind), number])
        base = fit[number % len(fit)]
        damage = kind(chance, base)
        while damage.files == base.files:  # zeros over zeros
            damage = kind(chance, base)
        base.put(damage.files)
        yield base, damage, chance
        base.put(base.files)


# -- what is said of it --------------------------------------------------------------------------------------


def named_by_verify(path: Path) -> set[str]:
    """The files that `verify` finds fault with."""
    try:
        return {fault.file for fault in jacjobs.verify(path).faults}
    except InputError as error:  # it is no run at all
        return {PLAN} if PLAN in str(error) else set()


def reads_right(base: Base, chance: np.random.Generator) -> bool:
    """Whether all that the run has written, and a slice of it, can be read.

    What is read must be right, and an error a sentence.
    """
    areas = [np.index_exp[:, :, :]] if base.nowhere is None else [area_of(name) for name in base.parts]
    wanted = areas[chance.integers(len(areas))]
    some = tuple(some_of(range(size)[axis], chance) for axis, size in zip(wanted, base.J.shape, strict=True))
    right = True
    for index in (*areas, some):
        try:
            dataset = jacjobs.open(base.path)
            got = dataset.to_numpy() if index == np.index_exp[:, :, :] else densely(dataset[index])
        except (StoreError, InputError) as error:
            right = False
            check_sentence(str(error))
        else:
            np.testing.assert_array_equal(got, base.J[index], strict=True)
    return right


def densely(got: Any) -> Any:
    """As an array, what a sparse dataset gives: a matrix, or a list of them; a part of one or an entry."""
    if isinstance(got, list):
        return np.stack([densely(each) for each in got]) if got else np.empty((0, 0, 0))
    return got.toarray() if issparse(got) else got


def area_of(name: str) -> tuple[slice, ...]:
    r = part_rectangle(name)
    assert r is not None
    return r.slices


def some_of(axis: range, chance: np.random.Generator) -> int | slice:
    start, stop = axis.start + np.sort(chance.choice(len(axis) + 1, 2, replace=False))
    return int(start) if chance.random() < 0.3 else slice(int(start), int(stop), int(chance.integers(1, 3)))


def check_sentence(message: str) -> None:
    assert message.strip()
    assert "\n" not in message, message


class Outcome(NamedTuple):
    found: bool
    right: bool


def outcome(base: Base, damage: Damage, chance: np.random.Generator) -> Outcome:
    found = named_by_verify(base.path)
    return Outcome(damage.named <= found if damage.named else bool(found), reads_right(base, chance))


def test_the_datasets_are_sound_before_they_are_damaged(bases: list[Base]) -> None:
    assert len(bases) == 12
    assert sum(KINDS.values()) == 1000
    for base in bases:
        verdict = jacjobs.verify(base.path)
        assert (verdict.sound, verdict.complete, verdict.parts) == (True, base.complete, len(base.parts))
        assert reads_right(base, np.random.default_rng(0))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_damage_is_found_and_gives_no_wrong_number(kind: Kind, bases: list[Base]) -> None:
    seen: Counter[tuple[bool, Outcome]] = Counter()
    for base, damage, chance in corruptions(kind, bases):
        try:
            how = outcome(base, damage, chance)
        except BaseException as error:
            error.add_note(f"{base.name}, {damage.what}")
            raise
        # Where there is no manifest, what changes nothing may stay unfound, and so does what is gone.
        excused = not base.complete and (how.right or kind is deleted)
        assert how.found or excused, f"{base.name}, {damage.what}: not found, {how}"
        seen[base.complete, how] += 1
    assert seen.total() == KINDS[kind]
    assert any(how.found for _, how in seen)


# -- what would be read without the checks -------------------------------------------------------------------


def test_without_digests_of_row_groups_the_same_bits_give_wrong_numbers(
    bases: list[Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is the digests that notice, and the tests would."""
    monkeypatch.setattr(parts, "group_digest", lambda *entries: "")
    monkeypatch.setattr(parts.Parts, "digest", lambda self, metadata, group: "")
    wrong = 0
    for base, _, chance in corruptions(flipped, bases):
        try:
            reads_right(base, chance)
        except AssertionError:
            wrong += 1
    assert wrong > 20


@pytest.mark.parametrize(("kind", "least"), [(flipped, 20), (foreign, 20)], ids=["flipped", "foreign"])
def test_a_reader_that_checks_nothing_reads_wrong_numbers(kind: Kind, least: int, bases: list[Base]) -> None:
    wrong = 0
    for base, damage, _ in corruptions(kind, bases):
        # Over a damaged footer, Arrow may end the process.
        dense = "sparse" not in base.name
        if dense and base.complete and (kind is foreign or footers(damage.files) == footers(base.files)):
            J = naively_read(base)
            wrong += J is not None and not np.array_equal(J, base.J)
    assert wrong > least


def footers(files: Files) -> list[bytes]:
    parts = [files[name] for name in sorted(files) if part_rectangle(name)]
    return [raw[-8 - int.from_bytes(raw[-8:-4], "little") :] for raw in parts]


def naively_read(base: Base) -> np.ndarray | None:
    """As docs/format.md does in twenty lines, and with no checksum. None if that fails."""
    J = np.zeros_like(base.J)
    lines = J if json.loads(base.files[PLAN])["layout"] == "rows" else J.transpose(0, 2, 1)
    try:
        for name in base.parts:
            with pq.ParquetFile(base.path / name, page_checksum_verification=False) as part:
                records = part.read(use_threads=False).to_pydict().values()
            for point, line, start, values in zip(*records, strict=True):
                lines[point, line, start : start + len(values)] = values
    except (OSError, ValueError, IndexError, TypeError, pa.ArrowException):
        return None
    return J


@pytest.mark.parametrize("complete", [True, False])
def test_what_the_checksum_of_a_page_does_not_cover_is_noticed(complete: bool, bases: list[Base]) -> None:
    """Neither its header (PLAIN read as BYTE_STREAM_SPLIT) nor its place (two pages exchanged)."""
    base = next(base for base in bases if base.name == "float32")
    name = base.parts[0]
    groups = pq.read_metadata(base.path / name)
    first, second = (groups.row_group(i).column(3) for i in (0, 1))
    encoding, exchanged = bytearray(base.files[name]), bytearray(base.files[name])
    header = encoding.index(bytes([0x15, 0, 0x15, 6, 0x15, 6, 0]), first.data_page_offset)
    encoding[header + 1] = 0x12  # Thrift's form of 9
    a, b = (slice(c.data_page_offset, c.data_page_offset + c.total_compressed_size) for c in (first, second))
    if a.stop - a.start == b.stop - b.start:
        exchanged[a], exchanged[b] = exchanged[b], exchanged[a]
    files = base.files if complete else {k: v for k, v in base.files.items() if k != MANIFEST}
    for damaged in (encoding, exchanged):
        if damaged == base.files[name]:
            continue
        base.put(files | {name: bytes(damaged)})
        assert named_by_verify(base.path) == {name}
        with pytest.raises(StoreError, match="has other entries in row group 0 than were written"):
            jacjobs.open(base.path).to_numpy()
    base.put(base.files)


# -- a run without a manifest --------------------------------------------------------------------------------


def test_no_bit_of_a_footer_that_nobody_knows_gives_a_wrong_number_or_ends_the_process(
    bases: list[Base],
) -> None:
    """Every 37th bit of a footer, so all places of a bit in a byte."""
    base = next(base for base in bases if base.name == "unfinished")
    name, chance = base.parts[1], np.random.default_rng(0)
    raw = base.files[name]
    seen: Counter[Outcome] = Counter()
    for bit in range(8 * (len(raw) - len(footers({name: raw})[0])), 8 * len(raw), 37):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        (base.path / name).write_bytes(damaged)
        how = Outcome(name in named_by_verify(base.path), reads_right(base, chance))
        assert how.found or how.right, bit
        seen[how] += 1
    base.put(base.files)
    assert seen[Outcome(found=True, right=False)] > seen[Outcome(found=False, right=True)] > 0


def test_a_run_whose_manifest_is_gone_counts_as_not_finished(bases: list[Base]) -> None:
    for base in bases:
        if base.complete:
            base.put({name: content for name, content in base.files.items() if name != MANIFEST})
            verdict = jacjobs.verify(base.path)
            assert verdict.sound
            assert not verdict.complete
            assert reads_right(base, np.random.default_rng(0))
            base.put(base.files)


def test_a_run_whose_plan_is_gone_is_no_run(bases: list[Base]) -> None:
    for base in bases:
        base.put({name: content for name, content in base.files.items() if name != PLAN})
        assert named_by_verify(base.path) == {PLAN}
        assert not reads_right(base, np.random.default_rng(0))
        base.put(base.files)
