"""Every entry of J belongs to exactly one block of one part, for any shape."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jacjobs.planning import geometry
from jacjobs.planning.geometry import Tiling, tile
from jacjobs.shape import JacobianShape


def shape_of(points: int, rows: int, columns: int) -> JacobianShape:
    return JacobianShape(points=points, rows=rows, columns=columns, dtype="float32", outputs=(), inputs=())


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 6), st.integers(1, 6), st.data())
def test_blocks_cover_every_entry_once_and_in_order(points, rows, bp, br, data) -> None:  # type: ignore[no-untyped-def]
    whole, spills = data.draw(st.booleans()), data.draw(st.booleans())
    columns, bc = data.draw(st.integers(1, 7)), min(data.draw(st.integers(1, 7)), 7)
    layout = data.draw(st.sampled_from(["rows", "columns"]))
    lines, length = (rows, columns) if layout == "rows" else (columns, rows)
    bl, bw = min(br, lines), min(bc, length)
    spills = spills and bw < length
    if spills:
        bl, whole = lines, True
    pp = bp * data.draw(st.integers(1, 3)) if whole and not spills else 1
    tiling = Tiling(
        points=points,
        rows=rows,
        columns=columns,
        layout=layout,
        part_points=pp,
        part_lines=lines if whole and not spills else bl * data.draw(st.integers(1, 3)),
        block_points=bp if whole and not spills else 1,
        block_rows=(lines if whole else bl) if layout == "rows" else bw,
        block_columns=bw if layout == "rows" else (lines if whole else bl),
        spill_blocks=data.draw(st.integers(1, 3)) if spills else 0,
    )
    order = []
    for bundle in range(tiling.bundles):
        for index in range(tiling.blocks_in(bundle)):
            b = tiling.block(bundle, index)
            order += [
                (p, r, c)
                for p in range(b.point_start, b.point_stop)
                for r in range(b.row_start, b.row_stop)
                for c in range(b.column_start, b.column_stop)
            ]
    every = [(p, r, c) for p in range(points) for r in range(rows) for c in range(columns)]
    assert sorted(order) == every
    if not tiling.splits_lines and layout == "rows":
        assert order == every
    assert tiling.blocks == sum(tiling.blocks_in(bundle) for bundle in range(tiling.bundles))
    parts = [tiling.part(part).box(layout) for part in range(tiling.parts)]
    assert parts == sorted(parts)
    assert sum(part.entries for part in parts) == len(every)
    if spills:
        for point in range(points):
            assert {tiling.bundle(b).point_start for b in tiling.bundles_of(point)} == {point}
            assert {tiling.part(p).point_start for p in tiling.parts_of(point)} == {point}
            assert sum(tiling.bundle(b).entries for b in tiling.bundles_of(point)) == rows * columns
        assert 1 <= tiling.points_at_once(3) <= points


@given(st.integers(1, 10**6), st.integers(1, 10**5), st.integers(1, 10**6), st.integers(1, 10**4))
def test_blocks_are_bounded_and_hold_whole_chunks(points, rows, columns, chunk) -> None:  # type: ignore[no-untyped-def]
    shape = shape_of(points, rows, columns)
    tiling = tile(shape, chunk)
    block, part = tiling.block(0, 0), tiling.part(0)
    a_chunk = max(chunk, rows) if chunk >= rows else chunk
    assert block.entries * 4 <= max(geometry.BLOCK_BYTES, a_chunk * shape.row_bytes)
    assert part.entries * 4 <= max(geometry.PART_BYTES, block.entries * 4)
    assert block.points * block.rows >= min(chunk, points * rows if block.rows == rows else rows) // 2


SHAPE = (st.integers(1, 10**4), st.integers(1, 10**5), st.integers(1, 10**5), st.integers(1, 10**4))


@given(*SHAPE)
def test_blocks_that_cross_lines_are_assembled_within_bounds(points, rows, columns, chunk) -> None:  # type: ignore[no-untyped-def]
    shape = shape_of(points, rows, columns)
    for layout, by_columns in (("rows", True), ("columns", False)):
        tiling = tile(shape, chunk, by_columns=by_columns, layout=layout)
        line_bytes = tiling.length * 4
        if tiling.splits_lines and not tiling.spills:
            assert shape.matrix_bytes <= geometry.IN_MEMORY_BYTES
        if tiling.spills:
            assert shape.matrix_bytes > geometry.IN_MEMORY_BYTES
            assert tiling.part(0).entries * 4 <= max(geometry.PART_BYTES, line_bytes)
            block_bytes = tiling.block(0, 0).entries * 4
            assert tiling.bundle(0).entries * 4 <= max(geometry.PART_BYTES, block_bytes)
        same = tile(shape, chunk, by_columns=by_columns, layout="columns" if layout == "rows" else "rows")
        assert not same.splits_lines


@given(*SHAPE)
def test_blocks_of_columns_are_bounded_too(points, rows, columns, chunk) -> None:  # type: ignore[no-untyped-def]
    shape = shape_of(points, rows, columns)
    tiling = tile(shape, chunk, by_columns=True)
    block = tiling.block(0, 0)
    assert block.rows == rows
    a_chunk = max(chunk, columns) if chunk >= columns else chunk
    assert block.entries * 4 <= max(geometry.BLOCK_BYTES, a_chunk * shape.column_bytes)
    assert block.columns == columns or block.points == 1


def test_ten_terabytes_are_planned_in_no_time() -> None:
    tiling = tile(shape_of(10**6, 1000, 2500), 100)
    assert tiling.blocks > 100_000
    assert np.prod(tiling.block(tiling.parts - 1, 0)[1::2]) > 0
