"""Elements that depend on a group: reductions, softmax and the like, norms, sorting."""

from __future__ import annotations

import numpy as np

from jacjobs.structure.pattern import Pattern
from jacjobs.structure.rules.call import (
    RULES,
    Call,
    Seen,
    across,
    aten,
    broadcast,
    dense,
    dims_of,
    groups_of,
    known,
    pointwise,
    rule,
    spread,
    union,
)

REDUCES = {
    **dict.fromkeys((aten.sum, aten.mean, aten.prod, aten.amax, aten.amin, aten.max, aten.min), 1),
    **dict.fromkeys((aten.var, aten.std, aten.logsumexp, aten.var_mean, aten.std_mean, aten.median), 1),
    **dict.fromkeys((aten.linalg_vector_norm, aten.norm), 2),
}
"""To which axes an operator reduces: the place of that argument."""
MIXES = {
    **dict.fromkeys((aten._softmax, aten._log_softmax, aten.cumsum, aten.cumprod, aten.logcumsumexp), 1),
    **dict.fromkeys((aten.cummax, aten.cummin, aten._fft_r2c, aten._fft_c2c, aten._fft_c2r), 1),
}
"""… and along which axes all elements depend on all."""


def reduced(call: Call) -> Pattern:
    """Each element depends on its group."""
    operand = call.args[0]
    if call.target._overloadname == "other":  # max of two tensors, one by one
        return pointwise(call)
    dims = dims_of(call.argument(REDUCES[call.target.overloadpacket], "dim"), len(operand.shape))
    return known(operand).grouped(*groups_of(operand.shape, dims))


def mixed(call: Call) -> Pattern:
    """Each element depends on its group, and has the shape that it had, but along the axes of the group."""
    operand = call.args[0]
    dims = dims_of(call.argument(MIXES[call.target.overloadpacket], "dim"), len(operand.shape))
    together = known(operand).grouped(*groups_of(operand.shape, dims))
    return together.rows(groups_of(call.shape, [d for d in dims if d < len(call.shape)])[0])


@rule(aten.linalg_cross)
def _cross(call: Call) -> Pattern:
    """Of a triple, the two that come after."""
    axis = call.argument(2, "dim", -1) % len(call.shape)
    parts = []
    for seen in call.seen:
        numbers = spread(seen.shape, call.shape).reshape(call.shape)
        parts += [known(seen).rows(np.roll(numbers, -step, axis).reshape(-1)) for step in (1, 2)]
    return union(parts)


@rule(aten.sort, aten.topk, aten.kthvalue, aten.mode)
def _sorted(call: Call) -> Pattern:
    """Which element comes where depends on the inputs."""
    operand = call.args[0]
    place = 2 if call.target.overloadpacket in (aten.topk, aten.kthvalue) else 1  # they take a k before it
    dims = dims_of(call.argument(place, "dim", -1), len(operand.shape))
    together = known(operand).grouped(*groups_of(operand.shape, dims))
    return together.rows(across(operand.shape, call.shape, dims))


@rule(aten.native_layer_norm)
def _layer_norm(call: Call) -> Pattern:
    operand, normal = call.args[:2]
    rank = len(operand.shape) if isinstance(operand, Seen) else operand.ndim
    dims = list(range(rank - len(normal), rank))
    parts = []
    if isinstance(operand, Seen):
        groups, count = groups_of(operand.shape, dims)
        parts.append(known(operand).grouped(groups, count).rows(groups))
    parts += [broadcast(p, call.shape) for p in call.args[2:4] if isinstance(p, Seen)]
    return union(parts)


@rule(aten.native_group_norm)
def _group_norm(call: Call) -> Pattern:
    """Samples and groups of channels."""
    operand, weight, bias, samples, channels, space, groups_ = call.args[:7]
    if not isinstance(operand, Seen):
        return dense(call)
    numbers = np.arange(samples * groups_).repeat(channels // groups_ * space)
    parts = [known(operand).grouped(numbers, samples * groups_).rows(numbers)]
    for parameter in (weight, bias):
        if isinstance(parameter, Seen):
            channel = np.tile(np.arange(channels).repeat(space), samples)
            parts.append(known(parameter).rows(channel))
    return union(parts)


RULES |= {**dict.fromkeys(REDUCES, reduced), **dict.fromkeys(MIXES, mixed)}
