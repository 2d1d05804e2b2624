"""The picture of `jacjobs tune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jacjobs.cli.plots.canvas import BLUE, GREEN, VERMILION, count_axis, new_figure, save, ticker

if TYPE_CHECKING:
    from jacjobs.planning.planner import Plan
    from jacjobs.run.tradeoff import Reading

COLOURS = {"vjp": BLUE, "jvp": VERMILION, "double-vjp": GREEN}
LINES = {"vmap": "-", "repeat": "--", "loop": ":", "compiled": "-."}
MARKERS = {"vmap": "o", "repeat": "s", "loop": "D", "compiled": "^"}
MIB = 1 << 20


def tradeoff(readings: Sequence[Reading], plan: Plan, name: str, path: Path) -> None:
    """Two panels over the chunk, both axes logarithmic: speed, and memory with the budget; the choice is
    ringed.

    Raises InputError where matplotlib is missing.
    """
    figure = new_figure(12, 5.4)
    speed, memory = figure.subplots(1, 2, sharex=True)
    for strategy in dict.fromkeys(reading.strategy for reading in readings):
        own = sorted((r for r in readings if r.strategy == strategy), key=lambda r: r.chunk)
        product, batching = strategy.split("/")
        style: dict[str, Any] = {
            "color": COLOURS[product],
            "linestyle": LINES[batching],
            "marker": MARKERS[batching],
            "markersize": 5,
            "linewidth": 1.6,
        }
        chunks = [r.chunk for r in own]
        speed.plot(chunks, [r.entries_a_second / 1e6 for r in own], label=strategy, **style)
        memory.plot(chunks, [r.measured_bytes / MIB for r in own], **style)
        if strategy == plan.strategy:
            _ring(speed, memory, own, plan)
    budget = plan.resources.budget_bytes / MIB
    memory.axhline(budget, color="black", linewidth=1)
    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "top"}
    memory.annotate("budget", (0.01, budget), (0, -4), **where)
    speed.set_title("Speed: millions of entries of J a second, one worker", loc="left", fontsize=11)
    memory.set_title("Memory: peak of the allocator, MiB", loc="left", fontsize=11)
    for axes in (speed, memory):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("chunk: products made at once")
        axes.grid(which="major", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        count_axis(axes.xaxis)
        count_axis(axes.yaxis)
    speed.yaxis.set_major_locator(ticker().LogLocator(subs=(1, 2, 5)))
    title = f"{name}: J is {plan.shape}; {plan.resources.device.name}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    figure.legend(*speed.get_legend_handles_labels(), loc="lower center", ncol=5, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    save(figure, path)


def _ring(speed: Any, memory: Any, own: list[Reading], plan: Plan) -> None:
    """Mark the choice: the reading at its chunk, or the nearest."""
    near = min(own, key=lambda r: abs(r.chunk - plan.chunk))
    ring = {"s": 170, "facecolors": "none", "edgecolors": "black", "linewidths": 1.6, "zorder": 5}
    label = f"chosen: {plan.strategy}, {plan.chunk:,}"
    speed.scatter([near.chunk], [near.entries_a_second / 1e6], label=label, **ring)
    memory.scatter([near.chunk], [near.measured_bytes / MIB], **ring)
