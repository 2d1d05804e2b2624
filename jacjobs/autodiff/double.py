"""Forward mode from two reverse passes: a product is a column of J, and no forward-mode rule is needed.

The VJP g(v) = Jᵀv is linear in its cotangent v, whatever v is; so its derivative with respect to v,
multiplied by a tangent t, is J·t: a second VJP, through the graph of the first.

With n columns a point and chunks of k products, for one point:

| strategy          | calls of fn | calls of autograd.grad | device memory grows by, a product of the chunk |
| ----------------- | ----------- | ---------------------- | ---------------------------------------------- |
| double-vjp/loop   | 1           | 1 + n                  | (its chunk is 1)                               |
| double-vjp/repeat | ⌈n/k⌉       | 2 ⌈n/k⌉                | a doubled graph, an input and a column of m    |
| double-vjp/vmap   | 1           | 1 + ⌈n/k⌉              | the second backward's intermediates, a column  |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from jacjobs.autodiff.graph import repeated, tiled, vjp, vjps, watched
from jacjobs.autodiff.seeds import SeedMaker, make
from jacjobs.autodiff.strategy import Chunk, Strategy, point_groups, product_ranges
from jacjobs.problem import Problem
from jacjobs.shape import Rectangle


class DoubleVjpLoop(Strategy):
    """One doubled graph a point, kept for its columns; one `autograd.grad` a column.

    Cost: 1 forward pass and 1 + n backward passes a point. Memory: one doubled graph, whatever the chunk.
    Source: J. Townsend, "A new trick for calculating Jacobian vector products" (2017),
    https://j-towns.github.io/2017/06/12/A-new-trick.html
    """

    product, batching = "double-vjp", "loop"

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
            cotangents, gradients = _linear_map(outputs, inputs)
            for column in range(block.column_start, block.column_stop):
                tangents = [seed[0] for seed in make(seeds, column, column + 1, inputs)]
                last = column + 1 == block.column_stop
                columns = vjp(gradients, cotangents, tangents, keep_graph=not last, create_graph=create_graph)
                yield Chunk(
                    slice(point, point + 1),
                    slice(column, column + 1),
                    [c.reshape(1, 1, -1) for c in columns],
                )
                del columns


class DoubleVjpRepeat(Strategy):
    """The repeat trick twice: x and v copied once a column, one doubled graph, an identity as the tangent.

    Needs a function that treats its samples independently, as vjp/repeat does.

    Cost: n forward and 2 n backward passes a point, k at a time. Memory: k doubled graphs.
    Source: J. Townsend, "A new trick for calculating Jacobian vector products" (2017),
    https://j-towns.github.io/2017/06/12/A-new-trick.html, and the repeat trick of vjp/repeat.
    """

    product, batching = "double-vjp", "repeat"

    def chunks(
        self,
        problem: Problem,
        block: Rectangle,
        seeds: SeedMaker,
        chunk: int,
        *,
        create_graph: bool = False,
    ) -> Iterator[Chunk]:
        for start, stop in point_groups(block, block.columns, chunk):
            for first, last in product_ranges(block.column_start, block.column_stop, chunk):
                copies, carried = repeated(problem, start, stop, last - first)
                leaves, inputs = watched(copies, problem.wanted, create_graph=create_graph)
                cotangents, gradients = _linear_map(problem.call_batch(leaves, carried), inputs)
                seed = make(seeds, first, last, [leaf[0] for leaf in inputs])
                tangents = [tiled(part, stop - start) for part in seed]
                columns = vjp(gradients, cotangents, tangents, create_graph=create_graph)
                del cotangents, gradients
                yield Chunk(
                    slice(start, stop),
                    slice(first, last),
                    [c.reshape(stop - start, last - first, -1) for c in columns],
                )
                del columns


class DoubleVjpVmap(Strategy):
    """One doubled graph, a batch of tangents: `vmap` over the second backward pass.

    Cost: 1 forward pass and 1 + n backward passes a point, k at a time. Memory: one doubled graph, and k
    times what its backward pass holds.
    Source: J. Townsend, "A new trick for calculating Jacobian vector products" (2017),
    https://j-towns.github.io/2017/06/12/A-new-trick.html; batched as in vjp/vmap.
    """

    product, batching = "double-vjp", "vmap"

    def chunks(
        self,
        problem: Problem,
        block: Rectangle,
        seeds: SeedMaker,
        chunk: int,
        *,
        create_graph: bool = False,
    ) -> Iterator[Chunk]:
        for start, stop in point_groups(block, block.columns, chunk):
            points = stop - start
            if points == 1:
                leaves, inputs = watched(problem.at_point(start), problem.wanted, create_graph=create_graph)
                outputs = problem.call_one(leaves)
                like = inputs
            else:
                # One graph for all points keeps them apart only if each has inputs of its own.
                copies, carried = repeated(problem, start, stop, times=1)
                leaves, inputs = watched(copies, problem.wanted, create_graph=create_graph)
                outputs = problem.call_batch(leaves, carried)
                like = [leaf[0] for leaf in inputs]
            cotangents, gradients = _linear_map(outputs, inputs)
            for first, last in product_ranges(block.column_start, block.column_stop, chunk):
                tangents = make(seeds, first, last, like)
                if points > 1:
                    tangents = [t.unsqueeze(1).expand(last - first, points, *t.shape[1:]) for t in tangents]
                columns = vjps(
                    gradients,
                    cotangents,
                    tangents,
                    keep_graph=last < block.column_stop,
                    create_graph=create_graph,
                )
                yield Chunk(
                    slice(start, stop),
                    slice(first, last),
                    [c.reshape(last - first, points, -1).transpose(0, 1) for c in columns],
                )
                del columns


def _linear_map(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """A cotangent v, and g(v) = Jᵀv with the graph that leads from the one to the other."""
    cotangents = [output.new_zeros(output.shape).requires_grad_() for output in outputs]
    return cotangents, vjp(outputs, inputs, cotangents, create_graph=True)
