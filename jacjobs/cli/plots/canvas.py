"""What all pictures share. The only file that imports matplotlib, an extra: `pip install 'jacjobs[plot]'`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jacjobs.errors import InputError

# Okabe and Ito's colours, which most people with colour-blindness tell apart.
BLUE, VERMILION, GREEN, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"
DPI = 100
"""A figure of 12 inches is 1,200 pixels wide."""


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


def ticker() -> Any:
    """matplotlib's module of locators and formatters."""
    from matplotlib import ticker

    return ticker


def count_axis(axis: Any) -> None:
    """Ticks of an x or y axis as numbers with thousands, not as powers."""
    axis.set_major_formatter(ticker().FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(ticker().NullFormatter())


def log_axis(axis: Any) -> None:
    """Ticks of a logarithmic axis whose limits are set: few, and as numbers, 0.001 or 2e+06."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    # matplotlib's own labels all of 2, 3, 4, … where there are few decades, one on the other.
    subs = (1,) if decades > 2 else (1, 2, 5) if decades > 0.7 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    axis.set_major_locator(ticker().LogLocator(subs=subs, numticks=8))
    digits = max(3, math.ceil(-math.log10(max(1e-9, high / low - 1))) + 2)
    axis.set_major_formatter(ticker().FuncFormatter(lambda value, _: f"{value:.{digits}g}"))
    axis.set_minor_formatter(ticker().NullFormatter())
