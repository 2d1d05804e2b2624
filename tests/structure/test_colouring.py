"""Groups of columns: valid for any pattern, few for those that are known, and enough to get all of J back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array, csr_array, random_array
from torch import Tensor
from torch.func import jacrev

from jacjobs.autodiff.catalogue import STRATEGIES
from jacjobs.problem import Problem
from jacjobs.shape import Rectangle
from jacjobs.structure.coloured import Coloured
from jacjobs.structure.colouring import (
    ORDERS,
    Colouring,
    Grouping,
    colour_columns,
    colour_rows,
    greedy,
    group,
)
from jacjobs.structure.compression import Grouped
from jacjobs.structure.detection import detect
from tests.structure import functions
from tests.structure.functions import randn


def is_valid(pattern: csr_array, colours: np.ndarray) -> bool:
    """No two columns of a colour have an entry in the same row."""
    for row in range(pattern.shape[0]):
        mine = colours[pattern.indices[pattern.indptr[row] : pattern.indptr[row + 1]]]
        if len(set(mine.tolist())) < len(mine):
            return False
    return True


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    density=st.floats(0, 0.5),
    seed=st.integers(0, 1000),
    order=st.sampled_from(list(ORDERS)),
)
def test_every_order_gives_a_valid_colouring(
    size: tuple[int, int], density: float, seed: int, order: str
) -> None:
    pattern = csr_array(random_array(size, density=density, rng=np.random.default_rng(seed)) != 0)
    columns = csc_array(pattern)
    sequence = ORDERS[order](columns, pattern)
    assert sorted(sequence) == list(range(size[1]))
    colours = greedy(columns, sequence)
    assert is_valid(pattern, colours)
    best = colour_columns(pattern)
    assert is_valid(pattern, best.colours)
    assert best.groups <= colours.max() + 1
    assert is_valid(csr_array(pattern.T), colour_rows(pattern).colours)


def test_a_colouring_that_is_not_valid_is_seen() -> None:
    assert not is_valid(csr_array(np.ones((2, 3), bool)), np.array([0, 1, 0]))


FEW: dict[str, tuple[Callable[[Tensor], Tensor], int, int]] = {
    "Brusselator, 32": (functions.brusselator, 2048, 12),
    "Brusselator, 64": (functions.brusselator, 8192, 12),
    "heat": (functions.heat, 200, 3),
    **{f"{k}-th differences": (functions.differences(k), 50, k + 1) for k in (1, 2, 3, 5)},
    "squared differences": (functions.squared_differences, 50, 2),
    "batched network": (functions.batched_network(256, 16), 4096, 16),
    "banded": (functions.banded(200, 3), 200, 7),
    "radio phases": (functions.radio_phases(10, 2048)[0], 20, 2),
}
ENTRIES = {
    "Brusselator, 32": 12_288,
    "heat": 3 * 200 - 2,
    "squared differences": 98,
    "radio phases": 40_960,
    **{f"{k}-th differences": (k + 1) * (50 - k) for k in (1, 2, 3, 5)},
}


@pytest.mark.parametrize("name", FEW)
def test_few_groups(name: str) -> None:
    fn, size, most = FEW[name]
    found = detect(fn, [randn(size)], [0]).pattern
    assert found is not None
    assert colour_columns(found).groups <= most
    assert found.nnz == ENTRIES.get(name, found.nnz)


def test_bundle_adjustment_takes_twelve_groups_at_any_size() -> None:
    for observations in (600, 2400):
        residuals, size = functions.bundle(20, 400, observations)
        found = detect(residuals, [randn(size)], [0]).pattern
        assert found is not None
        assert colour_columns(found).groups == 12
        assert found.nnz == 24 * observations


EQUAL: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "Brusselator": (functions.brusselator, 2 * 12 * 12),
    "heat": (functions.heat, 60),
    "Burgers": (functions.burgers, 60),
    "convolutions": (functions.convolutions(9), 81),
    "bundle adjustment": functions.bundle(4, 20, 60),
    "differences": (functions.differences(4), 40),
    "batched network": (functions.batched_network(12, 5), 60),
    "banded": (functions.banded(40, 2), 40),
    "radio phases": functions.radio_phases(10, 2048),
    "baselines": functions.baselines(8, 3),
    "graph network": (functions.graph_network(12, 3), 36),
    "arrow": (functions.arrow(30), 30),
    "differences and sums": (functions.two_kinds(30), 30),
}


def products(
    fn: Callable[[Tensor], Tensor], x: Tensor, colouring: Colouring | None, makes: str
) -> np.ndarray | None:
    """By a strategy that makes dense ones, which is asked for as many as there are groups."""
    if colouring is None:
        return None
    seeds = Grouped(colouring.colours, colouring.groups)
    extent = (0, seeds.count, 0, 1) if makes == "rows" else (0, 1, 0, seeds.count)
    strategy = STRATEGIES["vjp/vmap" if makes == "rows" else "jvp/vmap"]
    chunks = list(strategy.chunks(Problem(fn, (x,)), Rectangle(0, 1, *extent), seeds, 5))
    made = torch.cat([chunk.leaves[0][0] for chunk in chunks])
    assert len(made) == colouring.groups
    return made.reshape(len(made), -1).numpy()


def together(
    pattern: csr_array, grouping: Grouping, of_columns: np.ndarray | None, of_rows: np.ndarray | None
) -> csr_array:
    """Of all products of a point."""
    coloured = Coloured.of_arrays(Coloured(pattern, grouping).arrays())
    several = [None if made is None else made[None] for made in (of_columns, of_rows)]
    return coloured.matrix(coloured.share(0, coloured.products).taken(*several)[0])


def check_equal(
    fn: Callable[[Tensor], Tensor], size: int, grouped: Callable[[csr_array], Grouping]
) -> Grouping:
    """All of J from the products of groups, in float64, at another point than the pattern was found at."""
    x = randn(size, seed=5)
    found = detect(fn, [randn(size)], [0]).pattern
    assert found is not None
    grouping = grouped(found)
    parts = [products(fn, x, grouping.columns, "columns"), products(fn, x, grouping.rows, "rows")]
    J = jacrev(fn)(x).numpy()
    got = together(found, grouping, *parts).toarray()
    np.testing.assert_allclose(got, J, rtol=1e-12, atol=1e-12 * np.abs(J).max())
    return grouping


def of_columns(pattern: csr_array) -> Grouping:
    return Grouping(colour_columns(pattern), None, np.zeros(pattern.nnz, bool))


def of_rows(pattern: csr_array) -> Grouping:
    return Grouping(None, colour_rows(pattern), np.ones(pattern.nnz, bool))


@pytest.mark.parametrize("grouped", [of_columns, of_rows, group])
@pytest.mark.parametrize("name", EQUAL)
def test_products_of_groups_hold_all_of_the_jacobian(
    name: str, grouped: Callable[[csr_array], Grouping]
) -> None:
    check_equal(*EQUAL[name], grouped)


@pytest.mark.parametrize(
    ("make", "most"), [(functions.arrow, 3), (functions.two_kinds, 4), (functions.differences, 6)]
)
def test_both_directions_where_that_pays(
    make: Callable[[int], Callable[[Tensor], Tensor]], most: int
) -> None:
    """An arrow takes as many products at any size; by columns or rows alone, as many as it has."""
    for size in (40, 160):
        fn = make(5) if make is functions.differences else make(size)
        grouping = check_equal(fn, size, group)
        assert grouping.products <= most
    if make is functions.arrow:
        found = detect(fn, [randn(size)], [0]).pattern
        assert found is not None
        assert colour_columns(found).groups == colour_rows(found).groups == size


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    density=st.floats(0.05, 0.5),
    full=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    seed=st.integers(0, 1000),
)
def test_any_matrix_comes_back(
    size: tuple[int, int], density: float, full: tuple[int, int], seed: int
) -> None:
    chance = np.random.default_rng(seed)
    dense = np.where(chance.random(size) < density, chance.standard_normal(size), 0.0)
    dense[: full[0]] = chance.standard_normal((min(full[0], size[0]), size[1]))
    dense[:, : full[1]] = chance.standard_normal((size[0], min(full[1], size[1])))
    matrix = csr_array(dense)
    pattern = csr_array(matrix != 0)
    grouping = group(pattern)
    sums = [
        None
        if colouring is None
        else np.stack([of[colouring.colours == c].sum(0) for c in range(colouring.groups)])
        for colouring, of in ((grouping.columns, dense.T), (grouping.rows, dense))
    ]
    if pattern.nnz:
        np.testing.assert_allclose(together(pattern, grouping, *sums).toarray(), dense, atol=1e-12)
    assert grouping.products <= min(colour_columns(pattern).groups, colour_rows(pattern).groups)
