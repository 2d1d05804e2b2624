"""What all pictures share. The only file that imports matplotlib, an extra: `pip install 'jacjobs[plot]'`."""

from __future__ import annotations

from typing import Any

from jacjobs.errors import InputError

# Okabe and Ito's colours, which most people with colour-blindness tell apart.
BLUE, VERMILION, GREEN, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9"
DPI = 110


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


def ticker() -> Any:
    """matplotlib's module of locators and formatters."""
    from matplotlib import ticker

    return ticker


def count_axis(axis: Any) -> None:
    """Ticks of an x or y axis as numbers with thousands, not as powers."""
    axis.set_major_formatter(ticker().FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(ticker().NullFormatter())
