"""Jacobians of a small convolutional network on scikit-learn's 1,797 handwritten digits (8 × 8 pixels).

It is trained on the images of even number (0, 2, 4, …); those of odd number are held out, so that half of any
first `limit` images is new to it.

The network is smooth (GELU, average pooling): its Jacobian exists everywhere, so that float32 and float64 can
be compared entry by entry. At the kink of a ReLU they may differ by a whole weight.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from jacjobs import JacobianDataset, Problem


def pixels(limit: int | None = None) -> Problem:
    """Logits with respect to pixels: P images, m = 10, n = 64."""
    images, network = load(limit)
    return Problem(lambda image: logits(network, None, image), (images,), in_dims=0)


def parameters(limit: int | None = None) -> Problem:
    """Logits with respect to all parameters, a dict of tensors that the images share: m = 10, n = 29,914."""
    images, network = load(limit)
    weights = {name: weight.detach() for name, weight in network.named_parameters()}
    return Problem(
        lambda weights, image: logits(network, weights, image), (weights, images), in_dims=(None, 0)
    )


def logits(network: nn.Module, weights: dict[str, Tensor] | None, image: Tensor) -> Tensor:
    """One image of 8 × 8 pixels in, 10 logits out."""
    batch = image[None, None]
    out: Tensor = network(batch) if weights is None else functional_call(network, weights, (batch,))
    return out[0]


@cache
def load(limit: int | None) -> tuple[Tensor, nn.Module]:
    """The first `limit` images, pixels in 0..1, and the network trained on the even ones of all."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32) / 16
    network = train(images[::2], torch.tensor(digits.target)[::2])
    return images[:limit], network


def labels(limit: int | None) -> np.ndarray:
    """Which digit each of the first `limit` images is."""
    return np.asarray(load_digits().target[:limit])


def train(images: Tensor, targets: Tensor) -> nn.Module:
    """A few seconds of Adam, the same weights to the bit each time: one seed, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.GELU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 48),
            nn.GELU(),
            nn.Linear(48, 10),
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        for _ in range(10):
            for batch in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(images[batch, None]), targets[batch]).backward()
                optimizer.step()
    torch.set_num_threads(threads)
    return network.eval().requires_grad_(False)


# -- what J should be: torch.func in float64 -----------------------------------------------------------------


def pixels_reference(points: list[int], limit: int | None = None) -> np.ndarray:
    images, network = load(limit)
    of_pixels = jacrev(lambda image: logits(network, doubles(network), image))
    return np.stack([of_pixels(images[point].double()).flatten(1).numpy() for point in points])


def parameters_reference(points: list[int], limit: int | None = None) -> np.ndarray:
    images, network = load(limit)
    of_weights = jacrev(lambda weights, image: logits(network, weights, image))
    blocks = (of_weights(doubles(network), images[point].double()) for point in points)
    return np.stack([np.hstack([block.flatten(1).numpy() for block in each.values()]) for each in blocks])


def doubles(network: nn.Module) -> dict[str, Tensor]:
    """The weights as float64, in the order of the columns of J."""
    return {name: weight.double() for name, weight in network.named_parameters()}


# -- what J says ---------------------------------------------------------------------------------------------


def pixels_finding(J: JacobianDataset, limit: int | None = None) -> str:
    distances, misled = boundaries(J, limit)
    return (
        f"To the first order, an image is {np.median(distances):.2f} away from one that the network takes "
        f"for another digit (median; its own norm is {norms(limit).mean():.1f}). The steps that J proposes, "
        f"made a quarter longer, mislead it on {misled:.1%} of the images."
    )


def norms(limit: int | None) -> np.ndarray:
    """Of each image, pixels in 0..1."""
    return load(limit)[0].flatten(1).norm(dim=1).numpy()


def boundaries(J: JacobianDataset, limit: int | None = None) -> tuple[np.ndarray, float]:
    """How far away each image's nearest decision boundary is, to first order, (P,); and how many of the
    steps there, made a quarter longer, cross it.

    Source: S. Moosavi-Dezfooli, A. Fawzi, P. Frossard, "DeepFool: a simple and accurate method to fool deep
    neural networks", CVPR (2016), one step of it.
    """
    images, network = load(limit)
    scores = network(images[:, None]).numpy()
    tops = scores.argmax(1)
    distances, steps = [], []
    for matrix, score, top in zip(J.to_numpy(), scores, tops, strict=True):
        slopes, gaps = matrix - matrix[top], score[top] - score
        slopes[top], gaps[top] = 1, np.inf
        lengths = gaps / np.linalg.norm(slopes, axis=1)
        nearest = lengths.argmin()
        distances.append(lengths[nearest])
        steps.append(slopes[nearest] / np.linalg.norm(slopes[nearest]) * lengths[nearest])
    moved = images + 1.25 * torch.tensor(np.stack(steps)).reshape(images.shape)
    return np.array(distances), float((network(moved[:, None]).argmax(1).numpy() != tops).mean())


def parameters_finding(J: JacobianDataset, limit: int | None = None) -> str:
    kernel, network = accuracies(J, limit)
    return (
        f"Kernel ridge regression with the network's tangent kernel, fitted to the {(J.points + 1) // 2} "
        f"even images, reads {kernel:.1%} of the {J.points // 2} held-out digits; the network itself, "
        f"trained on all 899 even ones, {network:.1%} of the same."
    )


def accuracies(J: JacobianDataset, limit: int | None = None) -> tuple[float, float]:
    """Of the odd images that are there: the share that the tangent kernel classifies well, and the network.

    The kernel between two images is the trace of their 10 × 10 block of J Jᵀ, the same for each class, as
    the infinitely wide network's is; its ridge is 1e-3 of its mean diagonal. Targets are one-hot.
    Source: A. Jacot, F. Gabriel, C. Hongler, "Neural tangent kernel", NeurIPS (2018).
    """
    images, network = load(limit)
    digits = labels(limit)
    P, m, _ = J.shape
    kernel = np.einsum("icjc->ij", J.gram().reshape(P, m, P, m)).astype(np.float64)
    seen, new = slice(0, None, 2), slice(1, None, 2)
    ridge = 1e-3 * kernel.diagonal().mean() * np.eye(len(kernel[seen]))
    duals = np.linalg.solve(kernel[seen, seen] + ridge, np.eye(10)[digits[seen]] - 0.1)
    guesses = (kernel[new, seen] @ duals).argmax(1), network(images[new, None]).argmax(1).numpy()
    by_kernel, by_network = (float((guess == digits[new]).mean()) for guess in guesses)
    return by_kernel, by_network
