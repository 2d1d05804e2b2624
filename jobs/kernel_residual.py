"""The residuals of a kernel model, whose centres and width are fitted.

    r(x) = Σⱼ wⱼ exp(-|x - cⱼ|² / 2s²) - sin(x₀)        at `count` places x in 20 dimensions

At 10,000 places and 50 centres `torch.func.jacrev` asks for 37 GiB at once, a matrix (10,000, 50) for each
row, to make 76 MiB: https://github.com/pytorch/functorch/issues/1058
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jacjobs import JacobianDataset, Problem

DIMENSIONS = 20


def problem(count: int = 10_000, centres: int = 50) -> Problem:
    """m = count, n = 20 centres + 1: all centres c, then the width s."""
    places, weights, theta = data(count, centres)

    def residual(theta: Tensor) -> Tensor:
        centre, width = theta[:-1].reshape(centres, DIMENSIONS), theta[-1]
        squares = places.square().sum(1)[:, None] + centre.square().sum(1) - 2 * places @ centre.T
        return torch.exp(-squares / (2 * width**2)) @ weights - torch.sin(places[:, 0])

    return Problem(residual, (theta,))


def data(count: int, centres: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places x (count, 20), weights w (centres,), and where J is taken: centres c, then a width of 5."""
    places, weights, start = (
        torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed, size in enumerate([(count, DIMENSIONS), (centres,), (centres * DIMENSIONS,)])
    )
    return places, weights, torch.cat([start, torch.full((1,), 5, dtype=torch.float64)])


# -- what J should be ----------------------------------------------------------------------------------------


def reference(points: list[int], count: int = 10_000, centres: int = 50) -> np.ndarray:
    return np.stack([closed_form(count, centres) for _ in points])


def closed_form(count: int = 10_000, centres: int = 50) -> np.ndarray:
    """J by hand: (count, 20 centres + 1)."""
    places, weights, theta = (tensor.numpy() for tensor in data(count, centres))
    centre, width = theta[:-1].reshape(centres, DIMENSIONS), theta[-1]
    offsets = places[:, None] - centre
    squares = (offsets**2).sum(2)
    terms = np.exp(-squares / (2 * width**2)) * weights
    to_centres = (terms / width**2)[:, :, None] * offsets
    to_width = (terms * squares).sum(1, keepdims=True) / width**3
    return np.hstack([to_centres.reshape(count, -1), to_width])


# -- what J says ---------------------------------------------------------------------------------------------


def finding(J: JacobianDataset, count: int = 10_000, centres: int = 50) -> str:
    held = count * count * centres * 8 / 2**30
    assert J.manifest is not None
    took = J.manifest.memory["measured_bytes"]
    ours = "" if took is None else f"The worker's memory grew by {took / 2**20:,.0f} MiB while it computed; "
    return (
        f"{ours}jacrev would hold {held:,.2g} GiB at once. {determined(J)} of {J.shape[2]:,} directions have "
        "99% of the effect that parameters have on the residuals (of J's squared singular values)."
    )


def determined(J: JacobianDataset) -> int:
    """How many singular directions of J have 99% of the sum of its squared singular values."""
    energies = np.linalg.eigvalsh(J.normal())[::-1]
    return int(np.searchsorted(np.cumsum(energies) / energies.sum(), 0.99)) + 1
