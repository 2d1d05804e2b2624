"""Jacobians of a small convolutional network on scikit-learn's 1,797 handwritten digits (8 × 8 pixels).

The network is smooth (GELU, average pooling): its Jacobian exists everywhere, so that float32 and float64 can
be compared entry by entry. At the kink of a ReLU they may differ by a whole weight.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call

from jacjobs import Problem


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


def load(limit: int | None) -> tuple[Tensor, nn.Module]:
    """The first `limit` images, pixels in 0..1, and the network trained on all of them."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32) / 16
    network = train(images, torch.tensor(digits.target))
    return images[:limit], network


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
        for _ in range(5):
            for batch in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(images[batch, None]), targets[batch]).backward()
                optimizer.step()
    torch.set_num_threads(threads)
    return network.eval().requires_grad_(False)
