"""What a user would pick instead of jacjobs, each as it is at its best: functions that return all of J."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.functional import jacobian as functional_jacobian
from torch.func import jacfwd, jacrev, vmap
from torch.utils import _pytree as pytree

from benchmarks.speed.pairs import TooSlowError, Work, seconds_of, within
from jacjobs import Problem
from jacjobs.problem import InDims

PATIENCE = 5.0
"""A peer that takes so many times longer than the best so far is not waited for."""
LEAST_SECONDS, MOST_SECONDS = 1.0, 60.0
START = 64
HOPELESS = 8
"""So many times more products than the other mode has."""


class Case:
    """A function, its arguments, and what is differentiated, without jacjobs' wrapping."""

    def __init__(self, problem: Problem) -> None:
        self.fn: Callable[..., Any] = problem.fn
        self.args: tuple[Any, ...] = tuple(pytree.tree_unflatten(problem.leaves, problem._spec))
        self.argnums: int | tuple[int, ...] = (
            problem.argnums if len(problem.argnums) > 1 else problem.argnums[0]
        )
        self.in_dims: InDims = problem.in_dims
        self.shape = problem.shape
        if problem.batched:  # a function of whole batches, as a function of one sample
            self.fn = partial(_one_sample, problem.fn, problem.in_dims)

    @property
    def axes(self) -> tuple[int | None, ...]:
        """Of points, an entry an argument."""
        return _axes(self.in_dims, len(self.args))

    @property
    def forward(self) -> bool:
        return self.shape.columns <= HOPELESS * self.shape.rows

    @property
    def reverse(self) -> bool:
        return self.shape.rows <= HOPELESS * self.shape.columns

    def entries(self, J: Any) -> Tensor:
        """Any peer's result as one matrix a point: (points, rows, columns)."""
        shape = self.shape
        pieces = [
            torch.cat([leaf.reshape(shape.points, size, -1) for leaf in pytree.tree_leaves(row)], dim=2)
            for row, size in zip(
                _rows_of(J, len(shape.outputs)), [o.size for o in shape.outputs], strict=True
            )
        ]
        return torch.cat(pieces, dim=1)


def _axes(in_dims: Any, count: int) -> tuple[int | None, ...]:
    return in_dims if isinstance(in_dims, tuple) else (in_dims,) * count


def _one_sample(fn: Callable[..., Any], in_dims: Any, *args: Any) -> Any:
    axes = _axes(in_dims, len(args))
    lifted = [arg if axis is None else arg[None] for arg, axis in zip(args, axes, strict=True)]
    return pytree.tree_map(lambda y: y[0], fn(*lifted))


def _rows_of(J: Any, outputs: int) -> list[Any]:
    return [J] if outputs == 1 else list(J)


# -- torch ---------------------------------------------------------------------------------------------------


def peers_of(case: Case) -> Iterator[tuple[str, Callable[[int], Any] | Work]]:
    """Name and how to call it: with a chunk, where it takes one. No mode that nobody would choose: forward
    where there are many times more columns than rows, or the other way round.
    """
    fn, args, argnums, in_dims = case.fn, case.args, case.argnums, case.in_dims
    if in_dims is not None:
        yield "vmap(jacrev)", lambda: vmap(jacrev(fn, argnums), in_dims)(*args)
        yield "vmap(jacrev), chunked", lambda k: vmap(jacrev(fn, argnums), in_dims, chunk_size=k)(*args)
        if case.forward:
            yield "vmap(jacfwd)", lambda: vmap(jacfwd(fn, argnums), in_dims)(*args)
        yield "loop of jacrev", lambda: _point_by_point(case)
        return
    (x,) = args
    if case.forward:
        yield "jacfwd", lambda: jacfwd(fn, argnums)(*args)
        forward = partial(functional_jacobian, vectorize=True, strategy="forward-mode")
        yield "autograd, forward, vectorised", lambda: forward(fn, x)
    if case.reverse:
        yield "jacrev", lambda k: jacrev(fn, argnums, chunk_size=k)(*args)
        yield "autograd, reverse, vectorised", lambda: functional_jacobian(fn, x, vectorize=True)
        yield "autograd", lambda: functional_jacobian(fn, x)
        yield "loop", lambda: loop(fn, x)
        yield "repeat trick, all at once", lambda: repeat(fn, x)


def compiled_peers_of(case: Case) -> dict[str, Work]:
    """torch.compile around torch's transforms, all products at once: what one tries first."""
    fn, args, argnums, in_dims = case.fn, case.args, case.argnums, case.in_dims
    jac = jacrev(fn, argnums) if case.reverse else jacfwd(fn, argnums)
    name = "jacrev" if case.reverse else "jacfwd"
    if in_dims is not None:
        jac, name = vmap(jac, in_dims), f"vmap({name})"
    torch._dynamo.reset()
    compiled = torch.compile(jac)
    return {f"torch.compile({name})": lambda: compiled(*args)}


def _point_by_point(case: Case) -> Any:
    of = jacrev(case.fn, case.argnums)
    made = [
        of(*(arg if axis is None else arg[point] for arg, axis in zip(case.args, case.axes, strict=True)))
        for point in range(case.shape.points)
    ]
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *made)


def loop(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """One `autograd.grad` a row: where the question began."""
    x = x.detach().requires_grad_()
    y = fn(x)
    rows = [torch.autograd.grad(each, x, retain_graph=True)[0] for each in y.flatten()]
    return torch.stack(rows).reshape(*y.shape, *x.shape)


def repeat(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The input copied once a row, one batched call, one backward with an identity."""
    with torch.no_grad():
        like = fn(x)
    copies = x.expand(like.numel(), *x.shape).clone().requires_grad_()
    y = vmap(fn)(copies)
    seeds = torch.eye(like.numel(), dtype=y.dtype, device=y.device).reshape(y.shape)
    (rows,) = torch.autograd.grad(y, copies, seeds)
    return rows.reshape(*like.shape, *x.shape)


# -- the best of them ----------------------------------------------------------------------------------------


def at_its_best(
    call: Callable[[int], Any] | Work, most: int, best_so_far: float, start: int = 0
) -> tuple[Work, float, int]:
    """A peer at its fastest chunk, from a climb by factors of two: what to call, its seconds, the chunk.

    start:  the chunk that was fastest in another process, if one is known: those beside it are looked at.

    Raises TooSlowError where it is far behind.
    """
    limit = min(MOST_SECONDS, max(LEAST_SECONDS, PATIENCE * best_so_far))
    if not _takes_a_chunk(call):
        with within(limit):
            return call, _least_seconds(call), 0
    assert call is not None
    seconds: dict[int, float] = {}

    def look(chunk: int) -> float:
        chunk = max(1, min(chunk, most))
        if chunk not in seconds:
            try:
                with within(limit):
                    seconds[chunk] = _least_seconds(partial(call, chunk))
            except TooSlowError:
                seconds[chunk] = math.inf
        return seconds[chunk]

    best = min(start or START, most)
    look(best)
    for factor in (2, 0.5) if start else (4, 0.25, 2, 0.5):
        while look(round(best * factor)) < seconds[best]:
            best = max(1, min(round(best * factor), most))
    if not math.isfinite(seconds[best]):
        raise TooSlowError
    return partial(call, best), seconds[best], best


def _takes_a_chunk(call: Any) -> bool:
    return bool(call.__code__.co_argcount)


def _least_seconds(work: Work) -> float:
    first = seconds_of(work)
    return min(first, *(seconds_of(work) for _ in range(3 if first < 0.1 else 1)))
