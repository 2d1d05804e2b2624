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
LARGEST = 32
"""Of any other, so many are looked for."""
BLOCK_BYTES = 64 << 20
"""… or fewer, so that a block of vectors takes no more than this."""
STEPS = 4
"""Of the iteration, at most; each reads J once, or twice where lines are cut or are columns."""
TOLERANCE = 0.01
"""Relative, of a singular value: those that are not known so well are left out."""

ENOUGH = 1e-9
"""The iteration ends where all ‖JᵀJx − v²x‖ are below this part of ‖JᵀJx‖ for a random x."""


@dataclass(frozen=True)
class Spectrum:
    """values: descending. complete: whether they are all of them, min(P·m, n), or the largest."""

    values: NDArray[Any]
    complete: bool


def spectrum_of(source: Source, shape: tuple[int, int, int], count: int) -> Spectrum:
    """The singular values of the (P·m) × n matrix of all points' rows.

    count:  of one that is too large to be decomposed in memory, at most so many of the largest.

    Those of a large one are square roots of eigenvalues of JᵀJ, by SciPy's `lobpcg`: a block of vectors is
    multiplied in each pass over J. A value v is kept if ‖JᵀJx − v²x‖ says that it is right to `TOLERANCE`.

    Raises ValueError where an entry is not finite.
    Source: A. V. Knyazev, "Toward the optimal preconditioned eigensolver: locally optimal block
    preconditioned conjugate gradient method", SIAM J. Sci. Comput. 23 (2001).
    """
    P, m, n = shape
    if P * m * n <= ALL_ENTRIES and min(P * m, n) <= ALL_VALUES:
        J = source.matrix().astype(np.float64)
        return Spectrum(np.linalg.svd(J, compute_uv=False), complete=True)
    count = max(1, min(count, P * m, n // 6, BLOCK_BYTES // (8 * n)))
    start = np.random.default_rng(0).standard_normal((n, count))
    operator = LinearOperator((n, n), matvec=source.squared, matmat=source.squared, dtype=np.float64)
    scale = float(np.linalg.norm(source.squared(start[:, :1])) / np.linalg.norm(start[:, :1]))
    if not scale:  # all is zero
        return Spectrum(np.zeros(count), complete=False)
    with warnings.catch_warnings(action="ignore"):  # that not all have converged
        squares, _, history = lobpcg(
            operator, start, largest=True, maxiter=STEPS, tol=ENOUGH * scale, retResidualNormsHistory=True
        )
    known = history[-1] <= 2 * TOLERANCE * squares
    return Spectrum(np.sqrt(squares[known]), complete=False)
