"""The functions of `benchmarks/functions.py` once more in JAX, with the same weights and inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import Tensor

from benchmarks import functions
from benchmarks.functions import mlp_weights, randn
from jobs import kernel_residual

jax.config.update("jax_enable_x64", True)

Twin = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function that returns all of J, to be compiled, and its arguments."""


def works(twin: str, dtype: torch.dtype, sizes: dict[str, int]) -> dict[str, Callable[[], Any]]:
    """Those of one function, compiled: each returns all of J."""

    def work(compiled: Any, args: tuple[Any, ...]) -> Any:
        return jax.block_until_ready(compiled(*args))

    twins: dict[str, Twin] = globals()[twin](dtype, **sizes)
    return {peer: partial(work, jax.jit(fn), args) for peer, (fn, args) in twins.items()}


def array(tensor: Tensor) -> Any:
    return jnp.asarray(tensor.detach().numpy())


def _whole(fn: Callable[..., Any], *args: Any) -> dict[str, Twin]:
    return {"JAX, jacrev": (jax.jacrev(fn), args), "JAX, jacfwd": (jax.jacfwd(fn), args)}


def _mlp(*widths: int) -> Callable[[torch.dtype], dict[str, Twin]]:
    def twins(dtype: torch.dtype) -> dict[str, Twin]:
        weights = [array(weight) for weight in mlp_weights(*widths, dtype=dtype)]

        def network(x: Any) -> Any:
            for weight in weights:
                x = jnp.tanh(weight @ x)
            return x

        return _whole(network, array(randn(widths[0], dtype=dtype)))

    return twins


def _cnn_of(dtype: torch.dtype) -> Callable[[Any], Any]:
    layers = functions.cnn_layers(dtype)
    weights = [(array(layer.weight), array(layer.bias)) for layer in layers if hasattr(layer, "weight")]

    def convolve(x: Any, weight: Any, bias: Any) -> Any:
        made = jax.lax.conv_general_dilated(x[None], weight, (1, 1), "SAME")[0]
        return made + bias[:, None, None]

    def network(image: Any) -> Any:
        x = jax.nn.gelu(convolve(image, *weights[0]), approximate=False)
        x = jax.nn.gelu(convolve(x, *weights[1]), approximate=False)
        x = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2).mean((2, 4))
        return convolve(x, *weights[2])

    return network


def cnn(dtype: torch.dtype) -> dict[str, Twin]:
    return _whole(_cnn_of(dtype), array(randn(3, 32, 32, dtype=dtype)))


def samples(dtype: torch.dtype, count: int) -> dict[str, Twin]:
    network, head = _cnn_of(dtype), array(randn(10, 2048, dtype=dtype)) / 45
    images = array(randn(count, 3, 32, 32, dtype=dtype))
    of_one = jax.jacrev(lambda image: head @ network(image).reshape(-1))
    return {"JAX, vmap(jacrev)": (jax.vmap(of_one), (images,))}


def transformer(dtype: torch.dtype) -> dict[str, Twin]:
    attend, mix = functions.transformer_layers(dtype)
    linear = [(array(layer.weight), array(layer.bias)) for layer in (attend, mix[0], mix[2])]

    def apply(x: Any, number: int) -> Any:
        weight, bias = linear[number]
        return x @ weight.T + bias

    def norm(x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    def block(x: Any) -> Any:
        q, k, v = apply(norm(x), 0).reshape(64, 3, 4, 16).transpose(1, 2, 0, 3)
        y = jax.nn.softmax(q @ k.transpose(0, 2, 1) / 4, -1) @ v
        x = x + y.transpose(1, 0, 2).reshape(64, 64)
        return x + apply(jax.nn.gelu(apply(norm(x), 1), approximate=False), 2)

    return _whole(block, array(randn(64, 64, dtype=dtype)))


def lstm(dtype: torch.dtype) -> dict[str, Twin]:
    weights = array(randn(96, 256, seed=1, dtype=dtype) / 10)

    def states(x: Any) -> Any:
        def step(carry: Any, each: Any) -> Any:
            h, c = carry
            i, f, g, o = jnp.split(jnp.concatenate([each, h]) @ weights, 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros(64, x.dtype)
        return jax.lax.scan(step, (zeros, zeros), x)[1]

    return _whole(states, array(randn(32, 32, dtype=dtype)))


def ode(dtype: torch.dtype) -> dict[str, Twin]:
    def slope(u: Any) -> Any:
        return 0.3 * (jnp.roll(u, 1) - 2 * u + jnp.roll(u, -1)) + u * (1 - u)

    def path(u: Any) -> Any:
        def step(u: Any, _: None) -> Any:
            h = 0.1
            k1 = slope(u)
            k2 = slope(u + h / 2 * k1)
            k3 = slope(u + h / 2 * k2)
            k4 = slope(u + h * k3)
            u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            return u, u

        return jax.lax.scan(step, u, None, length=40)[1]

    return _whole(path, array(randn(128, dtype=dtype).abs()))


def residual(dtype: torch.dtype, count: int, centres: int) -> dict[str, Twin]:
    places, weights, theta = (array(made.to(dtype)) for made in kernel_residual.data(count, centres))

    def at(theta: Any) -> Any:
        centre, width = theta[:-1].reshape(centres, kernel_residual.DIMENSIONS), theta[-1]
        squares = (places**2).sum(1)[:, None] + (centre**2).sum(1) - 2 * places @ centre.T
        return jnp.exp(-squares / (2 * width**2)) @ weights - jnp.sin(places[:, 0])

    return _whole(at, theta)


def parameters(dtype: torch.dtype, count: int) -> dict[str, Twin]:
    network = functions.tangent_network(dtype)
    values = {name: array(value) for name, value in network.named_parameters()}

    def outputs(weights: Any, x: Any) -> Any:
        x = jnp.tanh(weights["0.weight"] @ x + weights["0.bias"])
        x = jnp.tanh(weights["2.weight"] @ x + weights["2.bias"])
        return weights["4.weight"] @ x + weights["4.bias"]

    inputs = array(randn(count, 64, dtype=dtype))
    return {"JAX, vmap(jacrev)": (jax.vmap(jax.jacrev(outputs), (None, 0)), (values, inputs))}


def hessian(dtype: torch.dtype) -> dict[str, Twin]:
    inputs, targets = array(randn(256, 32, seed=1, dtype=dtype)), array(randn(256, 1, seed=2, dtype=dtype))

    def loss(flat: Any) -> Any:
        w1, b1, w2, b2, w3 = jnp.split(flat, [2048, 2112, 4160, 4192])
        hidden = jnp.tanh(inputs @ w1.reshape(32, 64) + b1)
        hidden = jnp.tanh(hidden @ w2.reshape(64, 32) + b2)
        return ((hidden @ w3.reshape(32, 1) - targets) ** 2).mean()

    return _whole(jax.grad(loss), array(randn(4224, dtype=dtype) / 8))


mlp, mlp_tall, mlp_wide = _mlp(1024, 1024, 1024, 1024), _mlp(64, 1024, 8192), _mlp(8192, 1024, 64)
mlp_large = _mlp(8192, 8192, 8192, 8192)
