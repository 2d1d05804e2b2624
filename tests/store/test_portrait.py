"""What `jacjobs show` says of J, against NumPy on all of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jacjobs.planning.geometry import tile
from jacjobs.planning.planner import Plan
from jacjobs.shape import JacobianShape, Layout, segments_of
from jacjobs.store import portrait, spectrum
from jacjobs.store.reader import JacobianDataset, open_run
from jacjobs.store.summary import figures_of, summary_of
from tests.store.datasets import Form, make_run, plan_of, plans, write, write_dataset


def cells_of(J: np.ndarray, stacked: bool, height: int, width: int) -> np.ndarray:
    """One entry after the other."""
    sizes = np.where(np.isfinite(J), np.abs(J), np.inf).astype(float)
    lines = sizes.reshape(-1, J.shape[2]) if stacked else sizes.max(0)
    cells = np.full((min(len(lines), height), min(J.shape[2], width)), -1.0)
    for row, line in enumerate(lines):
        for column, value in enumerate(line):
            cell = row * cells.shape[0] // len(lines), column * cells.shape[1] // len(line)
            cells[cell] = max(cells[cell], value)
    return cells


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(plans(), st.integers(0, 99), st.integers(1, 4), st.integers(1, 4), st.integers(0, 8))
def test_figures_are_numpys(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    plan: Plan,
    seed: int,
    height: int,
    width: int,
    stacked_rows: int,
) -> None:
    """Of any shape, layout, parts, stripes; entries are exactly zero, NaN or infinite here and there."""
    monkeypatch.setattr(portrait, "HEIGHT", height)
    monkeypatch.setattr(portrait, "WIDTH", width)
    monkeypatch.setattr(portrait, "STACKED_ROWS", stacked_rows)
    tiling = plan.tiling
    chance = np.random.default_rng(seed)
    J = chance.standard_normal((tiling.points, tiling.rows, tiling.columns)).astype(plan.shape.dtype)
    J[chance.random(J.shape) < 0.2] = 0
    if seed % 3 == 0:
        J[chance.random(J.shape) < 0.2] = np.nan
        J[chance.random(J.shape) < 0.1] = -np.inf
    folder = make_run(tmp_path_factory.mktemp("run"), plan)
    write(folder, plan, J, chance)
    found = open_run(folder.uri).portrait()
    finite = np.isfinite(J)
    exact = np.where(finite, J, 0).astype(float)
    assert found.shape == J.shape
    assert (found.entries, found.nonfinite) == (J.size, J.size - finite.sum())
    assert found.zeros == (J == 0).sum()
    for norms, axes in ((found.point_norms, (1, 2)), (found.row_norms, (0, 2)), (found.column_norms, (0, 1))):
        np.testing.assert_allclose(norms, np.sqrt((exact**2).sum(axes)), rtol=1e-12)
    np.testing.assert_allclose(found.norm, np.linalg.norm(exact), rtol=1e-12)
    assert found.stacked == (J.shape[1] == 1 or J.shape[0] * J.shape[1] <= stacked_rows)
    np.testing.assert_array_equal(found.cells, cells_of(J, found.stacked, height, width))
    if finite.any():
        assert (found.low, found.high) == (J[finite].min(), J[finite].max())
    if exact.any():
        assert found.largest == np.unravel_index(np.abs(exact).argmax(), J.shape)
    else:
        assert found.largest is None


def small(
    path: Path,
    J: np.ndarray,
    form: Form = Form(),  # noqa: B008
    without: int | None = None,
    plain: bool = False,
) -> JacobianDataset:
    """With columns a and b, or, if `plain`, x alone."""
    P, m, n = J.shape
    shape = JacobianShape(
        points=P,
        rows=m,
        columns=n,
        dtype=str(J.dtype),
        outputs=segments_of([("y", (m,))]),
        inputs=segments_of([("x", (n,))] if plain else [("a", (2,)), ("b", (n - 2,))]),
    )
    folder = write_dataset(path, shape, J, form, run="aa", without=without, finished=without is None)
    return open_run(folder.uri)


def test_a_segment_has_figures_of_its_own(tmp_path: Path) -> None:
    J = np.random.default_rng(0).standard_normal((4, 3, 7))
    b = small(tmp_path / "run", J).segment(input="b").portrait()
    assert b.shape == (4, 3, 5)
    np.testing.assert_allclose(b.column_norms, np.linalg.norm(J[:, :, 2:], axis=(0, 1)))
    np.testing.assert_array_equal(b.cells, np.abs(J[:, :, 2:]).reshape(12, 5))


def test_figures_of_what_is_there_and_no_singular_values(tmp_path: Path) -> None:
    J = np.random.default_rng(0).standard_normal((4, 3, 7))
    dataset = small(tmp_path / "run", J, without=1)
    found, values = figures_of(dataset)
    assert found.entries == 3 * 3 * 7
    np.testing.assert_allclose(found.point_norms[[0, 2, 3]], np.linalg.norm(J[[0, 2, 3]], axis=(1, 2)))
    assert np.isnan(found.cells[3:6]).all()
    assert not np.isnan(np.delete(found.cells, range(3, 6), 0)).any()
    assert values is None
    assert "singular_values" not in summary_of(dataset, found, values)


@pytest.mark.parametrize(
    ("J", "rank"),
    [
        (np.zeros((2, 3, 4)), 0.0),
        (np.eye(5)[None], 5.0),
        (np.ones((3, 4, 6)), 1.0),
        (np.diag([2.0, 1, 1, 1])[None], 7 / 4),
    ],
)
def test_the_effective_rank(tmp_path: Path, J: np.ndarray, rank: float) -> None:
    shown = small(tmp_path / "run", J).summary()
    assert shown["singular_values"]["complete"]
    assert shown["singular_values"]["effective_rank"] == pytest.approx(rank)
    assert shown["largest"] == (None if rank == 0 else (0, 0, 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_rounding_leaves_is_zero_and_nothing_else(tmp_path: Path, dtype: type) -> None:
    """Ten values down to 1e-4 of the largest, of 20: rows that are many do not hide the small ones."""
    chance = np.random.default_rng(0)
    U, V = (np.linalg.qr(chance.standard_normal((size, 10)))[0] for size in (20_000, 20))
    expected = np.geomspace(1, 1e-4, 10)
    J = ((U * expected) @ V.T).astype(dtype)
    found = small(tmp_path / "run", J.reshape(20, 1000, 20)).singular_values()
    np.testing.assert_allclose(found.values[:10], expected, rtol=1e-3)
    assert not found.values[10:].any()


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize(("points", "rows", "columns"), [(3, 5, 70), (40, 7, 30)])
def test_all_singular_values_of_a_small_one(
    tmp_path: Path, layout: Layout, points: int, rows: int, columns: int
) -> None:
    J = np.random.default_rng(0).standard_normal((points, rows, columns))
    found = small(tmp_path / "run", J, Form(layout=layout)).singular_values()
    assert found.complete
    np.testing.assert_allclose(found.values, np.linalg.svd(J.reshape(-1, columns), compute_uv=False))


SPECTRA = {
    "slow": np.arange(1, 301) ** -0.5,
    "steep": 10.0 ** -np.arange(300),
    "three": np.array([5.0, 3.0, 1.0] + [0.0] * 297),
    "flat": np.ones(300),
    "noise": np.linalg.svd(np.random.default_rng(1).standard_normal((400, 300)), compute_uv=False) / 40,
    "uneven": np.sort(np.exp(np.random.default_rng(2).standard_normal(300)))[::-1],
    "tiny": 1e-120 * np.arange(1, 301) ** -1.0,
}


@pytest.mark.parametrize("spectrum_name", SPECTRA)
@pytest.mark.parametrize(
    "form", [Form(), Form(layout="columns"), Form(stripe=17), Form(part_points=2, group_records=50)]
)
def test_the_largest_singular_values_of_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form, spectrum_name: str
) -> None:
    """What is said is right to 1%, and is the largest; what decays is found."""
    monkeypatch.setattr(spectrum, "ALL_ENTRIES", 0)
    chance = np.random.default_rng(0)
    values = SPECTRA[spectrum_name]
    U = np.linalg.qr(chance.standard_normal((4 * 100, 300)))[0]
    V = np.linalg.qr(chance.standard_normal((300, 300)))[0]
    J = (U * values) @ V.T
    found = small(tmp_path / "run", J.reshape(4, 100, 300), form).singular_values()
    assert not found.complete
    assert (np.diff(found.values) <= 1e-12).all()
    np.testing.assert_allclose(found.values, values[: len(found.values)], rtol=0.01)
    least = {"slow": 20, "steep": 4, "three": 3, "flat": 1, "noise": 0, "uneven": 3, "tiny": 20}
    assert len(found.values) >= least[spectrum_name]


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("columns", [1, 4, 9, 60, 200])
@pytest.mark.parametrize(("form", "vectors"), [(Form(), 128), (Form(layout="columns"), 128), (Form(), 1)])
def test_of_many_rows_and_few_columns_in_single_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form, vectors: int, columns: int, size: float
) -> None:
    """Squares of such entries are beyond float32. At most so many vectors at once."""
    monkeypatch.setattr(spectrum, "ALL_ENTRIES", 0)
    longest = columns if form.layout == "rows" else max(columns, 500)
    monkeypatch.setattr(spectrum, "BLOCK_BYTES", 8 * longest * vectors)
    J = (size * 2.0 ** -np.arange(columns) * np.random.default_rng(0).standard_normal((500, columns))).astype(
        np.float32
    )
    found = small(tmp_path / "run", J.reshape(5, 100, columns), form, plain=True).singular_values()
    expected = np.linalg.svd(J.astype(float), compute_uv=False)
    assert found.complete == (columns <= (128 if vectors > 1 else 11))
    assert len(found.values) >= (min(columns, 10) if vectors > 1 else 1)
    known = expected[: len(found.values)]
    np.testing.assert_allclose(found.values, known, rtol=0.01, atol=3e-7 * known[0])


@pytest.mark.parametrize("size", [1e-200, 1e160])
def test_what_float64_cannot_square_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: float
) -> None:
    J = size * np.random.default_rng(0).standard_normal((1, 300, 250))
    dataset = small(tmp_path / "run", J)
    shown = dataset.summary()
    rank = np.linalg.norm(J / size) ** 2 / np.linalg.norm(J[0] / size, 2) ** 2
    assert shown["singular_values"]["effective_rank"] == pytest.approx(rank)
    json.dumps(shown, allow_nan=False)
    monkeypatch.setattr(spectrum, "ALL_ENTRIES", 0)
    shown = dataset.summary()
    assert shown["singular_values"] == {"values": [], "complete": False, "effective_rank": None}
    json.dumps(shown, allow_nan=False)


def test_vectors_that_are_too_long_are_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where records are no whole rows, one is as long as all rows."""
    monkeypatch.setattr(spectrum, "ALL_ENTRIES", 0)
    monkeypatch.setattr(spectrum, "MOST_BYTES", 8 * 500)
    J = np.random.default_rng(0).standard_normal((6, 100, 200))
    assert len(small(tmp_path / "rows", J).singular_values().values)
    assert not len(small(tmp_path / "columns", J, Form(layout="columns")).singular_values().values)


def test_singular_values_in_single_precision_of_a_wide_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectrum, "ALL_ENTRIES", 0)
    J = np.random.default_rng(0).standard_normal((1, 5, 400)).astype(np.float32)
    found = small(tmp_path / "run", J).singular_values()
    np.testing.assert_allclose(found.values, np.linalg.svd(J[0], compute_uv=False), rtol=1e-3)


def test_squared_is_one_product_after_the_other(tmp_path: Path) -> None:
    tiling = tile(JacobianShape(points=3, rows=4, columns=9, dtype="float64", outputs=(), inputs=()), 4)
    plan = plan_of(tiling, dtype="float64")
    J = np.random.default_rng(0).standard_normal((3, 4, 9))
    folder = make_run(tmp_path / "run", plan)
    write(folder, plan, J)
    v = np.random.default_rng(1).standard_normal((9, 2))
    rows = J.reshape(12, 9)
    squared = open_run(folder.uri)._source().squared
    np.testing.assert_allclose(squared(v), rows.T @ rows @ v)
    np.testing.assert_allclose(squared(v[:, 0])[:, 0], rows.T @ rows @ v[:, 0])
