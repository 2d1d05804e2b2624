"""What the strategies have in common: watching leaves, repeating points, one call of `autograd.grad`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jacjobs.problem import Problem
from jacjobs.transforms import vmap


def watched(
    leaves: Sequence[Any], wanted: Sequence[int], *, create_graph: bool = False
) -> tuple[list[Any], list[Tensor]]:
    """The leaves, with those wanted as roots of a graph; and these again, in the order of J's columns.

    With `create_graph`, leaves stay connected to where they came from.
    """
    all_leaves = list(leaves)
    for index in wanted:
        # A view stays connected to its leaf, and keeps its tangent where the leaf is a dual number.
        leaf = all_leaves[index].view_as(all_leaves[index]) if create_graph else all_leaves[index].detach()
        all_leaves[index] = leaf if leaf.requires_grad else leaf.requires_grad_()
    return all_leaves, [all_leaves[index] for index in wanted]


def of_wanted(
    problem: Problem, leaves: Sequence[Any], *, batch: bool = False
) -> tuple[Callable[..., list[Tensor]], tuple[Tensor, ...]]:
    """The outputs as a function of the differentiated leaves alone, as torch.func wants it; and these leaves.

    batch:  leaves have the axis of points, where points carry it.
    """

    def outputs(*inputs: Tensor) -> list[Tensor]:
        full = list(leaves)
        for index, leaf in zip(problem.wanted, inputs, strict=True):
            full[index] = leaf
        return problem.call_batch(full, problem.carried) if batch else problem.call_one(full)

    return outputs, tuple(leaves[index] for index in problem.wanted)


def repeated(problem: Problem, start: int, stop: int, times: int) -> tuple[list[Any], list[bool]]:
    """The repeat trick's input: points `start:stop`, each `times` over, neighbours in the leading axis.

    Differentiated leaves that points share are repeated too. Also returns which leaves have the axis.
    """
    leaves = problem.at_points(start, stop)
    carried = [c or index in problem.wanted for index, c in enumerate(problem.carried)]
    for index, leaf in enumerate(leaves):
        if problem.carried[index]:
            leaves[index] = leaf.repeat_interleave(times, dim=0)
        elif carried[index]:
            leaves[index] = leaf.expand((stop - start) * times, *leaf.shape)
    return leaves, carried


def tiled(seed: Tensor, points: int) -> Tensor:
    """Seeds (k, …) once for each of the points, as `repeated` lays them out: (points · k, …)."""
    return seed.expand(points, *seed.shape).reshape(points * seed.shape[0], *seed.shape[1:])


def vjp(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    *,
    keep_graph: bool = False,
    create_graph: bool = False,
) -> list[Tensor]:
    """One `autograd.grad`. Zeros, not None, for an input that the outputs do not depend on."""
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    gradients = torch.autograd.grad(
        [o for o, _ in pairs],
        inputs,
        [c for _, c in pairs],
        retain_graph=keep_graph or create_graph,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return list(gradients)


def vjps(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    *,
    keep_graph: bool = False,
    create_graph: bool = False,
) -> list[Tensor]:
    """One `autograd.grad` of k cotangents at once: they have a leading axis, and so have the results.

    vmap over an ordinary graph. What `autograd.grad(is_grads_batched=True)` uses is older: it
    has fewer batching rules, and loops over the cotangents where it has none, without a word.
    """

    def one(*cotangent: Tensor) -> list[Tensor]:
        return vjp(outputs, inputs, cotangent, keep_graph=keep_graph, create_graph=create_graph)

    return vmap(one, cotangents, randomness="same")
