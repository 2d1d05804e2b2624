"""The picture of `jacjobs show --plot`: where J is large and where it is zero, norms, singular values, and,
where the input is an image, rows of J as images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jacjobs.cli.plots.canvas import BLUE, VERMILION, count_axis, exponents, log_axis, new_figure, ticker

if TYPE_CHECKING:
    from jacjobs.shape import Segment
    from jacjobs.store.portrait import Portrait
    from jacjobs.store.reader import JacobianDataset
    from jacjobs.store.spectrum import Spectrum

WIDTH = 12.0
"""Inches."""
TITLE, MAP_HEIGHT, CURVES_HEIGHT, IMAGE_HEIGHT, GAP = 0.5, 6.4, 2.9, 1.25, 0.3
LEFT, RIGHT = 0.08, 0.97
"""Of all axes, in fractions of the width."""
DECADES = 12
"""Of the colours, at most: what is smaller has the colour of the smallest."""
ZERO, NONFINITE = "#dddddd", VERMILION
LINES = 40
"""Between points, at most."""
IMAGES, IMAGE_POINTS = 10, 3
SMALLEST_IMAGE, MOST_CHANNELS = 4, 4
TINY = float(np.finfo(np.float64).tiny)
CHARACTER = 0.075
"""Inches that a character of a label takes."""


def draw(J: JacobianDataset, figures: Portrait, spectrum: Spectrum | None) -> Any:
    """A matplotlib figure of 1,200 pixels' width. Raises InputError where matplotlib is missing."""
    images = [] if J.missing else _images(J)
    if spectrum is not None and np.count_nonzero(spectrum.values > TINY) < 2:
        spectrum = None
    curves = spectrum is not None or J.points > 1
    page = _Page([MAP_HEIGHT, CURVES_HEIGHT * curves, (IMAGE_HEIGHT * len(images) + 0.2) * bool(images)])
    size = " × ".join(f"{length:,}" for length in J.shape)
    page.write(f"{_short(J.record.name, 60)}: J is {size} {J.dtype}", 0.12, size=13, va="top")
    _map(page, J, figures)
    if spectrum is not None:
        _spectrum(page.axes(1, LEFT, 0.51 if J.points > 1 else RIGHT, 0.25, 0.55), J, spectrum)
    if J.points > 1:
        _points(page.axes(1, LEFT if spectrum is None else 0.59, RIGHT, 0.25, 0.55), figures)
    if images:
        _draw_images(page, images)
    return page.figure


class _Page:
    """A figure of rows, so many inches high; one of no height is left out."""

    def __init__(self, heights: Sequence[float]) -> None:
        ends = np.cumsum([height + GAP if height else 0.0 for height in heights]) + TITLE
        self.tops = [TITLE, *ends[:-1]]
        self.height = float(ends[-1])
        self._heights = heights
        self.figure = new_figure(WIDTH, self.height)

    def axes(self, row: int, left: float, right: float, top: float = 0.0, bottom: float = 0.0) -> Any:
        """In a row: from left to right in fractions of the width, inches from its top and bottom."""
        low = self.tops[row] + self._heights[row] - bottom
        high = self.tops[row] + top
        return self.figure.add_axes((left, 1 - low / self.height, right - left, (low - high) / self.height))

    def write(self, text: str, inches: float, **style: Any) -> None:
        """At the left, so many inches from the top."""
        self.figure.text(LEFT, 1 - inches / self.height, text, **style)


# -- the matrix --------------------------------------------------------------------------------------------


def _map(page: _Page, J: JacobianDataset, figures: Portrait) -> None:
    """The largest |J| in each cell, with the norms of columns above and of rows beside it."""
    P, m, n = J.shape
    down = P * m if figures.stacked else m
    row_norms: NDArray[np.float64] | None = figures.row_norms
    if figures.stacked and P > 1:
        row_norms = figures.point_norms if m == 1 else None
    right = 0.9 if row_norms is None else 0.8
    main = page.axes(0, LEFT, right, 0.95, 0.6)
    main.set_xlim(-0.5, n - 0.5)
    main.set_ylim(down - 0.5, -0.5)
    _cells(page, main, figures.cells)
    _name(main, J, down)
    above = page.axes(0, LEFT, right, 0.25, MAP_HEIGHT - 0.85)
    above.set_title(_legend(figures, (down, n)), loc="left", fontsize=10, pad=8)
    _strip(above, figures.column_norms, horizontal=True)
    if row_norms is not None:
        _strip(page.axes(0, right + 0.012, 0.89, 0.95, 0.6), row_norms, horizontal=False)


def _cells(page: _Page, axes: Any, cells: NDArray[np.float64]) -> None:
    from matplotlib.colors import ListedColormap

    style = {
        "extent": (*axes.get_xlim(), *axes.get_ylim()),
        "aspect": "auto",
        "interpolation": "nearest",
    }
    for colour, where in ((ZERO, cells == 0), (NONFINITE, np.isinf(cells))):
        mask = np.ma.masked_where(~where, np.ones_like(cells))
        axes.imshow(mask, cmap=ListedColormap([colour]), **style)
    coloured = np.isfinite(cells) & (cells > 0)
    if not coloured.any():
        return
    # Exponents are drawn, not sizes: matplotlib's own logarithm fails where float32 ends.
    shown = np.ma.log10(np.ma.masked_where(~coloured, cells))
    least, high = float(shown.min()), float(shown.max())
    low = max(least, high - DECADES) if least < high else high - 1
    image = axes.imshow(shown, cmap="viridis", vmin=low, vmax=high, **style)
    beside = page.axes(0, 0.92, 0.935, 0.95, 0.6)
    bar = page.figure.colorbar(image, cax=beside, extend="min" if least < low else "neither")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9)
    ticks = exponents(low, high)
    bar.set_ticks(ticks, labels=[f"{10**tick:.3g}" for tick in ticks])


def _name(axes: Any, J: JacobianDataset, down: int) -> None:
    """What goes down and to the right; segments, or points that stand below each other."""
    P, m, _ = J.shape
    _whole(axes.xaxis)
    _whole(axes.yaxis)
    _label(axes.set_xlabel, "column", J.inputs)
    _mark(axes, J.inputs, horizontal=True)
    if m == 1 and P > 1:
        axes.set_ylabel("point", fontsize=10)
    elif down > m:
        _label(axes.set_ylabel, "row", J.outputs, ", one point below the other")
        for point in range(1, P) if P <= LINES else ():
            axes.axhline(point * m - 0.5, color="white", linewidth=0.6)
    else:
        if len(J.outputs) == 1:
            _label(axes.set_ylabel, "row", J.outputs)
        _mark(axes, J.outputs, horizontal=False)


def _legend(figures: Portrait, size: tuple[int, int]) -> str:
    """What the colours are of."""
    cells, P = figures.cells, figures.shape[0]
    words = "|entry|" if cells.shape == size else "largest |entry|"
    if P > 1 and not figures.stacked:
        words = "largest |entry| of all points"
    if cells.shape != size:
        words += f" in each of {cells.shape[0]:,} × {cells.shape[1]:,} cells"
    colours = (
        ("grey", "exactly zero", (cells == 0).any()),
        ("red", "NaN or infinite", np.isinf(cells).any()),
        ("white", "not there yet", np.isnan(cells).any()),
    )
    return "; ".join([words, *(f"{colour}: {meaning}" for colour, meaning, there in colours if there)])


def _strip(axes: Any, norms: NDArray[np.float64], *, horizontal: bool) -> None:
    """Norms along an edge of the map; of many, the least and the greatest of each few."""
    size = len(norms)
    cuts = np.unique(np.linspace(0, size, 481).astype(int))
    low, high = np.minimum.reduceat(norms, cuts[:-1]), np.maximum.reduceat(norms, cuts[:-1])
    positive = norms[(norms > 0) & np.isfinite(norms)]
    ends = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    edges = cuts - 0.5
    again = [np.append(values, values[-1]).clip(ends[0] / 2, ends[1] * 2) for values in (low, high)]
    fill = axes.fill_between if horizontal else axes.fill_betweenx
    fill(edges, *again, step="post", color=BLUE, linewidth=0.8)
    value, along = (axes.yaxis, axes.xaxis) if horizontal else (axes.xaxis, axes.yaxis)
    (axes.set_yscale if horizontal else axes.set_xscale)("log")
    (axes.set_xlim if horizontal else axes.set_ylim)(
        *((-0.5, size - 0.5) if horizontal else (size - 0.5, -0.5))
    )
    (axes.set_ylabel if horizontal else axes.set_xlabel)("norm", fontsize=9)
    value.set_minor_locator(ticker().NullLocator())
    value.set_major_locator(ticker().FixedLocator(ends if ends[1] > 1.01 * ends[0] else ends[:1]))
    value.set_major_formatter(
        ticker().FuncFormatter(lambda number, _: f"{number:,.3g}" if number < 1000 else f"{number:.1e}")
    )
    value.set_tick_params(labelsize=8, labelrotation=0 if horizontal else 90)
    along.set_ticks([])
    axes.spines[["top", "right"]].set_visible(False)


def _whole(axis: Any) -> None:
    """Ticks at whole numbers."""
    count_axis(axis)
    axis.set_major_locator(ticker().MaxNLocator(integer=True, min_n_ticks=1))


def _label(set_label: Any, axis: str, segments: Sequence[Segment], more: str = "") -> None:
    alone = len(segments) == 1
    if alone and segments[0].size > 1:
        shape = " × ".join(f"{size:,}" for size in segments[0].shape)
        axis += f" of {_short(segments[0].name, 40)}" + (f" ({shape})" if len(segments[0].shape) > 1 else "")
    set_label(axis + more, fontsize=10, labelpad=2 if alone or more else 16)


def _mark(axes: Any, segments: Sequence[Segment], *, horizontal: bool) -> None:
    """Lines between segments, and the names of as many as there is room for, the longest segments first."""
    if len(segments) < 2:
        return
    size = segments[-1].stop
    box = axes.get_position()
    width, height = axes.figure.get_size_inches()
    inches = box.width * width if horizontal else box.height * height
    taken: list[tuple[float, float]] = []
    for segment in sorted(segments, key=lambda s: -s.size):
        if segment.start and len(segments) <= inches * 20:
            line = axes.axvline if horizontal else axes.axhline
            line(segment.start - 0.5, color="white", linewidth=0.8)
            line(segment.start - 0.5, color="black", linewidth=0.4)
        middle = (segment.start + segment.stop - 1) / 2
        name = _short(segment.name, 30)
        half = (len(name) + 2) * CHARACTER / 2 * size / inches
        low, high = middle - half, middle + half
        if low < -half or high > size + half or any(low < b and a < high for a, b in taken):
            continue
        taken.append((low, high))
        where: dict[str, Any] = {"fontsize": 9, "annotation_clip": False, "textcoords": "offset points"}
        if horizontal:
            axes.annotate(
                name,
                (middle, 0),
                (0, -20),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="top",
                **where,
            )
        else:
            axes.annotate(
                name,
                (0, middle),
                (-50, 0),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="center",
                rotation=90,
                **where,
            )


def _short(name: str, most: int) -> str:
    """A stranger's name may be long, or mean something to matplotlib."""
    name = "".join(c if c.isprintable() else "?" for c in name).replace("$", r"\$")
    return name if len(name) <= most else f"…{name[-most + 1 :]}"


# -- curves ------------------------------------------------------------------------------------------------


def _spectrum(axes: Any, J: JacobianDataset, spectrum: Spectrum) -> None:
    P, m, n = J.shape
    values = spectrum.values
    numbers = np.arange(1, len(values) + 1)
    count = f"all {len(values):,}" if spectrum.complete else f"the {len(values):,} largest"
    axes.set_title(f"singular values of J, {P * m:,} × {n:,}: {count}", loc="left", fontsize=10)
    positive = values > TINY
    axes.plot(numbers[positive], values[positive], ".-", color=BLUE, markersize=4, linewidth=1)
    axes.set_yscale("log")
    log_axis(axes.yaxis)
    if len(values) > 100:
        axes.set_xscale("log")
    _plain(axes, "number")


def _points(axes: Any, figures: Portrait) -> None:
    norms = np.sort(figures.point_norms)[::-1]
    axes.set_title("norm of each point's matrix, the largest first", loc="left", fontsize=10)
    axes.plot(np.arange(1, len(norms) + 1), norms, ".-", color=BLUE, markersize=4, linewidth=1)
    if (norms > 0).all() and norms[0] > 10 * norms[-1]:
        axes.set_yscale("log")
        log_axis(axes.yaxis)
    _plain(axes, "number")


def _plain(axes: Any, label: str) -> None:
    axes.set_xlabel(label, fontsize=10)
    if axes.get_xscale() == "log":
        count_axis(axes.xaxis)
    else:
        _whole(axes.xaxis)
    axes.grid(which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


# -- images ------------------------------------------------------------------------------------------------


def _images(J: JacobianDataset) -> list[list[tuple[str, NDArray[Any]]]]:
    """Rows of J at a few points, as images, if the only input is one: of shape (H, W) or (channels, H, W)."""
    if len(J.inputs) != 1:
        return []
    shape = J.inputs[0].shape
    if len(shape) not in (2, 3) or min(shape[-2:]) < SMALLEST_IMAGE or max(shape[-2:]) > 4 * min(shape[-2:]):
        return []
    channels = shape[0] if len(shape) == 3 else 1
    if channels > MOST_CHANNELS:
        return []
    P, m, _ = J.shape
    rows = _spread(m, IMAGES // channels)
    lines = []
    for point in _spread(P, IMAGE_POINTS):
        images = J[point, rows].reshape(len(rows), channels, *shape[-2:])
        lines.append(
            [
                (_title(point, row, channel, J.shape, channels), images[i, channel])
                for i, row in enumerate(rows)
                for channel in range(channels)
            ]
        )
    return lines


def _spread(size: int, most: int) -> list[int]:
    """At most so many of 0…size - 1, from the first to the last."""
    return (
        sorted({round(i * (size - 1) / max(1, most - 1)) for i in range(most)})
        if size > most
        else list(range(size))
    )


def _title(point: int, row: int, channel: int, shape: tuple[int, int, int], channels: int) -> str:
    words = [f"point {point:,}"] if shape[0] > 1 else []
    words.append(f"row {row:,}")
    if channels > 1:
        words.append(f"channel {channel}")
    return "\n".join(words) if len(words) < 3 else f"{words[0]}\n{words[1]}, {words[2]}"


def _draw_images(page: _Page, lines: Sequence[Sequence[tuple[str, NDArray[Any]]]]) -> None:
    """Each line of images has its own scale, the same to both sides of zero."""
    top = page.tops[2]
    what = "rows of J as images, each line with its own scale: blue is negative, white zero, red positive"
    page.write(what, top + 0.1, size=10, va="bottom")
    for i, line in enumerate(lines):
        width = (RIGHT - LEFT) / max(IMAGES, len(line))
        most = max(float(np.nanmax(np.abs(image))) for _, image in line) or 1.0
        above = IMAGE_HEIGHT * i + 0.6
        below = IMAGE_HEIGHT * len(lines) + 0.2 - (IMAGE_HEIGHT * (i + 1) + 0.15)
        for k, (title, image) in enumerate(line):
            left = LEFT + k * width
            axes = page.axes(2, left, left + width - 0.008, above, below)
            axes.imshow(image, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
            axes.set_title(title, fontsize=8, pad=2)
            axes.set_xticks([])
            axes.set_yticks([])
