"""Reverse mode: a product is a vector–Jacobian product (VJP), a row of J.

With m rows a point and chunks of k products, for one point:

| strategy   | calls of fn | calls of autograd.grad | device memory grows by, a product of the chunk |
| ---------- | ----------- | ---------------------- | ---------------------------------------------- |
| vjp/loop   | 1           | m                      | (its chunk is 1)                               |
| vjp/repeat | ⌈m/k⌉       | ⌈m/k⌉                  | a graph, an input and a row of n               |
| vjp/vmap   | 1           | ⌈m/k⌉                  | the backward's intermediates and a row of n    |

A call of vjp/repeat is k samples wide, so it makes m forward passes in all. With many points the chunk runs
over pairs of point and row: ⌊k/m⌋ points are handled at once where k ≥ m.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from jacjobs.autodiff.graph import of_wanted, repeated, tiled, vjp, vjps, watched
from jacjobs.autodiff.seeds import SeedMaker, draw, lay_out, make
from jacjobs.autodiff.strategy import Chunk, Strategy, point_groups, product_ranges
from jacjobs.autodiff.words import is_out_of_memory
from jacjobs.problem import Problem
from jacjobs.shape import Rectangle
from jacjobs.transforms import vmap


class VjpLoop(Strategy):
    """One graph a point, kept for its rows; one `autograd.grad` a row. Works wherever `backward()` does.

    Cost: 1 forward pass and m backward passes a point. Memory: one graph and one row, whatever the chunk.
    Source: torch's autograd documentation,
    https://docs.pytorch.org/docs/stable/generated/torch.autograd.grad.html
    """

    product, batching = "vjp", "loop"

    def chunks(
        self,
        problem: Problem,
        block: Rectangle,
        seeds: SeedMaker,
        chunk: int,
        *,
        create_graph: bool = False,
    ) -> Iterator[Chunk]:
        for point in range(block.point_start, block.point_stop):
            leaves, inputs = watched(problem.at_point(point), problem.wanted, create_graph=create_graph)
            outputs = problem.call_one(leaves)
            for row in range(block.row_start, block.row_stop):
                cotangents = [seed[0] for seed in make(seeds, row, row + 1, outputs)]
                last = row + 1 == block.row_stop
                gradients = vjp(outputs, inputs, cotangents, keep_graph=not last, create_graph=create_graph)
                yield Chunk(
                    slice(point, point + 1), slice(row, row + 1), [g.reshape(1, 1, -1) for g in gradients]
                )
                del gradients


class VjpRepeat(Strategy):
    """The repeat trick: every input copied once a row, one batched call, one backward with an identity.

    Needs a function that treats its samples independently: what `vmap` makes of a function of one sample,
    or one that says `batched=True`.

    Cost: m forward and m backward passes a point, k at a time. Memory: k graphs.
    Source: the repeat trick, as in S. Barratt's gist "Get the jacobian of a vector-valued function that takes
    batch inputs, in pytorch" (2018).
    """

    product, batching = "vjp", "repeat"

    def chunks(
        self,
        problem: Problem,
        block: Rectangle,
        seeds: SeedMaker,
        chunk: int,
        *,
        create_graph: bool = False,
    ) -> Iterator[Chunk]:
        for start, stop in point_groups(block, block.rows, chunk):
            for first, last in product_ranges(block.row_start, block.row_stop, chunk):
                copies, carried = repeated(problem, start, stop, last - first)
                leaves, inputs = watched(copies, problem.wanted, create_graph=create_graph)
                outputs = problem.call_batch(leaves, carried)
                seed = make(seeds, first, last, [output[0] for output in outputs])
                cotangents = [tiled(part, stop - start) for part in seed]
                gradients = vjp(outputs, inputs, cotangents, create_graph=create_graph)
                del outputs
                yield Chunk(
                    slice(start, stop),
                    slice(first, last),
                    [g.reshape(stop - start, last - first, -1) for g in gradients],
                )
                del gradients


class VjpVmap(Strategy):
    """One graph, a batch of cotangents: `vmap` over the backward pass.

    Cost: 1 forward pass and m backward passes a point, k at a time. Memory: one graph, and k times what a
    backward pass holds.
    Source: `torch.func.jacrev`, https://docs.pytorch.org/docs/stable/generated/torch.func.jacrev.html
    """

    product, batching = "vjp", "vmap"

    def chunks(
        self,
        problem: Problem,
        block: Rectangle,
        seeds: SeedMaker,
        chunk: int,
        *,
        create_graph: bool = False,
    ) -> Iterator[Chunk]:
        own_inputs = all(problem.carried[index] for index in problem.wanted)
        for start, stop in point_groups(block, block.rows, chunk):
            if stop - start == 1:
                yield from self._one_point(problem, start, block, seeds, chunk, create_graph)
            elif own_inputs:
                yield self._stacked(problem, start, stop, block, seeds, create_graph)
            else:
                yield self._nested(problem, start, stop, block, seeds)

    def _one_point(
        self,
        problem: Problem,
        point: int,
        block: Rectangle,
        seeds: SeedMaker,
        chunk: int,
        create_graph: bool,
    ) -> Iterator[Chunk]:
        """One graph, kept for the chunks of its rows and freed by the last."""
        outputs, rows = _linearized(problem, point, create_graph=create_graph)
        for first, last in product_ranges(block.row_start, block.row_stop, chunk):
            gradients = rows(make(seeds, first, last, outputs), last < block.row_stop)
            yield Chunk(
                slice(point, point + 1),
                slice(first, last),
                [g.reshape(1, last - first, -1) for g in gradients],
            )
            del gradients

    def _stacked(
        self,
        problem: Problem,
        start: int,
        stop: int,
        block: Rectangle,
        seeds: SeedMaker,
        create_graph: bool,
    ) -> Chunk:
        """Every point has inputs of its own, so one ordinary graph over the batch serves them all."""
        leaves, inputs = watched(problem.at_points(start, stop), problem.wanted, create_graph=create_graph)
        outputs = problem.call_batch(leaves, problem.carried)
        cotangents = [
            c.unsqueeze(1).expand(block.rows, stop - start, *c.shape[1:])
            for c in make(seeds, block.row_start, block.row_stop, [output[0] for output in outputs])
        ]
        gradients = vjps(outputs, inputs, cotangents, create_graph=create_graph)
        return Chunk(
            slice(start, stop),
            slice(block.row_start, block.row_stop),
            [g.reshape(block.rows, stop - start, -1).transpose(0, 1) for g in gradients],
        )

    def _nested(self, problem: Problem, start: int, stop: int, block: Rectangle, seeds: SeedMaker) -> Chunk:
        """Inputs that points share (parameters): the forward pass shares them, the backward does not."""
        leaves = problem.at_points(start, stop)
        device = leaves[problem.wanted[0]].device
        seed = draw(seeds, block.row_start, block.row_stop, problem.output_dtypes, device)

        def rows_at(*point: Any) -> list[Tensor]:
            fn, inputs = of_wanted(problem, point)
            outputs, pull_back = torch.func.vjp(fn, *inputs)[:2]
            return vmap(lambda *cotangents: pull_back(list(cotangents)), lay_out(seed, outputs))

        gradients = vmap(rows_at, leaves, problem.carried, problem.randomness)
        return Chunk(
            slice(start, stop),
            slice(block.row_start, block.row_stop),
            gradients,  # in whatever order they lie: they are the largest there are
        )


Rows = Callable[[list[Tensor], bool], list[Tensor]]
"""Of cotangents (k, …) of each output; whether the graph is to be kept for others."""
TRANSFORM = "torch.func.vjp works"
SMALL = 1 << 18
"""Entries of J at a point, up to which its graph is an ordinary one: a Hessian of 500 weights."""


def _linearized(problem: Problem, point: int, *, create_graph: bool) -> tuple[list[Tensor], Rows]:
    """The outputs at a point, and what makes rows of J there.

    Where the function calls autograd itself, as one does whose Jacobian is a Hessian, torch.func makes the
    graph. In an ordinary one, operands of matrix products require gradients there; to fold a batch of such
    into one product aten copies them, for a quarter of all the time: docs/decisions/0024. It is an ordinary
    one where J is small, and the transform would take longer than the copies; and where torch.func cannot:
    with saved-tensor hooks, say.
    """
    leaves = problem.at_point(point)
    large = problem.shape.rows * problem.shape.columns > SMALL
    if problem.differentiates and large and not create_graph and problem.kept.get(TRANSFORM, True):
        try:
            return _by_transform(problem, leaves)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            problem.kept[TRANSFORM] = False
    leaves, inputs = watched(leaves, problem.wanted, create_graph=create_graph)
    outputs = problem.call_one(leaves)

    def rows(cotangents: list[Tensor], keep_graph: bool) -> list[Tensor]:
        return vjps(outputs, inputs, cotangents, keep_graph=keep_graph, create_graph=create_graph)

    return outputs, rows


def _by_transform(problem: Problem, leaves: list[Any]) -> tuple[list[Tensor], Rows]:
    fn, inputs = of_wanted(problem, leaves)
    with torch.no_grad():
        outputs, pull_back = torch.func.vjp(fn, *(leaf.detach() for leaf in inputs))[:2]

    def rows(cotangents: list[Tensor], keep_graph: bool) -> list[Tensor]:
        def one(*cotangent: Tensor) -> Sequence[Tensor]:
            made: Sequence[Tensor] = pull_back(list(cotangent), retain_graph=keep_graph, create_graph=False)
            return made

        with torch.no_grad():
            return vmap(one, cotangents, randomness="same")

    return outputs, rows
