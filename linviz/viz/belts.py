"""What a cell is drawn with: belts, signs, boxes and inputs, on a sketch placed later.

How a belt and its signs look says what the numbers are. A matrix has four lanes (key channels), a
vector one. A gate for the whole state is a disc, a gate a key channel has a dot in each lane, a
gate a number has a grid of dots, or a spiral where each number turns and shrinks. What is the same
for all tokens is square and dashed, and has no arrow. The marks under an input's letter: one square
for a number a head, four for a vector, eight for a matrix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Rectangle

from linviz.viz import shapes
from linviz.viz.ink import INK
from linviz.viz.matrices import Number
from linviz.viz.shapes import Point, extent, tint, word

SIZE = 8.0  # of labels
LANES, LANE, GAP = 4, 2.4, 1.0  # of a matrix's belt
SIGN = 6.5  # radius of a sign
CHIP = 17.0  # height of an input
DASHED = (0, (2, 1.5))


# ------------------------------------------------------------------------------------ the sketch


@dataclass(frozen=True)
class Given:
    """An input as it is drawn."""

    text: str
    ink: str
    cells: int  # one a head, four a vector, eight a matrix
    timed: bool


@dataclass(frozen=True)
class Box:
    """Where something stands."""

    x: Number
    y: Number
    width: Number
    height: Number

    @property
    def top(self) -> Number:
        """Its upper edge."""
        return self.y + self.height / 2

    @property
    def bottom(self) -> Number:
        """Its lower edge."""
        return self.y - self.height / 2

    @property
    def left(self) -> Number:
        """Its left edge."""
        return self.x - self.width / 2

    @property
    def right(self) -> Number:
        """Its right edge."""
        return self.x + self.width / 2


@dataclass
class Sketch:
    """Things to draw, in points from a corner that is chosen later."""

    items: list[Callable[[Axes, Number, Number], None]] = field(default_factory=list)
    low: Number = 0.0
    high: Number = 0.0

    def add(
        self, draw: Callable[..., Any], x: Number, y: Number, *args: Any, **options: Any
    ) -> None:
        """Call `draw(ax, x, y, ...)` at the place that the corner makes of (x, y)."""
        self.items.append(lambda ax, dx, dy: draw(ax, x + dx, y + dy, *args, **options))

    def reach(self, *heights: Number) -> None:
        """The sketch goes up and down to these heights."""
        self.low, self.high = min(self.low, *heights), max(self.high, *heights)

    def draw(self, ax: Axes, x: Number, y: Number) -> None:
        """Draw it with its corner at (x, y)."""
        for item in self.items:
            item(ax, x, y)

    def wire(self, points: Sequence[Point], ink: str = "text", **options: Any) -> None:
        """A line with a head through points."""

        def draw(ax: Axes, dx: Number, dy: Number) -> None:
            shapes.arrow(ax, [(x + dx, y + dy) for x, y in points], ink, **options)

        self.items.append(draw)

    def bridge(self, x: Number, y: Number, half: Number) -> None:
        """Cut a belt where a wire passes over it."""
        ends = [(x, y - half - 1), (x, y + half + 1)]
        self.wire(ends, "paper", line=5, head=False, zorder=2.5)

    def box(
        self, x: Number, y: Number, text: str, ink: str, *, wide: Number = 0, **options: Any
    ) -> Box:
        """A box as large as its text needs, at least `wide`."""
        width, height = measured(text)
        box = Box(x, y, max(width + 8, wide), max(height + 5, 15))
        self.add(shapes.box, x, y, box.width, box.height, text, ink, SIZE, **options)
        self.reach(box.bottom, box.top)
        return box

    def stand(self, x: Number, bottom: Number, text: str, ink: str) -> Box:
        """A box that stands at that height."""
        return self.box(x, bottom + max(measured(text)[1] + 5, 15) / 2, text, ink)

    def tap(self, x: Number, y: Number) -> None:
        """A dot on a belt: something is taken from it."""
        self.add(draw_tap, x, y)

    def chip(self, x: Number, y: Number, thing: Given) -> Box:
        """An input: its letter over marks for its shape."""
        box = Box(x, y, chip_width(thing), CHIP)
        self.add(draw_chip, x, y, thing, box.width)
        self.reach(box.bottom, box.top)
        return box

    def sign(self, x: Number, y: Number, kind: str, ink: str, **options: Any) -> Box:
        """A sign: what happens there."""
        self.add(draw_sign, x, y, kind, ink, **options)
        return Box(x, y, 2 * SIGN, 2 * SIGN)


@lru_cache(maxsize=1000)
def measured(text: str, size: Number = SIZE) -> tuple[Number, Number]:
    """Width and height of a text, in points."""
    bounds = extent(Figure().text(0, 0, text, fontsize=size))
    return bounds.width, bounds.height


def chip_width(thing: Given) -> Number:
    """Of an input, in points."""
    return max(measured(thing.text)[0] + 5, 16)


def thickness(kind: str) -> Number:
    """Half the height of a belt, in points."""
    return {"vector": 2.2, "matrix": LANES * (LANE + GAP) / 2}.get(kind, 5.5)


# -------------------------------------------------------------------------------- what is drawn


def draw_chip(ax: Axes, x: Number, y: Number, thing: Given, width: Number) -> None:
    """A small box with a letter, and squares that say how many numbers it stands for."""
    dash = "solid" if thing.timed else DASHED
    options = {"corner": 4 if thing.timed else 0, "dash": dash, "line": 0.9}
    share = 0.2 if thing.timed else 0
    shapes.box(ax, x, y, width, CHIP, "", thing.ink, share=share, **options)
    word(ax, x, y + 2.5, thing.text, size=SIZE)
    draw_squares(ax, x, y - 5, thing)


def draw_squares(ax: Axes, x: Number, y: Number, thing: Given) -> None:
    """Squares centred on (x, y), one to eight."""
    columns, rows = min(thing.cells, 4), 2 if thing.cells == 8 else 1
    for i in range(columns):
        for j in range(rows):
            at = (x + (i - columns / 2) * 2.8 + 0.4, y - 1.2 + 2.6 * (rows - 1 - j) - (rows - 1))
            ax.add_patch(Rectangle(at, 2, 1.9, facecolor=INK[thing.ink], linewidth=0, zorder=4))


def squares_width(thing: Given) -> Number:
    """Of the squares of an input, in points."""
    return min(thing.cells, 4) * 2.8


TIMES = [[(-1, -1), (1, 1)], [(-1, 1), (1, -1)]]
PLUS = [[(-1.2, 0), (1.2, 0)], [(0, -1.2), (0, 1.2)]]
STROKES = {
    "decay": TIMES,
    "multiply": TIMES,
    "write": PLUS,
    "skip": PLUS,
    "append": PLUS,
    "erase": [[(-1.2, 0), (1.2, 0)]],
    "push": [[(-0.6, 1.1), (0.7, 0), (-0.6, -1.1)]],
    "divide": [[(-1.2, 0), (1.2, 0)], [(0, 0.75), (0, 1.35)], [(0, -0.75), (0, -1.35)]],
}


def draw_sign(
    ax: Axes,
    x: Number,
    y: Number,
    kind: str,
    ink: str,
    dots: int = 0,
    fixed: bool = False,
    rotating: bool = False,
) -> None:
    """A disc with strokes; for gates with many numbers, a dot for each lane."""
    options = {"line": 1.1, "dash": DASHED if fixed else "solid", "share": 0.25, "zorder": 4}
    if dots:
        corner, wide = 0 if fixed else 5, (12, 22)[dots - 1]
        shapes.box(ax, x, y, wide, 21, "", ink, corner=corner, **options)
        if rotating:
            draw_spiral(ax, x, y)
            return
        for i in range(1 if dots == 1 else 3):
            for j in range(LANES):
                at = x + (i - (dots == 2)) * 6, y + (j - (LANES - 1) / 2) * (LANE + GAP + 0.8)
                draw_dot(ax, *at, 4 * i + j, ink)
        return
    if fixed or kind == "append":
        shapes.box(ax, x, y, 2 * SIGN, 2 * SIGN, "", ink, corner=0, **options)
    else:
        shapes.disc(ax, x, y, SIGN, "", ink, line=1.1, share=0.25, zorder=4)
    for stroke in STROKES[kind]:
        ends = [(x + 2.7 * a, y + 2.7 * b) for a, b in stroke]
        shapes.arrow(ax, ends, "text", line=1.2, head=False, corner=0, zorder=4.5)


def draw_dot(ax: Axes, x: Number, y: Number, i: int, ink: str) -> None:
    """One number of a gate: how much is left."""
    share = (0.95, 0.55, 0.75, 0.35)[i % 4]
    fill = {"facecolor": tint(ink, share), "edgecolor": INK["text"], "linewidth": 0.5}
    ax.add_patch(Circle((x, y), 1.7, zorder=5, **fill))


def draw_spiral(ax: Axes, x: Number, y: Number) -> None:
    """A gate whose numbers turn and shrink."""
    turn = np.linspace(0.3, 0.3 + 3.2 * np.pi, 40)
    far = np.linspace(8, 2.4, 40)
    points = list(zip(x + far * np.cos(turn), y + far * np.sin(turn), strict=True))
    shapes.arrow(ax, points, "text", line=1.0, corner=0, zorder=5)


def draw_belt(
    ax: Axes, left: Number, y: Number, kind: str, length: Number, *, head: bool, new: Number | None
) -> None:
    """A belt from `left` on; `new` is how far from there a cache holds a new row."""
    half, right = thickness(kind), left + length
    end = right - 6 * head
    soft, ink = tint("state", 0.42), INK["state"]
    solid = {"linewidth": 0, "zorder": 2}
    if kind == "cache":
        for x in np.arange(left, end - 4, 8.0):
            fresh = new is not None and x - 8 < left + new - 1 <= x
            color = ink if fresh else soft
            ax.add_patch(Rectangle((x, y - half), 6, 2 * half, facecolor=color, **solid))
    elif kind == "shift":
        for x in np.linspace(left, end, 9)[:-1]:
            wide = (end - left) / 8
            edge = {"facecolor": soft, "edgecolor": ink, "linewidth": 0.8, "zorder": 2}
            ax.add_patch(Rectangle((x, y - half), wide, 2 * half, **edge))
    else:
        rows = LANES if kind == "matrix" else 1
        tall = LANE if kind == "matrix" else 2 * half
        for i in range(rows):
            low = y + (i - rows / 2) * (tall + GAP * (rows > 1)) + GAP / 2 * (rows > 1)
            ax.add_patch(Rectangle((left, low), end - left, tall, facecolor=soft, **solid))
    if head:
        tip = [(end, y + half + 2.5), (end, y - half - 2.5), (right, y)]
        ax.add_patch(Polygon(tip, facecolor=ink, linewidth=0, zorder=2.2))


def draw_tap(ax: Axes, x: Number, y: Number) -> None:
    """A tap."""
    ax.add_patch(Circle((x, y), 2.6, facecolor=INK["text"], linewidth=0, zorder=4))
