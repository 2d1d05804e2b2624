"""Forward mode: a product is a Jacobian–vector product (JVP), a column of J, from dual numbers.

With n columns a point and chunks of k products, for one point:

| strategy   | calls of fn | device memory grows by, a product of the chunk             |
| ---------- | ----------- | ---------------------------------------------------------- |
| jvp/loop   | n           | (its chunk is 1)                                           |
| jvp/repeat | ⌈n/k⌉       | an input, the values and tangents of a pass, a column of m |
| jvp/vmap   | ⌈n/k⌉       | the tangents of a pass and a column of m                   |

No pass keeps a graph, not even of weights that the function has captured. A call of jvp/repeat is k samples
wide; one of jvp/vmap makes the values once and k tangents. With many points the chunk runs over pairs of
point and column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from jacjobs.autodiff.constants import without_zeros
from jacjobs.autodiff.graph import of_wanted, repeated, tiled
from jacjobs.autodiff.seeds import SeedMaker, make
from jacjobs.autodiff.strategy import Chunk, Strategy, point_groups, product_ranges
from jacjobs.problem import ALONE, Problem
from jacjobs.shape import Rectangle
from jacjobs.transforms import jvp, vmap


class JvpLoop(Strategy):
    """Dual numbers, one tangent a column.

    Cost: n forward passes a point, each about twice a plain one. Memory: one pass, whatever the chunk.
    Source: torch's forward-mode tutorial,
    https://docs.pytorch.org/tutorials/intermediate/forward_ad_usage.html
    """

    product, batching = "jvp", "loop"

    def chunks(
        self,
        problem: Problem,
        block: Rectangle,
        seeds: SeedMaker,
        chunk: int,
        *,
        create_graph: bool = False,
    ) -> Iterator[Chunk]:
        problem = problem if create_graph else problem.unrecorded()
        for point in range(block.point_start, block.point_stop):
            leaves = _primals(problem.at_point(point), problem.wanted, create_graph)
            inputs = [leaves[index] for index in problem.wanted]
            for column in range(block.column_start, block.column_stop):
                tangents = [seed[0] for seed in make(seeds, column, column + 1, inputs)]
                with ALONE, forward_ad.dual_level(), without_zeros(problem):
                    outputs = problem.call_one(_dual(leaves, problem.wanted, tangents))
                    columns = [_tangent(output).reshape(1, 1, -1) for output in outputs]
                yield Chunk(slice(point, point + 1), slice(column, column + 1), columns)
                del columns


class JvpRepeat(Strategy):
    """The repeat trick in forward mode: the input copied once a column, an identity as the tangent.

    Needs a function that treats its samples independently, as vjp/repeat does.

    Cost: n forward passes a point, k at a time. Memory: k forward passes of values and tangents.
    Source: the repeat trick of vjp/repeat, on dual numbers.
    """

    product, batching = "jvp", "repeat"

    def chunks(
        self,
        problem: Problem,
        block: Rectangle,
        seeds: SeedMaker,
        chunk: int,
        *,
        create_graph: bool = False,
    ) -> Iterator[Chunk]:
        problem = problem if create_graph else problem.unrecorded()
        for start, stop in point_groups(block, block.columns, chunk):
            for first, last in product_ranges(block.column_start, block.column_stop, chunk):
                copies, carried = repeated(problem, start, stop, last - first)
                leaves = _primals(copies, problem.wanted, create_graph)
                seed = make(seeds, first, last, [leaves[index][0] for index in problem.wanted])
                with ALONE, forward_ad.dual_level():
                    duals = _dual(leaves, problem.wanted, [tiled(part, stop - start) for part in seed])
                    outputs = problem.call_batch(duals, carried)
                    columns = [_tangent(output).reshape(stop - start, last - first, -1) for output in outputs]
                    del duals, outputs
                yield Chunk(slice(start, stop), slice(first, last), columns)
                del columns


class JvpVmap(Strategy):
    """One pass of values with k tangents at once: `vmap` over the tangents.

    Cost: ⌈n/k⌉ passes of values, n of tangents. Memory: k times the tangents of a pass.
    Source: `torch.func.jacfwd`, https://docs.pytorch.org/docs/stable/generated/torch.func.jacfwd.html
    """

    product, batching = "jvp", "vmap"

    def chunks(
        self,
        problem: Problem,
        block: Rectangle,
        seeds: SeedMaker,
        chunk: int,
        *,
        create_graph: bool = False,
    ) -> Iterator[Chunk]:
        problem = problem if create_graph else problem.unrecorded()
        for start, stop in point_groups(block, block.columns, chunk):
            points = stop - start
            leaves = problem.at_point(start) if points == 1 else problem.at_points(start, stop)
            leaves = _primals(leaves, problem.wanted, create_graph)
            inputs = [leaves[index] for index in problem.wanted]
            # A tangent of what points share is shared; one of what each point has is theirs alike.
            own = [points > 1 and problem.carried[index] for index in problem.wanted]
            for first, last in product_ranges(block.column_start, block.column_stop, chunk):
                like = [leaf[0] if o else leaf for leaf, o in zip(inputs, own, strict=True)]
                tangents = [
                    seed.unsqueeze(1).expand(last - first, points, *seed.shape[1:]) if o else seed
                    for seed, o in zip(make(seeds, first, last, like), own, strict=True)
                ]
                columns = self._columns(problem, leaves, tangents, batch=points > 1)
                yield Chunk(
                    slice(start, stop),
                    slice(first, last),
                    [c.reshape(last - first, points, -1).transpose(0, 1) for c in columns],
                )
                del columns

    def _columns(
        self, problem: Problem, leaves: list[Any], tangents: list[Tensor], *, batch: bool
    ) -> list[Tensor]:
        """One tensor (k, [points,] *shape) an output leaf."""
        outputs, primals = of_wanted(problem, leaves, batch=batch)
        if not (batch and problem.lifts(problem.carried)):
            outputs = without_zeros(problem)(outputs)
        with ALONE:
            return vmap(
                lambda *tangent: jvp(outputs, primals, tangent), tangents, randomness=problem.randomness
            )


def _primals(leaves: Sequence[Any], wanted: Sequence[int], create_graph: bool) -> list[Any]:
    """The leaves; those wanted in memory of their own.

    A dual number gives its tangent the memory layout of its primal, down to the size of the storage behind
    it: for a view of a large tensor, that is a large tensor a tangent; for an expanded one, an error.
    """
    primals = list(leaves)
    for index in wanted:
        leaf = primals[index] if create_graph else primals[index].detach()
        primals[index] = leaf.clone(memory_format=torch.contiguous_format)
    return primals


def _dual(leaves: Sequence[Any], wanted: Sequence[int], tangents: Sequence[Tensor]) -> list[Any]:
    duals = list(leaves)
    for index, tangent in zip(wanted, tangents, strict=True):
        duals[index] = forward_ad.make_dual(duals[index], tangent)
    return duals


def _tangent(output: Tensor) -> Tensor:
    """The tangent of a dual number; zeros for an output that depends on no input."""
    tangent = forward_ad.unpack_dual(output).tangent
    return output.new_zeros(output.shape) if tangent is None else tangent
