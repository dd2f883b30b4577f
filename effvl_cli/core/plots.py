"""Pictures in one style; matplotlib is imported only when one is drawn."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from effvl_cli.core.files import write_bytes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
CROWDED = 6  # with more series than this, the legend goes beside the picture
LEAST_SPAN = 10.0  # of the colours of a matrix, in its numbers
DASHES = ("-", ":")  # for more series than colours
_STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
}

Point = tuple[float, float, float]
WIDEST = 2  # equal curves that each stay visible below the others: more would cover the rest
LABEL = 72  # characters of an axis label in a line
INCHES = 16.0  # of a picture of bars at most; values stand over bars that have room for them


def _figure(width: float, height: float, **grid: Any) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(_STYLE)
    return plt.subplots(figsize=(width, height), layout="constrained", **grid)


def _write(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    write_bytes(path, buffer.getvalue())


def curves(
    path: Path,
    series: Mapping[str, Sequence[Point]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    reference: tuple[str, float] | None = None,
    apart: bool = False,
) -> None:
    """Lines with error bars: each series is (x, y, standard error) points; `reference` is a dashed level.

    A line that a later one would cover is drawn wider, so that it shows on both sides of it. `apart` is for series
    that are often equal: points at the same x stand side by side, and the legend beside the picture.
    """
    crowded = apart or len(series) > CROWDED
    series = _side_by_side(series) if apart else series
    figure, axes = _figure(7.2 if crowded else 5.6, 3.8)
    if reference:
        axes.axhline(reference[1], color="#555555", linestyle="--", linewidth=1, label=reference[0])
    _draw_curves(axes, series)
    axes.set(title=title, xlabel=textwrap.fill(xlabel, LABEL), ylabel=ylabel)
    if crowded:
        figure.legend(loc="outside right center")
    else:
        axes.legend()
    _write(figure, path)


def _side_by_side(series: Mapping[str, Sequence[Point]]) -> dict[str, list[Point]]:
    """The series moved apart along x, all of them together within half of the smallest step."""
    places = sorted({point[0] for points in series.values() for point in points})
    step = min((after - before for before, after in pairwise(places)), default=0.0)
    step = min(step, 0.4 * (places[-1] - places[0])) if places else step  # of two places
    middle, between = (len(series) - 1) / 2, 0.5 * step / max(1, len(series) - 1)
    return {
        name: [(x + (place - middle) * min(between, 0.15 * step), y, error) for x, y, error in points]
        for place, (name, points) in enumerate(series.items())
    }


def panels(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[Point]]],
    *,
    title: str,
    xlabel: str,
) -> None:
    """Several `curves` side by side, each under its own title, with one legend for all."""
    figure, grid = _figure(3.2 * len(panels) + 1.8, 3.6, ncols=len(panels), squeeze=False)
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    for axes, (name, series) in zip(grid[0], panels.items(), strict=True):
        _draw_curves(axes, series)
        axes.set_title(name, fontweight="normal", fontsize=9)
        axes.set_xlabel(xlabel)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    _write(figure, path)


def _draw_curves(axes: Any, series: Mapping[str, Sequence[Point]]) -> None:
    shown = [(name, points) for name, points in series.items() if points]
    heights = [point[1] for _, points in shown for point in points]
    span = max(heights, default=0.0) - min(heights, default=0.0)
    for place, (name, points) in enumerate(shown):
        x, y, error = (list(column) for column in zip(*sorted(points), strict=True))
        style = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
        style["linestyle"] = DASHES[place // len(COLOURS) % len(DASHES)]
        above = sum(_coincide(points, later, 0.01 * span) for _, later in shown[place + 1 :])
        above = min(above, WIDEST)
        sizes = {"markersize": 4 + 3.5 * above, "linewidth": 1.4 + 2.2 * above, "capsize": 2 + 2 * above}
        axes.errorbar(x, y, yerr=error if any(error) else None, label=name, elinewidth=1.4, **sizes, **style)
    if all(float(point[0]).is_integer() for points in series.values() for point in points):
        axes.xaxis.get_major_locator().set_params(integer=True)  # no half steps


def _coincide(one: Sequence[Point], other: Sequence[Point], near: float) -> bool:
    """Whether most of a line's points lie on another line's."""
    heights = {point[0]: point[1] for point in other}
    equal = [abs(heights[x] - y) <= near for x, y, _ in one if x in heights]
    return 2 * sum(equal) > len(one)


def paired_bars(
    path: Path,
    groups: Sequence[str],
    bars: Mapping[str, Sequence[float]],
    *,
    title: str,
    ylabel: str,
    errors: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    level: float | None = None,
    digits: int = 2,
) -> None:
    """Bars side by side in each group, with their values in so many digits after the point.

    `errors` are (below, above); `level` is a dashed line. Where there are too many bars for their values, these are
    left out, and names that would overlap are tilted.
    """
    values, names = _inches_of_bars(groups, bars, digits)
    figure, axes = _figure(min(INCHES, max(5.6, values, names)), 3.4)
    place = np.arange(len(groups))
    width = 0.8 / len(bars)
    for index, (name, heights) in enumerate(bars.items()):
        spread = np.array(errors[name]).T if errors and name in errors else None
        offset = (index - (len(bars) - 1) / 2) * width
        colour = COLOURS[index % len(COLOURS)]
        drawn = axes.bar(place + offset, heights, width * 0.92, label=name, color=colour, yerr=spread, capsize=2)
        if values > INCHES:
            continue
        plain = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # a value on the dashed level stays readable
        axes.bar_label(drawn, fmt=f"%.{digits}f", fontsize=8, padding=3, bbox=plain)
    if level is not None:
        axes.axhline(level, color="#555555", linestyle="--", linewidth=1)
    tilted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if names > INCHES else {}
    axes.set_xticks(place, groups, **tilted)
    axes.set(title=title, ylabel=ylabel)
    axes.margins(y=0.15)
    axes.grid(axis="x", visible=False)
    figure.legend(ncols=len(bars), loc="outside lower left")
    _write(figure, path)


def _inches_of_bars(groups: Sequence[str], bars: Mapping[str, Sequence[float]], digits: int) -> tuple[float, float]:
    """Widths of a picture at which values over bars, and names of groups, stand beside one another."""
    value = max((len(f"{height:.{digits}f}") for heights in bars.values() for height in heights), default=0)
    name = max((len(line) for group in groups for line in group.splitlines()), default=0)
    between = len(groups) * (0.065 * value + 0.05) * len(bars) / 0.8
    return max(between, 0.9 * len(groups)), len(groups) * (0.08 * name + 0.1)


def histograms(
    path: Path,
    groups: Mapping[str, Sequence[float]],
    *,
    title: str,
    xlabel: str,
    bins: Sequence[float],
    ylabel: str = "images",
    marks: Mapping[str, float] | None = None,
) -> None:
    """How often values of some groups lie between the edges `bins`, a group above the other; `marks` are dashed."""
    figure, axes = _figure(5.6, 3.4)
    shown = {name: values for name, values in groups.items() if len(values)}
    inside = [np.clip(values, bins[0], bins[-1]) for values in shown.values()]  # what lies outside is in the end bins
    style = {"edgecolor": "white", "linewidth": 0.3}
    axes.hist(inside, bins=bins, stacked=True, label=list(shown), color=COLOURS[: len(shown)], **style)
    for (name, place), dashes in zip((marks or {}).items(), ("--", ":", "-."), strict=False):
        axes.axvline(place, color="#555555", linestyle=dashes, linewidth=1, label=name)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.yaxis.get_major_locator().set_params(integer=True)  # they are counts
    axes.grid(axis="x", visible=False)
    axes.legend()
    _write(figure, path)


def stacked_bars(
    path: Path,
    groups: Sequence[str],
    parts: Mapping[str, Sequence[float]],
    *,
    title: str,
    xlabel: str,
    rest: str = "",
) -> None:
    """A horizontal bar for each group, from above, divided into parts of a colour each; the part `rest` is grey."""
    figure, axes = _figure(7.2, max(2.4, 1.2 + 0.22 * len(groups)))
    left = np.zeros(len(groups))
    for place, (name, sizes) in enumerate(parts.items()):
        colour, hatch = COLOURS[place % len(COLOURS)], ("", "//", "..")[place // len(COLOURS) % 3]
        if name == rest:
            colour, hatch = "#dddddd", ""
        axes.barh(range(len(groups)), sizes, 0.85, left=left, label=name, color=colour, hatch=hatch, edgecolor="white")
        left += np.asarray(sizes, dtype=float)
    axes.set_yticks(range(len(groups)), groups, fontsize=7)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(title=title, xlabel=xlabel)
    figure.legend(loc="outside right center", fontsize=8)
    _write(figure, path)


def matrix(
    path: Path,
    values: Sequence[Sequence[float | None]],
    names: Sequence[str],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
) -> None:
    """A square of numbers with their values in the cells, the largest brightest; None stays empty.

    The colours span at least `LEAST_SPAN`, so that numbers that are nearly equal look so.
    """
    size = max(4.2, 0.55 * len(names) + 1.8)
    figure, axes = _figure(size, size)
    shown = np.array([[np.nan if value is None else value for value in row] for row in values], dtype=float)
    highest = np.nanmax(shown)
    lowest = min(np.nanmin(shown), highest - LEAST_SPAN)
    axes.imshow(shown, cmap="viridis", interpolation="nearest", vmin=lowest, vmax=highest)
    middle = (lowest + highest) / 2
    for row, column in zip(*np.nonzero(np.isfinite(shown)), strict=True):
        value = shown[row, column]
        colour = "black" if value > middle else "white"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.grid(visible=False)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    _write(figure, path)


def intervals(
    path: Path,
    rows: Mapping[str, tuple[float, float, float]],
    *,
    title: str,
    xlabel: str,
    marked: Sequence[str] = (),
) -> None:
    """A dot and a bar for each name, from above: value, low and high end; `marked` ones in another colour."""
    figure, axes = _figure(5.6, 1.2 + 0.2 * len(rows))
    for place, (name, (value, low, high)) in enumerate(rows.items()):
        colour = COLOURS[1] if name in marked else COLOURS[0]
        axes.plot([low, high], [place, place], color=colour, linewidth=1.4)
        axes.plot(value, place, color=colour, marker="s" if name in marked else "o", markersize=4)
    axes.axvline(0, color="#555555", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=xlabel)
    _write(figure, path)


class Costed(NamedTuple):
    """Cost, accuracy, name, standard error of the accuracy, and both ends of the interval of the cost."""

    cost: float
    value: float
    name: str
    error: float
    span: tuple[float, float]


def fronts(path: Path, points: Mapping[str, Sequence[Costed]], *, title: str, ylabel: str) -> None:
    """Panels of points with error bars under the names of their costs; dominated points are hollow."""
    figure, grid = _figure(3.3 * len(points), 3.4, ncols=len(points), squeeze=False, sharey=True)
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    for axes, (xlabel, row) in zip(grid[0], points.items(), strict=True):
        best = [p for p in row if not any(_dominates(other, p) for other in row)]
        axes.plot(*zip(*sorted(p[:2] for p in best), strict=True), color=COLOURS[0], linewidth=1)
        for point in row:
            fill = COLOURS[0] if point in best else "white"
            style = {"marker": "o", "markersize": 5, "markerfacecolor": fill, "color": COLOURS[0]}
            low, high = (max(0.0, point.cost - point.span[0]), max(0.0, point.span[1] - point.cost))
            bars = {"yerr": point.error, "xerr": [[low], [high]]}
            axes.errorbar(*point[:2], **bars, capsize=2, linewidth=1, linestyle="none", **style)
            axes.annotate(point.name, point[:2], fontsize=7, textcoords="offset points", xytext=(4, 4))
        axes.set(xlabel=xlabel)
    grid[0][0].set_ylabel(ylabel)
    _write(figure, path)


def _dominates(one: Costed, other: Costed) -> bool:
    """Whether it costs no more and is no worse, and is better in at least one of the two."""
    return one[0] <= other[0] and one[1] >= other[1] and one[:2] != other[:2]


def image_grid(
    path: Path, images: NDArray[np.uint8], *, title: str, row_labels: Sequence[str], column_labels: Sequence[str] = ()
) -> None:
    """Pictures in rows and columns.

    Args:
        path: PNG to write.
        images: (R, C, H, W, 3) uint8.
        title: above the whole figure.
        row_labels: R texts on the left.
        column_labels: C texts above the first row.
    """
    rows, columns, height, width = images.shape[:4]
    figure, axes = _figure(1.1 * columns + 0.9, 1.08 * rows + 0.6)
    gap = _gap(width)
    _draw_sheet(figure, axes, images, (gap, gap), title)
    axes.set_yticks([row * (height + gap) + (height - 1) / 2 for row in range(rows)], row_labels)
    if column_labels:
        axes.xaxis.tick_top()
        axes.set_xticks([k * (width + gap) + (width - 1) / 2 for k in range(columns)], column_labels, fontsize=7)
    _write(figure, path)


def _gap(width: int) -> int:
    return max(1, round(0.08 * width))


def _draw_sheet(figure: Any, axes: Any, images: NDArray[np.uint8], gaps: tuple[int, int], title: str) -> None:
    """Pictures (R, C, H, W, 3) as one on white, with `gaps` between rows and columns: axes for each cost seconds."""
    rows, columns, height, width = images.shape[:4]
    down, across = height + gaps[0], width + gaps[1]
    sheet = np.full((rows, down, columns, across, 3), 255, np.uint8)
    sheet[:, :height, :, :width] = images.transpose(0, 2, 1, 3, 4)
    sheet = sheet.reshape(rows * down, columns * across, 3)[: -gaps[0], : -gaps[1]]
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    axes.imshow(sheet, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def captioned_images(
    path: Path, images: NDArray[np.uint8], captions: Sequence[str], *, title: str, columns: int = 8
) -> None:
    """Pictures (N, H, W, 3) uint8, each under its own words, `columns` of them in a row."""
    count, height, width = images.shape[:3]
    rows = -(-count // columns)
    gap = _gap(width)
    inch = (width + gap) / 1.25  # pixels
    above = max((words.count("\n") + 1 for words in captions), default=1) * 0.11 + 0.06  # inches of the words
    figure, axes = _figure(1.25 * columns, rows * (height / inch + above) + 0.5)
    cells = np.full((rows * columns, height, width, 3), 255, np.uint8)
    cells[:count] = images
    down = round(above * inch)
    _draw_sheet(figure, axes, cells.reshape(rows, columns, height, width, 3), (down, gap), title)
    for place, words in enumerate(captions):
        row, column = divmod(place, columns)
        x, y = column * (width + gap) + (width - 1) / 2, row * (height + down) - 0.5 - 0.04 * inch
        axes.text(x, y, words, fontsize=6, ha="center", va="bottom")
    _write(figure, path)


NAMED = 30  # rows up to which a single map has their names


def heat_maps(
    path: Path, maps: Mapping[str, NDArray[np.float64]], *, title: str, columns: int, names: Sequence[str] = ()
) -> None:
    """Shares on a grid, from 0 to 1 on one scale of colours; each map under its name, `columns` of them in a row.

    Args:
        path: of the picture.
        maps: by name; a single one is drawn larger.
        title: over all.
        columns: maps in a row.
        names: of the rows and columns of a square map, written where there is one map of at most 30 of them.
    """
    rows = -(-len(maps) // columns)
    named = len(maps) == 1 and 0 < len(names) <= NAMED
    size = {1: 4.0, 2: 2.6}.get(columns, 1.9)
    width = max(4.6, size * columns + (1.9 if named else 0.9))
    figure, grid = _figure(width, size * rows + (1.4 if named else 0.5), nrows=rows, ncols=columns, squeeze=False)
    figure.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    for axes in grid.flat:
        axes.axis("off")
    for axes, (name, shares) in zip(grid.flat, maps.items(), strict=False):
        drawn = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        axes.set_title(name, fontsize=8, fontweight="normal", loc="center")
        if named:
            axes.axis("on")
            axes.grid(visible=False)
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
            axes.set_yticks(range(len(names)), names, fontsize=6)
    figure.colorbar(drawn, ax=grid, shrink=0.8, label="share of the images")
    _write(figure, path)
