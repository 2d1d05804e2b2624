"""Writes the datasets of this folder: `python -m tests.golden.make`.

They were written once for each version of the format, and stay as they are: later versions must read them.
An entry follows from its place, and no two are equal, so the tests need no other copy of the numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jacjobs.shape import JacobianShape, Structure, segments_of
from tests.store.datasets import Form, write_dataset

HERE = Path(__file__).parent
OUTPUTS = [("logits", (3,)), ("scores", (2, 2))]
INPUTS = [("bias", (4,)), ("weight", (4, 3))]
DICTS = Structure(
    outputs={"dict": [0, 1], "keys": ["logits", "scores"]},
    inputs={"dict": [0, 1], "keys": ["bias", "weight"]},
    has_points=True,
)
SHAPES = {
    "rows": JacobianShape(
        points=2,
        rows=7,
        columns=16,
        dtype="float32",
        origin="bfloat16",
        outputs=segments_of(OUTPUTS),
        inputs=segments_of(INPUTS),
        structure=DICTS,
    ),
    "columns": JacobianShape(
        points=2,
        rows=11,
        columns=5,
        dtype="float16",
        origin="float16",
        outputs=segments_of([("output", (11,))]),
        inputs=segments_of([("input", (5,))]),
        structure=Structure(outputs=0, inputs=0, has_points=True),
    ),
    "sparse": JacobianShape(
        points=2,
        rows=9,
        columns=16,
        dtype="float64",
        origin="float64",
        outputs=segments_of([("output", (9,))]),
        inputs=segments_of(INPUTS),
        structure=Structure(outputs=0, inputs={"dict": [0, 1], "keys": ["bias", "weight"]}, has_points=True),
    ),
}
RUNS = {"rows": "901d000000000001", "columns": "901d000000000002", "sparse": "901d000000000003"}
FORMS = {
    "rows": Form(layout="rows", compression="zstd", part_lines=4, group_records=2),
    "columns": Form(layout="columns", compression="lz4", stripe=4, part_lines=3, group_records=4),
    "sparse": Form(layout="sparse", compression="zstd", group_records=4),
}


def entries(shape: JacobianShape) -> np.ndarray:
    """Eighths, which every dtype holds exactly: ((p m + i) n + j) / 8 - 10."""
    number = np.arange(shape.points * shape.rows * shape.columns)
    return (number / 8 - 10).reshape(shape.points, shape.rows, shape.columns).astype(shape.dtype)


def sparse_entries(shape: JacobianShape) -> np.ndarray:
    """Those where j is from i to i + 2; none in row 5."""
    row, column = np.ogrid[: shape.rows, : shape.columns]
    kept = (row <= column) & (column <= row + 2) & (row != 5)
    return np.where(kept, entries(shape), 0)


def make(folder: Path) -> None:
    for name, shape in SHAPES.items():
        J = sparse_entries(shape) if name == "sparse" else entries(shape)
        write_dataset(folder / name, shape, J, FORMS[name], run=RUNS[name])


if __name__ == "__main__":
    make(HERE)
