"""Freivalds' check: a block of J, multiplied by a random vector, against one product of the other mode.

For a random v, J·v takes one product that makes columns (a JVP, or a double VJP); every block of rows must
agree with its slice of it. For a random u, uᵀJ takes one VJP; every block of columns must agree with its
slice. So at the price of a matrix–vector product all of J is checked against another mode of differentiation.

The tolerance. Let r be a row of the block, e the error in it, and v a vector of independent standard normal
entries. Then e·v is normal with standard deviation ‖e‖, and rounding alone leaves |r·v − (Jv)ᵢ| near ε‖r‖
times what the function's own conditioning adds. The check allows √ε‖r‖ (half the digits of the dtype are left
for conditioning) plus 64 ε times the largest row of the point (a row that cancels to nearly nothing keeps the
rounding of what it cancels from). An error of relative size δ in one entry of a row of n alike entries has
‖e‖ = δ‖r‖/√n: in float64 (√ε = 1.5e-8), δ = 1e-3 is found for n up to some 10⁹; a row that is altogether
wrong in float32 (√ε = 3.5e-4) escapes once in several thousand times.

Source: R. Freivalds, "Probabilistic machines can use less running time", IFIP Congress (1977).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jacjobs.autodiff.catalogue import STRATEGIES
from jacjobs.autodiff.seeds import Gaussian, draw
from jacjobs.autodiff.strategy import flat, products_of
from jacjobs.autodiff.words import is_out_of_memory, tolerance
from jacjobs.problem import Problem
from jacjobs.shape import Rectangle

SHARE = 0.02
"""`check: auto` spends at most this part of a block's products on checking, but checks one point at least."""
CHECKERS = {
    "rows": ("jvp/vmap", "double-vjp/vmap", "jvp/loop", "double-vjp/loop"),
    "columns": ("vjp/vmap", "vjp/loop"),
}
"""Who can check a strategy that makes rows, or columns: the first that works."""
KEY = 8191
FLOOR_EPS = 64.0
SLAB_BYTES = 1 << 20
"""A block is compared so much of it at a time, in the cache: in float64, whatever its own dtype."""


class Finding(NamedTuple):
    """What checking a block found.

    points:  how many were checked.
    error:   the worst, relative to the norm of the row (or column) that it was found in.
    passed:  whether all was within the tolerance.
    """

    points: int
    error: float
    passed: bool


def judge(
    norms: NDArray[np.float64],
    residuals: NDArray[np.float64],
    precision: torch.dtype,
    scale: float = 1e-300,
    floor_eps: float = FLOOR_EPS,
) -> tuple[float, NDArray[np.int64]]:
    """The worst of a point's errors, relative, and which of the products are wrong: beyond the tolerance.

    norms, residuals: of each product, and how much it is off when multiplied by the random vector.
    scale:            of what they were computed from, if that is more than the largest norm.
    floor_eps:        roundings of the largest that any of them may have.
    """
    finite = np.flatnonzero(np.isfinite(residuals) & np.isfinite(norms))  # the others are another matter
    if not len(finite):
        return 0.0, finite
    norms, residuals = norms[finite], residuals[finite]
    floor = floor_eps * torch.finfo(precision).eps * max(norms.max(), scale)
    allowed = tolerance(precision) * norms + floor
    return float((residuals / (norms + floor)).max()), finite[residuals > allowed]


def largest(vector: NDArray[np.float64]) -> float:
    """Of what is finite in it, by absolute value."""
    return float(np.abs(vector[np.isfinite(vector)]).max(initial=1e-300))


class Checker:
    """Checks blocks of one problem; remembers the product of the point it saw last."""

    def __init__(
        self,
        problem: Problem,
        makes: str,
        by: str,
        chunk: int,
        *,
        every_point: bool,
        stored: str | None = None,
        zeros: NDArray[np.bool_] | None = None,
    ) -> None:
        """`makes` says what the products of the blocks are, `by` is the strategy that checks them.

        `stored` is the dtype of the blocks, if they were rounded to it. `zeros` says which elements of the
        random vector are zero: what it is multiplied with does not count.

        At most `chunk` points are checked at once, which is no more work than a chunk of the block is.
        """
        self._problem = problem
        self._by_rows = makes == "rows"
        self._by = STRATEGIES[by]
        self._chunk = chunk
        self._every_point = every_point
        rounded = getattr(torch, stored or problem.shape.dtype)
        self.precision = max(problem.precision, rounded, key=lambda dtype: torch.finfo(dtype).eps)
        self._remembered: tuple[tuple[int, int], NDArray[np.float64]] | None = None
        size = problem.shape.columns if self._by_rows else problem.shape.rows
        self._seeds = Gaussian(size, KEY, None if zeros is None else torch.from_numpy(zeros))
        self.vector = np.asarray(self._seed(self._seeds), dtype=np.float64)

    def check(self, block: Rectangle, values: NDArray[Any]) -> Finding:
        """Compare `values`, shape (points, rows, columns), with one product for each point checked."""
        shape = self._problem.shape
        start, stop = self.chosen(
            block.point_start, block.point_stop, shape.rows if self._by_rows else shape.columns
        )
        products = self.products(start, stop)
        extent = products_of(STRATEGIES["vjp/loop" if self._by_rows else "jvp/loop"], block)
        worst, passed = 0.0, True
        for point in range(start, stop):
            matrix = values[point - block.point_start]
            expected = products[point - start, slice(*extent)]
            error, within = self._compare(matrix if self._by_rows else matrix.T, expected)
            worst, passed = max(worst, error), passed and within
        return Finding(stop - start, worst, passed)

    def check_sparse(self, start: int, matrices: Sequence[Any]) -> Finding:
        """Compare the matrices of points from `start` on, each a SciPy sparse one, with a product each. What
        is compared are rows.
        """
        worst, passed = 0.0, True
        for matrix, expected in zip(matrices, self.products(start, start + len(matrices)), strict=True):
            exact = matrix.astype(np.float64)
            with np.errstate(all="ignore"):
                norms = np.sqrt(np.asarray(exact.power(2).sum(axis=1)).reshape(-1))
                residuals = np.abs(exact @ self.vector - expected)
            error, wrong = judge(norms, residuals, self.precision, largest(expected))
            worst, passed = max(worst, error), passed and not len(wrong)
        return Finding(len(matrices), worst, passed)

    def chosen(self, start: int, stop: int, products: int) -> tuple[int, int]:
        """All of these points, or a run of as many as `SHARE` of their products allow, somewhere in it."""
        count = stop - start if self._every_point else max(1, int((stop - start) * products * SHARE))
        if count >= stop - start:
            return start, stop
        chance = np.random.default_rng(start)
        first = start + int(chance.integers(stop - start - count + 1))
        return first, first + count

    def _compare(self, products: NDArray[Any], expected: NDArray[np.float64]) -> tuple[float, bool]:
        """The worst error of a point's products, relative; and whether all are within the tolerance."""
        norms, residuals = np.empty(len(products)), np.empty(len(products))
        step = max(1, SLAB_BYTES // (8 * products.shape[1]))
        space = np.empty((min(step, len(products)), products.shape[1]))
        with np.errstate(all="ignore"):
            for first in range(0, len(products), step):
                some = slice(first, first + step)
                slab = space[: len(products[some])]
                slab[...] = products[some]
                norms[some] = np.sqrt(np.einsum("ij,ij->i", slab, slab))
                residuals[some] = np.abs(slab @ self.vector - expected[some])
        error, wrong = judge(norms, residuals, self.precision)
        return error, not len(wrong)

    def products(self, start: int, stop: int) -> NDArray[np.float64]:
        """J·v or uᵀJ at points, one each: (points, m or n).

        Blocks of one large matrix ask for the same one again and again.
        """
        if self._remembered is None or self._remembered[0] != (start, stop):
            shape = self._problem.shape
            one = (0, shape.rows, 0, 1) if self._by_rows else (0, 1, 0, shape.columns)
            self._remembered = (start, stop), self._made(Rectangle(start, stop, *one))
        return self._remembered[1]

    def _made(self, block: Rectangle) -> NDArray[np.float64]:
        """The products, fewer points at once where memory runs out."""
        while True:
            try:
                chunks = self._by.chunks(self._problem, block, self._seeds, self._chunk)
                made = [torch.cat([flat(leaf).double() for leaf in c.leaves], 2)[:, 0].cpu() for c in chunks]
                return torch.cat(made).numpy()
            except Exception as error:
                if not is_out_of_memory(error) or self._chunk == 1:
                    raise
            self._chunk //= 2

    def _seed(self, seeds: Gaussian) -> Tensor:
        """The vector as the products see it: rounded to the dtype of what it multiplies."""
        problem = self._problem
        if self._by_rows:
            dtypes = [problem.leaves[index].dtype for index in problem.wanted]
        else:
            dtypes = problem.output_dtypes
        return draw(seeds, 0, 1, dtypes, torch.device("cpu"))[0].double()
