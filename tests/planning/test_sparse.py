"""How a sparse J is cut: every product of every point once, in blocks that are bounded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jacjobs.planning.geometry import MIB
from jacjobs.planning.sparse import Groups, Kind, Pace, SparseTiling, stored_bytes, tile_groups
from jacjobs.shape import JacobianShape, Products


def shape_of(points: int, rows: int, columns: int) -> JacobianShape:
    return JacobianShape(points=points, rows=rows, columns=columns, dtype="float64", outputs=(), inputs=())


def blocks_of(tiling: SparseTiling) -> list[list[Products]]:
    return [
        [tiling.block(bundle, i) for i in range(tiling.blocks_in(bundle))] for bundle in range(tiling.bundles)
    ]


@settings(max_examples=300, deadline=None)
@given(
    points=st.integers(1, 40),
    size=st.tuples(st.integers(1, 400_000), st.integers(1, 400_000)),
    groups=st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(any),
    chunks=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    seconds=st.sampled_from([0.0, 1e-6, 3.0]),
    each=st.integers(0, 100_000),
)
def test_every_product_of_every_point_is_in_one_block(
    points: int,
    size: tuple[int, int],
    groups: tuple[int, int],
    chunks: tuple[int, int],
    seconds: float,
    each: int,
) -> None:
    shape = shape_of(points, *size)
    ends = tuple(each * (i + 1) + i for i in range(sum(groups)))
    made = Groups(columns=groups[0], rows=groups[1], ends=ends)
    kinds: tuple[Kind, Kind] = ("columns", "rows")
    paces = {
        kind: Pace(chunk=min(chunk, made.of(kind)), product_seconds=seconds)
        for kind, chunk in zip(kinds, chunks, strict=True)
        if made.of(kind)
    }
    tiling = tile_groups(shape, made, paces)
    seen: set[tuple[int, int]] = set()
    entries = 0
    for bundle, blocks in enumerate(blocks_of(tiling)):
        part = tiling.part(bundle)
        assert sum(block.entries for block in blocks) == tiling.bundle(bundle).entries
        for block in blocks:
            assert part.point_start <= block.point_start < block.point_stop <= part.point_stop
            assert block.start < block.stop <= made.products
            new = {
                (p, i)
                for p in range(block.point_start, block.point_stop)
                for i in range(block.start, block.stop)
            }
            assert not new & seen
            seen |= new
            entries += block.entries
            if block.points == 1 and block.stop - block.start < made.products:
                # One kind, whole chunks, and no more than is bounded, unless one chunk is.
                columns = block.stop <= made.columns
                assert columns or block.start >= made.columns
                chunk = paces["columns" if columns else "rows"].chunk
                of_one = 8 * (size[0] if columns else size[1])
                assert (block.stop - block.start) * of_one <= max(64 * MIB, chunk * of_one)
    assert len(seen) == points * made.products
    assert entries == points * made.entries
    assert sum(map(len, blocks_of(tiling))) == tiling.blocks


def test_parts_lie_side_by_side() -> None:
    groups = Groups(columns=3, rows=0, ends=(100_000, 200_000, 300_000))
    tiling = tile_groups(shape_of(1000, 100_000, 200_000), groups, {"columns": Pace(chunk=3)})
    assert tiling.parts > 3
    ends = [0]
    for i in range(tiling.parts):
        part = tiling.part(i)
        assert part.point_start == ends[-1]
        assert part[2:] == (0, 100_000, 0, 200_000)
        ends.append(part.point_stop)
    assert ends[-1] == 1000


@pytest.mark.parametrize(("columns", "index"), [(2**31, 4), (2**31 + 1, 8)])
def test_bytes_on_disk(columns: int, index: int) -> None:
    shape = shape_of(3, 10, columns)
    assert stored_bytes(shape, 50) == 3 * (50 * (8 + index) + 10 * 18)
