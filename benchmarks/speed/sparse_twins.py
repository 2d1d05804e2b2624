"""Functions of `tests/structure/functions.py` once more in JAX, with the same weights and indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.speed.twins import array
from tests.structure.functions import randn

Function = Callable[[Any], Any]


def brusselator() -> Function:
    def spread(w: Any) -> Any:
        around = jnp.roll(w, 1, 0) + jnp.roll(w, -1, 0) + jnp.roll(w, 1, 1) + jnp.roll(w, -1, 1)
        return around - 4 * w

    def slope(y: Any) -> Any:
        half = y.size // 2
        side = int(half**0.5)
        u, v = y[:half].reshape(side, side), y[half:].reshape(side, side)
        du = 1 + u * u * v - 4.4 * u + spread(u)
        dv = 3.4 * u - u * u * v + spread(v)
        return jnp.concatenate([du.ravel(), dv.ravel()])

    return slope


def heat() -> Function:
    def slope(u: Any) -> Any:
        padded = jnp.pad(u, 1)
        return padded[2:] - 2 * u + padded[:-2] + jnp.square(u)

    return slope


def differences(order: int) -> Function:
    def fn(x: Any) -> Any:
        for _ in range(order):
            x = x[1:] - x[:-1]
        return x

    return fn


def squared_differences() -> Function:
    return lambda x: jnp.square(x[1:] - x[:-1])


def bundle(cameras: int, points: int, observations: int) -> Function:
    chance = np.random.default_rng(0)
    camera, point = chance.integers(0, cameras, observations), chance.integers(0, points, observations)

    def residuals(x: Any) -> Any:
        c = x[: 9 * cameras].reshape(cameras, 9)[camera]
        p = x[9 * cameras :].reshape(points, 3)[point]
        turned = p + jnp.cross(c[:, :3], p) + c[:, 3:6]
        flat = -turned[:, :2] / (3 + turned[:, 2:])
        squared = jnp.square(flat).sum(1, keepdims=True)
        return (c[:, 6:7] * (1 + squared * (c[:, 7:8] + c[:, 8:9] * squared)) * flat).reshape(-1)

    return residuals


def convolutions(side: int) -> Function:
    kernels = [array(randn(2, 1, 3, 3, seed=1)), array(randn(1, 2, 3, 3, seed=2))]

    def network(x: Any) -> Any:
        image = x.reshape(1, 1, side, side)
        for kernel in kernels:
            image = jnp.tanh(jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME"))
        return image.reshape(-1)

    return network


def arrow(size: int) -> Function:
    return lambda x: jnp.concatenate([jnp.square(x).sum()[None], jnp.sin(x[1:]) * x[0]])
