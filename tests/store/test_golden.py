"""Datasets of every version of the format, as they were written then, are read by this one; and by anyone who
follows docs/format.md with nothing but a Parquet reader.

What they hold follows from a formula, see tests/golden/make.py.
"""

from __future__ import annotations

import json
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
from scipy.sparse import csr_array

import jacjobs
from tests.golden.make import FORMS, HERE, SHAPES, entries, make, sparse_entries

DATASETS = ["rows", "columns", "sparse"]
each_dataset = pytest.mark.parametrize("name", DATASETS)
each_dense = pytest.mark.parametrize("name", ["rows", "columns"])


@each_dense
def test_it_opens_and_holds_what_was_written(name: str) -> None:
    J, shape = entries(SHAPES[name]), SHAPES[name]
    dataset = jacjobs.open(HERE / name)
    assert dataset.complete
    assert dataset.missing == []
    assert dataset.shape == J.shape
    assert dataset.dtype == J.dtype
    assert len(dataset.part_names) == 4
    assert dataset.segments == {"outputs": shape.outputs, "inputs": shape.inputs}
    assert dataset.summary()["origin"] == shape.origin
    np.testing.assert_array_equal(dataset.to_numpy(), J, strict=True)
    np.testing.assert_array_equal(dataset.to_torch().numpy(), J)
    verdict = jacjobs.verify(HERE / name)
    assert verdict.sound, verdict.faults
    assert verdict.complete
    assert verdict.parts == 4


@each_dense
def test_slices_and_products_of_it_are_those_of_the_matrix(name: str) -> None:
    J, dataset = entries(SHAPES[name]), jacjobs.open(HERE / name)
    for index in (
        1,
        (0, 5),
        (1, -1, 2),
        (slice(None), 3, slice(None, None, 2)),
        ([1, 0, 1], slice(4, 1, -1)),
    ):
        np.testing.assert_array_equal(dataset[index], J[index], strict=True)
    for segment in SHAPES[name].inputs:
        np.testing.assert_array_equal(dataset[0, :, segment.name], J[0, :, segment.start : segment.stop])
    v, u = np.arange(J.shape[2]), np.arange(J.shape[1])
    np.testing.assert_array_equal(dataset @ v, J.astype(float) @ v)
    np.testing.assert_array_equal(u @ dataset, u @ J.astype(float))


def test_the_tree_of_it_has_the_structure_of_the_functions_output_and_input() -> None:
    J, tree = entries(SHAPES["rows"]), jacjobs.open(HERE / "rows").tree()
    leaves = {(y, x): leaf for y, under in tree.items() for x, leaf in under.items()}
    assert {names: leaf.shape for names, leaf in leaves.items()} == {
        ("logits", "bias"): (2, 3, 4),
        ("logits", "weight"): (2, 3, 4, 3),
        ("scores", "bias"): (2, 2, 2, 4),
        ("scores", "weight"): (2, 2, 2, 4, 3),
    }
    np.testing.assert_array_equal(leaves["logits", "bias"], J[:, :3, :4])
    np.testing.assert_array_equal(leaves["scores", "weight"], J[:, 3:, 4:].reshape(2, 2, 2, 4, 3))
    np.testing.assert_array_equal(jacjobs.open(HERE / "columns").tree(), entries(SHAPES["columns"]))


def test_a_sparse_one_opens_and_holds_what_was_written() -> None:
    J, dataset = sparse_entries(SHAPES["sparse"]), jacjobs.open(HERE / "sparse")
    assert isinstance(dataset, jacjobs.SparseDataset)
    assert dataset.complete
    assert len(dataset.part_names) == 2
    np.testing.assert_array_equal(dataset.to_numpy(), J, strict=True)
    for point in range(2):
        matrix = dataset[point]
        assert isinstance(matrix, csr_array)
        assert matrix.nnz == 3 * 8
        np.testing.assert_array_equal(matrix.toarray(), J[point])
    np.testing.assert_array_equal(dataset[1, 2:6, "weight"].toarray(), J[1, 2:6, 4:])
    v, u = np.arange(J.shape[2]), np.arange(J.shape[1])
    np.testing.assert_array_equal(dataset @ v, J @ v)
    np.testing.assert_array_equal(u @ dataset, u @ J)
    assert jacjobs.verify(HERE / "sparse").sound


def test_a_parquet_reader_that_follows_the_format_reads_a_sparse_one() -> None:
    plan = json.loads((HERE / "sparse/_jacjobs/plan.json").read_text())
    shape = plan["shape"]
    assert plan["layout"] == "sparse"
    J = np.zeros((shape["points"], shape["rows"], shape["columns"]), shape["dtype"])
    for path in (HERE / "sparse").glob("part-*.parquet"):
        part = pq.ParquetFile(path)
        said = {key.decode(): value.decode() for key, value in part.metadata.metadata.items()}
        assert part.schema_arrow.names == ["point", "row", "columns", "values"]
        assert said["jacjobs.layout"] == "sparse"
        p0, p1, r0, r1, *_ = map(int, said["jacjobs.rectangle"].split(","))
        records = part.read().to_pylist()
        assert [(r["point"], r["row"]) for r in records] == list(product(range(p0, p1), range(r0, r1)))
        for number in range(part.num_row_groups):
            table = part.read_row_group(number)
            lists = [table[name].combine_chunks().flatten() for name in ("columns", "values")]
            raw = b"".join(flat.to_numpy().tobytes() for flat in lists)
            assert said["jacjobs.groups"][16 * number :][:16] == xxhash.xxh3_64_hexdigest(raw)
        for record in records:
            assert record["columns"] == sorted(set(record["columns"]))
            J[record["point"], record["row"], record["columns"]] = record["values"]
    np.testing.assert_array_equal(J, sparse_entries(SHAPES["sparse"]), strict=True)


@each_dense
def test_a_parquet_reader_that_follows_the_format_reads_the_same(name: str) -> None:
    """By arithmetic: from names and the place of a record, as docs/format.md says. The records agree."""
    plan = json.loads((HERE / name / "_jacjobs/plan.json").read_text())
    shape, layout, stripe = plan["shape"], plan["layout"], plan["stripe"]
    J = np.full((shape["points"], shape["rows"], shape["columns"]), np.nan, shape["dtype"])
    matrices = J if layout == "rows" else J.transpose(0, 2, 1)
    length = matrices.shape[2]
    stripes = -(-length // stripe) if stripe else 1
    for path in (HERE / name).glob("part-*.parquet"):
        part = pq.ParquetFile(path)
        said = {key.decode(): value.decode() for key, value in part.metadata.metadata.items()}
        rectangle = [int(number.lstrip("prc")) for number in path.stem.split("-")[1:]]
        assert part.num_row_groups > 1
        assert part.schema_arrow.names == ["point", layout.removesuffix("s"), "start", "values"]
        assert said["jacjobs.format"] == "1"
        assert said["jacjobs.run"] == plan["run"]
        assert said["jacjobs.layout"] == layout
        assert said["jacjobs.rectangle"] == ",".join(map(str, rectangle))
        assert (said["jacjobs.dtype"], said["jacjobs.origin"]) == (shape["dtype"], shape["origin"])
        p0, p1, r0, r1, c0, c1 = rectangle
        l0, l1 = (r0, r1) if layout == "rows" else (c0, c1)
        records = part.read().to_pylist()
        assert len(records) == (p1 - p0) * (l1 - l0) * stripes
        for i, record in enumerate(records):
            point, line = p0 + i // (stripes * (l1 - l0)), l0 + i // stripes % (l1 - l0)
            start = (stripe or 0) * (i % stripes)
            assert list(record.values())[:3] == [point, line, start]
            matrices[point, line, start : start + len(record["values"])] = record["values"]
    np.testing.assert_array_equal(J, entries(SHAPES[name]), strict=True)


@each_dataset
def test_its_digests_follow_the_format(name: str) -> None:
    private = HERE / name / "_jacjobs"
    plan, manifest = (json.loads((private / f"{file}.json").read_bytes()) for file in ("plan", "manifest"))
    assert manifest["plan"] == digest((private / "plan.json").read_bytes())
    for content in (plan, manifest):
        assert content.pop("digest") == digest(
            json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        )
    for part in manifest["parts"]:
        raw = (HERE / name / part["name"]).read_bytes()
        footer = raw[-8 - int.from_bytes(raw[-8:-4], "little") :]
        assert (part["bytes"], part["digest"], part["footer"]) == (len(raw), digest(raw), digest(footer))


def digest(raw: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(raw)


@each_dataset
def test_what_is_written_today_differs_in_nothing_that_a_reader_sees(name: str, tmp_path: Path) -> None:
    """The bytes of parts may change with Arrow's version; all else is the same."""
    make(tmp_path)
    then, now = HERE / name, tmp_path / name
    assert (then / "_jacjobs/plan.json").read_bytes() == (now / "_jacjobs/plan.json").read_bytes()
    assert parts(then).keys() == parts(now).keys()
    for path, other in zip(parts(then).values(), parts(now).values(), strict=True):
        assert pq.read_table(path).equals(pq.read_table(other))
        assert written(path) == written(other)
    assert {w["compression"] for w in written(path)} == {FORMS[name].compression.upper()}


def parts(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.glob("part-*.parquet"))}


def written(path: Path) -> list[dict[str, Any]]:
    """How the entries of each row group are stored."""
    metadata = pq.read_metadata(path)
    values = [metadata.row_group(group).column(3).to_dict() for group in range(metadata.num_row_groups)]
    kept = ("physical_type", "num_values", "path_in_schema", "compression", "encodings")
    return [{key: chunk[key] for key in kept} for chunk in values]


def test_all_of_it_is_in_git() -> None:
    files = [path.relative_to(HERE).as_posix() for name in DATASETS for path in (HERE / name).rglob("*.*")]
    assert len(files) == 16
    ignored = subprocess.run(["git", "check-ignore", *files], cwd=HERE, capture_output=True, check=False)
    if ignored.returncode != 128:  # 128: not a checkout
        assert ignored.stdout == b""
