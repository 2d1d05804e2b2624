"""Pictures of `jacjobs report` over time: how fast, and by whom.

Attempts are drawn one after another over the time that was worked: what lay between them is left out.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, log2
from typing import Any

from jacjobs.cli.plots.canvas import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    PAGE,
    SKY,
    VERMILION,
    byte_unit,
    clipped,
    new_figure,
    rectangles,
    ticker,
)
from jacjobs.store.attempt import Attempt, Timeline, Work, shares

ROWS = 300
"""Lines of workers; where there are more, a line is several of them."""
NAMED_ROWS = 40
SEEN = 200
"""Buckets over the width of a picture, at most."""
FEW_LOSSES = 60
THERE = "#e3ebf2"
FULL = (0x00 / 255, 0x4C / 255, 0x8C / 255)
STEPS = [
    *(s * 10.0**p for p in (-3, -2, -1, 0) for s in (1, 2, 5)),
    *(10.0, 15.0, 30.0),
    *(60.0 * n for n in (1, 2, 5, 10, 15, 30)),
    *(3600.0 * n for n in (1, 2, 4, 6, 12)),
    *(86400.0 * n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 20000)),
]
"""Of an axis of time, in seconds."""


@dataclass(frozen=True)
class Stretch:
    """An attempt on the axis, from `start` on."""

    attempt: Attempt
    timeline: Timeline
    start: float
    total: float
    """How long the axis is."""

    @property
    def stop(self) -> float:
        return self.start + self.attempt.seconds


def stretches(attempts: Sequence[Attempt]) -> list[Stretch]:
    """Those that say when what was done."""
    those = [attempt for attempt in attempts if attempt.timeline is not None and attempt.seconds > 0]
    total, start = sum(attempt.seconds for attempt in those), 0.0
    found = []
    for attempt in those:
        assert attempt.timeline is not None
        found.append(Stretch(attempt, attempt.timeline, start, total))
        start += attempt.seconds
    return found


# -- speed ---------------------------------------------------------------------------------------------------


def speed(shown: Sequence[Stretch], item_bytes: int, entries: int) -> Any:
    """Three panels over time: bytes of J computed a second; workers that are there, and compute; how much of
    J's `entries` is with the assemblers.
    """
    figure = new_figure(PAGE, 6.0)
    rate, crew, progress = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1.5, 1.2))
    unit, name = byte_unit(max((r for s in shown for _, _, r in _rates(s, item_bytes)), default=0.0))
    for stretch in shown:
        edges, rates = _steps(stretch, [(a, b, r / unit) for a, b, r in _rates(stretch, item_bytes)])
        rate.fill_between(edges, rates, step="post", color=SKY, alpha=0.5, linewidth=0)
        rate.step(edges, rates, where="post", color=BLUE, linewidth=1.2)
        edges, busy = _steps(stretch, list(_at_work(stretch)))
        crew.fill_between(edges, busy, step="post", color=GREEN, alpha=0.45, linewidth=0, label="computing")
        moments, there = _there(stretch)
        crew.step(moments, there, where="post", color=INK, linewidth=1.2, label="there")
        moments, done = _done(stretch, entries)
        progress.plot(moments, done, color=BLUE, linewidth=1.6)
    _mark_losses(crew, shown)
    above = {"pad": 19.0} if len(shown) > 1 else {}
    rate.set_title(f"Speed: {name} of J computed a second", loc="left", fontsize=10.5, **above)
    crew.set_title("Workers: there, and computing", loc="left", fontsize=10.5)
    progress.set_title("Done: part of J that is with the assemblers", loc="left", fontsize=10.5)
    progress.yaxis.set_major_formatter(ticker().PercentFormatter(1.0, decimals=0))
    progress.set_ylim(0, 1.04)
    crew.yaxis.set_major_locator(ticker().MaxNLocator(4, integer=True))
    for axes in (rate, crew):
        axes.set_ylim(0, 1.12 * axes.get_ylim()[1])
    _legend(crew)
    for axes in (rate, crew, progress):
        _frame(axes, shown, named=axes is rate)
    _time_axis(progress, shown)
    figure.tight_layout(h_pad=1.2)
    return figure


def _rates(stretch: Stretch, item_bytes: int) -> Iterator[tuple[float, float, float]]:
    """Of each bucket: from when to when, and bytes a second."""
    for start, stop, entries in _buckets(stretch, stretch.timeline.computed):
        yield start, stop, entries * item_bytes / (stop - start)


def _at_work(stretch: Stretch) -> Iterator[tuple[float, float, float]]:
    """Of each bucket: how many workers were computing."""
    most = max(1, len(stretch.attempt.workers))
    for start, stop, seconds in _buckets(stretch, stretch.timeline.busy):
        yield start, stop, min(most, seconds / (stop - start))


def _buckets(stretch: Stretch, values: Sequence[float]) -> Iterator[tuple[float, float, float]]:
    """From when to when how much: not more than the eye can tell apart. The last ends with the attempt,
    and is joined to the one before where it is short: a rate over a moment says nothing.
    """
    some = 1 << max(0, ceil(log2(stretch.total / stretch.timeline.seconds / SEEN)))
    width, end = some * stretch.timeline.seconds, stretch.attempt.seconds
    sums = [sum(values[i : i + some]) for i in range(0, len(values), some)]
    number = min(len(sums), ceil(end / width))
    if number > 1 and end < (number - 0.5) * width:
        number -= 1
    for i in range(number):
        last = i == number - 1
        stop = (i + 1) * width if not last or (number == len(sums) and end > (i + 1) * width) else end
        yield i * width, stop, sum(sums[i:]) if last else sums[i]


def _steps(
    stretch: Stretch, buckets: Sequence[tuple[float, float, float]]
) -> tuple[list[float], list[float]]:
    """As a line of steps, with nothing before the first and after the last."""
    if not buckets:
        return [stretch.start, stretch.stop], [0.0, 0.0]
    edges = [stretch.start + start for start, _, _ in buckets]
    end = stretch.start + buckets[-1][1]
    return [*edges, end, max(end, stretch.stop)], [*(value for _, _, value in buckets), 0.0, 0.0]


def _there(stretch: Stretch) -> tuple[list[float], list[int]]:
    """How many workers were there, from which moment on."""
    changes = [(work.joined, 1) for work in stretch.attempt.workers]
    changes += [(work.left, -1) for work in stretch.attempt.workers if work.left is not None]
    changes.sort()
    moments = [stretch.start, *(stretch.start + moment for moment, _ in changes), stretch.stop, stretch.stop]
    counts = list(accumulate((step for _, step in changes), initial=0))
    return moments, [*counts, counts[-1], 0]


def _done(stretch: Stretch, entries: int) -> tuple[list[float], list[float]]:
    """What earlier attempts left, and what this one adds."""
    total = max(0, entries - stretch.attempt.entries_total)
    moments, done = [stretch.start], [total / entries]
    for _, stop, taken in _buckets(stretch, stretch.timeline.taken):
        total += int(taken)
        moments.append(stretch.start + stop)
        done.append(min(1.0, max(0.0, total / entries)))
    return [*moments, stretch.stop], [*done, done[-1]]


def _mark_losses(axes: Any, shown: Sequence[Stretch]) -> None:
    """At the moments when a worker was lost, on the line that says how many are there."""
    points = []
    for stretch in shown:
        moments, there = _there(stretch)
        for work in stretch.attempt.workers:
            if work.left is not None:
                at = stretch.start + work.left
                points.append((at, there[max(0, bisect(moments, at - 1e-9) - 1)]))
    if points:
        few = len(points) <= FEW_LOSSES
        style = {"s": 26, "alpha": 1.0} if few else {"s": 9, "alpha": 0.5, "linewidths": 0.8}
        axes.scatter(*zip(*points, strict=True), marker="x", color=VERMILION, zorder=4, label="lost", **style)


# -- workers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A worker, or several that joined one after another, on one line."""

    stretch: Stretch
    workers: tuple[Work, ...]

    @property
    def label(self) -> str:
        first = self.workers[0].name
        return first if len(self.workers) == 1 else f"{first} … {self.workers[-1].name}"

    @property
    def start(self) -> float:
        return self.stretch.start + min(work.joined for work in self.workers)

    @property
    def stop(self) -> float:
        return self.stretch.start + max(self._left(work) for work in self.workers)

    def _left(self, work: Work) -> float:
        return self.stretch.attempt.seconds if work.left is None else work.left

    def cells(self) -> Iterator[tuple[float, float, float]]:
        """From when to when it was how busy; equal neighbours are one."""
        width, offset = self.stretch.timeline.lane_seconds, self.stretch.start
        busy: dict[int, list[float]] = {}
        for work in self.workers:
            first = int(work.joined / width)
            for number, share in enumerate(shares(work.busy), first):
                there = min((number + 1) * width, self._left(work)) - max(number * width, work.joined)
                if there > 0:
                    busy.setdefault(number, []).append(min(1.0, share * width / there))
        pending: tuple[float, float, float] | None = None
        for number, each in sorted(busy.items()):
            start = max(self.start, offset + number * width)
            stop = min(self.stop, offset + (number + 1) * width)
            share = round(9 * sum(each) / len(each)) / 9
            if pending is not None and pending[2] == share and pending[1] >= start:
                pending = pending[0], stop, share
            else:
                if pending is not None:
                    yield pending
                pending = start, stop, share
        if pending is not None:
            yield pending


def lanes(shown: Sequence[Stretch]) -> Any:
    """A line a worker, in the order in which they joined: pale where it is there, dark where it computes."""
    rows = list(_rows(shown))
    height = min(8.0, max(1.0, 0.21 * len(rows)))
    figure = new_figure(PAGE, height + 0.95)
    axes = figure.subplots()
    boxes: list[tuple[float, float, float, float]] = []
    colours: list[Any] = []
    gap = 0.12 if len(rows) <= 60 else 0.0
    lost: list[tuple[float, float]] = []
    for y, row in enumerate(rows):
        boxes.append((row.start, row.stop, y + gap, y + 1 - gap))
        colours.append(THERE)
        for start, stop, share in row.cells():
            if share:
                boxes.append((start, stop, y + gap, y + 1 - gap))
                colours.append(_shade(share))
        lost += [(row.stretch.start + w.left, y + 0.5) for w in row.workers if w.left is not None]
    rectangles(axes, boxes, colours)
    if lost:
        size = 30 if len(rows) <= 60 else 12
        axes.scatter(*zip(*lost, strict=True), marker="x", s=size, color=VERMILION, linewidths=1.2, zorder=4)
    axes.set_ylim(len(rows), 0)
    every = -(-len(rows) // NAMED_ROWS)
    axes.set_yticks([y + 0.5 for y in range(0, len(rows), every)])
    axes.set_yticklabels([clipped(row.label) for row in rows[::every]])
    axes.tick_params(axis="y", length=0, labelsize=8)
    _frame(axes, shown, named=True)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    _time_axis(axes, shown)
    figure.tight_layout()
    return figure


def _rows(shown: Sequence[Stretch]) -> Iterator[_Row]:
    each = -(-sum(len(stretch.attempt.workers) for stretch in shown) // ROWS)
    for stretch in shown:
        workers = sorted(stretch.attempt.workers, key=lambda work: work.joined)
        for first in range(0, len(workers), each):
            yield _Row(stretch, tuple(workers[first : first + each]))


def _shade(share: float) -> tuple[float, ...]:
    """From pale to dark."""
    pale = tuple(int(THERE[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return tuple(a + (b - a) * share for a, b in zip(pale, FULL, strict=True))


# -- what they share -----------------------------------------------------------------------------------------


def _frame(axes: Any, shown: Sequence[Stretch], *, named: bool) -> None:
    """A quiet grid, and where one attempt ends and the next begins."""
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.75")
    axes.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    total = shown[-1].stop
    for stretch in shown[1:]:
        axes.axvline(stretch.start, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    if named and len(shown) > 1:
        taken = -1.0
        for stretch in shown:
            label, middle = f"attempt {stretch.attempt.number}", (stretch.start + stretch.stop) / 2
            half = 0.006 * len(label)
            if stretch.stop - stretch.start > 2 * half * total and middle / total - half > taken:
                taken = middle / total + half
                where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center"}
                axes.annotate(label, (middle, 1.0), (0, 3), color=MUTED, fontsize=8.5, **where)


def _legend(axes: Any) -> None:
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(
        handles.values(),
        handles.keys(),
        loc="lower right",
        bbox_to_anchor=(1.0, 0.98),
        ncol=3,
        frameon=False,
        fontsize=8.5,
        borderaxespad=0.1,
    )


def _time_axis(axes: Any, shown: Sequence[Stretch]) -> None:
    total = shown[-1].stop
    step = next((step for step in STEPS if total / step <= 10), total / 10)
    axes.set_xlim(0, total)
    axes.set_xticks([step * i for i in range(int(total / step) + 1)])
    axes.xaxis.set_major_formatter(ticker().FuncFormatter(lambda value, _: _clock(value, step)))
    between = "; what lay between attempts is left out" if len(shown) > 1 else ""
    axes.set_xlabel(f"time worked{between}", color=MUTED, fontsize=9)


def _clock(seconds: float, step: float) -> str:
    """A moment: 0, 2.5 s, 12 min, 1:30 h, 3 days."""
    if seconds == 0:
        return "0"
    if step < 60 and seconds < 120:
        return f"{seconds:.6g} s"
    if step < 3600 and seconds < 7200:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}:{rest:02} min" if rest or step < 60 else f"{minutes} min"
    if step < 86400 and seconds < 2 * 86400:
        hours, rest = divmod(round(seconds / 60), 60)
        return f"{hours}:{rest:02} h" if rest else f"{hours} h"
    return f"{seconds / 86400:,.6g} d"
