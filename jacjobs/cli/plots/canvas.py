"""What all pictures share. The only file that imports matplotlib, an extra: `pip install 'jacjobs[plot]'`."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jacjobs.errors import InputError

# Okabe and Ito's colours, which most people with colour-blindness tell apart.
BLUE, VERMILION, GREEN, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"
DPI = 100
"""A figure of 12 inches is 1,200 pixels wide."""
PAGE = 11.0
"""The width of a picture on a page, in inches."""
INK, MUTED = "#222222", "#6b6b6b"


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of so many inches, for files: no window, and nothing that pyplot would keep.

    Raises InputError where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError.about(
            "pictures", got="no matplotlib", expected="it installed", do="pip install 'jacjobs[plot]'"
        ) from None
    return Figure(figsize=(width, height))


def save(figure: Any, path: Path) -> None:
    """As the kind of file that its name says. Raises InputError where it cannot be written."""
    try:
        figure.savefig(path, dpi=DPI)
    except (OSError, ValueError) as error:  # ValueError: a kind that matplotlib does not write
        raise InputError.about(
            f"picture {path}", got=str(error), expected="a file that can be written, .png or .pdf or .svg"
        ) from None


def as_png(figure: Any) -> bytes:
    """The figure as a file, sharp on dense screens."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=1.5 * DPI)
    return file.getvalue()


def as_svg(figure: Any) -> bytes:
    """The figure as a file; its pixels are sharp on paper too. Equal figures: equal bytes."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "jacjobs", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", dpi=2 * DPI, metadata={"Date": None})
    return file.getvalue()


def rectangles(axes: Any, boxes: Sequence[tuple[float, float, float, float]], colours: Sequence[Any]) -> None:
    """Boxes (left, right, bottom, top) without edges; there may be many, so they are drawn as pixels."""
    from matplotlib.collections import PolyCollection

    corners = [((a, c), (b, c), (b, d), (a, d)) for a, b, c, d in boxes]
    axes.add_collection(
        PolyCollection(corners, facecolors=colours, linewidths=0, antialiased=False, rasterized=True)
    )


def ticker() -> Any:
    """matplotlib's module of locators and formatters."""
    from matplotlib import ticker

    return ticker


def count_axis(axis: Any) -> None:
    """Ticks of an x or y axis as numbers with thousands, not as powers."""
    axis.set_major_formatter(ticker().FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(ticker().NullFormatter())


def exponents(low: float, high: float) -> list[float]:
    """Of at most ten round numbers between 10**low and 10**high."""
    if high - low > 2:
        step = math.ceil((high - low) / 9)
        return [float(e) for e in range(math.ceil(low), math.floor(high) + 1) if e % step == 0]
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [e + math.log10(number) for e in decades for number in _round_ones(high - low)]
    inside = [tick for tick in ticks if low <= tick <= high]
    return inside if len(inside) > 1 else [low, high]


def _round_ones(decades: float) -> tuple[float, ...]:
    """Numbers from 1 to 10, for so many decades: matplotlib's own labels all of 2, 3, 4, … where there are
    few, one on the other.
    """
    return (1,) if decades > 2 else (1, 2, 5) if decades > 0.7 else (1, 1.5, 2, 3, 4, 5, 6, 8)


def log_axis(axis: Any) -> None:
    """Ticks of a logarithmic axis whose limits are set: few, and as numbers, 0.001 or 2e+06."""
    low, high = axis.get_view_interval()
    decades = math.log10(high) - math.log10(low)
    axis.set_major_locator(ticker().LogLocator(subs=_round_ones(decades), numticks=8))
    digits = max(3, math.ceil(-math.log10(max(1e-9, 10 ** min(decades, 9) - 1))) + 2)
    axis.set_major_formatter(ticker().FuncFormatter(lambda value, _: f"{value:.{digits}g}"))
    axis.set_minor_formatter(ticker().NullFormatter())


def byte_unit(most: float) -> tuple[float, str]:
    """Of bytes, so that the largest is a handy number."""
    for power, name in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if most >= 1024.0**power:
            return 1024.0**power, name
    return 1.0, "bytes"


def clipped(label: str) -> str:
    """Nothing that the font lacks or that means mathematics, and no wider than a margin can be."""
    plain = "".join(
        c if (c.isascii() and c.isprintable() and c not in "$\\") or c == "…" else "?" for c in label
    )
    return plain if len(plain) <= 28 else f"{plain[:13]}…{plain[-13:]}"
