"""Tangents innermost: rewriting of a forward chunk, so that its loops run along tangents and not along cells.

`vmap` puts the axis of tangents first. Generated code then runs along the axes of the state, where what
shifts a state by a cell (`roll`, an index, slices put together: any scheme of finite differences) cannot be
read as whole vectors. With tangents innermost each shift is one of whole lines. Measured: a half to three
quarters more speed, docs/decisions/0038.

All that depends on the seeds is made once more beside the graph, with its axis of tangents last: its twin.
Where an operator is met of which that is not known, the twins are dropped, and all stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from jacjobs.autodiff.nodes import call
from jacjobs.autodiff.seeds import identity

aten: Any = torch.ops.aten


class Twin(NamedTuple):
    """What has the same entries as a node, whose axis `axis` it has last."""

    node: fx.Node
    axis: int


class _UnknownError(Exception):
    """Of an operator, how it goes with tangents last."""


def put_tangents_innermost(graph: fx.Graph) -> None:
    """Of all that seeds go into, on a CPU. Whoever calls it drops dead code."""
    twins: dict[fx.Node, Twin] = {}
    try:
        for node in list(graph.nodes):
            if node.target is identity:
                if node.meta["val"].device.type != "cpu":
                    return
                twins[node] = Twin(node, 0)  # it is symmetric
            elif node.op == "call_function" and any(source in twins for source in node.all_input_nodes):
                with graph.inserting_before(node):
                    twins[node] = _Rule(graph, twins, node).twin()
    except _UnknownError:
        return
    output = graph.output_node()
    with graph.inserting_before(output):
        for node in output.all_input_nodes:
            if node not in twins or node.target is identity:
                continue
            twin, axis = twins[node]
            last = node.meta["val"].ndim - 1
            order = [*range(axis), last, *range(axis, last)]
            output.replace_input_with(node, call(graph, aten.permute.default, twin, order))


class _Rule:
    """How the twin of a node is made of those of what goes into it."""

    def __init__(self, graph: fx.Graph, twins: dict[fx.Node, Twin], node: fx.Node) -> None:
        self._graph, self._twins, self._node = graph, twins, node
        self._ndim = node.meta["val"].ndim if isinstance(node.meta.get("val"), torch.Tensor) else 0

    def twin(self) -> Twin:
        node = self._node
        rule = _RULES.get(node.target)
        if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            rule = _Rule._pointwise
        by_name = [value for value in node.kwargs.values() if not isinstance(value, torch.dtype)]
        if rule is None or not self._ndim or (by_name and rule is not _Rule._pointwise):
            raise _UnknownError
        twin = rule(self, *node.args)
        made = twin.node.meta["val"]
        if list(made.shape) != self._shape(twin.axis) or made.dtype != node.meta["val"].dtype:
            raise _UnknownError
        return twin

    def _call(self, *args: Any, axis: int) -> Twin:
        return Twin(call(self._graph, self._node.target, *args, **self._node.kwargs), axis)

    def _of(self, source: Any) -> Twin:
        if source not in self._twins:
            raise _UnknownError
        return self._twins[source]

    def _free(self, twin: Twin, dim: int) -> int:
        """A dimension of the twin's node as one of the twin, if it is not that of tangents."""
        dim %= twin.node.meta["val"].ndim
        if dim == twin.axis:
            raise _UnknownError
        return dim - (dim > twin.axis)

    def _aligned(self, value: Any, from_right: int) -> Any:
        """An operand whose axes count from the right, as broadcasting does; that of tangents put last."""
        if not isinstance(value, fx.Node):
            return value
        ndim = value.meta["val"].ndim
        if ndim == 0:  # with an axis it would count more for the dtype of the result
            return value
        if value in self._twins:
            twin, axis = self._twins[value]
            if axis - ndim != from_right:
                raise _UnknownError
            return twin
        if ndim < -from_right:
            return call(self._graph, aten.unsqueeze.default, value, ndim)
        axis = ndim + from_right
        order = [*range(axis), *range(axis + 1, ndim), axis]
        return call(self._graph, aten.permute.default, value, order)

    def _pointwise(self, *args: Any) -> Twin:
        if any(isinstance(arg, list | tuple) for arg in args) or any(
            isinstance(value, fx.Node) for value in self._node.kwargs.values()
        ):
            raise _UnknownError
        axes = [self._twins[arg].axis - arg.meta["val"].ndim for arg in args if arg in self._twins]
        return self._call(*[self._aligned(arg, axes[0]) for arg in args], axis=self._ndim + axes[0])

    def _cat(self, parts: Sequence[fx.Node], dim: int = 0) -> Twin:
        if any(part.meta["val"].ndim != self._ndim for part in parts):  # old ones may be empty
            raise _UnknownError
        first = next(self._twins[part] for part in parts if part in self._twins)
        free, axis = self._free(first, dim), first.axis
        return self._call([self._aligned(part, axis - self._ndim) for part in parts], free, axis=axis)

    def _index(self, source: fx.Node, indices: Sequence[Any]) -> Twin:
        twin = self._of(source)
        given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
        if len(given) != 1:
            raise _UnknownError
        dim, index = given[0]
        if index in self._twins or index.meta["val"].dtype is torch.bool:
            raise _UnknownError
        free = self._free(twin, dim)
        more = index.meta["val"].ndim - 1
        return self._call(twin.node, [None] * free + [index], axis=twin.axis + more * (dim < twin.axis))

    def _slice(self, source: fx.Node, dim: int = 0, *rest: Any) -> Twin:
        twin = self._of(source)
        return self._call(twin.node, self._free(twin, dim), *rest, axis=twin.axis)

    def _select(self, source: fx.Node, dim: int, *index: int) -> Twin:
        twin = self._of(source)
        free = self._free(twin, dim)
        return self._call(twin.node, free, *index, axis=twin.axis - (free < twin.axis))

    def _squeeze(self, source: fx.Node, dim: int) -> Twin:
        if source.meta["val"].shape[dim] != 1:
            raise _UnknownError
        return self._select(source, dim)

    def _unsqueeze(self, source: fx.Node, dim: int) -> Twin:
        twin = self._of(source)
        dim %= self._ndim
        axis = twin.axis + (dim <= twin.axis)
        return self._call(twin.node, dim - (dim > axis), axis=axis)

    def _permute(self, source: fx.Node, order: Sequence[int]) -> Twin:
        twin = self._of(source)
        order = [dim % self._ndim for dim in order]
        free = [dim - (dim > twin.axis) for dim in order if dim != twin.axis]
        return self._call(twin.node, [*free, self._ndim - 1], axis=order.index(twin.axis))

    def _expand(self, source: fx.Node, size: Sequence[int]) -> Twin:
        twin = self._of(source)
        axis = self._ndim + twin.axis - source.meta["val"].ndim
        return self._call(twin.node, self._shape(axis), axis=axis)

    def _reshape(self, source: fx.Node, size: Sequence[int]) -> Twin:
        twin = self._of(source)
        old, new = source.meta["val"].shape, self._node.meta["val"].shape
        before, tangents = math.prod(old[: twin.axis]), old[twin.axis]
        axes = [d for d in range(self._ndim) if new[d] == tangents and math.prod(new[:d]) == before]
        if not axes or tangents == 1:
            raise _UnknownError
        made = call(self._graph, aten.reshape.default, twin.node, self._shape(axes[0]))
        return Twin(made, axes[0])

    def _reduced(self, source: fx.Node, dims: Sequence[int], keepdim: bool = False) -> Twin:
        twin = self._of(source)
        if not dims:  # all of them
            raise _UnknownError
        free = [self._free(twin, dim) for dim in dims]
        before = 0 if keepdim else sum(dim < twin.axis for dim in free)
        return self._call(twin.node, free, keepdim, axis=twin.axis - before)

    def _write(self, target: fx.Node, source: fx.Node, dim: int = 0, *rest: Any) -> Twin:
        """Into a part of it: of a state's history, say."""
        one = self._node.target is aten.select_scatter.default  # of the positions along `dim`
        dim %= self._ndim
        if target in self._twins:
            axis = self._twins[target].axis
        else:
            axis = self._of(source).axis
            axis += one and dim <= axis
        if dim == axis:
            raise _UnknownError
        from_right = axis - self._ndim
        return self._call(
            self._aligned(target, from_right),
            self._aligned(source, from_right + (one and dim > axis)),
            dim - (dim > axis),
            *rest,
            axis=axis,
        )

    def _shape(self, axis: int) -> list[int]:
        """Of the node, this axis last."""
        shape = list(self._node.meta["val"].shape)
        return [*shape[:axis], *shape[axis + 1 :], shape[axis]]


_RULES: dict[Any, Callable[..., Twin]] = {
    aten.cat.default: _Rule._cat,
    aten.index.Tensor: _Rule._index,
    aten.slice.Tensor: _Rule._slice,
    aten.select.int: _Rule._select,
    aten.squeeze.dim: _Rule._squeeze,
    aten.unsqueeze.default: _Rule._unsqueeze,
    aten.permute.default: _Rule._permute,
    aten.expand.default: _Rule._expand,
    aten.view.default: _Rule._reshape,
    aten.reshape.default: _Rule._reshape,
    aten.sum.dim_IntList: _Rule._reduced,
    aten.mean.dim: _Rule._reduced,
    aten.slice_scatter.default: _Rule._write,
    aten.select_scatter.default: _Rule._write,
    torch.ops.prims.convert_element_type.default: _Rule._pointwise,
}
