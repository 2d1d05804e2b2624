"""The picture of `jacjobs report` of memory: measured, predicted, allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jacjobs.cli.plots.canvas import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    PAGE,
    byte_unit,
    clipped,
    count_axis,
    new_figure,
    ticker,
)

DOTS, BINS = 32, 80
"""Workers whose memory is a dot each; of more it is a histogram."""


def memory(peaks: Sequence[tuple[str, int]], predicted: int | None, budget: int | None) -> Any:
    """The peak that each worker measured, beside what was predicted and what it may take."""
    values = [peak for _, peak in peaks]
    lines = [(n, name, c) for n, name, c in ((predicted, "predicted", ORANGE), (budget, "budget", INK)) if n]
    every = [*values, *(n for n, _, _ in lines)]
    unit, name = byte_unit(max(values))
    few = len(peaks) <= DOTS
    figure = new_figure(PAGE, (0.75 if few else 1.9) + (0.2 * len(peaks) if few else 0.0) + 0.55)
    axes = figure.subplots()
    wide = max(every) > 30 * min(every)
    left, right = _room([n / unit for n in every], wide=wide)
    if wide:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker().LogLocator(subs=(1, 2, 5)))
    axes.set_xlim(left, right)
    if few:
        axes.scatter([v / unit for v in values], range(len(peaks)), s=34, color=BLUE, zorder=3)
        axes.set_yticks(range(len(peaks)), [clipped(label) for label, _ in peaks])
        axes.set_ylim(len(peaks) - 0.4, -0.6)
        axes.grid(axis="y", color="0.93")
    else:
        edges = [left + (right - left) * i / BINS for i in range(BINS + 1)]
        if wide:
            edges = [left * (right / left) ** (i / BINS) for i in range(BINS + 1)]
        axes.hist([v / unit for v in values], bins=edges, color=BLUE)
        axes.set_ylabel("workers", color=MUTED, fontsize=9)
        axes.yaxis.set_major_locator(ticker().MaxNLocator(4, integer=True))
    for number, _, colour in lines:
        axes.axvline(number / unit, color=colour, linewidth=1.6)
    _name_lines(axes, [(n / unit, label, colour) for n, label, colour in lines])
    axes.set_xlabel(f"{name}, the peak of each worker", color=MUTED, fontsize=9)
    count_axis(axes.xaxis)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(which="both", length=0, labelsize=8.5, labelcolor=INK)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    figure.tight_layout()
    return figure


def _room(values: Sequence[float], *, wide: bool) -> tuple[float, float]:
    """Limits of the axis: from nothing where it is linear."""
    return (min(values) / 1.6, max(values) * 1.6) if wide else (0.0, max(values) * 1.1)


def _name_lines(axes: Any, lines: Sequence[tuple[float, str, str]]) -> None:
    """Above the axis: to the left of the first and to the right of the last, so that two never overlap."""
    for number, (value, label, colour) in enumerate(sorted(lines)):
        after = number == len(lines) - 1 and len(lines) > 1
        axes.annotate(
            label,
            (value, 1.0),
            (4 if after else -4, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="left" if after else "right",
            color=MUTED if colour == INK else colour,
            fontsize=9,
            annotation_clip=False,
        )
