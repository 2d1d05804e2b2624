"""`jacjobs.jacobian` against the best peer, function by function.

Each peer is looked at alone first, at its best chunk; then the best of torch's, the best of JAX's and jacjobs
run in turns. Threads: all cores, for all of them. All results are compared with one another.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

import jacjobs
from benchmarks import functions
from benchmarks.speed.pairs import TooSlowError, Work, in_turns, ratio, seconds_of, within
from benchmarks.speed.peers import LEAST_SECONDS, PATIENCE, Case, at_its_best, peers_of
from jacjobs import Problem
from jobs.kernel_residual import problem as kernel_residual

ROUNDS, QUICK_ROUNDS = 9, 5
AGREE = {torch.float32: 2e-3, torch.float64: 1e-9}
"""Largest difference of two results, of the largest entry."""
BOTH = (torch.float32, torch.float64)


class Speed(NamedTuple):
    """A function to be measured on: in torch, its twin in JAX, and the dtypes."""

    make: Callable[..., Problem]
    twin: str
    sizes: Mapping[str, int] = MappingProxyType({})
    dtypes: tuple[torch.dtype, ...] = BOTH


def _residual(dtype: torch.dtype, **sizes: int) -> Problem:
    return kernel_residual(**sizes)


FUNCTIONS = {
    "MLP, square": Speed(functions.mlp, "mlp"),
    "MLP, tall": Speed(functions.mlp_tall, "mlp_tall"),
    "MLP, wide": Speed(functions.mlp_wide, "mlp_wide"),
    "CNN": Speed(functions.cnn, "cnn"),
    "transformer block": Speed(functions.transformer, "transformer"),
    "LSTM": Speed(functions.lstm, "lstm"),
    "ODE solve": Speed(functions.ode, "ode"),
    "kernel residual": Speed(_residual, "residual", {"count": 2000, "centres": 25}, (torch.float64,)),
    "per sample, inputs of a CNN": Speed(functions.samples, "samples", {"count": 64}),
    "per sample, parameters": Speed(functions.parameters, "parameters", {"count": 32}),
    "Hessian": Speed(functions.hessian, "hessian"),
}


def measure(names: list[str], *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """A row for each function and dtype; `quick` takes one dtype, and no JAX."""
    for name in names:
        speed = FUNCTIONS[name]
        for dtype in speed.dtypes[:1] if quick else speed.dtypes:
            yield _row(name, speed, dtype, quick=quick)
            gc.collect()


def _row(name: str, speed: Speed, dtype: torch.dtype, *, quick: bool) -> dict[str, Any]:
    problem = speed.make(dtype=dtype, **speed.sizes)
    case = Case(problem)
    ours = jacjobs.jacobian(case.fn, case.argnums, in_dims=case.in_dims)
    first = seconds_of(lambda: ours(*case.args))
    want = case.entries(ours(*case.args))

    def checked(J: torch.Tensor, who: str) -> None:
        error = ((J - want).abs().max() / want.abs().max()).item()
        if not error <= AGREE[dtype]:
            raise AssertionError(f"{name}: {who} and jacjobs differ by {error:.1e} of the largest entry")

    torch_peers = _at_their_best(case, checked)
    works: dict[str, Work] = {"jacjobs": lambda: ours(*case.args)}
    best_torch = min(torch_peers, key=lambda peer: torch_peers[peer][1])
    works[best_torch] = torch_peers[best_torch][0]
    alone = {peer: seconds for peer, (_, seconds) in torch_peers.items()}
    best_jax = ""
    if not quick:
        jax_peers = _compiled(speed, dtype, case, checked, min(alone.values()))
        alone |= {peer: seconds for peer, (_, seconds) in jax_peers.items()}
        if jax_peers:
            best_jax = min(jax_peers, key=lambda peer: jax_peers[peer][1])
            works[best_jax] = jax_peers[best_jax][0]
    for work in works.values():
        work()
    seconds = in_turns(works, QUICK_ROUNDS if quick else ROUNDS)
    ratios = {peer: ratio(taken, seconds["jacjobs"]) for peer, taken in seconds.items() if peer != "jacjobs"}
    best = min(ratios, key=ratios.__getitem__)
    return {
        "function": name,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": [case.shape.points, case.shape.rows, case.shape.columns],
        "choice": "{}, {:,}".format(*ours.choices[0]),
        "seconds": statistics.median(seconds["jacjobs"]),
        "first_seconds": first,
        "best_torch": best_torch,
        "ratio_torch": ratios[best_torch],
        "best_jax": best_jax,
        "ratio_jax": ratios.get(best_jax),
        "best": best,
        "ratio": ratios[best],
        "alone_seconds": alone,
    }


def _at_their_best(case: Case, checked: Callable[[torch.Tensor, str], None]) -> dict[str, tuple[Work, float]]:
    """Each of torch's peers, but those that fail or are far behind."""
    found: dict[str, tuple[Work, float]] = {}
    most = case.shape.points if case.in_dims is not None else case.shape.rows
    for peer, call in peers_of(case):
        best = min((seconds for _, seconds in found.values()), default=math.inf)
        try:
            work, seconds, chunk = at_its_best(call, most, best)
        except (TooSlowError, RuntimeError, NotImplementedError, MemoryError):
            continue
        checked(case.entries(work()), peer)
        found[f"{peer}, chunk {chunk:,}" if chunk else peer] = work, seconds
    return found


def _compiled(
    speed: Speed,
    dtype: torch.dtype,
    case: Case,
    checked: Callable[[torch.Tensor, str], None],
    best_so_far: float,
) -> dict[str, tuple[Work, float]]:
    import jax
    import numpy as np

    from benchmarks.speed import twins

    found: dict[str, tuple[Work, float]] = {}
    for peer, (fn, args) in getattr(twins, speed.twin)(dtype, **speed.sizes).items():
        compiled = jax.jit(fn)

        def work(compiled: Any = compiled, args: Any = args) -> Any:
            return jax.block_until_ready(compiled(*args))

        J = jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), work())
        checked(case.entries(J), peer)
        try:
            with within(max(LEAST_SECONDS, PATIENCE * best_so_far)):
                found[peer] = work, min(seconds_of(work) for _ in range(3))
        except TooSlowError:
            continue
    return found
