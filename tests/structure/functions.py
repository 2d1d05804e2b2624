"""Functions whose Jacobians are sparse, and single operators to compose others of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

F64 = torch.float64
SHAPE = (4, 6)
"""Of what the single operators take and give."""


def randn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=F64)


# -- single operators: (4, 6) → (4, 6) -----------------------------------------------------------------------

W = randn(6, 6, seed=1)
BAND = torch.tril(torch.ones(6, 6, dtype=F64)) - torch.tril(torch.ones(6, 6, dtype=F64), -2)
KERNEL = randn(1, 1, 3, 3, seed=2)
PAIRS = randn(4, 2, 3, seed=3)
MASK = torch.arange(24).reshape(SHAPE) % 3 == 0
PLACES = torch.tensor([5, 0, 0, 2, 3, 3])


def assigned(x: Tensor) -> Tensor:
    y = x.new_zeros(SHAPE)
    y[1] = x[2] * x[3]
    y[:, 2:4] += x[:, :2]
    y[0, 0] = 3.0
    return y


def energy(x: Tensor) -> Tensor:
    return ((x[:, 1:] - x[:, :-1].square()).square()).sum() + x[0, 0] * x[3, 5]


def solved(x: Tensor) -> Tensor:
    matrices = 4 * torch.eye(2, dtype=F64) + x.reshape(6, 2, 2).tanh()
    return torch.linalg.solve(matrices, x.reshape(6, 2, 2).sin()).reshape(SHAPE)


def tiled(x: Tensor) -> Tensor:
    return x.repeat(2, 2)[:4, :6]


OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin,
    "gelu": F.gelu,
    "relu": torch.relu,
    "floor": lambda x: torch.floor(x) + x,
    "clamp": lambda x: x.clamp(-1, 1),
    "atan2": lambda x: torch.atan2(x, 2 + x.roll(1, 0).square()),
    "larger": lambda x: torch.maximum(x, x.flip(1)),
    "roll": lambda x: x.roll((1, 2), (0, 1)),
    "flip": lambda x: x.flip(0),
    "transposed": lambda x: x.t().reshape(SHAPE),
    "unfolded": lambda x: x.reshape(-1).unfold(0, 6, 6),
    "strided": lambda x: x.reshape(-1).as_strided((4, 6), (2, 3)),
    "repeated": lambda x: x[:, :3].repeat(1, 2),
    "interleaved": lambda x: x[:2].repeat_interleave(2, 0),
    "split": lambda x: torch.cat([x.split(2, 1)[2], x.split(2, 1)[0], x.split(2, 1)[2]], 1),
    "unbound": lambda x: torch.stack([x.unbind(0)[i] for i in (3, 0, 1, 1)]),
    "chunks": lambda x: torch.cat(list(reversed(x.chunk(2, 0))), 0),
    "padded": lambda x: F.pad(x[:, :4], (1, 1), value=2.0),
    "mirrored": lambda x: F.pad(x[None, None, :, :4], (1, 1, 0, 0), mode="reflect")[0, 0],
    "tril": lambda x: x.tril() + 1,
    "diagonal": lambda x: x + torch.diag_embed(x.diagonal())[:, :1],
    "indexed": lambda x: x[:, PLACES],
    "indexed twice": lambda x: x[torch.tensor([[0], [1], [1], [3]]), PLACES],
    "selected": lambda x: x.index_select(1, PLACES),
    "gathered": lambda x: x.gather(1, torch.arange(24).reshape(SHAPE) % 5),
    "put": lambda x: x.index_put((torch.tensor([0, 2]),), x[1:3] * 2),
    "put upon": lambda x: x.index_put((torch.tensor([0, 0, 2]),), x[1:], accumulate=True),
    "scattered": lambda x: torch.zeros_like(x).scatter(1, torch.tensor([[4], [1], [1], [0]]), x[:, 2:3]),
    "scattered upon": lambda x: torch.zeros_like(x).scatter_add(1, PLACES.expand(SHAPE), x),
    "added at": lambda x: x.index_add(1, torch.tensor([0, 0, 5]), x[:, 1:4]),
    "masked": lambda x: x.masked_fill(MASK, 7.0),
    "either": lambda x: torch.where(MASK, x, x.flip(1)),
    "either by value": lambda x: torch.where(x > 0, x, x.roll(1, 1) ** 2),
    "times zeros": lambda x: x * MASK,
    "assigned": assigned,
    "sums": lambda x: x + x.sum(1, keepdim=True),
    "means": lambda x: x * x.mean(0),
    "product": lambda x: x + x[:, :3].prod(1, keepdim=True),
    "variance": lambda x: x / (1 + x.var(1, keepdim=True)),
    "norms": lambda x: x / (1 + torch.linalg.vector_norm(x, dim=1, keepdim=True)),
    "logsumexp": lambda x: x - x.logsumexp(0),
    "amax": lambda x: x - x.amax(1, keepdim=True),
    "max": lambda x: x - x.max(1)[0][:, None],
    "max of all": lambda x: x * x.max(),
    "median": lambda x: x - x.median(1)[0][:, None],
    "softmax": lambda x: x.softmax(1),
    "log softmax": lambda x: x.log_softmax(0),
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(0),
    "cummax": lambda x: x.cummax(1)[0],
    "layer norm": lambda x: F.layer_norm(x, (6,)),
    "group norm": lambda x: F.group_norm(x.reshape(2, 4, 3), 2).reshape(SHAPE),
    "sorted": lambda x: x.sort(1)[0],
    "largest": lambda x: x.topk(3, 1)[0].repeat(1, 2),
    "by value": lambda x: x.gather(1, x.argsort(1)),
    "matrix": lambda x: x @ W,
    "band": lambda x: x @ BAND,
    "band before": lambda x: (BAND @ x.t()).t(),
    "squares": lambda x: (x @ x.t() @ x) / 10,
    "batches": lambda x: torch.bmm(x.reshape(4, 2, 3), PAIRS.transpose(1, 2) @ PAIRS).reshape(SHAPE),
    "einsum": lambda x: torch.einsum("ij,kj->ikj", x, x).sum(1),
    "convolution": lambda x: F.conv2d(x[None, None], KERNEL, padding=1)[0, 0],
    "strided convolution": lambda x: (
        F.conv2d(x[None, None], KERNEL, padding=2, stride=2, dilation=2)[0, 0].sum()
        + F.conv2d(x[None, None], KERNEL, padding=1, stride=(1, 2))[0, 0].repeat(1, 2)
    ),
    "grouped convolution": lambda x: F.conv1d(
        x.reshape(1, 2, 12), randn(2, 1, 3), padding=1, groups=2
    ).reshape(SHAPE),
    "transposed convolution": lambda x: tiled(
        F.conv_transpose2d(x[None, None, :2, :3], KERNEL, padding=1, stride=2)[0, 0]
    ),
    "gradient of a convolution": torch.func.grad(
        lambda x: F.conv2d(x[None, None], KERNEL, padding=1, stride=(1, 2)).sin().sum()
    ),
    "dilated pool": lambda x: tiled(F.max_pool2d(x[None], 2, stride=1, padding=1, dilation=2)[0]),
    "its own kernel": lambda x: F.conv1d(x.reshape(1, 1, 24), x[:1, :3][None], padding=1).reshape(SHAPE),
    "max pool": lambda x: F.max_pool2d(x[None], 3, stride=1, padding=1)[0],
    "average pool": lambda x: F.avg_pool2d(x[None], (1, 3), stride=1, padding=(0, 1))[0],
    "upsampled": lambda x: F.interpolate(x[None, None, :2, :3], scale_factor=2, mode="nearest")[0, 0],
    "upsampled smoothly": lambda x: F.interpolate(x[None, None, :2, :3], scale_factor=2, mode="bilinear")[
        0, 0
    ],
    "solved": solved,
    "inverse": lambda x: torch.linalg.inv(4 * torch.eye(2, dtype=F64) + x.reshape(6, 2, 2).tanh()).reshape(
        SHAPE
    ),
    "fft": lambda x: torch.fft.fft(x, dim=1).real,
    "cross": lambda x: torch.linalg.cross(x.reshape(8, 3), x.reshape(8, 3).roll(1, 0)).reshape(SHAPE),
    "kept constant": lambda x: x * x.flip(0).detach(),
    "product with a constant of its own": lambda x: x @ x.t().detach() @ x.detach() + x.detach(),
    "joined with a constant of its own": lambda x: torch.cat([x[:, :3], x[:, 3:].detach()], 1),
    "normed with weights of its own": lambda x: F.layer_norm(x, (6,), x[0].detach()),
    "mode": lambda x: x - x.round().mode(0)[0] * x.mode(0)[0],
    "kth value": lambda x: x - x.kthvalue(2, 0)[0],
    "gradient": torch.func.grad(energy),
    "vmapped": lambda x: torch.func.vmap(lambda row: row * row.sum())(x),
    "unknown": lambda x: torch.special.i0e(x) + torch.linalg.matrix_exp(x[:, :4] / 10)[:, :1],
}


# -- functions of known patterns -----------------------------------------------------------------------------


def brusselator(y: Tensor) -> Tensor:
    """Periodic, on a square: 6 entries a row."""
    side = int((y.numel() // 2) ** 0.5)
    u, v = y.reshape(2, side, side)

    def spread(w: Tensor) -> Tensor:
        return w.roll(1, 0) + w.roll(-1, 0) + w.roll(1, 1) + w.roll(-1, 1) - 4 * w

    return torch.stack([1 + u * u * v - 4.4 * u + spread(u), 3.4 * u - u * u * v + spread(v)]).reshape(-1)


def heat(u: Tensor) -> Tensor:
    """Ends held, a source: 3 N - 2 entries."""
    padded = F.pad(u, (1, 1))
    return padded[2:] - 2 * u + padded[:-2] + u.square()


def burgers(u: Tensor) -> Tensor:
    return -u * (u.roll(-1) - u.roll(1)) / 2 + 0.1 * (u.roll(-1) - 2 * u + u.roll(1))


def differences(order: int) -> Callable[[Tensor], Tensor]:
    def fn(x: Tensor) -> Tensor:
        for _ in range(order):
            x = x[1:] - x[:-1]
        return x

    return fn


def squared_differences(x: Tensor) -> Tensor:
    return (x[1:] - x[:-1]).square()


def bundle(cameras: int, points: int, observations: int) -> tuple[Callable[[Tensor], Tensor], int]:
    """Reprojection errors of points seen by cameras of nine parameters, and how many unknowns there are."""
    chance = np.random.default_rng(0)
    camera = torch.from_numpy(chance.integers(0, cameras, observations))
    point = torch.from_numpy(chance.integers(0, points, observations))

    def residuals(x: Tensor) -> Tensor:
        c = x[: 9 * cameras].reshape(cameras, 9)[camera]
        p = x[9 * cameras :].reshape(points, 3)[point]
        turned = p + torch.linalg.cross(c[:, :3], p) + c[:, 3:6]
        flat = -turned[:, :2] / (3 + turned[:, 2:])
        squared = flat.square().sum(1, keepdim=True)
        return (c[:, 6:7] * (1 + squared * (c[:, 7:8] + c[:, 8:9] * squared)) * flat).reshape(-1)

    return residuals, 9 * cameras + 3 * points


def radio_phases(stations: int, channels: int) -> tuple[Callable[[Tensor], Tensor], int]:
    """The phase of each station in each channel, by its clock and by the electrons above it: two entries a
    row, in two groups.
    """
    frequency = torch.linspace(0.12, 0.18, channels, dtype=F64)

    def fn(x: Tensor) -> Tensor:
        clock, electrons = x.reshape(2, stations, 1)
        return torch.sin(2 * torch.pi * clock * frequency - 8.45 * electrons / frequency).reshape(-1)

    return fn, 2 * stations


def baselines(stations: int, times: int) -> tuple[Callable[[Tensor], Tensor], int]:
    """The phase of each pair of stations, again and again: two entries a row."""
    pairs = torch.combinations(torch.arange(stations))
    first, second = pairs[:, 0].repeat(times), pairs[:, 1].repeat(times)
    return lambda x: torch.sin(x[first] - x[second]), stations


def graph_network(nodes: int, features: int) -> Callable[[Tensor], Tensor]:
    """A message along each edge of a fixed list."""
    chance = torch.Generator().manual_seed(0)
    source, target = torch.randint(nodes, (2, 2 * nodes), generator=chance)
    weight = randn(features, features)

    def fn(x: Tensor) -> Tensor:
        h = x.reshape(nodes, features)
        messages = torch.tanh(h @ weight)[source]
        return (h + torch.zeros_like(h).index_add(0, target, messages)).reshape(-1)

    return fn


def convolutions(side: int) -> Callable[[Tensor], Tensor]:
    kernels = [randn(2, 1, 3, 3, seed=1), randn(1, 2, 3, 3, seed=2)]

    def fn(x: Tensor) -> Tensor:
        image = x.reshape(1, 1, side, side)
        for kernel in kernels:
            image = torch.tanh(F.conv2d(image, kernel, padding=1))
        return image.reshape(-1)

    return fn


def batched_network(samples: int, inputs: int) -> Callable[[Tensor], Tensor]:
    first, second = randn(inputs, 8, seed=1), randn(8, 3, seed=2)
    return lambda x: (torch.tanh(x.reshape(samples, inputs) @ first) @ second).reshape(-1)


def banded(size: int, width: int) -> Callable[[Tensor], Tensor]:
    ones = torch.ones(size, size, dtype=F64)
    matrix = ones.tril(width) - ones.tril(-width - 1)
    return lambda x: torch.tanh(matrix @ x)


def arrow(size: int) -> Callable[[Tensor], Tensor]:
    """The first row, the first column, the diagonal."""
    return lambda x: torch.cat([x.square().sum()[None], x[1:].sin() * x[0]])


def two_kinds(size: int) -> Callable[[Tensor], Tensor]:
    """Differences, and two sums of all."""
    return lambda x: torch.cat([(x[1:] - x[:-1]).square(), x.sin().sum()[None], (x * x.roll(1)).sum()[None]])
