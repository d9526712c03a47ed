"""What diagrams are made of: boxes, discs, words and arrows on a sheet measured in points.

Inks go by name ("state", "key", ...) and are looked up when a shape is drawn, so that a drawing
made under `style("dark")` is dark. `crowded` asks the renderer whether all the words can be read.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Patch, PathPatch
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from linviz.viz.ink import INK
from linviz.viz.matrices import Number

POINTS = 72  # in an inch
SMALLEST = 7.0  # points: no text below this
Point = tuple[Number, Number]
Color = tuple[float, float, float]


def sheet(width: Number = 7.2, height: Number = 3.0) -> tuple[Figure, Axes]:
    """An empty sheet: one axes that fills the figure, one unit a point, y upwards.

    Args:
        width: inches; 7.2 is the width of the book's column.
        height: inches.

    Returns:
        A closed Figure and its Axes, (0, 0) at the lower left.
    """
    fig = plt.figure(figsize=(width, height))
    plt.close(fig)
    ax = fig.add_axes((0.0, 0.0, 1.0, 1.0))
    ax.set(xlim=(0, width * POINTS), ylim=(0, height * POINTS), aspect="equal")
    ax.axis("off")
    return fig, ax


def tint(ink: str, share: Number = 0.2) -> Color:
    """The soft fill of an ink: that share of it, the rest the paper's colour."""
    color, paper = (np.array(to_rgb(INK[name])) for name in (ink, "paper"))
    return tuple(share * color + (1 - share) * paper)


def word(
    ax: Axes, x: Number, y: Number, text: str, ink: str = "text", size: Number = 8, **options: Any
) -> Text:
    """Write centred on (x, y); options are matplotlib's, such as ha="left"."""
    if size < SMALLEST:
        raise ValueError(f"size: wanted {SMALLEST:g} points or more, got {size:g}")
    options = {"ha": "center", "va": "center", "zorder": 5} | options
    return ax.text(x, y, text, color=INK[ink], fontsize=size, **options)


def box(
    ax: Axes,
    x: Number,
    y: Number,
    width: Number,
    height: Number,
    text: str = "",
    ink: str = "text",
    size: Number = 9,
    *,
    share: Number = 0.2,
    corner: Number = 4,
    line: Number = 1.0,
    dash: Any = "solid",
    zorder: Number = 3,
) -> FancyBboxPatch:
    """A rounded box in the soft fill of its ink, with text that fits.

    Args:
        ax: a sheet.
        x: centre, in points.
        y: centre, in points.
        width: points.
        height: points.
        text: shrunk until it fits.
        ink: name of the ink of the edge; the fill is its tint.
        size: of the text, in points, if it fits.
        share: of the ink in the fill; 0 is paper.
        corner: radius of the corners, in points.
        line: width of the edge, in points; 0 for none.
        dash: matplotlib's line style of the edge.
        zorder: matplotlib's: greater is nearer.

    Raises:
        ValueError: the text does not fit at 7 points.
    """
    patch = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle=f"round,pad=0,rounding_size={min(corner, width / 2, height / 2)}",
        facecolor=tint(ink, share),
        edgecolor=INK[ink] if line else "none",
        linewidth=line,
        linestyle=dash,
        zorder=zorder,
    )
    ax.add_patch(patch)
    if text:
        fit(word(ax, x, y, text, size=size, zorder=zorder + 0.5), width - 3, height - 1)
    return patch


def disc(
    ax: Axes,
    x: Number,
    y: Number,
    radius: Number,
    text: str = "",
    ink: str = "text",
    size: Number = 9,
    *,
    share: Number = 0.2,
    line: Number = 1.0,
    zorder: Number = 3,
) -> Circle:
    """A disc in the soft fill of its ink, with text that fits; arguments as for `box`."""
    edge = INK[ink] if line else "none"
    fill = tint(ink, share)
    patch = Circle((x, y), radius, facecolor=fill, edgecolor=edge, linewidth=line, zorder=zorder)
    ax.add_patch(patch)
    if text:
        fit(word(ax, x, y, text, size=size, zorder=zorder + 0.5), 2 * radius - 1, 2 * radius - 1)
    return patch


def arrow(
    ax: Axes,
    points: Sequence[Point],
    ink: str = "text",
    *,
    line: Number = 1.1,
    head: bool = True,
    corner: Number = 5,
    dash: Any = "solid",
    zorder: Number = 2,
) -> Patch:
    """A line through points with rounded corners, and a head at its last point.

    Args:
        ax: a sheet.
        points: two or more (x, y), in points; straight between them.
        ink: name of the ink.
        line: width, in points.
        head: False for a plain line.
        corner: radius of the corners, in points.
        dash: matplotlib's line style.
        zorder: matplotlib's: greater is nearer.
    """
    shared = {"linewidth": line, "linestyle": dash, "zorder": zorder, "capstyle": "butt"}
    path, color = bent(points, corner), INK[ink]
    if head:
        grown = 4.5 + 2.5 * line
        patch = FancyArrowPatch(
            path=path, arrowstyle="-|>", mutation_scale=grown, color=color, **shared
        )
    else:
        patch = PathPatch(path, facecolor="none", edgecolor=color, **shared)
    ax.add_patch(patch)
    return patch


def bent(points: Sequence[Point], corner: Number) -> Path:
    """A polyline whose corners are rounded with that radius, less where a side is short."""
    if len(points) < 2:
        raise ValueError(f"points: wanted two or more (x, y), got {len(points)}")
    p = np.asarray(points, dtype=float)
    vertices, codes = [p[0]], [Path.MOVETO]
    for before, at, after in zip(p, p[1:], p[2:], strict=False):
        sides = [before - at, after - at]
        lengths = [max(np.hypot(*side), 1e-9) for side in sides]
        radius = min(corner, *(length / 2 for length in lengths))
        start, end = (at + side * radius / n for side, n in zip(sides, lengths, strict=True))
        vertices += [start, at, end]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    return Path([*vertices, p[-1]], [*codes, Path.LINETO])


# ---------------------------------------------------------------------------------- legibility


def extent(text: Text) -> Bbox:
    """The box that the text takes, in points from the figure's lower left."""
    bounds = text.get_window_extent()
    return Bbox(bounds.get_points() * POINTS / text.get_figure().dpi)


def fit(text: Text, width: Number, height: Number) -> Text:
    """Shrink a text until it fits, to 7 points at the least."""
    while True:
        bounds, size = extent(text), text.get_fontsize()
        if bounds.width <= width and bounds.height <= height:
            return text
        if size <= SMALLEST:
            raise ValueError(
                f"text: {text.get_text()!r} takes {bounds.width:.1f} x {bounds.height:.1f} points "
                f"at {SMALLEST:g} points, more than {width:.1f} x {height:.1f}"
            )
        text.set_fontsize(max(SMALLEST, size - 0.5))


def texts(fig: Figure) -> Iterator[Text]:
    """Every text that is drawn: words, titles, legends, labels of axes that are on."""
    yield from fig.texts
    for ax in fig.axes:
        yield from ax.texts
        yield from (ax.title, ax._left_title, ax._right_title)
        if ax.axison:
            for axis in (ax.xaxis, ax.yaxis):
                low, high = sorted(axis.get_view_interval())
                ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)
                yield from (label for at, label in ticks if low <= at <= high)
                yield axis.label
    for legend in (*fig.legends, *(ax.get_legend() for ax in fig.axes)):
        yield from legend.get_texts() if legend else ()


def crowded(fig: Figure) -> list[str]:
    """What hinders reading, measured by the renderer; nothing where all words are legible.

    Args:
        fig: any figure.

    Returns:
        A sentence for each pair of texts that overlap, each text that the figure's edge cuts, each
        below 7 points, and each that an arrow crosses.
    """
    fig.draw_without_rendering()
    found = [t for t in texts(fig) if t.get_visible() and t.get_text().strip()]
    sheet = Bbox.from_bounds(0, 0, *(POINTS * fig.get_size_inches()))
    places = [extent(t) for t in found]
    faults = []
    for (a, x), (b, y) in combinations(zip(found, places, strict=True), 2):
        over = np.minimum(x.max, y.max) - np.maximum(x.min, y.min)
        if (over > 0.5).all():
            faults.append(f"{a.get_text()!r} and {b.get_text()!r} overlap")
    lines = [ends for ax in fig.axes for ends in segments(ax)]
    for t, place in zip(found, places, strict=True):
        if (place.min < sheet.min - 0.5).any() or (place.max > sheet.max + 0.5).any():
            faults.append(f"{t.get_text()!r} is cut by the edge")
        if t.get_fontsize() < SMALLEST - 1e-6:
            faults.append(f"{t.get_text()!r} is smaller than {SMALLEST:g} points")
        core = place.padded(-0.5)
        if any(Path(ends).intersects_bbox(core, filled=False) for ends in lines):
            faults.append(f"an arrow crosses {t.get_text()!r}")
    return faults


def segments(ax: Axes) -> Iterator[np.ndarray]:
    """The straight pieces [2, 2] of the arrows and lines of `arrow`, in points."""
    scale = POINTS / ax.figure.dpi
    for patch in ax.patches:
        if isinstance(patch, FancyArrowPatch | PathPatch):
            path = patch.get_transform().transform_path(patch.get_path())
            for outline in path.to_polygons(closed_only=False):
                yield from (np.array(ends) * scale for ends in pairwise(outline))
