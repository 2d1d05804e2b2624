"""`jacjobs.jacobian` against the best peer, function by function.

Each peer is looked at alone first, at its best chunk; then the best of each kind and jacjobs run in turns,
with all cores for all of them. All results are compared with one another. There are two kinds: operator by
operator (torch's own transforms, loops, the repeat trick), and compiled (JAX's jit, torch.compile around
torch's transforms, `compile=True`).

All of that is done in several processes, some time apart: turns within one agree to a hundredth, and yet one
process differs from the next by a tenth (decision 41). What the table says is the median of them. The later
ones look again at the peers that were near the best in the earlier ones, at chunks beside the best.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

import jacjobs
from benchmarks import functions
from benchmarks.speed.elsewhere import Elsewhere, There
from benchmarks.speed.pairs import TooSlowError, Work, each_of_several, in_turns, ratio, seconds_of, within
from benchmarks.speed.peers import LEAST_SECONDS, PATIENCE, Case, at_its_best, compiled_peers_of, peers_of
from jacjobs import Problem
from jobs.kernel_residual import problem as kernel_residual

PROCESSES, ROUNDS = 3, 5
"""Processes a row, and turns in each. An odd number of processes: one of them is the median."""
TURN_SECONDS = 0.2
"""What takes less is called several times in a turn."""
ALONE_SECONDS = 0.05
"""The same, where the best of a kind is looked for."""
AGREE = {torch.float32: 2e-3, torch.float64: 1e-9}
"""Largest difference of two results, of the largest entry."""
NEAR = 3.0
"""In how many times the seconds of the best somebody may be the best in another process: a call of one that
takes fresh memory was seen to take 2.8 times as long (decision 42)."""
OF_CHUNK = ", chunk "
SINGLE, DOUBLE, BOTH = (torch.float32,), (torch.float64,), (torch.float32, torch.float64)


Row = dict[str, Any]
Peers = dict[str, tuple[Work, float]]
"""What to call, and the seconds that it took alone."""
Alone = Mapping[str, float]
"""Seconds of peers at their best chunks, which their names say."""
Check = Callable[[torch.Tensor, str], None]


class Speed(NamedTuple):
    """A function to be measured on: in torch, its twin in JAX, and the dtypes."""

    make: Callable[..., Problem]
    twin: str
    sizes: Mapping[str, int] = MappingProxyType({})
    dtypes: tuple[torch.dtype, ...] = SINGLE


def _residual(dtype: torch.dtype, **sizes: int) -> Problem:
    return kernel_residual(**sizes)


FUNCTIONS = {
    "MLP, square": Speed(functions.mlp, "mlp", dtypes=BOTH),
    "MLP, tall": Speed(functions.mlp_tall, "mlp_tall"),
    "MLP, wide": Speed(functions.mlp_wide, "mlp_wide"),
    "CNN": Speed(functions.cnn, "cnn"),
    "transformer block": Speed(functions.transformer, "transformer", dtypes=BOTH),
    "LSTM": Speed(functions.lstm, "lstm"),
    "ODE solve": Speed(functions.ode, "ode", dtypes=DOUBLE),
    "kernel residual": Speed(_residual, "residual", {"count": 2000, "centres": 25}, DOUBLE),
    "per sample, inputs of a CNN": Speed(functions.samples, "samples", {"count": 64}, BOTH),
    "per sample, parameters": Speed(functions.parameters, "parameters", {"count": 32}),
    "Hessian": Speed(functions.hessian, "hessian", dtypes=BOTH),
}


def measure(names: Sequence[str] = (), *, quick: bool = False) -> Iterator[Row]:
    """A row for each function and dtype; `quick` takes one dtype, one process, and no compilers."""
    dtypes = {name: FUNCTIONS[name].dtypes[: 1 if quick else None] for name in names or FUNCTIONS}
    rows: dict[tuple[str, torch.dtype], list[Row]] = {(name, d): [] for name in dtypes for d in dtypes[name]}
    processes = 1 if quick else PROCESSES
    for number in range(processes):  # the same row some time apart, beside which other things go on
        for of, found in rows.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                before = _of_each(min, [row["alone_seconds"] for row in found])
                found.append(pool.submit(_row, *of, before, quick=quick).result())
            if number == processes - 1:
                yield together(found)


def together(rows: Sequence[Row]) -> Row:
    """One row of those of several processes."""
    first = rows[0]
    ratios = {
        kind: _median([row[kind] for row in rows]) for kind in ("plain", "compiled", "all") if kind in first
    }
    choices = {key: statistics.mode(row[key] for row in rows) for key in first if key.startswith("choice")}
    seconds = {
        key: _of_each(statistics.median, [row[key] for row in rows]) for key in ("seconds", "alone_seconds")
    }
    return {**first, **choices, **seconds, **ratios}


def _median(found: Sequence[Row | None]) -> Row | None:
    """The one with the median ratio, with the ratios of all."""
    there = sorted((one for one in found if one), key=lambda one: float(one["ratio"]))
    if not there:
        return None
    return {**there[len(there) // 2], "ratios": [one["ratio"] for one in there]}


def _of_each(pick: Callable[[list[float]], float], found: Sequence[Alone]) -> dict[str, float]:
    """Not everybody is in each: the best peer may be another one."""
    names = dict.fromkeys(name for one in found for name in one)
    return {name: pick([one[name] for one in found if name in one]) for name in names}


def _row(name: str, dtype: torch.dtype, before: Alone, *, quick: bool) -> Row:
    torch.set_num_threads(os.cpu_count() or 1)
    speed = FUNCTIONS[name]
    problem = speed.make(dtype=dtype, **speed.sizes)
    if quick:
        return measured(name, problem, dtype, {}, quick=True)
    with twins_of(speed, dtype) as jax:
        return measured(name, problem, dtype, jax.works, before, quick=False)


def twins_of(speed: Speed, dtype: torch.dtype) -> Elsewhere:
    """JAX's, in a process of their own."""
    return Elsewhere(partial(_twins, speed.twin, dtype, dict(speed.sizes)))


def _twins(twin: str, dtype: torch.dtype, sizes: dict[str, int]) -> dict[str, Work]:
    from benchmarks.speed import twins

    return twins.works(twin, dtype, sizes)


def measured(
    name: str,
    problem: Problem,
    dtype: torch.dtype,
    twins: Mapping[str, There],
    before: Alone = MappingProxyType({}),
    *,
    quick: bool,
) -> Row:
    """A row; `quick` measures no compilers. What was far behind `before`, in another process, stays out."""
    case = Case(problem)
    of = partial(jacjobs.jacobian, case.fn, case.argnums, in_dims=case.in_dims)
    plain = of()
    first = {"jacjobs": seconds_of(lambda: plain(*case.args))}
    want = case.entries(plain(*case.args))

    def checked(J: torch.Tensor, who: str) -> None:
        error = ((J - want).abs().max() / want.abs().max()).item()
        if not error <= AGREE[dtype]:
            raise AssertionError(f"{name}: {who} and jacjobs differ by {error:.1e} of the largest entry")

    peers = {"plain": _at_their_best(case, checked, before)}
    works: dict[str, Work] = {"jacjobs": lambda: plain(*case.args), **_best(peers["plain"])}
    if not quick:
        best = min((seconds for _, seconds in peers["plain"].values()), default=first["jacjobs"])
        peers["compiled"] = _compiled(twins, case, checked, best, before)
        compiled = of(compile=True)
        first["jacjobs, compiled"] = seconds_of(lambda: compiled(*case.args))
        checked(case.entries(compiled(*case.args)), "jacjobs, compiled")
        works |= {"jacjobs, compiled": lambda: compiled(*case.args), **_best(peers["compiled"])}
    for work in works.values():
        each_of_several(work, 0.0)
    seconds = in_turns(works, ROUNDS, TURN_SECONDS)
    row = {
        "function": name,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": [case.shape.points, case.shape.rows, case.shape.columns],
        "choice": "{}, {:,}".format(*plain.choices[0]),
        "seconds": {who: statistics.median(taken) for who, taken in seconds.items()},
        "first_seconds": first,
        "plain": _against(seconds, peers["plain"], ["jacjobs"]),
        "alone_seconds": {peer: s for kind in peers.values() for peer, (_, s) in kind.items()},
    }
    if not quick:
        row["choice_compiled"] = "{}, {:,}".format(*compiled.choices[0])
        row["compiled"] = _against(seconds, peers["compiled"], ["jacjobs, compiled"])
        everybody = {**peers["plain"], **peers["compiled"]}
        row["all"] = _against(seconds, everybody, ["jacjobs", "jacjobs, compiled"])
    return row


def _best(peers: Peers) -> dict[str, Work]:
    if not peers:
        return {}
    best = min(peers, key=lambda peer: peers[peer][1])
    return {best: peers[best][0]}


def _against(seconds: dict[str, list[float]], peers: Peers, ours: list[str]) -> Row | None:
    """The peer that was fastest in turns, and the ratio of throughputs: above 1, jacjobs is faster."""
    there = [peer for peer in peers if peer in seconds]
    if not there:
        return None
    best = min(there, key=lambda peer: statistics.median(seconds[peer]))
    return {"peer": best, "ratio": max(ratio(seconds[best], seconds[own]) for own in ours)}


def _at_their_best(case: Case, checked: Check, before: Alone) -> Peers:
    """Each of torch's peers, but those that fail or are far behind."""
    found: Peers = {}
    most = case.shape.points if case.in_dims is not None else case.shape.rows
    peers = dict(peers_of(case))
    chunks = near_the_best(before, peers)
    for peer, call in peers.items():
        if peer not in chunks:
            continue
        best = min((seconds for _, seconds in found.values()), default=math.inf)
        try:
            work, seconds, chunk = at_its_best(call, most, best, chunks[peer])
        except (TooSlowError, RuntimeError, NotImplementedError, MemoryError):
            continue
        checked(case.entries(work()), peer)
        found[f"{peer}{OF_CHUNK}{chunk:,}" if chunk else peer] = work, seconds
    return found


def near_the_best(before: Alone, peers: Iterable[str]) -> dict[str, int]:
    """Which of some peers are worth another look, and their best chunks: all of which nothing is known."""
    chunks, seconds = dict.fromkeys(peers, 0), dict[str, float]()
    for name, taken in before.items():
        peer, _, chunk = name.partition(OF_CHUNK)
        if peer in chunks and taken < seconds.get(peer, math.inf):
            chunks[peer], seconds[peer] = int(chunk.replace(",", "") or 0), taken
    most = NEAR * min(seconds.values(), default=math.inf)
    return {peer: chunk for peer, chunk in chunks.items() if seconds.get(peer, 0.0) <= most}


def _compiled(twins: Mapping[str, There], case: Case, checked: Check, best: float, before: Alone) -> Peers:
    found: Peers = {}
    limit = max(LEAST_SECONDS, PATIENCE * best)
    device = pytree.tree_leaves(case.args)[0].device

    def there(array: Any) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    of_torch = compiled_peers_of(case)
    near = near_the_best(before, [*twins, *of_torch])
    for peer, twin in twins.items():
        if peer not in near:
            continue
        checked(case.entries(in_order(pytree.tree_map(there, twin()), case)), peer)
        with suppress(TooSlowError):
            found[peer] = twin, min(twin.each_of_several(ALONE_SECONDS, limit) for _ in range(3))
    for peer, work in of_torch.items():
        if peer not in near:
            continue
        try:
            checked(case.entries(work()), peer)
        except (RuntimeError, NotImplementedError):
            continue
        with suppress(TooSlowError), within(limit):
            found[peer] = work, min(each_of_several(work, ALONE_SECONDS) for _ in range(3))
    return found


def in_order(J: Any, case: Case) -> Any:
    """JAX sorts the names of a dictionary; the others keep the order that it has."""
    if isinstance(J, dict):
        return {segment.name: J[segment.name] for segment in case.shape.inputs}
    return J
