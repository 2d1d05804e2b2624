"""Convolutions, pooling, and maps of another size: elements that depend on a window of another map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jacjobs.structure.pattern import NONE, Index, Pattern
from jacjobs.structure.rules.call import Call, Seen, aten, dense_in, group_all, known, rule, union


def windows(
    maps: int,
    space: Sequence[int],
    result: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Index, Index]:
    """Pairs: an element of a result (maps, *result), and one of its window in (maps, *space); end to end."""
    numbers = np.arange(maps * int(np.prod(space))).reshape(maps, *space)
    padded = np.pad(numbers, [(0, 0), *((pad, pad) for pad in padding)], constant_values=NONE)
    places = np.arange(maps * int(np.prod(result))).reshape(maps, *result)
    to, source = [], []
    for offset in np.ndindex(*kernel):
        cut = tuple(
            slice(o * d, o * d + s * (size - 1) + 1, s)
            for o, d, s, size in zip(offset, dilation, stride, result, strict=True)
        )
        found = padded[(slice(None), *cut)]
        to.append(places[found != NONE])
        source.append(found[found != NONE])
    return np.concatenate(to), np.concatenate(source)


@rule(aten.convolution)
def _convolution(call: Call) -> Pattern:
    """An element depends on its window, in all channels of its group."""
    operand, weight, bias, stride, padding, dilation, transposed, _, groups = call.args
    samples, channels, *space = operand.shape
    outs, *result = call.shape[1:]
    kernel = list(weight.shape[2:])
    parts = []
    if isinstance(operand, Seen):
        together = _of_groups(operand, samples, channels, groups)
        if transposed:
            source, to = windows(samples * groups, result, space, kernel, stride, padding, dilation)
        else:
            to, source = windows(samples * groups, space, result, kernel, stride, padding, dilation)
        window = together.mapped(to, source, samples * groups * int(np.prod(result)))
        parts.append(_to_channels(window, samples, outs, groups))
    channel = _numbers_of_channels(call.shape)
    if isinstance(weight, Seen):
        whole = transposed  # whose weights are of the operand's channels
        per_channel = (
            group_all(weight).rows(np.zeros(outs, np.int64)) if whole else _per_channel(weight, outs)
        )
        parts.append(per_channel.rows(channel))
    if isinstance(bias, Seen):
        parts.append(known(bias).rows(channel))
    return union(parts)


@rule(aten.convolution_backward)
def _convolution_back(call: Call) -> list[Pattern]:
    """A gradient goes back to the window that its element had. With respect to weights, all is dense."""
    gradient, operand, weight, _, stride, padding, dilation, transposed, _, groups = call.args[:10]
    samples, channels, *space = operand.shape
    outs, *result = gradient.shape[1:]
    parts = []
    if isinstance(gradient, Seen):
        together = _of_groups(gradient, samples, outs, groups)
        sizes = (result, space) if transposed else (space, result)
        of_result, of_space = windows(samples * groups, *sizes, weight.shape[2:], stride, padding, dilation)
        to, source = (of_result, of_space) if transposed else (of_space, of_result)
        back = together.mapped(to, source, samples * groups * int(np.prod(space)))
        parts.append(_to_channels(back, samples, channels, groups))
    size = samples * channels * int(np.prod(space))
    if isinstance(weight, Seen):
        parts.append(group_all(weight).rows(np.zeros(size, np.int64)))
    every = union([group_all(seen) for seen in call.seen])
    to_operand = union(parts) if parts else every.rows(np.zeros(size, np.int64))
    return [
        to_operand,
        every.rows(np.zeros(int(np.prod(weight.shape)), np.int64)),
        every.rows(np.zeros(outs, np.int64)),
    ]


def _of_groups(maps: Seen, samples: int, channels: int, groups: int) -> Pattern:
    """Of (samples, groups, *space): all channels of a group together."""
    size = len(known(maps)) // (samples * channels)
    places = np.arange(samples * groups * size).reshape(samples, groups, 1, size)
    whose = np.broadcast_to(places, (samples, groups, channels // groups, size))
    return known(maps).grouped(whose.reshape(-1), samples * groups * size)


def _to_channels(maps: Pattern, samples: int, channels: int, groups: int) -> Pattern:
    """Of (samples, channels, *space): each channel as its group."""
    size = len(maps) // (samples * groups)
    places = np.arange(len(maps)).reshape(samples, groups, 1, size)
    return maps.rows(np.broadcast_to(places, (samples, groups, channels // groups, size)).reshape(-1))


def _per_channel(weight: Seen, channels: int) -> Pattern:
    size = len(known(weight)) // channels
    return known(weight).grouped(np.arange(channels).repeat(size), channels)


def _numbers_of_channels(shape: Sequence[int]) -> Index:
    samples, channels, *space = shape
    return np.tile(np.arange(channels).repeat(int(np.prod(space))), samples)


AVERAGES = (aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d)


@rule(*AVERAGES, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices)
def _pool(call: Call) -> Pattern:
    """An element depends on its window; on all of its map, where windows reach beyond (ceil_mode)."""
    operand, kernel = call.args[:2]
    averages = call.target.overloadpacket in AVERAGES
    axes = len(kernel)
    if call.argument(4 if averages else 5, "ceil_mode", False):
        return dense_in(call, operand, axes)
    stride = call.argument(2, "stride") or kernel
    padding = call.argument(3, "padding") or [0]
    dilation = [1] if averages else call.argument(4, "dilation") or [1]

    def each(values: Any) -> list[int]:
        every = [values] if isinstance(values, int) else list(values)
        return every * (axes // len(every))

    maps = int(np.prod(operand.shape[:-axes]))
    to, source = windows(
        maps,
        operand.shape[-axes:],
        call.shape[-axes:],
        each(kernel),
        each(stride),
        each(padding),
        each(dilation),
    )
    return known(operand).mapped(to, source, call.size)


@rule(aten._adaptive_avg_pool2d, aten.upsample_bilinear2d, aten.upsample_bicubic2d)
def _resampled(call: Call) -> Pattern:
    """Dense in each map."""
    return dense_in(call, call.args[0], 2)
