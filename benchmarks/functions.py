"""The functions that memory, choice and speed are measured on: what users differentiate, at sizes that
matter.

Each is a problem of one kind, deterministic, made from a seed. A matrix of hundreds of MiB is never computed
whole here: memory shows in the first chunks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from jacjobs import Problem
from jobs.kernel_residual import problem as kernel_residual


def randn(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def mlp_weights(*widths: int, dtype: torch.dtype) -> list[Tensor]:
    pairs = enumerate(itertools.pairwise(widths))
    return [randn(n, m, seed=i, dtype=dtype) / math.sqrt(m) for i, (m, n) in pairs]


def _mlp(*widths: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weights = mlp_weights(*widths, dtype=dtype)

    def network(x: Tensor) -> Tensor:
        for weight in weights:
            x = torch.tanh(weight @ x)
        return x

    return network


def mlp(dtype: torch.dtype = torch.float32) -> Problem:
    """Square: 1,024 rows and columns, three layers."""
    return Problem(_mlp(1024, 1024, 1024, 1024, dtype=dtype), (randn(1024, dtype=dtype),))


def mlp_tall(dtype: torch.dtype = torch.float32) -> Problem:
    """Many rows, few columns: forward mode."""
    return Problem(_mlp(64, 1024, 8192, dtype=dtype), (randn(64, dtype=dtype),))


def mlp_wide(dtype: torch.dtype = torch.float32) -> Problem:
    """Few rows, many columns: reverse mode."""
    return Problem(_mlp(8192, 1024, 64, dtype=dtype), (randn(8192, dtype=dtype),))


def cnn_layers(dtype: torch.dtype) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return (
            nn.Sequential(
                nn.Conv2d(3, 32, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(32, 32, 3, padding=1),
                nn.GELU(),
                nn.AvgPool2d(2),
                nn.Conv2d(32, 8, 3, padding=1),
            )
            .to(dtype)
            .requires_grad_(False)
        )


def cnn(dtype: torch.dtype = torch.float32) -> Problem:
    """An image in, a feature map out: 2,048 rows, 3,072 columns."""
    network = cnn_layers(dtype)
    return Problem(lambda image: network(image[None])[0], (randn(3, 32, 32, dtype=dtype),))


def samples(dtype: torch.dtype = torch.float32, count: int = 512) -> Problem:
    """Many small matrices: images of 3 × 32 × 32, 10 rows each."""
    network = cnn_layers(dtype)
    head = randn(10, 2048, dtype=dtype) / 45
    images = randn(count, 3, 32, 32, dtype=dtype)
    return Problem(lambda image: head @ network(image[None]).flatten(), (images,), in_dims=0)


def transformer_layers(dtype: torch.dtype) -> tuple[nn.Linear, nn.Sequential]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attend, mix = nn.Linear(64, 192), nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    return attend.to(dtype).requires_grad_(False), mix.to(dtype).requires_grad_(False)


def transformer(dtype: torch.dtype = torch.float32) -> Problem:
    """One encoder block on 64 tokens of 64 dimensions."""
    attend, mix = transformer_layers(dtype)

    def block(x: Tensor) -> Tensor:
        q, k, v = attend(F.layer_norm(x, (64,))).reshape(64, 3, 4, 16).permute(1, 2, 0, 3)
        y = torch.softmax(q @ k.transpose(1, 2) / 4, -1) @ v
        x = x + y.transpose(0, 1).reshape(64, 64)
        return x + mix(F.layer_norm(x, (64,)))

    return Problem(block, (randn(64, 64, dtype=dtype),))


def attention() -> Problem:
    """Attention scores kept whole: 8 heads of 256 × 256 a product."""
    weight = randn(64, 192, seed=1) / 8

    def attend(x: Tensor) -> Tensor:
        q, k, v = (x @ weight).reshape(256, 3, 8, 8).permute(1, 2, 0, 3)
        return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(8), -1) @ v

    return Problem(attend, (randn(256, 64),))


def lstm(dtype: torch.dtype = torch.float32) -> Problem:
    """The states of 32 steps with respect to all inputs, a cell of 64 written out."""
    weights = randn(96, 256, seed=1, dtype=dtype) / 10

    def states(x: Tensor) -> Tensor:
        h, c, path = x.new_zeros(64), x.new_zeros(64), []
        for step in x:
            i, f, g, o = (torch.cat([step, h]) @ weights).chunk(4)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            path.append(h)
        return torch.stack(path)

    return Problem(states, (randn(32, 32, dtype=dtype),))


def ode(dtype: torch.dtype = torch.float64) -> Problem:
    """A reaction–diffusion line of 128 cells, 40 steps of Runge–Kutta: all states, from the initial one."""

    def slope(u: Tensor) -> Tensor:
        return 0.3 * (u.roll(1) - 2 * u + u.roll(-1)) + u * (1 - u)

    def path(u: Tensor) -> Tensor:
        states, h = [], 0.1
        for _ in range(40):
            k1 = slope(u)
            k2 = slope(u + h / 2 * k1)
            k3 = slope(u + h / 2 * k2)
            k4 = slope(u + h * k3)
            u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            states.append(u)
        return torch.stack(states)

    return Problem(path, (randn(128, dtype=dtype).abs(),))


def solve() -> Problem:
    """The solution of a linear system with respect to its right-hand side and its diagonal, float64."""
    matrix = randn(256, 256, dtype=torch.float64) / 32

    def solution(b: Tensor, d: Tensor) -> Tensor:
        return torch.linalg.solve(matrix + torch.diag(d), b)

    b, d = randn(256, seed=1, dtype=torch.float64), 3 + randn(256, seed=2, dtype=torch.float64).abs()
    return Problem(solution, (b, d), argnums=(0, 1))


def tangent_network(dtype: torch.dtype) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))
    return nn.Sequential(*layers).to(dtype)


def parameters(dtype: torch.dtype = torch.float32, count: int = 64) -> Problem:
    """Tangent features: 10 outputs with respect to all 85,002 weights, at each sample."""
    return Problem.parameters(tangent_network(dtype), randn(count, 64, dtype=dtype))


def hessian(dtype: torch.dtype = torch.float32) -> Problem:
    """A loss of a network of 4,224 weights on 256 samples."""
    inputs, targets = randn(256, 32, seed=1, dtype=dtype), randn(256, 1, seed=2, dtype=dtype)

    def loss(flat: Tensor) -> Tensor:
        w1, b1, w2, b2, w3 = torch.split(flat, [32 * 64, 64, 64 * 32, 32, 32])
        hidden = torch.tanh(inputs @ w1.view(32, 64) + b1)
        hidden = torch.tanh(hidden @ w2.view(64, 32) + b2)
        return (hidden @ w3.view(32, 1) - targets).square().mean()

    return Problem.hessian(loss, (randn(32 * 64 + 64 + 64 * 32 + 32 + 32, dtype=dtype) / 8,))


FUNCTIONS: dict[str, Callable[[], Problem]] = {
    "MLP, square": mlp,
    "MLP, tall": mlp_tall,
    "MLP, wide": mlp_wide,
    "CNN": cnn,
    "samples of a CNN": samples,
    "transformer block": transformer,
    "attention": attention,
    "LSTM": lstm,
    "ODE solve": ode,
    "kernel residual": kernel_residual,
    "linear solve": solve,
    "parameters": parameters,
    "Hessian": hessian,
}
