"""The table that compares with asdex: its functions are the same in torch and in JAX, and it can be made."""

from __future__ import annotations

import math

import numpy as np
import pytest
from torch import Tensor
from torch.func import jacrev

from benchmarks.speed import page, sparse
from tests.structure import functions
from tests.structure.functions import randn

pytest.importorskip("jax")
pytest.importorskip("asdex")

SMALL = {
    "Brusselator": sparse.Sparse(lambda: functions.brusselator, "brusselator", 2 * 6**2),
    "heat": sparse.Sparse(lambda: functions.heat, "heat", 20),
    "differences": sparse.Sparse(functions.differences, "differences", 20, (5,)),
    "squared differences": sparse.Sparse(lambda: functions.squared_differences, "squared_differences", 20),
    "bundle adjustment": sparse.Sparse(sparse._bundle, "bundle", 4 * 9 + 20 * 3, (4, 20, 60)),
    "convolutions": sparse.Sparse(functions.convolutions, "convolutions", 9**2, (9,)),
    "arrow": sparse.Sparse(functions.arrow, "arrow", 30, (30,)),
}


def sides(function: sparse.Sparse, x: Tensor) -> tuple[sparse.Side, sparse.Side]:
    ours = sparse.Jacjobs(function.make(*function.sizes), x)
    return ours, sparse.Asdex(function.twin, function.sizes, x)


def test_each_function_of_the_table_has_a_small_one_here() -> None:
    assert {each.twin for each in sparse.FUNCTIONS.values()} == {each.twin for each in SMALL.values()}


@pytest.mark.parametrize("name", SMALL)
def test_twins_have_the_same_jacobian_and_patterns_that_hold_it(name: str) -> None:
    function, x = SMALL[name], randn(SMALL[name].inputs, seed=3)
    J = jacrev(function.make(*function.sizes))(x).numpy()
    for side in sides(function, x):
        side.detect()
        side.colour()
        for way, work in side.ways().items():
            got = sparse.in_rows(work())
            assert got.nnz == side.pattern.nnz, way
            np.testing.assert_allclose(got.toarray(), J, rtol=0, atol=1e-10 * np.abs(J).max())


def test_a_twin_that_is_another_function_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    other = sparse.Sparse(lambda: functions.burgers, "heat", 20)
    monkeypatch.setitem(sparse.FUNCTIONS, "other", other)
    with pytest.raises(AssertionError, match="other: asdex"):
        list(sparse.measure(["other"], quick=True))


def test_the_table_can_be_made() -> None:
    rows = list(sparse.measure(quick=True))
    for row in rows:
        assert set(row["entries"]) == set(row["groups"]) == {"jacjobs", "asdex"}
        for step in (page.DETECTION, page.COLOURING, page.PRODUCTS):
            assert all(math.isfinite(ratio) and ratio > 0 for ratio in row[step]["ratios"].values())
    tables = page.sparse({"rows": rows}).split("\n\n")
    for table in tables[:3]:
        lines = table.splitlines()
        assert len(lines) == 2 + len(rows)
        assert len({line.count("|") for line in lines}) == 1
    assert tables[3].startswith("In ms. Geometric means: detection ")


def test_a_loss_is_told_and_asdex_may_be_missing() -> None:
    slower = {"seconds": {"jacjobs": 2.0, "asdex": 1.0}, "ratios": {"jacjobs": 0.5}, "ways": {}}
    alone = {"seconds": {"jacjobs": 2.0}, "ratios": {}, "ways": {}}
    row = {
        "function": "another",
        "shape": [1, 2, 3],
        "missing": "",
        "entries": {"jacjobs": 4, "asdex": 5},
        "groups": {"jacjobs": {"columns": 2, "rows": 1}, "asdex": {"rows": 2}},
        "first_seconds": {"jacjobs": 1.0, "asdex": 1.0},
        **dict.fromkeys((page.DETECTION, page.COLOURING, page.PRODUCTS), slower),
    }
    told = page.sparse({"rows": [row]})
    assert told.count("not known |") == 3
    assert "| another | 2 × 3 | jacjobs 4, asdex 5 |" in told
    assert "| another | 2 of columns and 1 of rows | 2 of rows |" in told
    without = {
        **row,
        "missing": "asdex: not within 1 s",
        "entries": {"jacjobs": 4},
        "groups": {"jacjobs": {"columns": 2}},
        "first_seconds": {"jacjobs": 1.0},
        **dict.fromkeys((page.DETECTION, page.COLOURING, page.PRODUCTS), alone),
    }
    assert page.sparse({"rows": [without]}).count("asdex: not within 1 s |") == 3
