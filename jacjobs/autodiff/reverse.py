"""Reverse mode: a product is a vector–Jacobian product (VJP), a row of J.

With m rows a point and chunks of k products, for one point:

| strategy   | forward passes | backward passes      | device memory grows by, a product          |
| ---------- | -------------- | -------------------- | ------------------------------------------ |
| vjp/loop   | 1              | m                    | (one product at a time)                    |
| vjp/repeat | m, in ⌈m/k⌉ calls | m, in ⌈m/k⌉ calls | a graph, an input and a row of n           |
| vjp/vmap   | 1              | m, in ⌈m/k⌉ calls    | the backward's intermediates, a row of n   |

With many points the chunk runs over pairs of point and row: ⌊k/m⌋ points are handled at once where k ≥ m.

Sources: vjp/loop is the recipe of torch's autograd documentation; vjp/repeat the repeat trick (copy the
input once per output, differentiate one batched call against an identity); vjp/vmap is what
`torch.func.jacrev` does (https://docs.pytorch.org/docs/stable/generated/torch.func.jacrev.html).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from jacjobs.autodiff.seeds import SeedMaker
from jacjobs.autodiff.strategy import Chunk, Strategy, point_groups, row_ranges
from jacjobs.problem import Problem
from jacjobs.shape import Rectangle


class VjpLoop(Strategy):
    """One graph a point, kept for its rows; one `autograd.grad` a row. Works wherever `backward()` does."""

    product, batching = "vjp", "loop"

    def chunks(self, problem: Problem, block: Rectangle, seeds: SeedMaker, chunk: int) -> Iterator[Chunk]:
        for point in range(block.point_start, block.point_stop):
            leaves, inputs = _watched(problem.at_point(point), problem.wanted)
            outputs = problem.call_one(leaves)
            for row in range(block.row_start, block.row_stop):
                (seed,) = _make(seeds, row, row + 1, inputs)
                gradients = _vjp(outputs, inputs, _split(seed, outputs), keep_graph=row + 1 < block.row_stop)
                yield Chunk(
                    slice(point, point + 1), slice(row, row + 1), [g.reshape(1, 1, -1) for g in gradients]
                )


class VjpRepeat(Strategy):
    """The repeat trick: every input copied once a row, one batched call, one backward with an identity.

    Needs a function that treats its samples independently: what `vmap` makes of a function of one sample,
    or one that says `batched=True`.
    """

    product, batching = "vjp", "repeat"

    def chunks(self, problem: Problem, block: Rectangle, seeds: SeedMaker, chunk: int) -> Iterator[Chunk]:
        carried = [c or index in problem.wanted for index, c in enumerate(problem.carried)]
        for start, stop in point_groups(block, chunk):
            for first, last in row_ranges(block, chunk):
                points, rows = stop - start, last - first
                copies = points * rows
                leaves = problem.at_points(start, stop)
                for index, leaf in enumerate(leaves):
                    if problem.carried[index]:
                        leaves[index] = leaf.repeat_interleave(rows, dim=0)
                    elif carried[index]:
                        leaves[index] = leaf.expand(copies, *leaf.shape)
                leaves, inputs = _watched(leaves, problem.wanted)
                outputs = problem.call_batch(leaves, carried)
                seed = _make(seeds, first, last, inputs)
                cotangents = [
                    c.expand(points, *c.shape).reshape(copies, *c.shape[1:])
                    for c in _split(seed, [output[0] for output in outputs])
                ]
                gradients = _vjp(outputs, inputs, cotangents)
                del outputs
                yield Chunk(
                    slice(start, stop), slice(first, last), [g.reshape(points, rows, -1) for g in gradients]
                )


class VjpVmap(Strategy):
    """One graph, a batch of cotangents: `vmap` over the backward pass."""

    product, batching = "vjp", "vmap"

    def chunks(self, problem: Problem, block: Rectangle, seeds: SeedMaker, chunk: int) -> Iterator[Chunk]:
        own_inputs = all(problem.carried[index] for index in problem.wanted)
        for start, stop in point_groups(block, chunk):
            if stop - start == 1:
                yield from self._one_point(problem, start, block, seeds, chunk)
            elif own_inputs:
                yield self._stacked(problem, start, stop, block, seeds)
            else:
                yield self._nested(problem, start, stop, block, seeds)

    def _one_point(
        self, problem: Problem, point: int, block: Rectangle, seeds: SeedMaker, chunk: int
    ) -> Iterator[Chunk]:
        """An ordinary graph, kept for the chunks of its rows and freed by the last."""
        leaves, inputs = _watched(problem.at_point(point), problem.wanted)
        outputs = problem.call_one(leaves)
        for first, last in row_ranges(block, chunk):
            seed = _make(seeds, first, last, inputs)
            gradients = _vjp(
                outputs, inputs, _split(seed, outputs), batched=True, keep_graph=last < block.row_stop
            )
            yield Chunk(
                slice(point, point + 1),
                slice(first, last),
                [g.reshape(1, last - first, -1) for g in gradients],
            )

    def _stacked(self, problem: Problem, start: int, stop: int, block: Rectangle, seeds: SeedMaker) -> Chunk:
        """Every point has inputs of its own, so one ordinary graph over the batch serves them all."""
        leaves, inputs = _watched(problem.at_points(start, stop), problem.wanted)
        outputs = problem.call_batch(leaves, problem.carried)
        seed = _make(seeds, block.row_start, block.row_stop, inputs)
        cotangents = [
            c.unsqueeze(1).expand(block.rows, stop - start, *c.shape[1:])
            for c in _split(seed, [output[0] for output in outputs])
        ]
        gradients = _vjp(outputs, inputs, cotangents, batched=True)
        return Chunk(
            slice(start, stop),
            slice(block.row_start, block.row_stop),
            [g.reshape(block.rows, stop - start, -1).transpose(0, 1) for g in gradients],
        )

    def _nested(self, problem: Problem, start: int, stop: int, block: Rectangle, seeds: SeedMaker) -> Chunk:
        """Inputs that points share (parameters): the forward pass shares them, the backward does not."""
        leaves = problem.at_points(start, stop)
        seed = _make(seeds, block.row_start, block.row_stop, [leaves[index] for index in problem.wanted])

        def rows_at(*point: Any) -> list[Tensor]:
            def of_wanted(*inputs: Tensor) -> list[Tensor]:
                full = list(point)
                for index, leaf in zip(problem.wanted, inputs, strict=True):
                    full[index] = leaf
                return problem.call_one(full)

            outputs, vjp = torch.func.vjp(of_wanted, *[point[index] for index in problem.wanted])[:2]
            return list(torch.func.vmap(vjp)(_split(seed, outputs)))

        in_dims = tuple(0 if c else None for c in problem.carried)
        gradients = torch.func.vmap(rows_at, in_dims=in_dims)(*leaves)
        return Chunk(
            slice(start, stop),
            slice(block.row_start, block.row_stop),
            [g.reshape(stop - start, block.rows, -1) for g in gradients],
        )


def _watched(leaves: Sequence[Any], wanted: Sequence[int]) -> tuple[list[Any], list[Tensor]]:
    """The leaves, those wanted as fresh leaves of a graph; and these again, in the order of J's columns."""
    watched = list(leaves)
    for index in wanted:
        watched[index] = watched[index].detach().requires_grad_()
    return watched, [watched[index] for index in wanted]


def _make(seeds: SeedMaker, start: int, stop: int, like: Sequence[Tensor]) -> Tensor:
    return seeds(start, stop, dtype=like[0].dtype, device=like[0].device)


def _split(seed: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Seeds (..., m) as one cotangent an output leaf: (..., *shape of the leaf), in the leaf's dtype."""
    parts = torch.split(seed, [output.numel() for output in outputs], dim=-1)
    return [
        part.reshape((*seed.shape[:-1], *output.shape)).to(output.dtype)
        for part, output in zip(parts, outputs, strict=True)
    ]


def _vjp(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    *,
    batched: bool = False,
    keep_graph: bool = False,
) -> list[Tensor]:
    """One `autograd.grad`. Zeros, not None, for an input that the outputs do not depend on."""
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    gradients: Sequence[Tensor | None] = [None] * len(inputs)
    if pairs:
        gradients = torch.autograd.grad(
            [o for o, _ in pairs],
            inputs,
            [c for _, c in pairs],
            retain_graph=keep_graph,
            is_grads_batched=batched,
            allow_unused=True,
        )
    # torch's own materialize_grads forgets the batch axis.
    batch = cotangents[0].shape[:1] if batched else ()
    return [
        x.new_zeros(()).expand(*batch, *x.shape) if g is None else g
        for g, x in zip(gradients, inputs, strict=True)
    ]
