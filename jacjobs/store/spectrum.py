"""The singular values of J: all of a small one, the largest of one of any size."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, lobpcg

from jacjobs.store.products import Source

ALL_ENTRIES, ALL_VALUES = 1 << 25, 2048
"""A matrix of no more entries, and no more rows or columns, is decomposed in memory: some seconds."""
FEW_COLUMNS, GROUPS, FEWEST_COLUMNS = 128, 8, 11
"""JᵀJ of no more is made and decomposed, if that takes no more groups of vectors; of the fewest always."""
LARGEST = 32
"""Of any other J, so many are looked for."""
BLOCK_BYTES, MOST_BYTES = 64 << 20, 512 << 20
"""… or fewer: a block of vectors takes no more than the first. None, if one takes more than the second."""
STEPS = 4
"""Of the iteration, at most; nine products with JᵀJ in all."""
TOLERANCE = 0.01
"""Relative, of a singular value: those that are not known so well are left out."""
ENOUGH = 1e-9
"""The iteration ends where all ‖JᵀJx − v²x‖ are below this part of ‖JᵀJx‖ for a random x."""

EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Spectrum:
    """values: descending; 0 where no more than rounding is left. complete: whether they are all of them,
    min(P·m, n), or the largest: as many as could be found.
    """

    values: NDArray[Any]
    complete: bool


def spectrum_of(source: Source, shape: tuple[int, int, int], count: int = LARGEST) -> Spectrum:
    """The singular values of the (P·m) × n matrix of all points' rows.

    count:  of one that is too large to be decomposed in memory, at most so many of the largest.

    Those of a large one are square roots of eigenvalues of JᵀJ, by SciPy's `lobpcg`: a block of vectors is
    multiplied in each pass over J. A value v is known if ‖JᵀJx − v²x‖ says that it is right to `TOLERANCE`;
    from the first that is not on, none is given.

    Raises ValueError where an entry is not finite.
    Source: A. V. Knyazev, "Toward the optimal preconditioned eigensolver: locally optimal block
    preconditioned conjugate gradient method", SIAM J. Sci. Comput. 23 (2001).
    """
    P, m, n = shape
    if P * m * n <= ALL_ENTRIES and min(P * m, n) <= ALL_VALUES:
        values = np.linalg.svd(source.matrix().astype(np.float64), compute_uv=False)
        # Entries are right to `eps` of each at best, and the decomposition to that of float64.
        of_entries = float(np.finfo(source.dtype).eps * np.linalg.norm(values / (values[0] or 1.0)))
        return Spectrum(_cleaned(values, max(of_entries, max(P * m, n) * EPS)), complete=True)
    longest = n if source.whole_rows else max(n, P * m)
    if 8 * longest > MOST_BYTES:
        return _NOTHING
    with np.errstate(over="ignore", invalid="ignore"):
        step = max(1, BLOCK_BYTES // (8 * longest))
        if n <= max(FEWEST_COLUMNS, min(FEW_COLUMNS, GROUPS * step)):
            one = np.eye(n)
            square = np.hstack([source.squared(one[:, i : i + step]) for i in range(0, n, step)])
            if not np.isfinite(square).all():
                return _NOTHING
            squares = np.linalg.eigvalsh(square)[::-1]
            # A product with JᵀJ is right to rounding of float64: of a value, half of the digits are.
            values = _cleaned(np.sqrt(np.maximum(squares, 0)), (n * EPS) ** 0.5)
            return Spectrum(values[: min(P * m, n)], complete=True)
        return _largest(source, n, max(1, min(count, P * m, n // 6, step)))


def _largest(source: Source, n: int, count: int) -> Spectrum:
    start = np.random.default_rng(0).standard_normal((n, count))
    scale = float(np.abs(source.squared(start[:, :1])).max() / np.abs(start[:, :1]).max())
    if not 0 < scale < np.inf:  # squares are beyond what float64 holds
        return _NOTHING

    def scaled(v: NDArray[Any]) -> NDArray[Any]:
        return source.squared(v) / scale

    operator = LinearOperator((n, n), matvec=scaled, matmat=scaled, dtype=np.float64)
    try:
        with warnings.catch_warnings(action="ignore"):  # that not all have converged
            squares, _, history = lobpcg(
                operator, start, largest=True, maxiter=STEPS, tol=ENOUGH, retResidualNormsHistory=True
            )
    except ValueError:  # of its own small eigenvalue problem
        return _NOTHING
    unknown = np.flatnonzero(~(history[-1] <= 2 * TOLERANCE * squares))
    known = squares[: unknown[0]] if len(unknown) else squares
    return Spectrum(np.sqrt(known) * np.sqrt(scale), complete=False)


_NOTHING = Spectrum(np.zeros(0), complete=False)


def _cleaned(values: NDArray[Any], rounding: float) -> NDArray[Any]:
    """With 0 for what is no more than rounding of the largest."""
    return np.where(values > rounding * values.max(initial=0), values, 0.0)
