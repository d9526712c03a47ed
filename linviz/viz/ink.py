"""One table of inks: each quantity has one colour in every picture, and in the book's equations.

The colours are those of Okabe and Ito (2008), chosen so that colour-blind readers can tell them
apart. Importing this file changes no setting of matplotlib; `style()` does so for a `with` block.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path as FilePath

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.transforms import Bbox, BboxTransformTo

INK = {
    "state": "#D55E00",
    "decay": "#56B4E9",
    "query": "#0072B2",
    "key": "#E69F00",
    "value": "#009E73",
    "output": "#CC79A7",
    "text": "#222222",
    "mask": "#F2F2F2",  # "not applicable": the ground under a hatch, never a value
    "hatch": "#BBBBBB",
    "nan": "#FF00FF",  # loud: a picture must not hide a NaN
}

LINES = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")

MAPS = {
    "signed": "RdBu_r",  # diverging, 0 in the middle
    "count": "viridis",  # 0 and up
    "gate": "cividis",  # between 0 and 1
}

_SETTINGS = {
    "font.size": 9,
    "text.color": INK["text"],
    "axes.labelcolor": INK["text"],
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.cycler(color=LINES),
    "figure.facecolor": "white",
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "svg.hashsalt": "linviz",
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in linviz's style inside a `with` block; the reader's own settings come back after."""
    with mpl.rc_context(_SETTINGS):
        yield


def _cells(ax: Axes) -> list[PathPatch]:
    """Lay the cells of each image over it, one outline a colour; the commonest is the ground."""
    drawn = []
    for image in ax.images:
        x = image.get_array()
        alpha = np.broadcast_to(1.0 if image.get_alpha() is None else image.get_alpha(), x.shape)
        rgba = image.to_rgba(x).reshape(-1, 4)
        colors, which, counts = np.unique(rgba, axis=0, return_inverse=True, return_counts=True)
        which, ground = which.ravel(), counts.argmax() if (alpha > 0).all() else -1
        for color in sorted(range(len(colors)), key=lambda c: c != ground):
            at = np.flatnonzero((which == color) & (alpha.ravel() > 0))
            cells = [Bbox.from_bounds(i % x.shape[1], i // x.shape[1], 1, 1) for i in at]
            cells = [Bbox.from_bounds(0, 0, *x.shape[::-1])] if color == ground else cells
            if cells:
                squares = [Path.unit_rectangle().transformed(BboxTransformTo(c)) for c in cells]
                outline = Path.make_compound_path(*squares)
                outline.vertices -= 0.5  # cell (i, j) of an image is centred on (j, i)
                drawn.append(PathPatch(outline, facecolor=colors[color], linewidth=0))
                ax.add_patch(drawn[-1])
    return drawn


def save_card(fig: Figure, path: str | FilePath) -> FilePath:
    """Save a figure on an opaque white card, without a date: drawn again, it is the same file.

    A picture without a ground is unreadable on a dark page, so the ground is drawn too. In an SVG
    the cells of heat maps become shapes (their bars do not): some pages refuse an image inside an
    image.

    Args:
        fig: any figure.
        path: where to; the ending decides the format (svg, png, pdf).

    Returns:
        The path.
    """
    path = FilePath(path)
    dated = {".svg": "Date", ".pdf": "CreationDate"}.get(path.suffix)
    shapes = [s for ax in fig.axes for s in _cells(ax)] if path.suffix == ".svg" else []
    images = [image for ax in fig.axes for image in ax.images] if shapes else []
    with style():
        try:
            for image in images:
                image.set_visible(False)
            fig.savefig(path, facecolor="white", dpi=160, metadata={dated: None} if dated else None)
        finally:
            for image in images:
                image.set_visible(True)
            for shape in shapes:
                shape.remove()
    if path.suffix == ".svg":  # a hundredth of a point is fine enough for outlines
        svg = path.read_text(encoding="utf-8")
        short = partial(re.sub, r"(\.\d\d)\d+", r"\1")
        svg = re.sub(r' d="[^"]*"', lambda found: short(found[0]), svg)
        path.write_text(svg, encoding="utf-8")
    return path
