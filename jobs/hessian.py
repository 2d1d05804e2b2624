"""The Hessian of a loss: a network of two hidden layers, trained for a while on scikit-learn's digits.

float64, so that symmetry and small eigenvalues are seen to rounding.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.datasets import load_digits
from torch import Tensor
from torch.func import grad, jacrev

from jacjobs import JacobianDataset, Problem

CLASSES = 10
Weights = dict[str, Tensor]


def problem(width: int = 24, limit: int = 500) -> Problem:
    """The mean cross-entropy over `limit` images; m = n = width² + 76 width + 10."""
    weights, images, targets = trained(width, limit)
    return Problem.hessian(lambda weights: loss(weights, images, targets), (weights,))


def loss(weights: Weights, images: Tensor, targets: Tensor) -> Tensor:
    hidden = torch.tanh(images @ weights["w1"] + weights["b1"])
    hidden = torch.tanh(hidden @ weights["w2"] + weights["b2"])
    return F.cross_entropy(hidden @ weights["w3"] + weights["b3"], targets)


@cache
def trained(width: int, limit: int) -> tuple[Weights, Tensor, Tensor]:
    """Weights after 100 steps of Adam on the same images; the images, (limit, 64), and what they are."""
    digits = load_digits()
    images = torch.tensor(digits.data[:limit]) / 16
    targets = torch.tensor(digits.target[:limit])
    draw = torch.Generator().manual_seed(0)
    weights: Weights = {}
    for layer, (rows, columns) in enumerate([(64, width), (width, width), (width, CLASSES)], 1):
        scale = rows**-0.5
        weights[f"w{layer}"] = torch.randn(rows, columns, generator=draw, dtype=torch.float64) * scale
        weights[f"b{layer}"] = torch.zeros(columns, dtype=torch.float64)
    for leaf in weights.values():
        leaf.requires_grad_()
    optimizer = torch.optim.Adam(weights.values(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        loss(weights, images, targets).backward()
        optimizer.step()
    return {name: leaf.detach() for name, leaf in weights.items()}, images, targets


# -- what J should be: torch.func in float64, of one flat vector ---------------------------------------------


def reference(points: list[int], width: int = 24, limit: int = 500) -> np.ndarray:
    """Reverse mode over reverse mode."""
    weights, images, targets = trained(width, limit)
    sizes = [leaf.numel() for leaf in weights.values()]

    def of_vector(vector: Tensor) -> Tensor:
        parts = zip(weights.items(), vector.split(sizes), strict=True)
        return loss({name: part.reshape(leaf.shape) for (name, leaf), part in parts}, images, targets)

    vector = torch.cat([leaf.flatten() for leaf in weights.values()])
    return np.stack([jacrev(grad(of_vector), chunk_size=64)(vector).numpy() for _ in points])


# -- what J says ---------------------------------------------------------------------------------------------


def finding(J: JacobianDataset, width: int = 24, limit: int = 500) -> str:
    values, asymmetry = spectrum(J)
    largest = values[:CLASSES]
    return (
        f"{(values < 0).sum():,} of {len(values):,} eigenvalues are negative; they lie between "
        f"{values[-1]:.2g} and {values[0]:.2g}. The {CLASSES} largest, as many as there are classes, have "
        f"{(largest**2).sum() / (values**2).sum():.0%} of the sum of squares; {outliers(values)} stand above "
        f"the widest gap. H equals its transpose to {asymmetry:.0e}."
    )


def spectrum(J: JacobianDataset) -> tuple[np.ndarray, float]:
    """The eigenvalues, falling; and the largest of |H - Hᵀ|, relative to the largest of |H|."""
    H = J[0]
    asymmetry = np.abs(H - H.T).max() / np.abs(H).max()
    return np.linalg.eigvalsh((H + H.T) / 2)[::-1], float(asymmetry)


def outliers(values: np.ndarray) -> int:
    """How many eigenvalues stand above the bulk: those before the widest gap, as a ratio, among the first
    2 CLASSES. In networks that classify they are about as many as there are classes.

    Sources: L. Sagun, U. Evci, V. Ugur Guney, Y. Dauphin, L. Bottou, "Empirical analysis of the Hessian of
    over-parametrized neural networks", arXiv:1706.04454 (2017); V. Papyan, "The full spectrum of deepnet
    Hessians at scale", arXiv:1811.07062 (2018).
    """
    first = values[: 2 * CLASSES + 1]
    return int((first[:-1] / first[1:]).argmax()) + 1
