"""Parts written and read back; commits that a crash cannot spoil; locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jacjobs.errors import InputError, StoreError
from jacjobs.shape import JacobianShape, Rectangle
from jacjobs.store.folder import RunFolder, RunRecord
from jacjobs.store.lock import RunLock
from jacjobs.store.reader import open_run, visible_parts
from jacjobs.store.schema import part_name, part_rectangle
from jacjobs.store.writer import PartWriter, describe


def make_run(path: Path, shape: tuple[int, int, int], dtype: str) -> RunFolder:
    folder = RunFolder(path)
    record = RunRecord(
        run="0123",
        name="test",
        created="",
        versions={"torch": "0"},
        shape=JacobianShape(
            points=shape[0], rows=shape[1], columns=shape[2], dtype=dtype, outputs=(), inputs=()
        ),
        fingerprint={},
        options={},
        plan={},
    )
    folder.create(record)
    return folder


def writer(
    folder: RunFolder, part: Rectangle, dtype: str, compression: str = "none", group: int = 3
) -> PartWriter:
    return PartWriter(
        folder.path,
        folder.scratch,
        part,
        dtype,
        compression=compression,
        row_group_rows=group,
        metadata={"run": "0123"},
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from(["float16", "float32", "float64"]),
    st.sampled_from(["none", "zstd", "lz4"]),
    st.integers(1, 10),
    st.integers(1, 6),
)
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    points: int,
    rows: int,
    columns: int,
    dtype: str,
    compression: str,
    group: int,
    step: int,
) -> None:
    J = np.random.default_rng(0).standard_normal((points, rows, columns)).astype(dtype)
    folder = make_run(tmp_path_factory.mktemp("run"), J.shape, dtype)
    for start in range(0, points, step):
        part = Rectangle(start, min(start + step, points), 0, rows, 0, columns)
        out = writer(folder, part, dtype, compression, group)
        for p in range(part.point_start, part.point_stop):
            out.add(Rectangle(p, p + 1, 0, rows, 0, columns), J[p : p + 1])
        record = out.commit()
        assert record == describe(folder.path / record.name, record.name)
    dataset = open_run(folder.path)
    np.testing.assert_array_equal(dataset.to_numpy(), J)
    np.testing.assert_array_equal(dataset.to_torch().numpy(), J)
    np.testing.assert_array_equal(dataset[-1], J[-1])
    assert dataset.dataset().count_rows() == points * rows
    assert list(folder.scratch.iterdir()) == []


def test_a_large_matrix_is_read_from_parts_of_its_rows(tmp_path: Path) -> None:
    J = np.arange(2 * 7 * 3, dtype=np.float64).reshape(2, 7, 3)
    folder = make_run(tmp_path / "run", J.shape, "float64")
    for point in range(2):
        for row, stop in ((0, 4), (4, 7)):
            part = Rectangle(point, point + 1, row, stop, 0, 3)
            out = writer(folder, part, "float64")
            out.add(part, J[point : point + 1, row:stop])
            out.commit()
    np.testing.assert_array_equal(open_run(folder.path).to_numpy(), J)
    np.testing.assert_array_equal(open_run(folder.path)[1], J[1])


def test_a_missing_part_is_named_not_invented(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", (2, 1, 1), "float32")
    part = Rectangle(0, 1, 0, 1, 0, 1)
    out = writer(folder, part, "float32")
    out.add(part, np.ones((1, 1, 1), np.float32))
    out.commit()
    assert open_run(folder.path)[0] == 1
    with pytest.raises(StoreError, match="holds 1 of the 2 rows"):
        open_run(folder.path).to_numpy()


def test_a_part_of_another_run_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", (1, 1, 1), "float32")
    part = Rectangle(0, 1, 0, 1, 0, 1)
    out = PartWriter(
        folder.path,
        folder.scratch,
        part,
        "float32",
        compression="none",
        row_group_rows=1,
        metadata={"run": "9"},
    )
    out.add(part, np.ones((1, 1, 1), np.float32))
    out.commit()
    with pytest.raises(StoreError, match="run 9"):
        open_run(folder.path).to_numpy()
    with pytest.raises(StoreError, match="another run"):
        visible_parts(folder, "0123")


def test_names_follow_from_rectangles() -> None:
    part = Rectangle(3, 5, 0, 10, 0, 7)
    assert part_rectangle(part_name(part)) == part
    assert part_rectangle("part-1.parquet") is None


def test_schema_is_the_documented_one(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", (1, 2, 3), "float32")
    part = Rectangle(0, 1, 0, 2, 0, 3)
    out = writer(folder, part, "float32")
    out.add(part, np.zeros((1, 2, 3), np.float32))
    schema = pq.read_schema(folder.path / out.commit().name)
    assert [str(field.type) for field in schema] == [
        "int64",
        "int64",
        "int64",
        "fixed_size_list<element: float not null>[3]",
    ]
    assert schema.metadata[b"jacjobs.rectangle"] == b"0,1,0,2,0,3"


WRITE_FOR_EVER = """
import itertools, sys
from pathlib import Path
from jacjobs.store import commit
final, scratch = Path(sys.argv[1]), Path(sys.argv[2])
for i in itertools.count():
    text = str(i % 10) * 200_000
    name = final / f"{i % 7}.txt"
    if sys.argv[3] == "naive":
        name.write_text(text)
    else:
        commit.write_text(name, text, scratch)
    if i == 7: print("ready", flush=True)
"""


def torn_files(folder: Path, how: str, kills: int) -> int:
    """Kill a writer again and again; count files that are visible and not complete."""
    final, scratch = folder / how, folder / f"{how}-scratch"
    final.mkdir(parents=True)
    scratch.mkdir()
    torn = 0
    for kill in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, str(final), str(scratch), how], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.003 * kill)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        contents = [path.read_text() for path in final.iterdir()]
        torn += sum(len(text) != 200_000 or len(set(text)) != 1 for text in contents)
    return torn


def test_a_killed_writer_leaves_no_torn_file(tmp_path: Path) -> None:
    """And the test can fail: the naive way does leave some."""
    assert torn_files(tmp_path, "committed", 12) == 0
    assert torn_files(tmp_path, "naive", 40) > 0


def test_lock_is_exclusive_and_taken_over_from_the_dead(tmp_path: Path) -> None:
    holder = RunLock(tmp_path)
    holder.acquire()
    with pytest.raises(InputError, match=f"process {os.getpid()}"):
        RunLock(tmp_path).acquire(patience_seconds=0.3)
    holder.release()
    code = "import sys; from pathlib import Path; from jacjobs.store.lock import RunLock; " + (
        f"RunLock(Path({str(tmp_path)!r})).acquire()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "lock.json").exists()
    RunLock(tmp_path).acquire(patience_seconds=1)
