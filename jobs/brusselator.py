"""The residual of a step of implicit Euler for the Brusselator: a reaction with diffusion, on a periodic
square.

    u' = 1 + u²v - 4.4 u + α Δu + f      f = 5 in a disk around (0.3, 0.6), 0 elsewhere
    v' = 3.4 u - u²v + α Δv              α = 10

as in the benchmarks of SciML (https://docs.sciml.ai/DiffEqDocs/stable/tutorials/advanced_ode_example/, from
E. Hairer, G. Wanner, "Solving Ordinary Differential Equations II", 2nd edition (1996), section IV.10), after
the source f is switched on. The state here is 1 above their initial one, which is 0 along two edges: there,
derivatives would vanish by chance.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor

from jacjobs import Problem, SparseDataset

DIFFUSION = 10.0
STEP = 0.02
"""h, hundreds of times what an explicit method could take."""


def problem(grid: int = 512) -> Problem:
    """F(w) = w - w₀ - h w'(w) at w = w₀. m = n = 2 grid²: all of u, row by row, then all of v."""
    spread, source = DIFFUSION * (grid - 1) ** 2, torch.from_numpy(disk(grid))
    before = torch.from_numpy(start(grid))

    def residual(state: Tensor) -> Tensor:
        u, v = state.reshape(2, grid, grid)
        reaction = u.square() * v
        u_rate = 1 + reaction - 4.4 * u + spread * laplacian(u) + source
        v_rate = 3.4 * u - reaction + spread * laplacian(v)
        return state - before - STEP * torch.stack([u_rate, v_rate]).flatten()

    return Problem(residual, (before.clone(),))


def laplacian(field: Tensor) -> Tensor:
    """The five-point stencil, without its 1/dx²."""
    return field.roll(1, 0) + field.roll(-1, 0) + field.roll(1, 1) + field.roll(-1, 1) - 4 * field


def start(grid: int) -> np.ndarray:
    """w₀: (2 grid²,)."""
    x, y = places(grid)
    return np.concatenate([1 + 22 * (y * (1 - y)) ** 1.5, 1 + 27 * (x * (1 - x)) ** 1.5], axis=None)


def disk(grid: int) -> np.ndarray:
    """f: (grid, grid)."""
    x, y = places(grid)
    return np.where((x - 0.3) ** 2 + (y - 0.6) ** 2 <= 0.01, 5.0, 0.0)


def places(grid: int) -> list[np.ndarray]:
    """x and y of each cell: two of (grid, grid)."""
    return np.meshgrid(np.linspace(0, 1, grid), np.linspace(0, 1, grid), indexing="ij")


# -- what J should be ----------------------------------------------------------------------------------------


def reference(points: list[int], grid: int = 512) -> list[scipy.sparse.csr_array]:
    return [closed_form(start(grid), grid) for _ in points]


def closed_form(state: np.ndarray, grid: int) -> scipy.sparse.csr_array:
    """J by hand: I - h (α Δ + the derivative of the reaction), (2 grid², 2 grid²)."""
    ring = scipy.sparse.diags_array(
        [np.full(grid, -2.0), np.ones(grid - 1), np.ones(grid - 1), [1.0], [1.0]],
        offsets=[0, 1, -1, grid - 1, 1 - grid],
    )
    eye = scipy.sparse.eye_array(grid)
    diffusion = DIFFUSION * (grid - 1) ** 2 * (scipy.sparse.kron(ring, eye) + scipy.sparse.kron(eye, ring))
    u, v = state.reshape(2, grid**2)
    rates = scipy.sparse.block_array(
        [
            [diffusion + scipy.sparse.diags_array(2 * u * v - 4.4), scipy.sparse.diags_array(u**2)],
            [scipy.sparse.diags_array(3.4 - 2 * u * v), diffusion - scipy.sparse.diags_array(u**2)],
        ]
    )
    return (scipy.sparse.eye_array(2 * grid**2) - STEP * rates).tocsr()


# -- what J says ---------------------------------------------------------------------------------------------


def finding(J: SparseDataset, grid: int = 512) -> str:
    before, after, shrinks = newton(J, grid)
    return (
        f"{J[0].nnz:,} of J's {J.shape[1] * J.shape[2]:,} entries are not zero. A Newton step with it "
        f"takes the residual from {before:.3g} to {after:.2g}. Half a step leaves {1 / shrinks:.3f} of what "
        "a linear residual would not have: a quarter is quadratic."
    )


def newton(J: SparseDataset, grid: int = 512) -> tuple[float, float, float]:
    """Norms of F before and after a Newton step with J; and by how much F(w + t d) - (1 - t) F(w), which a
    linear F does not have, shrinks from t = 1 to t = 1/2.
    """
    build = problem(grid)
    state = build.leaves[0]
    value = build.fn(state)
    step, failed = gmres(J[0], -value.numpy(), rtol=1e-11, M=without_reaction(grid), maxiter=10)
    if failed:
        raise RuntimeError("GMRES has not converged: J is not what the residual says")
    whole = build.fn(state + torch.from_numpy(step))
    half = build.fn(state + torch.from_numpy(step) / 2) - value / 2
    return float(value.norm()), float(whole.norm()), float(whole.norm() / half.norm())


def without_reaction(grid: int) -> LinearOperator:
    """(I - h α Δ)⁻¹ of both substances: what J would be inverse to, if they did not react. A Fourier
    transform makes it diagonal; GMRES with it takes a few iterations on any grid.
    """
    ring = 2 * np.cos(2 * np.pi * np.arange(grid) / grid) - 2
    eigenvalues = 1 - STEP * DIFFUSION * (grid - 1) ** 2 * (ring[:, None] + ring)

    def solve(w: np.ndarray) -> np.ndarray:
        return np.fft.ifft2(np.fft.fft2(w.reshape(2, grid, grid)) / eigenvalues).real.reshape(-1)

    return LinearOperator((2 * grid**2, 2 * grid**2), matvec=solve, dtype=np.float64)
