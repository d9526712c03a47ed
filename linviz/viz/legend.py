"""The strip under a cell that says what its signs, belts, edges, squares and inks mean."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from linviz.viz.belts import (
    DASHED,
    Given,
    draw_belt,
    draw_sign,
    draw_squares,
    draw_tap,
    measured,
    squares_width,
)
from linviz.viz.ink import INK
from linviz.viz.matrices import Number
from linviz.viz.shapes import box, word

SMALL = 7.5  # points of the words
LINE = 15.0  # points from line to line; a gate with dots takes two thirds more
APART = 9.0  # points between items
INKS = ("key", "value", "query", "decay", "output")


class Item(NamedTuple):
    """One entry: what is drawn, how wide it is, and the words beside it."""

    draw: Callable[[Axes, Number, Number], Any]
    width: Number
    words: str


def sign(words: str, kind: str, ink: str, **options: Any) -> Item:
    """A sign as it stands on a belt."""
    wide = 22 if options.get("dots") == 2 else 13
    return Item(lambda ax, x, y: draw_sign(ax, x, y, kind, ink, **options), wide, words)


def belt(words: str, kind: str) -> Item:
    """A piece of a belt."""

    def draw(ax: Axes, x: Number, y: Number) -> None:
        draw_belt(ax, x - 12, y, kind, 24, head=False, new=None)

    return Item(draw, 24, words)


def edge(words: str, timed: bool) -> Item:
    """A box as an input's."""
    look = {"corner": 4, "share": 0.2} if timed else {"corner": 0, "share": 0, "dash": DASHED}
    return Item(lambda ax, x, y: box(ax, x, y, 14, 11, line=0.9, **look), 14, words)


def squares(words: str, n: int) -> Item:
    """The squares under an input's letter."""
    thing = Given("", "text", n, True)
    return Item(lambda ax, x, y: draw_squares(ax, x, y - 1, thing), squares_width(thing), words)


def swatch(ink: str) -> Item:
    """An ink."""

    def draw(ax: Axes, x: Number, y: Number) -> None:
        ax.add_patch(Circle((x, y), 3.2, facecolor=INK[ink], linewidth=0))

    return Item(draw, 7, ink)


SIGNS = {
    "decay": sign("fades", "decay", "decay"),
    "lanes": sign("fades, a number a lane", "decay", "decay", dots=1),
    "grid": sign("fades, number by number", "decay", "decay", dots=2),
    "turn": sign("turns and shrinks, number by number", "decay", "decay", dots=2, rotating=True),
    "write": sign("writes", "write", "value"),
    "append": sign("adds a row", "append", "value"),
    "push": sign("shifts in", "push", "key"),
    "erase": sign("erases", "erase", "key"),
    "recall": sign("erases (a is minus a key)", "write", "key"),
    "read": Item(draw_tap, 5, "reads"),
    "multiply": sign("multiplies", "multiply", "text"),
    "skip": sign("adds", "skip", "text"),
    "divide": sign("divides", "divide", "text"),
}
BELTS = {
    "matrix": belt("the state, a matrix", "matrix"),
    "vector": belt("the state, a vector", "vector"),
    "cache": belt("cache: a row a token", "cache"),
    "shift": belt("the last few keys", "shift"),
}
REST = {
    "timed": edge("from this token", True),
    "fixed": edge("the same for all tokens", False),
    1: squares("a number a head", 1),
    4: squares("a vector", 4),
    8: squares("a matrix", 8),
} | {f"ink {ink}": swatch(ink) for ink in INKS}
ITEMS = SIGNS | BELTS | REST


def flow(names: set, width: Number) -> list[list[tuple[Number, Item]]]:
    """The items of those names in lines that are at most so wide: each with its left end."""
    lines, x = [[]], 0.0
    for name, item in ITEMS.items():
        if name not in names:
            continue
        wide = item.width + 3 + 1.06 * measured(item.words, SMALL)[0]
        if lines[-1] and x + wide > width:
            lines.append([])
            x = 0.0
        lines[-1].append((x, item))
        x += wide + APART
    return lines


def line_height(line: Sequence[tuple[Number, Item]]) -> Number:
    """Of a line: a gate with dots needs more."""
    tall = {id(ITEMS[name]) for name in ("lanes", "grid", "turn")}
    return LINE + 9 * any(id(item) in tall for _, item in line)


def strip(names: set, width: Number) -> tuple[Number, Callable[[Figure, Number], None]]:
    """Lay out the items of those names.

    Args:
        names: keys of ITEMS.
        width: points of the figure.

    Returns:
        The height of the strip in points, and what draws it: it takes the figure and the left
        margin, and adds Axes at the figure's lower edge.
    """
    lines = flow(names, width - 16)
    height = sum(map(line_height, lines)) + 10
    return height, partial(draw_strip, lines, width, height)


def draw_strip(
    lines: Sequence[Sequence[tuple[Number, Item]]],
    width: Number,
    height: Number,
    fig: Figure,
    left: Number,
) -> None:
    """Draw the lines of a strip at the lower edge of a figure."""
    ax = fig.add_axes((0.0, 0.0, 1.0, height / (72 * fig.get_figheight())))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    ax.axhline(height - 2, color=INK["hatch"], linewidth=0.6)
    y = height - 5
    for line in lines:
        y -= line_height(line) / 2
        for x, item in line:
            item.draw(ax, left + x + item.width / 2, y)
            word(ax, left + x + item.width + 3, y, item.words, size=SMALL, ha="left")
        y -= line_height(line) / 2
