"""Parts written and read back, for every shape, layout and way of writing; and what a reader is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jacjobs.errors import InputError, StoreError
from jacjobs.planning.geometry import Tiling
from jacjobs.planning.planner import Plan
from jacjobs.run.assembler import part_format
from jacjobs.shape import Rectangle
from jacjobs.store.folder import RunFolder
from jacjobs.store.parts import Parts
from jacjobs.store.reader import JacobianDataset, open_run
from jacjobs.store.schema import part_name, part_rectangle
from jacjobs.store.spill import SPILLS
from jacjobs.store.verify import verify_run
from jacjobs.store.writer import PartWriter
from tests.store.datasets import METADATA, make_run, plan_of, plans, write


def axis_index(size: int) -> st.SearchStrategy[Any]:
    slices = st.slices(size)
    integers = st.integers(-size, size - 1)
    arrays = st.lists(integers, max_size=4).map(lambda some: np.array(some, dtype=np.int64))
    masks = st.lists(st.booleans(), min_size=size, max_size=size).map(lambda some: np.array(some, dtype=bool))
    return st.one_of(slices, integers, arrays, masks)


def same_as_numpy(dataset: JacobianDataset, J: np.ndarray, index: Any) -> None:
    """The same entries, or the same refusal."""
    try:
        expected = J[index]
    except IndexError:
        with pytest.raises(IndexError):
            dataset[index]
        return
    np.testing.assert_array_equal(dataset[index], expected, strict=True)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans(), st.data())
def test_what_is_read_is_what_was_written_and_slices_are_numpys(
    tmp_path_factory: pytest.TempPathFactory, plan: Plan, data: st.DataObject
) -> None:
    tiling = plan.tiling
    extent = tiling.points, tiling.rows, tiling.columns
    chance = np.random.default_rng(data.draw(st.integers(0, 99)))
    J = chance.standard_normal(extent).astype(plan.shape.dtype)
    folder = make_run(tmp_path_factory.mktemp("run"), plan)
    write(folder, plan, J, chance)
    dataset = open_run(folder.uri)
    np.testing.assert_array_equal(dataset.to_numpy(), J, strict=True)
    np.testing.assert_array_equal(dataset.to_torch().numpy(), J)
    np.testing.assert_array_equal(np.asarray(dataset), J)
    stripes = -(-tiling.length // (plan.stripe or tiling.length))
    assert dataset.dataset().count_rows() == tiling.points * tiling.lines * stripes
    assert verify_run(folder.uri).sound
    assert not folder.place.files("_jacjobs/scratch")
    assert not folder.place.files(SPILLS)
    for _ in range(4):
        axes = [axis_index(size) for size in extent]
        index = data.draw(st.one_of(axes[0], st.tuples(*axes), st.tuples(axes[0], axes[1])))
        same_as_numpy(dataset, J, index)
    b = dataset.segment(input="b")
    np.testing.assert_array_equal(b[..., 0], J[:, :, plan.shape.inputs[1].start])
    np.testing.assert_array_equal(dataset[:, :, "b"], b.to_numpy())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans(), st.integers(1, 3), st.integers(1, 4000))
def test_products_are_those_of_the_matrix(
    tmp_path_factory: pytest.TempPathFactory, plan: Plan, k: int, memory_bytes: int
) -> None:
    extent = P, m, n = plan.tiling.points, plan.tiling.rows, plan.tiling.columns
    chance = np.random.default_rng(k)
    # Small integers: every order of summation gives the same.
    J = chance.integers(-4, 5, extent).astype(plan.shape.dtype)
    folder = make_run(tmp_path_factory.mktemp("run"), plan)
    write(folder, plan, J)
    dataset = open_run(folder.uri)
    for D, A in ((dataset, J), (dataset.segment(input="b"), J[:, :, n // 2 :])):
        v, u = chance.integers(-4, 5, (A.shape[2], k)), chance.integers(-4, 5, (k, m))
        np.testing.assert_array_equal(D @ v, A.astype(float) @ v)
        np.testing.assert_array_equal(D @ v[:, 0], A.astype(float) @ v[:, 0])
        np.testing.assert_array_equal(u @ D, u @ A.astype(float))
        np.testing.assert_array_equal(u[0] @ D, u[0] @ A.astype(float))
        rows = A.reshape(P * m, -1).astype(float)
        np.testing.assert_array_equal(D.gram(memory_bytes), rows @ rows.T)
        np.testing.assert_array_equal(D.normal(memory_bytes), rows.T @ rows)
        operator, w = D.linear_operator(), chance.integers(-4, 5, (P * m, k)).astype(float)
        np.testing.assert_array_equal(operator @ v.astype(float), rows @ v)
        np.testing.assert_array_equal(operator.T @ w, rows.T @ w)
        np.testing.assert_array_equal(operator.rmatvec(w[:, 0]), rows.T @ w[:, 0])


def whole_rows(points: int, rows: int, columns: int, part_rows: int) -> Plan:
    tiling = Tiling(
        points=points,
        rows=rows,
        columns=columns,
        part_points=1,
        part_lines=part_rows,
        block_points=1,
        block_rows=part_rows,
        block_columns=columns,
    )
    return plan_of(tiling, "float64")


def one_part(folder: RunFolder, plan: Plan, part: int, J: np.ndarray, run: str = "0123") -> str:
    r = plan.tiling.part(part)
    out = PartWriter(folder.place, r, part_format(plan, {**METADATA, "run": run}))
    out.add(r.box(plan.layout), J[r.point_start : r.point_stop, r.row_start : r.row_stop])
    return out.commit().name


def test_an_unfinished_run_says_what_is_missing_and_gives_what_is_there(tmp_path: Path) -> None:
    plan = whole_rows(2, 7, 3, part_rows=4)
    J = np.arange(2 * 7 * 3, dtype=np.float64).reshape(2, 7, 3)
    folder = make_run(tmp_path / "run", plan)
    assert open_run(folder.uri).missing == [Rectangle(0, 2, 0, 7, 0, 3)]
    one_part(folder, plan, 0, J)
    one_part(folder, plan, 3, J)
    dataset = open_run(folder.uri)
    assert not dataset.complete
    assert dataset.missing == [Rectangle(0, 1, 4, 7, 0, 3), Rectangle(1, 2, 0, 4, 0, 3)]
    np.testing.assert_array_equal(dataset[0, :4], J[0, :4])
    np.testing.assert_array_equal(dataset[1, [6, 4]], J[1, [6, 4]])
    for read in (lambda: dataset[0], dataset.to_numpy, lambda: dataset @ J[0, 0], dataset.gram):
        with pytest.raises(StoreError, match=r"points 0:1, rows 4:7, columns 0:3 is among what is missing"):
            read()
    with pytest.raises(StoreError, match="holds 4 of the 7 rows asked for"):
        dataset[0]
    assert verify_run(folder.uri).sound
    assert not verify_run(folder.uri).complete


def test_only_the_row_groups_that_are_needed_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted: of 3 records each, in parts of 12 rows."""
    plan = whole_rows(4, 24, 5, part_rows=12)
    J = np.random.default_rng(0).standard_normal((4, 24, 5))
    folder = make_run(tmp_path / "run", plan)
    write(folder, plan, J)
    dataset = open_run(folder.uri)
    read: list[int] = []
    plain = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **k: (read.append(i), plain(self, i, **k))[1]
    )
    for index, groups in (((2, 13), 1), ((slice(None), 0), 4), ((1,), 8), (([0, 3], [2, 3]), 4)):
        read.clear()
        dataset[index]
        assert len(read) == groups, index


def test_a_part_of_another_run_is_refused(tmp_path: Path) -> None:
    plan = whole_rows(1, 1, 1, part_rows=1)
    folder = make_run(tmp_path / "run", plan)
    one_part(folder, plan, 0, np.ones((1, 1, 1)), run="9")
    with pytest.raises(StoreError, match="a part of run 9, not of 0123"):
        open_run(folder.uri).to_numpy()
    with pytest.raises(StoreError, match="a part of run 9"):
        Parts(folder, folder.record(), None).check(folder.part_names())
    assert "a part of run 9" in str(verify_run(folder.uri).faults[0])


def test_bad_indices_are_refused_as_numpy_does(tmp_path: Path) -> None:
    plan = whole_rows(2, 3, 4, part_rows=3)
    folder = make_run(tmp_path / "run", plan)
    write(folder, plan, np.zeros((2, 3, 4)))
    dataset = open_run(folder.uri)
    bad = (2, -3, (0, 3), (0, 0, 4), (0, 0, 0, 0), (..., ...), 0.5, None, np.array([True]), [[0, 9]])
    for index in bad:
        with pytest.raises(IndexError):
            dataset[index]
    with pytest.raises(InputError, match="'w', expected one of: a, b"):
        dataset[0, :, "w"]
    with pytest.raises(InputError, match="'w', expected one of: y"):
        dataset.segment(output="w")
    with pytest.raises(ValueError, match=r"J @ v: got an array of shape \(3,\), expected n = 4"):
        dataset @ np.ones(3)
    with pytest.raises(ValueError, match=r"u @ J: got an array of shape \(4,\), expected m = 3"):
        np.ones(4) @ dataset
    with pytest.raises(ValueError, match=r"out: got shape \(2, 3\)"):
        dataset.to_numpy(out=np.zeros((2, 3)))
    out = np.ones((2, 3, 4))
    assert dataset.to_numpy(out=out) is out
    assert not out.any()


def test_names_follow_from_rectangles() -> None:
    part = Rectangle(3, 5, 0, 10, 0, 7)
    assert part_rectangle(part_name(part)) == part
    assert part_rectangle("part-1.parquet") is None


def test_schema_is_the_documented_one(tmp_path: Path) -> None:
    plan = whole_rows(1, 2, 3, part_rows=2).model_copy(update={"stripe": None})
    folder = make_run(tmp_path / "run", plan)
    schema = pq.read_schema(tmp_path / "run" / one_part(folder, plan, 0, np.zeros((1, 2, 3))))
    assert [str(field.type) for field in schema] == [
        "int64",
        "int64",
        "int64",
        "fixed_size_list<element: double not null>[3]",
    ]
    assert schema.names == ["point", "row", "start", "values"]
    assert schema.metadata[b"jacjobs.rectangle"] == b"0,1,0,2,0,3"
    striped = plan.model_copy(update={"stripe": 2})
    folder = make_run(tmp_path / "striped", striped)
    name = one_part(folder, striped, 0, np.zeros((1, 2, 3)))
    table = pq.read_table(tmp_path / "striped" / name)
    assert str(table.schema.field("values").type) == "list<element: double not null>"
    assert table.column("start").to_pylist() == [0, 2, 0, 2]
    assert [len(values) for values in table.column("values").to_pylist()] == [2, 1, 2, 1]
