"""Elements that depend on one of each operand, and elements that are moved about."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from jacjobs.structure.pattern import NONE, Pattern
from jacjobs.structure.rules.call import (
    RULES,
    Call,
    Seen,
    aten,
    broadcast,
    dense,
    known,
    pointwise,
    rule,
    spread,
    union,
)


@rule(aten.mul)
def _mul(call: Call) -> Pattern:
    """Where a constant factor is zero, so is the derivative."""
    a, b = call.args
    for factor, constant in ((a, b), (b, a)):
        if isinstance(factor, Seen) and isinstance(constant, Tensor):
            index = spread(factor.shape, call.shape)
            zero = (constant == 0).expand(call.shape).reshape(-1).numpy()
            return known(factor).rows(np.where(zero, NONE, index))
    return pointwise(call)


@rule(aten.where)
def _where(call: Call) -> Pattern:
    condition, *values = call.args
    if not isinstance(condition, Tensor):  # it depends on the inputs, or on itself only: either may be taken
        return pointwise(call)
    chosen = condition.expand(call.shape).reshape(-1).numpy()
    parts = [
        broadcast(value, call.shape).rows(np.where(there, np.arange(call.size), NONE))
        for value, there in zip(values, (chosen, ~chosen), strict=True)
        if isinstance(value, Seen) and value.pattern is not None
    ]
    return union(parts)


MOVES = (
    *(aten.view, aten._unsafe_view, aten.reshape, aten.permute, aten.transpose, aten.t, aten.expand),
    *(aten.squeeze, aten.unsqueeze, aten.slice, aten.select, aten.narrow, aten.flip, aten.roll, aten.rot90),
    *(aten.cat, aten.stack, aten.repeat, aten.repeat_interleave, aten.tile, aten.diagonal, aten.diag_embed),
    *(aten.as_strided, aten.unfold, aten.split, aten.split_with_sizes, aten.unbind, aten.chunk, aten.alias),
    *(aten.constant_pad_nd, aten.tril, aten.triu, aten.slice_scatter, aten.select_scatter),
    *(aten.diagonal_scatter, aten.index, aten.index_select, aten.gather, aten.take),
    *(aten.scatter, aten.masked_fill, aten.masked_scatter, aten.pixel_shuffle, aten.pixel_unshuffle),
    *(aten.slice_backward, aten.select_backward, aten.diagonal_backward, aten.unfold_backward),
    *(aten.squeeze_, aten.unsqueeze_, aten.transpose_, aten.t_),
    *(aten.reflection_pad1d, aten.reflection_pad2d, aten.replication_pad1d, aten.replication_pad2d),
    *(aten.upsample_nearest1d, aten.upsample_nearest2d, aten.im2col, aten.lift_fresh),
)
_FILLS = {aten.constant_pad_nd: 2, aten.masked_fill: 2, aten.scatter: 3}
"""Which operand of these is a number that fills."""


def moved(call: Call) -> list[Pattern]:
    """Run on the numbers of elements; 0 is one that depends on nothing. Of all results.

    In float64, which holds them exactly: not all operators take integers.
    """
    if call.indices:  # which elements are meant depends on the inputs
        return [dense(call)]
    parts: list[Pattern] = []
    first = 1

    def numbered(leaf: Any) -> Any:
        nonlocal first
        if isinstance(leaf, Seen):
            assert leaf.pattern is not None
            parts.append(leaf.pattern)
            begin, first = first, first + len(leaf.pattern)
            return torch.arange(begin, first, dtype=torch.float64).reshape(leaf.shape)
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return torch.zeros(leaf.shape, dtype=torch.float64)
        return leaf

    args, kwargs = pytree.tree_map(
        numbered, (call.args, call.kwargs), is_leaf=lambda leaf: isinstance(leaf, Seen)
    )
    fill = _FILLS.get(call.target.overloadpacket)
    if fill is not None and len(args) > fill and not isinstance(args[fill], Tensor):
        args = (*args[:fill], 0, *args[fill + 1 :])
    made = call.target(*args, **kwargs)
    every = parts[0]
    for part in parts[1:]:
        every = every.below(part)
    results = made if isinstance(made, tuple | list) else [made]
    return [every.rows(result.reshape(-1).long().numpy() - 1) for result in results]


@rule(aten.clone, aten._to_copy, aten.contiguous)
def _kept(call: Call) -> Pattern:
    return known(call.args[0])


@rule(aten.view_as_real)
def _parts_of_complex(call: Call) -> Pattern:
    pattern = known(call.args[0])
    return pattern.rows(np.arange(len(pattern)).repeat(2))


@rule(aten.view_as_complex)
def _complex_of_parts(call: Call) -> Pattern:
    return known(call.args[0]).grouped(np.arange(call.size).repeat(2), call.size)


@rule(aten.copy)
def _copied(call: Call) -> Pattern:
    target, source = call.args[:2]
    if isinstance(source, Seen):
        return broadcast(source, call.shape)
    return known(target).rows(np.full(call.size, NONE))


@rule(aten.index_add, aten.scatter_add, aten.index_put)
def _added(call: Call) -> Pattern | list[Pattern]:
    """What is added to an element is there beside what was."""
    operator = call.target.overloadpacket
    if call.indices:
        return dense(call)
    if operator is aten.index_put and not call.argument(3, "accumulate", False):
        return moved(call)
    target, source = call.args[0], call.args[2 if operator is aten.index_put else 3]
    places = torch.arange(call.size).reshape(call.shape)
    if operator is aten.index_put:
        to = aten.index(places, call.args[1])
    elif operator is aten.index_add:
        to = places.index_select(call.args[1], call.args[2])
    else:
        to = places.gather(call.args[1], call.args[2])
    parts = [known(target)] if isinstance(target, Seen) else []
    if isinstance(source, Seen):
        numbers = torch.arange(len(known(source))).reshape(source.shape)
        if operator is aten.scatter_add:  # of whose source the first elements are taken
            numbers = numbers[tuple(slice(0, length) for length in to.shape)]
        numbers = numbers.expand(to.shape)
        parts.append(known(source).mapped(to.reshape(-1).numpy(), numbers.reshape(-1).numpy(), call.size))
    return union(parts)


CONSTANTS = (
    *(aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like),
    *(aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.new_empty_strided),
)
"""Of their operand they take nothing but how it looks."""


RULES |= dict.fromkeys(MOVES, moved)
