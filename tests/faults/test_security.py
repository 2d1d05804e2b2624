"""What strangers can send: datasets and job files. Reading them runs no code, leaves their folder alone, and
ends with a sentence, in bounded time and memory. SECURITY.md makes the promises; these tests hold them.

Whoever forges a dataset writes its digests too, so all that is forged here is signed again.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
import yaml

import jacjobs
from jacjobs.cli.app import main
from jacjobs.errors import InputError, JacjobsError, StoreError
from jacjobs.jobspec import load_problem, read_job
from jacjobs.planning.options import ClusterOptions
from jacjobs.shape import JacobianShape, Structure, segments_of
from jacjobs.store.folder import MANIFEST, PLAN, RunFolder
from jacjobs.store.parts import Parts
from jacjobs.store.place import place_of
from jacjobs.store.schema import part_name, part_rectangle
from jacjobs.store.writer import PartFormat, SparsePartWriter, describe, group_digest
from tests.store.datasets import Form, write_dataset

PACKAGE = Path(jacjobs.__file__).parent
SHAPE = JacobianShape(
    points=2,
    rows=4,
    columns=6,
    dtype="float32",
    outputs=segments_of([("y", (4,))]),
    inputs=segments_of([("a", (2,)), ("b", (2, 2))]),
    structure=Structure(outputs=0, inputs={"dict": [0, 1], "keys": ["a", "b"]}, has_points=True),
)
ENTRIES = np.arange(48, dtype=np.float32).reshape(2, 4, 6)
SECONDS = 10.0
"""More than any refusal takes, on a busy machine too."""

JSON = dict[str, Any]


# -- forging -------------------------------------------------------------------------------------------------


def small_run(path: Path, form: Form | None = None) -> Path:
    write_dataset(path, SHAPE, ENTRIES, form or Form(), run="0123")
    return path


def signed(content: Any) -> bytes:
    """As jacjobs writes it, with the digest of itself."""
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key != "digest"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        content["digest"] = xxhash.xxh3_128_hexdigest(text.encode())
    return (json.dumps(content, indent=2) + "\n").encode()


def forge(path: Path, change: Callable[[JSON, JSON], object]) -> None:
    """Change plan and manifest together, and sign both: the manifest knows the plan as it is now."""
    plan, manifest = (json.loads((path / name).read_bytes()) for name in (PLAN, MANIFEST))
    change(plan, manifest)
    (path / PLAN).write_bytes(signed(plan))
    manifest["plan"] = xxhash.xxh3_128_hexdigest((path / PLAN).read_bytes())
    (path / MANIFEST).write_bytes(signed(manifest))


def list_parts_again(path: Path) -> None:
    """Make the manifest agree with the parts that are there."""
    folder = RunFolder(path)
    there = [describe(folder.place, name).model_dump() for name in folder.part_names()]
    forge(path, lambda plan, manifest: manifest.update(parts=there))


def both(key: str, value: Any) -> Callable[[JSON, JSON], None]:
    """The same in the shape of the plan and in that of the manifest."""

    def change(plan: JSON, manifest: JSON) -> None:
        for content in (plan, manifest):
            content["shape"][key] = value

    return change


def in_plan(key: str, value: Any) -> Callable[[JSON, JSON], None]:
    return lambda plan, manifest: plan.update({key: value})


def in_manifest(key: str, value: Any) -> Callable[[JSON, JSON], None]:
    return lambda plan, manifest: manifest.update({key: value})


# -- reading -------------------------------------------------------------------------------------------------

READS: dict[str, Callable[[Any], Any]] = {
    "summary": lambda J: J.summary(),
    "to_numpy": lambda J: J.to_numpy(),
    "point": lambda J: J[0],
    "segment": lambda J: J[:, :, J.inputs[-1].name] if J.inputs else None,
    "array": lambda J: J[[0, -1], 0],
    "matmul": lambda J: J @ np.ones(6, np.float32),
    "rmatmul": lambda J: np.ones(4, np.float32) @ J,
    "gram": lambda J: J.gram(),
    "normal": lambda J: J.normal(),
    "tree": lambda J: J.tree(),
    "dataset": lambda J: J.dataset().to_table(),
}


def check_sentence(error: JacjobsError) -> str:
    message = str(error)
    assert message.strip()
    assert "\n" not in message, message
    assert len(message) < 2000, message
    return message


def refusals(path: Path) -> dict[str, str]:
    """What opening says, or each way to read; every error is one of ours, in a sentence. Empty: all is well.

    `verify` agrees.
    """
    said: dict[str, str] = {}
    try:
        J = jacjobs.open(path)
    except JacjobsError as error:
        said["open"] = check_sentence(error)
    else:
        for name, read in READS.items():
            try:
                read(J)
            except JacjobsError as error:
                said[name] = check_sentence(error)
            except (ValueError, MemoryError) as error:
                # The question does not fit a J of another shape; or Arrow reads by itself, and says so.
                assert J.shape != ENTRIES.shape or name == "dataset", name
                said[name] = str(error)
    verdict = jacjobs.verify(path)
    assert verdict.sound == (not said), (said, verdict)
    return said


@contextmanager
def bounded(seconds: float = SECONDS, mib: int = 200) -> Iterator[None]:
    """Neither long nor large."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert time.monotonic() - began < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < mib << 10


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


# -- no code is run ------------------------------------------------------------------------------------------

GOOD = """
import torch
from jacjobs import Problem
def build(): return Problem(torch.sin, (torch.ones(4, 3),), in_dims=0)
"""
EVIL = """
from pathlib import Path
(Path(__file__).parent / "executed").touch()
raise SystemExit("this was not to be imported")
"""
JOB = "name: a\nproblem: p.py:build\noutput: {path: run}\ncluster: {address: inline}\n"


class Payload:
    """Pickled, it makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (str(self.marker), 0o777, True)


@pytest.fixture
def strangers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run of a job whose problem file is evil by now."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.py").write_text(GOOD)
    (tmp_path / "job.yaml").write_text(JOB)
    assert cli(monkeypatch, "submit", "job.yaml") == 0
    (tmp_path / "p.py").write_text(EVIL)
    return tmp_path / "run"


def cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["jacjobs", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    code = caught.value.code
    assert isinstance(code, int)
    return code


@pytest.mark.parametrize("command", ["show", "verify", "plan", "status", "list"])
def test_a_command_that_looks_at_a_run_does_not_import_its_problem(
    command: str, strangers_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = strangers_run.parent / "executed"
    path = "." if command == "list" else "run"
    for arguments in ([command, path], [command, path, "--json"]):
        assert cli(monkeypatch, *arguments) == 0
        assert not marker.exists()


def test_reading_does_not_import_the_problem_and_building_it_does(strangers_run: Path) -> None:
    """So the marker shows what it is to show."""
    marker = strangers_run.parent / "executed"
    J = jacjobs.open(strangers_run)
    assert J.record.job is not None
    assert J.record.job["folder"] == str(strangers_run.parent)
    J.to_numpy(), J[0], J @ np.ones(3, np.float32), J.gram(), J.dataset().to_table(), J.tree()
    assert jacjobs.verify(strangers_run).sound
    assert not marker.exists()
    with pytest.raises(SystemExit):
        load_problem(read_job(strangers_run.parent / "job.yaml", []), strangers_run.parent)
    assert marker.exists()


AUDITED = """
import sys, numpy as np, jacjobs, pickle
from jacjobs.store.verify import verify_run
seen = []
WATCHED = ("pickle.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect",
           "socket.bind", "ctypes.dlopen", "os.remove", "os.rename", "os.mkdir", "shutil.")
def hook(event, arguments):
    if on and event.startswith(WATCHED):
        seen.append((event, str(arguments)))
    elif on and event == "open" and arguments[2] & 0o3:
        seen.append((event, str(arguments)))
    elif on and event == "exec" and "{folder}" in getattr(arguments[0], "co_filename", ""):
        seen.append((event, str(arguments)))
def read():
    J = jacjobs.open("{folder}/run")
    J.summary(), J.to_numpy(), J[0], J @ np.ones(3, np.float32), J.gram(), J.dataset().to_table(), J.tree()
    assert verify_run("{folder}/run").sound
on = False
sys.addaudithook(hook)
read()  # what is imported late comes in
on = True
read()
assert not seen, seen
pickle.loads(pickle.dumps(np.float32))
exec(compile("1", "{folder}/p.py", "exec"))
open("{folder}/a file", "w").close()
assert [event for event, _ in seen] == ["pickle.find_class", "exec", "open"], seen
"""


def test_the_interpreter_sees_no_pickle_no_process_no_connection_and_nothing_written(
    strangers_run: Path,
) -> None:
    """By Python's audit hooks; the last lines show that they see it."""
    code = AUDITED.replace("{folder}", str(strangers_run.parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


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


def said_by(read: Callable[[], object]) -> str:
    """The sentence that it ends with, nothing if all is well."""
    try:
        read()
    except JacjobsError as error:
        return check_sentence(error)
    return ""


# -- numbers and structures that no run has ------------------------------------------------------------------

DEEP: Any = json.loads("[" * 400 + "]" * 400)
SEGMENT = {"name": "a", "start": 0, "stop": 6, "shape": [6]}
IMPLAUSIBLE: dict[str, tuple[Callable[[JSON, JSON], object], str]] = {
    "points 10**18": (both("points", 10**18), "is no shape that J can have"),
    "points 10**400": (both("points", 10**400), "is no shape that J can have"),
    "no points": (both("points", 0), "is no shape that J can have"),
    "rows -1": (both("rows", -1), "is no shape that J can have"),
    "points NaN": (both("points", float("nan")), "finite number"),
    "points infinite": (both("points", float("inf")), "finite number"),
    "points a list": (both("points", [2]), "valid integer"),
    "dtype object": (both("dtype", "object"), "dtype is 'object'"),
    "dtype of length": (both("dtype", "S1000000000"), "dtype is"),
    "columns unlike segments": (both("columns", 7), "inputs do not lie end to end"),
    "segment from -5": (both("inputs", [{**SEGMENT, "start": -5}]), "inputs do not lie end to end"),
    "segment to 10**18": (both("inputs", [{**SEGMENT, "stop": 10**18}]), "inputs do not lie end to end"),
    "segment of another shape": (both("inputs", [{**SEGMENT, "shape": [7]}]), "inputs do not lie"),
    "segment of negative shape": (both("inputs", [{**SEGMENT, "shape": [-2, -3]}]), "inputs do not lie"),
    "segment of a large product": (both("inputs", [{**SEGMENT, "shape": [2**63] * 10_000}]), "do not lie"),
    "leaf that is no segment": (
        both("structure", {"outputs": 0, "inputs": 5, "has_points": True}),
        "structure is no tree",
    ),
    "node of no kind": (
        both("structure", {"outputs": {"set": [0]}, "inputs": 0, "has_points": True}),
        "structure is no tree",
    ),
    "no axis of points for two": (
        both("structure", {"outputs": 0, "inputs": 0, "has_points": False}),
        "structure is no tree",
    ),
    "keys too few": (
        both("structure", {"outputs": 0, "inputs": {"dict": [0, 1], "keys": []}, "has_points": True}),
        "structure is no tree",
    ),
    "keys that are lists": (
        both("structure", {"outputs": 0, "inputs": {"dict": [0], "keys": [[]]}, "has_points": True}),
        "structure is no tree",
    ),
    "stripe 0": (in_plan("stripe", 0), "'stripe'"),
    "stripe -1": (in_plan("stripe", -1), "'stripe'"),
    "stripe 10**400": (in_plan("stripe", 10**400), "'stripe'"),
    "layout of nothing": (in_plan("layout", "diagonals"), "'layout'"),
    "format of later": (in_plan("format", 2), "upgrade it"),
    "format in words": (in_plan("format", "2"), "'format'"),
    "format 0": (in_plan("format", 0), "'format'"),
    "plan empty": (in_plan("plan", {}), "'plan.strategy'"),
    "chunk in words": (
        in_plan("plan", {"strategy": "x", "chunk": "y", "compression": "none"}),
        "'plan.chunk'",
    ),
    "job of numbers": (in_plan("job", {"spec": 1, "folder": 2}), "'job.spec'"),
    "job without output": (in_plan("job", {"spec": {"cluster": {}}, "folder": "x"}), "'job.spec.output'"),
    "options nested 400 deep": (in_plan("options", {"x": DEEP}), "levels"),
    "checks without numbers": (in_manifest("checks", {"by": "jvp/loop"}), "'checks'"),
    "checks of words": (in_manifest("checks", {"by": "jvp/loop", "points": "x"}), "'checks.points'"),
    "timings of words": (in_manifest("timings", {"seconds": "x"}), "'timings.seconds'"),
    "timings 10**400": (in_manifest("timings", {"seconds": 10**400}), "'timings.seconds'"),
    "parts of numbers": (in_manifest("parts", [1, 2]), "'parts.0'"),
    "no parts": (in_manifest("parts", []), "lists no part with points 0:2"),
    "manifest of another run": (in_manifest("run", "4567"), "is not that of its plan"),
    "manifest of another shape": (
        lambda plan, manifest: manifest["shape"].update(dtype="float64"),
        "is not that of its plan",
    ),
}


@pytest.mark.parametrize("case", IMPLAUSIBLE)
def test_what_no_run_has_is_refused_when_it_is_opened(case: str, tmp_path: Path) -> None:
    change, sentence = IMPLAUSIBLE[case]
    path = small_run(tmp_path / "run")
    forge(path, change)
    with bounded():
        assert sentence in refusals(path)["open"]


@pytest.mark.parametrize("name", [PLAN, MANIFEST])
@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"9" * 100_000,
        b'{"points": ' + b"9" * 100_000 + b"}",
        b"\xff\xfe" * 10,
        b"\xef\xbb\xbf{}",
        b"\0" * 1000,
        b"",
        b"null",
        b'"text"',
        b'{"digest": null}',
        b"{}" * 10,
    ],
    ids=lambda raw: raw[:8].hex(),
)
def test_what_is_no_json_object_is_refused(raw: bytes, name: str, tmp_path: Path) -> None:
    path = small_run(tmp_path / "run")
    (path / name).write_bytes(raw)
    with bounded():
        assert name in refusals(path)["open"]


def test_nesting_that_a_pytree_may_have_is_read(tmp_path: Path) -> None:
    path = small_run(tmp_path / "run")
    forge(path, in_plan("options", {"x": json.loads("[" * 190 + "]" * 190)}))
    assert refusals(path) == {}


def in_frozen_plan(*steps: str, value: Any) -> Callable[[JSON, JSON], None]:
    def change(plan: JSON, manifest: JSON) -> None:
        section = plan["plan"]
        for step in steps[:-1]:
            section = section[step]
        section[steps[-1]] = value

    return change


FROZEN: dict[str, Callable[[JSON, JSON], None]] = {
    "parts of no points": in_frozen_plan("tiling", "part_points", value=0),
    "parts of no lines": in_frozen_plan("tiling", "part_lines", value=0),
    "blocks of fewer than none": in_frozen_plan("tiling", "block_rows", value=-1),
    "a tiling of another J": in_frozen_plan("tiling", "points", value=10**18),
    "another dtype": in_frozen_plan("shape", "dtype", value="object"),
    "another shape": in_frozen_plan("shape", "points", value=10**18),
    "another layout": in_frozen_plan("layout", value="columns"),
    "no resources": in_frozen_plan("resources", value=None),
}


@pytest.mark.parametrize("case", FROZEN)
def test_a_frozen_plan_of_something_else_is_refused(
    case: str, strangers_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forge(strangers_run, FROZEN[case])
    capsys.readouterr()
    for command in (["plan", "run"], ["plan", "run", "--json"], ["resume", "run"]):
        if command[0] == "resume":  # a problem that is as it was
            (strangers_run.parent / "p.py").write_text(GOOD)
        with bounded():
            assert cli(monkeypatch, *command) in (1, 2)
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith("jacjobs: ")


def test_sizes_in_a_frozen_plan_that_no_float_holds_are_shown(
    strangers_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge(strangers_run, in_frozen_plan("disk_bytes", value=10**400))
    assert cli(monkeypatch, "plan", "run") == 0


# -- sizes that are only claimed -----------------------------------------------------------------------------


def claim(path: Path, points: int) -> None:
    """The one part of a run claims to hold so many points, and the manifest knows it under that name."""
    (name,) = RunFolder(path).part_names()
    r = part_rectangle(name)
    assert r is not None
    new = part_name(r._replace(point_stop=points))
    (path / name).rename(path / new)

    def change(plan: JSON, manifest: JSON) -> None:
        both("points", points)(plan, manifest)
        manifest["parts"][0]["name"] = new

    forge(path, change)


@pytest.mark.parametrize("points", [10**6, 10**9, 10**12, 10**16])
@pytest.mark.parametrize("form", [Form(part_points=2), Form(part_points=2, stripe=1, layout="columns")])
def test_a_part_that_claims_points_which_it_does_not_hold_takes_no_memory_for_them(
    form: Form, points: int, tmp_path: Path
) -> None:
    path = small_run(tmp_path / "run", form)
    claim(path, points)
    with bounded(20):
        said = refusals(path)
    assert set(said) == set(READS)


def zigzag(number: int) -> bytes:
    """As Thrift's compact protocol writes integers."""
    number, made = number << 1, bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])


def claiming_records(part: Path, group: int, records: int, more: int) -> bytes:
    """The part, with footers in which one row group claims `records`, and all together `more` than before.

    The numbers are found by trying: which byte of the footer is the number of records?
    """
    raw = part.read_bytes()
    start = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    footer = raw[start:-8]

    def tried(change: Callable[[Any], int], old: int, new: int, content: bytes) -> bytes:
        for at in range(len(content)):
            if content[at] != zigzag(old)[0]:
                continue
            candidate = content[:at] + zigzag(new) + content[at + 1 :]
            try:
                found = change(pq.read_metadata(pa.BufferReader(whole(candidate))))
            except (OSError, ValueError, pa.ArrowException):
                continue
            if found == new:
                return candidate
        raise AssertionError("no such byte")

    def whole(content: bytes) -> bytes:
        return raw[:start] + content + len(content).to_bytes(4, "little") + b"PAR1"

    metadata = pq.read_metadata(part)
    total, one = metadata.num_rows, metadata.row_group(group).num_rows
    footer = tried(lambda m: int(m.row_group(group).num_rows), one, records, footer)
    footer = tried(lambda m: int(m.num_rows), total, total + more, footer)
    return whole(footer)


@pytest.mark.parametrize("stripe", [None, 1])
@pytest.mark.parametrize("points", [10**5, 10**12, 10**16])
def test_a_row_group_that_claims_records_takes_neither_memory_nor_time_for_them(
    points: int, stripe: int | None, tmp_path: Path
) -> None:
    """Everything agrees with the claim but the pages themselves: names, metadata, footers, digests."""
    path = small_run(tmp_path / "run", Form(part_points=2, stripe=stripe, group_records=4))
    (name,) = RunFolder(path).part_names()
    each = 4 * (6 if stripe else 1)
    more = (points - 2) * each
    raw = claiming_records(path / name, 0, 4 + more, more)
    claim(path, points)
    (name,) = (p.name for p in path.glob("part-*"))
    # The rectangle in the footer: its length is stored before it.
    old, new = (f"0,{p},0,4,0,6".encode() for p in (2, points))
    at = raw.index(old)
    raw = raw[: at - 1] + bytes([len(new)]) + new + raw[at + len(old) :]
    size = int.from_bytes(raw[-8:-4], "little") + len(new) - len(old)
    (path / name).write_bytes(raw[:-8] + size.to_bytes(4, "little") + b"PAR1")
    list_parts_again(path)
    with jacjobs.open(path)._parts.open(jacjobs.open(path)._parts.all[0]) as file:
        assert file.metadata.num_rows == points * each, "the forgery passes all that is said of it"
    with bounded(20):
        said = refusals(path)
    assert {"to_numpy", "point", "matmul", "gram", "summary"} <= set(said)


LOCKS: dict[str, bytes] = {
    "deep": b'{"pid":' * 100_000,
    "as deep as Python reads": b'{"pid":' + b"[" * 900 + b"]" * 900 + b"}",
    "no object": b"[1]",
    "not text": b"\xff\xfe",
    "a token that is a list": b'{"token": [], "host": {}, "pid": []}',
    "a process that there cannot be": b'{"host": "%s", "pid": %s}'
    % (os.uname().nodename.encode(), b"9" * 4000),
    "a process below": b'{"host": "%s", "pid": -1, "started": NaN}' % os.uname().nodename.encode(),
    "this very process": b'{"host": "%s", "pid": %d, "started": 1e999}'
    % (os.uname().nodename.encode(), os.getpid()),
}


@pytest.mark.parametrize("age", [0, 1000])
@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_that_nobody_of_ours_wrote_is_looked_at_without_harm(
    lock: str, age: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_run(tmp_path / "run")
    file = path / "_jacjobs/lock.json"
    file.write_bytes(LOCKS[lock])
    os.utime(file, (time.time() - age,) * 2)
    with bounded():
        assert cli(monkeypatch, "status", str(path)) == 0
    assert refusals(path) == {}


# -- what reaches the terminal -------------------------------------------------------------------------------

ATTEMPT = {
    **{"number": 1, "started": "", "host": "here", "pid": 1, "state": "failed", "cause": "", "seconds": 2.0},
    **{"blocks_done": 3, "blocks_total": 3},
}
ESCAPES = {
    "title": "\x1b]0;owned\x07",
    "colour": "\x1b[31mred",
    "eight bits": "\x9b31mred",
    "markup": "[bold red]x[/bold red][link=http://x]y[/link]",
    "emoji": ":bomb: :warning:",
    "return": "good\rbad",
    "line": "a\nentries  1 to 2",
    "right to left": "\u202egnp.exe",
    "surrogate": "\ud800",
}


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("place", ["segment", "name", "torch", "part", "origin", "lock", "attempt"])
def test_names_in_a_dataset_reach_the_terminal_as_text(
    place: str,
    escape: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = ESCAPES[escape]
    path = small_run(tmp_path / "run")

    def change(plan: JSON, manifest: JSON) -> None:
        match place:
            case "segment":
                both("inputs", [{**SEGMENT, "name": text}])(plan, manifest)
                both("structure", None)(plan, manifest)
            case "name":
                plan["name"] = manifest["name"] = text
            case "torch":
                plan["versions"]["torch"] = text
            case "origin":
                both("origin", text)(plan, manifest)
            case "part":
                manifest["parts"][0]["name"] = text
            case "lock":
                (path / "_jacjobs/lock.json").write_text(json.dumps({"host": text, "pid": text}))
            case "attempt":
                manifest["attempts"] = [{**ATTEMPT, "state": text, "cause": text}]

    forge(path, change)
    for command in ("show", "verify", "status"):
        for arguments in ([command, str(path)], [command, str(path), "--json"]):
            assert cli(monkeypatch, *arguments) in (0, 1)
            printed = "".join(capsys.readouterr())
            wrong = {c for c in printed if not (c.isprintable() or c == "\n")}
            assert not wrong, (arguments, wrong)
            assert "owned" not in printed.splitlines()
            assert not any(line.startswith("entries  1 to 2") for line in printed.splitlines())
            if escape in ("markup", "emoji") and place == "name" and arguments[0] == "show":
                assert text in printed


# -- job files -----------------------------------------------------------------------------------------------

BASE = "name: a\nproblem: p.py:f\noutput: {path: x}\n"


def test_a_job_file_makes_no_objects(tmp_path: Path) -> None:
    marker, job, good = tmp_path / "executed", tmp_path / "job.yaml", tmp_path / "good.yaml"
    evil = f"!!python/object/apply:os.mkdir ['{marker}']"
    job.write_text(f"{BASE}params:\n  x: {evil}\n")
    good.write_text(BASE)
    for path, overrides in ((job, []), (good, [f"params.x={evil}"])):
        with pytest.raises(InputError, match=r"got a value tagged 'python/object/apply:os\.mkdir'") as caught:
            read_job(path, overrides)
        check_sentence(caught.value)
    assert not marker.exists()
    yaml.unsafe_load(job.read_text())
    assert marker.exists()


def nested(levels: int, each: str, step: str) -> str:
    """`each` in an anchor, and on every level an anchor that names the one before nine times."""
    lines = [f"  a0: &a0 {each}"]
    lines += [f"  a{i}: &a{i} " + step.format(", ".join([f"*a{i - 1}"] * 9)) for i in range(1, levels)]
    return BASE + "params:\n" + "\n".join(lines) + "\n"


TOO_MUCH = {
    "billion laughs": nested(12, "[lol]", "[{}]"),
    "billion laughs in keys": nested(12, "{lol: 1}", "{{<<: [{}]}}"),
    "wide": BASE + "params: {x: [" + "1," * 100_000 + "]}",
    "deep lists": "[" * 100_000,
    "deep mappings": "{a: " * 50_000,
    "deep blocks": "- " * 100_000,
    "deep questions": "? " * 100_000,
    "anchor that holds itself": BASE + "params: &a {x: *a}",
    "list that holds itself": BASE + "params: {x: &a [*a]}",
    "50 MB": BASE + "#" * 50_000_000,
    "long number": BASE + f"params: {{x: {'1' * 500_000}}}",
    "long hexadecimal": BASE + f"params: {{x: 0x{'f' * 500_000}}}",
    "long sexagesimal": BASE + f"params: {{x: 1{':59' * 300_000}}}",
    "number of 70 bits": BASE + f"params: {{x: {2**70}}}",
    "version of 6,000 digits": "%YAML 1." + "9" * 6000 + "\n---\n" + BASE,
    "long key": BASE + "x" * 500_000 + ": 1",
    "long value": BASE + "compute: {chunk: " + "x" * 500_000 + "}",
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_a_job_file_that_is_too_much_is_refused_soon(case: str, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(TOO_MUCH[case])
    with bounded(), pytest.raises(InputError) as caught:
        read_job(job, [])
    check_sentence(caught.value)


def test_what_pyyaml_makes_of_billion_laughs_is_small_until_somebody_writes_it(tmp_path: Path) -> None:
    """What `plan.json` would have held: nine times as much a level."""
    made = [len(json.dumps(yaml.safe_load(nested(levels, "[lol]", "[{}]")))) for levels in (4, 5, 6)]
    assert made[2] > 8 * made[1] > 64 * made[0]


UNFIT: dict[str, tuple[bytes | str, str]] = {
    "key twice": (BASE + "name: b\n", "line 4: got 'name' once more, expected each key once"),
    "key twice below": (BASE + "compute: {chunk: 1, chunk: 2}\n", "got 'chunk' once more"),
    "a number as a key": (BASE + "params: {1: x}\n", "got the key '1', expected text as a key"),
    "a list as a key": (BASE + "params: {[1]: x}\n", "expected text as a key"),
    "a date": (BASE + "params: {day: 2020-01-01}\n", "got '2020-01-01', a value tagged 'timestamp'"),
    "bytes": (BASE + "params: {x: !!binary aGk=}\n", "a value tagged 'binary'"),
    "a set": (BASE + "params: {x: !!set {a, b}}\n", "a value tagged 'set'"),
    "a tag of nobody": (BASE + "params: {x: !thing 1}\n", "a value tagged '!thing'"),
    "a truth of no kind": (BASE + "params: {x: !!bool perhaps}\n", "got 'perhaps', expected true or false"),
    "a number of nothing": (BASE + 'params: {x: !!int ""}\n', "expected a number"),
    "half a character": (BASE + 'params: {x: "\\ud800"}\n', "expected text that UTF-8 can hold"),
    "no character": (BASE + 'params: {x: "\\UFFFFFFFF"}\n', "is not YAML"),
    "Latin-1": (BASE.encode() + "# café".encode("latin-1"), "is not YAML: 'utf-8' codec can't decode"),
    "UTF-16": (BASE.encode("utf-16"), "is not YAML: 'utf-8' codec can't decode"),
    "a tab": (BASE + "params:\n\tx: 1\n", "is not YAML"),
    "a NUL": (BASE + "params: {x: \0}\n", "is not YAML: unacceptable character #x0000"),
    "nothing": ("", "got NoneType, expected a mapping"),
    "a comment": ("# nothing", "got NoneType, expected a mapping"),
    "a list": ("- 1", "got list, expected a mapping"),
    "two documents": (BASE + "---\n" + BASE, "expected a single document"),
    "unknown key like a type": (BASE + "interval: 3\n", "unknown key 'interval'; did you mean"),
    "unknown key like a function": (BASE + "function-x: 3\n", "unknown key 'function-x'"),
    "memory beyond numbers": (BASE + f"compute: {{memory: {'9' * 310}B}}\n", "compute.memory: got '999"),
    "seed of 64 bits": (BASE + f"compute: {{seed: {2**63}}}\n", "compute.seed: got 9223372036854775808"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_job_file_that_says_something_else_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    content, sentence = UNFIT[case]
    job = tmp_path / "job.yaml"
    job.write_bytes(content if isinstance(content, bytes) else content.encode())
    with bounded(), pytest.raises(InputError) as caught:
        read_job(job, [])
    assert sentence in check_sentence(caught.value)


def test_pyyaml_alone_takes_the_last_of_two_keys_and_makes_dates() -> None:
    assert yaml.safe_load("{chunk: 1, chunk: 2}") == {"chunk": 2}
    assert type(yaml.safe_load("2020-01-01")).__name__ == "date"


def test_byte_order_marks_anchors_and_merges_are_read_and_an_override_changes_one_place(
    tmp_path: Path,
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("\ufeff" + BASE + "params: {a: &a {x: 1, y: 2}, b: *a, c: {<<: *a, y: 3}}\n")
    assert read_job(job, ["params.b.x=4"]).params == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 4, "y": 2},
        "c": {"x": 1, "y": 3},
    }


def test_params_come_back_from_a_run_as_they_were(tmp_path: Path) -> None:
    """Whatever a job file may hold, plan.json holds too."""
    job = tmp_path / "job.yaml"
    deep = "{a: " * 45 + "1" + "}" * 45
    job.write_text(
        BASE + f"params: {{x: {deep}, y: [1, 2.5, null, true, text, {2**64 - 1}], z: '2020-01-01'}}\n"
    )
    spec = read_job(job, [])
    assert json.loads(json.dumps(spec.model_dump(mode="json"), indent=2))["params"] == spec.params


# -- Ray, and what is never called ---------------------------------------------------------------------------


def test_a_local_ray_has_no_dashboard_and_its_tokens_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from jacjobs.run.cluster.session import session

    given: dict[str, Any] = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = dict(os.environ)
    with session(ClusterOptions(workers=1), 1 << 20):
        assert given["include_dashboard"] is False
        assert given["address"] == "local"
        assert not given.keys() & {"dashboard_host", "_node_ip_address"}
        assert dict(os.environ) == before


RUNS_CODE = {
    "eval",
    "exec",
    "compile",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "marshal.loads",
    "marshal.load",
    "shelve.open",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.UnsafeLoader",
    "yaml.FullLoader",
    "yaml.Loader",
    "np.load",
    "numpy.load",
    "torch.load",
    "os.system",
    "os.popen",
    "subprocess.run",
    "subprocess.Popen",
    "runpy.run_path",
    "description.loader.exec_module",
    "importlib.import_module",
    "__import__",
}
ALLOWED = {
    "__init__.py": {"importlib.import_module"},  # of jacjobs.api, when it is first asked for
    "autodiff/jacobian.py": {"compile"},  # the option of that name
    "run/cluster/actors.py": {"cloudpickle.loads"},  # of a problem, on its way to its workers
    "run/unpacking.py": {"pickle.Unpickler", "torch.load"},  # the same, onto a device
    "store/folder.py": {"np.load"},  # of a pattern, with allow_pickle=False
    "scheduling/serve.py": {"subprocess.Popen"},  # of this Python: `jacjobs submit`, without a shell
    "jobspec.py": {"description.loader.exec_module", "importlib.import_module"},  # the job's problem
}


def uses(source: str) -> set[str]:
    """Of `RUNS_CODE`; and names that are imported from such modules."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute | ast.Name):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{(node.module or '').split('.')[-1]}.{alias.name}" for alias in node.names}
    return found & RUNS_CODE


def test_nothing_in_the_package_can_execute_what_it_reads() -> None:
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        source = path.read_text(encoding="utf-8")
        assert uses(source) == ALLOWED.get(name, set()), name
        assert not re.search(r"RAY_AUTH_MODE\W+disabled", source), name
        assert "allow_pickle=True" not in source, name


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "from yaml import unsafe_load",
        "eval(x)",
        "x = np.load",
        "torch.load(f)",
    ],
)
def test_what_would_execute_is_recognised(source: str) -> None:
    assert uses(source)
