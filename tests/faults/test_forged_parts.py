"""Forged parts and names of parts: refused in a sentence, and nothing outside the dataset is read."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jacjobs
from jacjobs.errors import InputError, StoreError
from jacjobs.store.folder import MANIFEST, PLAN, RunFolder
from jacjobs.store.parts import Parts
from jacjobs.store.place import place_of
from jacjobs.store.schema import part_name, part_rectangle
from jacjobs.store.writer import PartFormat, SparsePartWriter, describe, group_digest
from tests.faults.forging import (
    ENTRIES,
    JSON,
    READS,
    SHAPE,
    Payload,
    bounded,
    forge,
    list_parts_again,
    refusals,
    said_by,
    small_run,
)
from tests.store.datasets import Form


def test_what_nobody_forged_reads_and_is_sound_signed_again_too(tmp_path: Path) -> None:
    forms = (Form(), Form(layout="columns", stripe=3, compression="zstd"), Form(layout="sparse"))
    for number, form in enumerate(forms):
        path = small_run(tmp_path / str(number), form)
        assert refusals(path) == {}
        forge(path, lambda plan, manifest: None)
        assert refusals(path) == {}
        np.testing.assert_array_equal(jacjobs.open(path).to_numpy(), ENTRIES)


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ([6, 1, 2], 3),
        ([-1, 1, 2], 3),
        ([2**31 - 1, 3, 4], 3),
        ([2, 1, 0], 3),
        ([1, 1, 2], 3),
        ([0, 1, 2], 2),
        ([0, 1, 2], 4),
    ],
)
def test_columns_that_no_row_has_lead_nobody_out_of_his_arrays(
    columns: list[int], values: int, tmp_path: Path
) -> None:
    """Of a sparse J: SciPy takes them as they are."""
    path = small_run(tmp_path / "run", Form(layout="sparse"))
    folder = RunFolder(path)
    names = folder.part_names()
    how = PartFormat(shape=SHAPE, layout="sparse", group_records=3, metadata={"run": "0123", "format": "1"})
    part = part_rectangle(names[0])
    assert part is not None
    out = SparsePartWriter(folder.place, part, how, 1)
    lengths = np.array([3, 0, 3, 3])
    where = np.concatenate([[0, 1, 2], columns, [3, 4, 5]]).astype(np.int32)
    entries = np.ones(6 + values, np.float32)
    if values == 3:
        out._add((np.zeros(4, np.int64), np.arange(4)), lengths, where, entries)
        made = out.commit()
    else:
        out.discard()
        (path / names[0]).write_bytes(unequal(lengths, where, entries, values, how, path / names[0]))
        made = describe(folder.place, names[0])

    def change(plan: JSON, manifest: JSON) -> None:
        manifest["parts"][0] = made.model_dump(mode="json")

    forge(path, change)
    said = refusals(path)
    assert said
    assert {name for name in READS if name != "dataset"} >= set(said) - {"dataset"}
    for name in ("to_numpy", "matmul", "point"):
        assert "has other entries in row group" in said[name]


def unequal(
    lengths: np.ndarray, where: np.ndarray, entries: np.ndarray, values: int, how: PartFormat, path: Path
) -> bytes:
    """A part whose third record has more or fewer values than columns, by pyarrow."""
    old = pq.ParquetFile(path)
    others = np.array([3, 0, values, 3])
    lists = [
        pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(each)]), pa.int32()), pa.array(flat))
        for each, flat in ((lengths, where), (others, entries))
    ]
    schema = old.schema_arrow
    table = pa.table(
        [
            pa.array(np.zeros(4, np.int64)),
            pa.array(np.arange(4)),
            *(li.cast(f.type) for li, f in zip(lists, list(schema)[2:], strict=True)),
        ],
        schema=schema,
    )
    groups = ""
    for first in (0, 3):
        some = table.slice(first, 3)
        flats = [some[name].combine_chunks().flatten().to_numpy() for name in ("columns", "values")]
        groups += group_digest(*flats)
    metadata = {**old.metadata.metadata, b"jacjobs.groups": groups.encode()}
    metadata.pop(b"ARROW:schema")
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, row_group_size=3, use_dictionary=False)
    return bytes(sink.getvalue())


# -- pickles -------------------------------------------------------------------------------------------------


def test_an_array_of_pickles_is_no_part(tmp_path: Path) -> None:
    """np.load with allow_pickle would execute it; here it is one more file that is no Parquet."""
    path, marker = small_run(tmp_path / "run"), tmp_path / "executed"
    name = RunFolder(path).part_names()[0]
    with (path / name).open("wb") as file:
        np.save(file, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    said = refusals(path)
    assert "part-" in said["to_numpy"]
    assert not marker.exists()
    np.load(path / name, allow_pickle=True)
    assert marker.exists()


# -- Arrow's extension types ---------------------------------------------------------------------------------


class Unpickling(pa.ExtensionType):
    """As Ray Data 2.50 to 2.54 registered them: what the file says is unpickled as soon as it is read."""

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, "tests.unpickling")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Unpickling:
        pickle.loads(serialized)
        return cls(storage_type)


@pytest.fixture
def unpickling() -> Iterator[None]:
    pa.register_extension_type(Unpickling(pa.int32()))
    yield
    pa.unregister_extension_type("tests.unpickling")


def with_extension(part: Path, column: str, extension: str, payload: bytes) -> None:
    """The part as it was, but for what the stored Arrow schema says of one column."""
    with pq.ParquetFile(part) as file:
        table, own = file.read(), file.metadata.metadata
    kept = {key: value for key, value in own.items() if key.startswith(b"jacjobs.")}
    mark = {"ARROW:extension:name": extension, "ARROW:extension:metadata": payload}
    fields = [field.with_metadata(mark) if field.name == column else field for field in table.schema]
    marked = pa.table(table.columns, schema=pa.schema(fields, metadata=kept))
    pq.write_table(marked, part, row_group_size=3, use_dictionary=False, compression="none")


@pytest.mark.parametrize("column", ["values", "point"])
@pytest.mark.parametrize("extension", ["tests.unpickling", "arrow.py_extension_type"])
def test_a_part_whose_schema_holds_a_pickle_is_refused_before_arrow_reads_it(
    extension: str, column: str, tmp_path: Path, unpickling: None
) -> None:
    path, marker = small_run(tmp_path / "run"), tmp_path / "executed"
    name = RunFolder(path).part_names()[0]
    with_extension(path / name, column, extension, pickle.dumps(Payload(marker)))
    list_parts_again(path)
    said = refusals(path)
    assert {"to_numpy", "point", "matmul", "rmatmul", "gram", "summary", "dataset"} <= set(said)
    assert all("has columns of an extension type" in sentence for sentence in said.values())
    assert not marker.exists()
    if extension == "tests.unpickling":
        pq.read_schema(path / name)  # a reader that looks at the schema first
        assert marker.exists()


# -- a manifest leads nowhere else ---------------------------------------------------------------------------


def evil_names(outside: Path) -> dict[str, str]:
    good = part_name(
        part_rectangle("part-p000000000-000000001-r000000000-000000004-c000000000-000000006.parquet")
    )  # type: ignore[arg-type]
    return {
        "parent": f"../{outside.name}",
        "parents": f"x/../../{outside.name}/{good}",
        "absolute": str(outside / good),
        "dotted": f"./{good}",
        "below": f"_jacjobs/{good}",
        "nul": f"{good}\0",
        "nul before": f"\0{good}",
        "newline": f"{good}\n",
        "uri": f"file://{outside}/{good}",
        "empty": "",
        "dot": ".",
        "blank": " ",
        "long": "x" * 5000,
        "long number": "part-p" + "9" * 5000 + good[15:],
        "other digits": good.replace("0", "٠"),
        "surrogate": "\ud800",
        "escape": "\x1b[2J" + good,
    }


@pytest.mark.parametrize("kind", evil_names(Path("x")))
def test_a_name_in_a_manifest_that_is_no_parts_name_is_never_opened(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside lies a copy of the part, which a reader that follows names would read."""
    path = small_run(tmp_path / "run")
    outside = tmp_path / "outside"
    outside.mkdir()
    name = RunFolder(path).part_names()[0]
    (path / name).rename(outside / name)
    evil = evil_names(outside)[kind]
    forge(path, lambda plan, manifest: manifest["parts"][0].update(name=evil))
    opened: list[str] = []
    place = type(RunFolder(path).place)
    monkeypatch.setattr(place, "open", lambda self, name: opened.append(name))
    assert "is no part of this run" in refusals(path)["open"]
    folder = RunFolder(path)
    with pytest.raises(StoreError, match="is no part of this run"):  # what resume begins with
        Parts(folder, folder.record(), folder.manifest())
    assert opened == []


def test_a_part_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    path = small_run(tmp_path / "run")
    forge(path, lambda plan, manifest: manifest["parts"].append(manifest["parts"][0]))
    assert "overlaps another part" in refusals(path)["open"]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://me:secret@bucket/run",
        "s3://me@bucket/run",
        "s3://bucket/run?secret_key=abc",
        "abfss://container@account.dfs.core.windows.net/run?client_secret=abc",
        "gs://bucket/run?access_token=abc",
    ],
)
def test_credentials_in_a_uri_are_refused_since_it_is_kept_in_the_dataset(uri: str) -> None:
    with pytest.raises(InputError, match="credentials") as caught:
        place_of(uri)
    assert "abc" not in str(caught.value)
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "s3://[", "s3://\0", "nowhere://x", "s3://b/\ud800"])
def test_a_path_that_no_file_system_holds_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="expected a path, or a URI"):
        jacjobs.open(path)


# -- what lies under a part's name ---------------------------------------------------------------------------


def as_fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def as_folder(path: Path, outside: Path) -> None:
    path.mkdir()


def as_device(path: Path, outside: Path) -> None:
    path.symlink_to("/dev/zero")


def as_terminal(path: Path, outside: Path) -> None:
    path.symlink_to("/dev/stdin")


def as_link_to_text(path: Path, outside: Path) -> None:
    outside.write_text("the secret of somebody else\n" * 100)
    path.symlink_to(outside)


def as_hard_link(path: Path, outside: Path) -> None:
    outside.write_bytes(b"PAR1" + b"the secret of somebody else" + b"PAR1")
    os.link(outside, path)


def as_loop(path: Path, outside: Path) -> None:
    path.symlink_to(path)


def as_link_to_nothing(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def as_sparse_file(path: Path, outside: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


KINDS = [
    as_fifo,
    as_folder,
    as_device,
    as_terminal,
    as_link_to_text,
    as_hard_link,
    as_loop,
    as_link_to_nothing,
    as_sparse_file,
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("finished", [True, False], ids=["complete", "unfinished"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_no_regular_file_ends_with_a_sentence_and_not_with_a_wait(
    kind: Callable[[Path, Path], None], finished: bool, tmp_path: Path
) -> None:
    path = small_run(tmp_path / "run")
    part = path / RunFolder(path).part_names()[1]
    part.unlink()
    kind(part, tmp_path / "outside")
    if not finished:
        (path / MANIFEST).unlink()
    with bounded():
        said = said_by(lambda: jacjobs.open(path).to_numpy())
        assert said
        assert "secret of somebody" not in said
        if finished or kind is not as_sparse_file:  # that one is read: nobody knows that it is wrong
            assert jacjobs.verify(path).sound == (not finished and not part.is_file())
        if finished:
            J = jacjobs.open(path)
            for name in ("gram", "dataset", "summary"):
                assert said_by(lambda read=READS[name]: read(J))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [PLAN, MANIFEST, "_jacjobs/lock.json"])
@pytest.mark.parametrize("kind", KINDS[:-1], ids=lambda kind: kind.__name__)
def test_nor_does_one_of_the_runs_own_files(
    kind: Callable[[Path, Path], None], name: str, tmp_path: Path
) -> None:
    path = small_run(tmp_path / "run")
    (path / name).unlink(missing_ok=True)
    kind(path / name, tmp_path / "outside")
    with bounded():
        opens = said_by(lambda: jacjobs.open(path).to_numpy())
        verifies = said_by(lambda: jacjobs.verify(path))
    assert "secret of somebody" not in opens + verifies
    if name == PLAN:
        assert opens
        assert verifies or not jacjobs.verify(path).sound
    elif name == MANIFEST:  # what is no file is no manifest: the run counts as not finished
        assert bool(opens) == (path / name).is_file() == (not jacjobs.verify(path).sound)
    else:
        assert not opens
        assert jacjobs.verify(path).sound
