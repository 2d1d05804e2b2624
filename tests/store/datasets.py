"""Small datasets, written with the store's own classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from scipy.sparse import csr_array

from jacjobs.planning.choice import Resources
from jacjobs.planning.devices import cpu
from jacjobs.planning.geometry import Tiling
from jacjobs.planning.planner import Plan
from jacjobs.run.assembler import Assembler
from jacjobs.run.messages import BlockId
from jacjobs.shape import Box, Compression, JacobianShape, Layout, Rectangle, segments_of
from jacjobs.store.folder import Manifest, RunFolder, RunRecord
from jacjobs.store.writer import PartFormat, PartRecord, PartWriter, SparsePartWriter, describe

CREATED = "2026-01-01T00:00:00+00:00"
METADATA = {"run": "0123", "format": "1"}
"""Of parts that are written for a plan."""
VERSIONS = {"jacjobs": "0.1.0", "torch": "2.11.0"}


@dataclass(frozen=True)
class Form:
    """How a dataset is stored: points and lines of a part, records of a row group, entries of a stripe."""

    layout: Layout = "rows"
    compression: Compression = "none"
    stripe: int | None = None
    part_points: int = 1
    part_lines: int | None = None
    group_records: int = 3


def write_dataset(
    path: Path,
    shape: JacobianShape,
    J: np.ndarray,
    form: Form,
    *,
    run: str,
    without: int | None = None,
    finished: bool = True,
) -> RunFolder:
    """Write J as the run `run`; leave out the part with the number `without`, and the manifest unless
    `finished`.
    """
    folder = RunFolder(path)
    folder.create(
        RunRecord(
            run=run,
            name=path.name,
            created=CREATED,
            versions=VERSIONS,
            shape=shape,
            layout=form.layout,
            stripe=form.stripe,
            fingerprint={"function": run},
            options={},
            plan={"strategy": "vjp/vmap", "chunk": 1, "compression": form.compression},
        )
    )
    parts = [
        _write_part(folder, shape, J, form, rectangle, run)
        for number, rectangle in enumerate(rectangles(shape, form))
        if number != without
    ]
    if finished:
        folder.write_manifest(
            Manifest(
                run=run,
                name=path.name,
                finished=CREATED,
                shape=shape,
                strategy="vjp/vmap",
                chunk=1,
                compression=form.compression,
                versions=VERSIONS,
                timings={"seconds": 1.5},
                parts=tuple(parts),
            )
        )
    return folder


def rectangles(shape: JacobianShape, form: Form) -> list[Rectangle]:
    """Of all parts, in the order of their records."""
    lines, length = shape.lines(form.layout)
    some = form.part_lines or lines
    return [
        Box(
            point, min(point + form.part_points, shape.points), line, min(line + some, lines), 0, length
        ).rectangle(form.layout)
        for point in range(0, shape.points, form.part_points)
        for line in range(0, lines, some)
    ]


def _write_part(
    folder: RunFolder, shape: JacobianShape, J: np.ndarray, form: Form, part: Rectangle, run: str
) -> PartRecord:
    how = PartFormat(
        shape=shape,
        layout=form.layout,
        compression=form.compression,
        stripe=form.stripe,
        group_records=form.group_records,
        metadata={"format": "1", "run": run, "strategy": "vjp/vmap", "torch": VERSIONS["torch"]},
    )
    if form.layout == "sparse":
        points = SparsePartWriter(folder.place, part, how, 1)
        for point in range(part.point_start, part.point_stop):
            points.add(point, csr_array(J[point]))
        return points.commit()
    out = PartWriter(folder.place, part, how)
    entries = J[part.slices]
    lines = entries if form.layout == "rows" else entries.transpose(0, 2, 1)
    out.add(part.box(form.layout), np.ascontiguousarray(lines))
    return out.commit()


# -- by a plan, through an assembler ----------------------------------------------------------------------


def plan_of(tiling: Tiling, dtype: str = "float32", **changes: Any) -> Plan:
    """A plan in which only what concerns the store matters."""
    m, n = tiling.rows, tiling.columns
    shape = JacobianShape(
        points=tiling.points,
        rows=m,
        columns=n,
        dtype=dtype,
        outputs=segments_of([("y", (m,))]),
        inputs=segments_of([("a", (n // 2,)), ("b", (n - n // 2,))]),
    )
    content: dict[str, Any] = {
        "shape": shape,
        "strategy": "vjp/vmap",
        "chunk": 1,
        "by_columns": False,
        "tiling": tiling,
        "checked_by": None,
        "check_all": False,
        "check_points": 1,
        "threads": 1,
        "nonfinite": "error",
        "layout": tiling.layout,
        "compression": "none",
        "stripe": None,
        "group_records": 3,
        "candidates": (),
        "resources": Resources(device=cpu(1 << 30), budget_bytes=1 << 20, workers=1),
        "peak_bytes": 0,
        "seconds": 0.0,
        "disk_bytes": 0,
        "scratch_bytes": 0,
    }
    return Plan(**{**content, **changes})


def make_run(path: Path, plan: Plan) -> RunFolder:
    folder = RunFolder(path)
    record = RunRecord(
        run=METADATA["run"],
        name="test",
        created="",
        versions={"torch": "0"},
        shape=plan.shape,
        layout=plan.layout,
        stripe=plan.stripe,
        fingerprint={},
        options={},
        plan=plan.model_dump(mode="json"),
    )
    folder.create(record)
    return folder


def finish(folder: RunFolder, plan: Plan) -> None:
    folder.write_manifest(
        Manifest(
            run=METADATA["run"],
            name="test",
            finished="",
            shape=plan.shape,
            strategy=plan.strategy,
            chunk=plan.chunk,
            compression=plan.compression,
            versions={},
            timings={},
            parts=tuple(describe(folder.place, name) for name in folder.part_names()),
        )
    )


def write(folder: RunFolder, plan: Plan, J: np.ndarray, order: np.random.Generator | None = None) -> None:
    """Cut J into the plan's blocks and have them assembled, in any order; then finish the run."""
    assembler, tiling = Assembler(folder.uri, plan, METADATA), plan.tiling
    blocks = [BlockId(b, i) for b in range(tiling.bundles) for i in range(tiling.blocks_in(b))]
    if order is not None:
        order.shuffle(blocks)
    for bundle, position in blocks:
        r = tiling.block(bundle, position)
        block = J[r.slices]
        lines = block if plan.layout == "rows" else block.transpose(0, 2, 1)
        assembler.absorb(BlockId(bundle, position), np.ascontiguousarray(lines))
    if tiling.spills:
        for part in range(tiling.parts):
            assembler.transpose(part)
        for point in range(tiling.points):
            assembler.sweep(point)
    finish(folder, plan)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any shape, layout, tiling (of lines, or across them, assembled in memory or from spills), stripe."""
    points, rows, columns = (draw(st.integers(1, 6)) for _ in range(3))
    layout: Layout = draw(st.sampled_from(["rows", "columns"]))
    lines, length = (rows, columns) if layout == "rows" else (columns, rows)
    crossed, spills = draw(st.booleans()), draw(st.booleans())
    block_lines, block_width = draw(st.integers(1, lines)), draw(st.integers(1, length))
    if crossed:  # a block of a split matrix has all lines
        split = block_width < length
        block_lines, spills = lines, spills and split
        block_points = 1 if split else draw(st.integers(1, 3))
        part_points = 1 if spills else block_points * draw(st.integers(1, 2))
        part_lines = draw(st.integers(1, lines)) if spills else lines
    else:
        block_width, spills = length, False
        block_points = draw(st.integers(1, 3)) if block_lines == lines else 1
        part_points = block_points * draw(st.integers(1, 2)) if block_lines == lines else 1
        part_lines = lines if part_points > 1 else min(lines, block_lines * draw(st.integers(1, 3)))
    tiling = Tiling(
        points=points,
        rows=rows,
        columns=columns,
        layout=layout,
        part_points=part_points,
        part_lines=part_lines,
        block_points=block_points,
        block_rows=block_lines if layout == "rows" else block_width,
        block_columns=block_width if layout == "rows" else block_lines,
        spill_blocks=draw(st.integers(1, 3)) if spills else 0,
    )
    return plan_of(
        tiling,
        dtype=draw(st.sampled_from(["float16", "float32", "float64"])),
        compression=draw(st.sampled_from(["none", "zstd", "lz4"])),
        stripe=draw(st.sampled_from([None, *range(1, length)])),
        group_records=draw(st.integers(1, 7)),
    )
