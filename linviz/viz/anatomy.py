"""Anatomy: the recurrent cell of a mechanism, drawn from its moves.

The state rides on a belt from left to right, S_{t-1} to S_t. What a token brings comes from below,
the output leaves at the top, and the signs on the belt stand in the order in which things happen:
x fades, + writes, - erases, a dot is a tap that reads.

How the belt and its signs look says what the numbers are. A matrix has four lanes (key channels), a
vector one. A gate for the whole state is a disc, a gate a key channel has a dot in each lane, a
gate a number has a grid of dots, with hands where the numbers rotate. What is the same for all
tokens is square and dashed, and has no arrow. The marks under an input's letter: one square for a
number a head, four for a vector, eight for a matrix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Rectangle

from linviz.mechanism import Mechanism
from linviz.moves import ON_BELT, Made, Move
from linviz.viz import shapes
from linviz.viz.ink import INK
from linviz.viz.picture import Picture
from linviz.viz.shapes import Number, Point, extent, sheet, tint, word

WIDTH = 259.0  # points: half the width of the book's column
EDGE = 8.0  # from a cell's edge to its belts
TITLE = 20.0  # over a cell
SIZE = 8.0  # of labels
LANES, LANE, GAP = 4, 2.4, 1.0  # of a matrix's belt
SIGN = 6.5  # radius of a sign
BENCH, CHIPS = 30.0, 60.0  # from a belt down to its boxes and its inputs
CHIP = 17.0  # height of an input
LETTERS = {"dt": r"\Delta", "beta": r"\beta"}
TAKE = {"q": "query", "r": "query", "C": "query", "k": "key", "B": "key", "a": "key", "b": "key"}
KIND_INKS = {"decay": "decay", "erase": "key", "write": "value", "append": "value"}
KIND_INKS |= {"push": "key", "read": "query", "score": "query", "weigh": "key"}


@lru_cache(maxsize=1000)
def measured(text: str, size: Number = SIZE) -> tuple[Number, Number]:
    """Width and height of a text, in points."""
    bounds = extent(Figure().text(0, 0, text, fontsize=size))
    return bounds.width, bounds.height


def typeset(latex: str) -> str:
    """LaTeX in matplotlib's dialect, with fractions set large enough to be read."""
    return f"${latex}$".replace(r"\frac", r"\dfrac").replace(r"\le ", r"\leq ")


# ----------------------------------------------------------------------- what the data say


@dataclass(frozen=True)
class Given:
    """An input as it is drawn."""

    text: str
    ink: str
    cells: int  # one a head, four a vector, eight a matrix
    timed: bool


def given(m: Mechanism, name: str) -> Given | None:
    """How an input looks; None for what is no input."""
    for spec in (*m.inputs, m.output):
        if spec.name == name:
            letter = LETTERS.get(name, name)
            text = f"${letter}_t$" if spec.timed else f"${letter}$"
            wide = sum(axis[-1] not in "bthg" for axis in spec.axes.split())
            return Given(text, input_ink(m, name), (1, 4, 8)[wide], spec.timed)
    return None


def input_ink(m: Mechanism, name: str) -> str:
    """Values, keys, queries and what decides on the decay each have one ink."""
    if name == m.output.name:
        return "output"
    if name == m.value:
        return "value"
    fades = [move for move in m.moves if move.kind == "decay" or move.label == "m + w"]
    if any(name in move.sources for move in fades):
        return "decay"
    return TAKE.get(name, "text")


def gate_shape(m: Mechanism, move: Move) -> tuple[int, bool, bool]:
    """Of a decay: the dots across and along the belt, whether it is fixed, whether it rotates."""
    axes = "".join(x.axes.replace(" ", "") for x in move.takes if isinstance(x, Made))
    dots = len(axes.translate(str.maketrans("", "", "bthg")))
    specs = [x for x in m.inputs if x.name in move.sources]
    made = all(isinstance(x, Made) for x in move.takes)
    return dots, made and not any(x.timed for x in specs), any(x.complex for x in specs)


def belt_name(name: str, after: bool) -> str:
    """What stands at the ends of a belt."""
    if len(name) == 1:
        return f"${name}_t$" if after else f"${name}_{{t-1}}$"
    return name.replace("_", " ")


def belt_kind(m: Mechanism, name: str) -> str:
    """Whether a belt carries a cache, a shift register, a matrix or a vector."""
    if any(move.belt == name and move.kind == "push" for move in m.moves):
        return "shift"
    axes = next(part.axes for part in m.state if part.name == name).split()
    if "s" in axes:
        return "cache"
    return "matrix" if sum(axis not in "bh" for axis in axes) == 2 else "vector"


def thickness(kind: str) -> Number:
    """Half the height of a belt, in points."""
    return {"vector": 2.2, "matrix": LANES * (LANE + GAP) / 2}.get(kind, 5.5)


# ------------------------------------------------------------------------------------ the sketch


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
    ) -> "Box":
        """A box as large as its text needs, at least `wide`."""
        width, height = measured(text)
        width, height = max(width + 8, wide), max(height + 5, 15)
        self.add(shapes.box, x, y, width, height, text, ink, SIZE, **options)
        self.reach(y - height / 2, y + height / 2)
        return Box(x, y, width, height)

    def chip(self, x: Number, y: Number, thing: Given) -> "Box":
        """An input: its letter over marks for its shape."""
        box = Box(x, y, chip_width(thing), CHIP)
        self.add(draw_chip, x, y, thing, box.width)
        self.reach(box.bottom, box.top)
        return box

    def sign(self, x: Number, y: Number, kind: str, ink: str, **options: Any) -> "Box":
        """A sign: what happens there."""
        self.add(draw_sign, x, y, kind, ink, **options)
        return Box(x, y, 2 * SIGN, 2 * SIGN)


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


def chip_width(thing: Given) -> Number:
    """Of an input, in points."""
    return max(measured(thing.text)[0] + 5, 16)


def draw_chip(ax: Axes, x: Number, y: Number, thing: Given, width: Number) -> None:
    """A small box with a letter, and squares that say how many numbers it stands for."""
    dash = "solid" if thing.timed else (0, (2, 1.5))
    options = {"corner": 4 if thing.timed else 0, "dash": dash, "line": 0.9}
    share = 0.2 if thing.timed else 0
    shapes.box(ax, x, y, width, CHIP, "", thing.ink, share=share, **options)
    word(ax, x, y + 2.5, thing.text, size=SIZE)
    columns, rows = min(thing.cells, 4), 2 if thing.cells == 8 else 1
    for i in range(columns):
        for j in range(rows):
            at = (x + (i - columns / 2) * 2.8 + 0.4, y - 6.2 + 2.6 * (rows - 1 - j) - (rows - 1))
            ax.add_patch(Rectangle(at, 2, 1.9, facecolor=INK[thing.ink], linewidth=0, zorder=4))


STROKES = {
    "decay": [[(-1, -1), (1, 1)], [(-1, 1), (1, -1)]],
    "multiply": [[(-1, -1), (1, 1)], [(-1, 1), (1, -1)]],
    "write": [[(-1.2, 0), (1.2, 0)], [(0, -1.2), (0, 1.2)]],
    "skip": [[(-1.2, 0), (1.2, 0)], [(0, -1.2), (0, 1.2)]],
    "append": [[(-1.2, 0), (1.2, 0)], [(0, -1.2), (0, 1.2)]],
    "erase": [[(-1.2, 0), (1.2, 0)]],
    "push": [[(-0.6, 1.1), (0.7, 0), (-0.6, -1.1)]],
    "divide": [[(-1.2, 0), (1.2, 0)], [(0, 0.9), (0, 1.1)], [(0, -0.9), (0, -1.1)]],
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
    options = {"line": 1.1, "dash": (0, (2, 1.5)) if fixed else "solid", "share": 0.25, "zorder": 4}
    if dots:
        corner, wide = 0 if fixed else 5, (12, 22)[dots - 1]
        shapes.box(ax, x, y, wide, 21, "", ink, corner=corner, **options)
        for i in range(1 if dots == 1 else 3):
            for j in range(LANES):
                at = x + (i - (dots == 2)) * 6, y + (j - (LANES - 1) / 2) * (LANE + GAP + 0.8)
                draw_dot(ax, *at, 4 * i + j, ink, rotating)
        return
    if fixed or kind == "append":
        shapes.box(ax, x, y, 2 * SIGN, 2 * SIGN, "", ink, corner=0, **options)
    else:
        shapes.disc(ax, x, y, SIGN, "", ink, line=1.1, share=0.25, zorder=4)
    for stroke in STROKES[kind]:
        ends = [(x + 2.7 * a, y + 2.7 * b) for a, b in stroke]
        shapes.arrow(ax, ends, "text", line=1.2, head=False, corner=0, zorder=4.5)


def draw_dot(ax: Axes, x: Number, y: Number, i: int, ink: str, rotating: bool) -> None:
    """One number of a gate: how much is left, or by how much it turns."""
    if rotating:
        turn = 0.4 + 0.55 * i
        hand = 2.1 * np.cos(turn), 2.1 * np.sin(turn)
        ends = [(x - hand[0], y - hand[1]), (x + hand[0], y + hand[1])]
        shapes.arrow(ax, ends, "text", line=0.9, head=False, zorder=5)
        ax.add_patch(Circle(ends[1], 0.9, facecolor=INK["text"], linewidth=0, zorder=5))
        return
    share = (0.95, 0.55, 0.75, 0.35)[i % 4]
    fill = {"facecolor": tint(ink, share), "edgecolor": INK["text"], "linewidth": 0.5}
    ax.add_patch(Circle((x, y), 1.7, zorder=5, **fill))


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


# ------------------------------------------------------------------------------ the conveyor belt


@dataclass
class Cell:
    """The layout of one cell: where each belt and each register is."""

    m: Mechanism
    sketch: Sketch
    heights: dict[str, Number] = field(default_factory=dict)
    outs: dict[str, Box] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)

    def belt(
        self, name: str, left: Number = EDGE, right: Number = WIDTH - EDGE, *, ends: str = "both"
    ) -> None:
        """Draw a belt, and its name at the ends named: "left", "right" or "both"."""
        kind, y = belt_kind(self.m, name), self.heights[name]
        sign = self.outs.get(f"append {name}")
        new = sign.right - left if sign else None
        self.sketch.add(draw_belt, left, y, kind, right - left, head=ends != "left", new=new)
        up = y + thickness(kind) + 10.5
        if ends != "right":
            self.sketch.add(word, left, up, belt_name(name, False), "state", SIZE, ha="left")
        if ends != "left" and len(name) == 1:
            self.sketch.add(word, right, up, belt_name(name, True), "state", SIZE, ha="right")

    def feed(self, box: Box, names: Sequence[str], y: Number) -> None:
        """Inputs side by side under a box, each with its arrow."""
        things = [x for x in (given(self.m, name) for name in names) if x]
        loose = [name for name in names if name in self.outs]
        widths = [chip_width(x) for x in things] + [8] * len(loose)
        at = box.x - (sum(widths) + 3 * (len(widths) - 1)) / 2
        for thing, width in zip(things, widths, strict=False):
            x = at + width / 2
            chip = self.sketch.chip(x, y, thing)
            self.join([(x, chip.top), (x, box.bottom)], thing)
            at += width + 3
        for name in loose:
            source = self.outs[name]
            x = at + 4
            level = source.top + 11
            self.sketch.wire(
                [(source.x, source.top), (source.x, level), (x, level), (x, box.bottom)]
            )
            at += 11

    def join(self, points: Sequence[Point], thing: Given) -> None:
        """An arrow from an input, a dashed line from what is the same for all tokens."""
        options = {} if thing.timed else {"head": False, "dash": (0, (2, 1.5))}
        self.sketch.wire(points, thing.ink, zorder=3, **options)


def slots(m: Mechanism, move: Move, registers: set[str]) -> Number:
    """The width of the inputs of a move, side by side."""
    things = [given(m, name) for name in move.sources]
    widths = [chip_width(x) for x in things if x]
    widths += [8] * sum(name in registers for name in move.sources)
    return sum(widths) + 3 * max(len(widths) - 1, 0)


def boxed(m: Mechanism, move: Move) -> bool:
    """Whether the label stands in a box of its own, not at an input."""
    return bool(move.label) and all(
        x is None or x.text != typeset(move.label) for x in (given(m, n) for n in move.sources)
    )


def columns(m: Mechanism) -> dict[Move, Number]:
    """The place from left to right of each move that has one of its own, in points."""
    registers = {name for move in m.moves for name in move.gives}
    own, widths = [], []
    for i, move in enumerate(m.moves):
        on_belt = move.belt and not any(name in registers for name in move.sources)
        if not (on_belt or move.kind in ON_BELT or (move.kind == "skip" and move.label)):
            continue
        label = measured(typeset(move.label))[0] + 8
        width = max(slots(m, move, registers), 2 * SIGN)
        below = move.kind in ON_BELT or move.kind == "skip"
        later = m.moves[i + 1].kind if i + 1 < len(m.moves) else ""
        own.append(move)
        widths.append(max(width, label) if below or later == "skip" else width)
    spare = WIDTH - 2 * EDGE - sum(widths)
    gap = spare / (len(own) + 1)
    places, x = {}, EDGE + gap
    for move, width in zip(own, widths, strict=True):
        places[move] = x + width / 2
        x += width + gap
    return places


def conveyor(m: Mechanism) -> Sketch:
    """A cell whose state passes along the belts: all but RNN, LSTM, GRU and RWKV-4."""
    sketch = Sketch()
    cell, places = Cell(m, sketch), columns(m)
    top = 0.0  # of what stands above the belts so far
    for move in m.moves:
        x = places.get(move)
        if move.belt and move.belt not in cell.heights:
            cell.heights[move.belt] = next_height(cell, move.belt, top)
        y = cell.heights.get(move.belt, 0.0)
        if move.kind in ON_BELT:
            on_belt(cell, move, x, y)
        elif move.belt:
            source = next((cell.outs[n] for n in move.sources if n in cell.outs), None)
            out = tap(cell, move, source.x if x is None else x, y, source)
            cell.outs[move.gives[0]] = out
            cell.owners[move.gives[0]] = move.belt
            top = max(top, out.top)
        else:
            out = stacked(cell, move, x)
            cell.outs[move.gives[0]] = out
            cell.owners[move.gives[0]] = cell.owners.get(move.sources[0], "")
            top = max(top, out.top)
    leave(cell, cell.outs[m.output.name])
    for name in cell.heights:
        cell.belt(name)
    return sketch


def next_height(cell: Cell, belt: str, top: Number) -> Number:
    """How high the next belt is: over all that stands on the one below."""
    if not cell.heights:
        return 0.0
    passing = [m for m in cell.m.moves if m.kind == "write" and m.belt == belt]
    fed = any(name in cell.outs for move in passing for name in move.sources)
    under = CHIPS + CHIP + 13 if fed else 20  # a wire runs under the inputs
    return max(max(cell.heights.values()) + 100, top + under)


def on_belt(cell: Cell, move: Move, x: Number, y: Number) -> None:
    """A move that changes the belt: a sign on it, a box and inputs below."""
    m, sketch = cell.m, cell.sketch
    inks = [x.ink for x in (given(m, name) for name in move.sources) if x]
    same = move.kind in ("append", "push") or inks == ["decay"]
    ink = inks[0] if same and inks else KIND_INKS[move.kind]
    dots, fixed, rotating = gate_shape(m, move) if move.kind == "decay" else (0, False, False)
    if belt_kind(m, move.belt) == "vector":
        dots = 0
    sign = sketch.sign(x, y, move.kind, ink, dots=dots, fixed=fixed, rotating=rotating)
    if move.kind == "append":
        cell.outs[f"append {move.belt}"] = sign
    low = sign.bottom - 4 * bool(dots)
    wide = slots(m, move, set(cell.outs))
    dash = (0, (2, 1.5)) if fixed else "solid"
    corner = 0 if fixed else 4
    box = sketch.box(x, y - BENCH, typeset(move.label), ink, wide=wide, dash=dash, corner=corner)
    sketch.wire([(x, box.top), (x, low)], ink, **({"head": False, "dash": dash} if fixed else {}))
    above = [n for n in move.sources if cell.owners.get(n) == move.belt]
    for name in above:  # what was looked up on this belt comes down on it
        source = cell.outs[name]
        sketch.wire([(source.right, source.y), (x, source.y), (x, sign.top)], "query")
    cell.feed(box, [n for n in move.sources if n not in above], y - CHIPS)


def tap(cell: Cell, move: Move, x: Number, y: Number, source: Box | None) -> Box:
    """A move that takes from the belt: a dot on it, the label above."""
    m, sketch = cell.m, cell.sketch
    half = thickness(belt_kind(m, move.belt))
    dot(cell, x, y)
    if source:
        sketch.wire([(x, source.top), (x, y - 3)], "text")
    else:
        cell.feed(Box(x, y, 6, 6), move.sources, y - CHIPS)
    text = typeset(move.label)
    box = sketch.box(x, y + half + 18 + max(measured(text)[1] + 5, 15) / 2, text, "query")
    sketch.wire([(x, y + 2), (x, box.bottom)], "text")
    return box


def stacked(cell: Cell, move: Move, x: Number | None) -> Box:
    """A move off the belts, over what it works on."""
    m, sketch = cell.m, cell.sketch
    names = [n for n in move.sources if n in cell.outs]
    below = cell.outs[move.gives[0] if move.kind == "skip" else names[0]]
    inputs = [n for n in move.sources if n not in cell.outs and given(m, n)]
    if move.kind != "skip" and boxed(m, move):
        text = typeset(move.label)
        out = sketch.box(below.x, below.top + 10 + max(measured(text)[1] + 5, 15) / 2, text, "text")
        low, side = out.bottom, out.left
    else:
        out = sketch.sign(below.x, below.top + 10 + SIGN, move.kind, "text")
        low, side = out.bottom, out.left
    sketch.wire([(below.x, below.top), (below.x, low)])
    if move.kind == "skip":
        past(cell, move, x, out)
        return out
    for name in names[1:]:
        source = cell.outs[name]
        cross(cell, source, out)
        sketch.wire([(source.x, source.top), (source.x, out.y), (out.right, out.y)])
    for name in inputs:
        thing = given(m, name)
        away = 14 + chip_width(thing) / 2
        if side - 2 * away > EDGE:
            chip = sketch.chip(side - away, out.y, thing)
            cell.join([(chip.right, out.y), (side, out.y)], thing)
        else:
            chip = sketch.chip(out.right + away, out.y, thing)
            cell.join([(chip.left, out.y), (out.right, out.y)], thing)
    return out


def past(cell: Cell, move: Move, x: Number, out: Box) -> None:
    """A skip: a box below the belt, and a wire that crosses the belt without touching it."""
    sketch = cell.sketch
    y = max(cell.heights.values())
    wide = slots(cell.m, move, set(cell.outs))
    box = sketch.box(x, y - BENCH, typeset(move.label), "value", wide=wide)
    cell.feed(box, move.sources, y - CHIPS)
    cross(cell, box, out)
    sketch.wire([(x, box.top), (x, out.y), (out.right, out.y)], "value", zorder=3)


def cross(cell: Cell, source: Box, out: Box) -> None:
    """Bridge the belts between a source and what it goes up to."""
    for name, y in cell.heights.items():
        if source.top < y < out.y:
            cell.sketch.bridge(source.x, y, thickness(belt_kind(cell.m, name)))


# ------------------------------------------------------------------- belts that feed back


def box_with_curve(cell: Cell, move: Move, x: Number, y: Number, wide: Number = 0) -> Box:
    """A squashed number: its label, and the curve where the label does not name it."""
    text, sketch = typeset(move.label), cell.sketch
    if move.label.startswith(("\\sigma", "\\tanh")):
        return sketch.box(x, y, text, "text", wide=wide)
    width = measured(text)[0] + 28
    box = sketch.box(x, y, "", "text", wide=width)
    sketch.add(word, box.right - 4 - measured(text)[0] / 2, y, text)
    sketch.add(draw_curve, box.left + 10, y, move.kind)
    return box


def draw_curve(ax: Axes, x: Number, y: Number, kind: str) -> None:
    """A sigmoid stands on its axis, a tanh goes through it."""
    at = np.linspace(-1, 1, 15)
    curve = list(zip(x + 6 * at, y + 3.6 * np.tanh(2.5 * at), strict=True))
    shapes.arrow(ax, curve, "text", line=1.1, head=False, corner=0, zorder=4)
    level = y - 3.6 if kind == "sigmoid" else y
    ends = [(x - 6, level), (x + 6, level)]
    shapes.arrow(ax, ends, "hatch", line=0.7, head=False, zorder=3.5)


def joining(cell: Cell, names: Sequence[str], x: Number, y: Number, under: Number) -> None:
    """Inputs that join a line at height y."""
    for i, name in enumerate(names):
        thing = given(cell.m, name)
        chip = cell.sketch.chip(x + 19 * i, y - under, thing)
        cell.join([(chip.x, chip.top), (chip.x, y)], thing)


def dot(cell: Cell, x: Number, y: Number) -> None:
    """A tap on a belt."""
    cell.sketch.add(draw_dot_at, x, y)


def draw_dot_at(ax: Axes, x: Number, y: Number) -> None:
    """A tap."""
    ax.add_patch(Circle((x, y), 2.6, facecolor=INK["text"], linewidth=0, zorder=4))


def leave(cell: Cell, source: Box) -> None:
    """The output."""
    thing = given(cell.m, cell.m.output.name)
    chip = cell.sketch.chip(source.x, source.top + 14 + CHIP / 2, thing)
    cell.sketch.wire([(source.x, source.top), (source.x, chip.bottom)], "output")


def folded(m: Mechanism) -> Sketch:
    """A belt that is broken: the whole state goes through the box (RNN)."""
    squash, read = m.moves
    cell = Cell(m, Sketch(), {squash.belt: 0.0})
    box = box_with_curve(cell, squash, 105, 0)
    cell.feed(box, squash.takes, -CHIPS + 14)
    cell.belt(squash.belt, right=box.left, ends="left")
    cell.belt(squash.belt, left=box.right, ends="right")
    leave(cell, tap(cell, read, 205, 0, None))
    return cell.sketch


def with_gates(m: Mechanism) -> Sketch:
    """One belt whose old state goes into its own gates (GRU)."""
    z, r, n, decay, rest, multiply, write, read = m.moves
    cell = Cell(m, Sketch(), {z.belt: 0.0})
    sketch, low, bus, x = cell.sketch, -56.0, -86.0, (84.0, 134.0, 186.0)
    boxes = [box_with_curve(cell, move, at, low) for move, at in zip((z, r, n), x, strict=True)]
    dot(cell, 30, 0)
    sketch.wire([(30, 0), (30, bus), (x[2], bus), (x[2], boxes[2].bottom)], "state")
    for box in boxes[:2]:
        sketch.wire([(box.x, bus), (box.x, box.bottom)], "state")
    joining(cell, ("x", "W"), 46, bus, 26)
    sketch.wire([(boxes[1].right, low), (boxes[2].left, low)])
    fade = sketch.sign(x[0], 0, decay.kind, "decay")
    sketch.wire([(x[0], boxes[0].top), (x[0], fade.bottom)], "decay")
    product = sketch.sign(x[2], -26, multiply.kind, "text")
    less = sketch.box((x[0] + x[2]) / 2, -26, typeset(rest.label), "text")
    sketch.wire([(x[0], -26), (less.left, -26)])
    sketch.wire([(less.right, -26), (product.left, -26)])
    sketch.wire([(x[2], boxes[2].top), (x[2], product.bottom)])
    add = sketch.sign(x[2], 0, write.kind, "value")
    sketch.wire([(x[2], product.top), (x[2], add.bottom)], "value")
    cell.belt(z.belt)
    leave(cell, tap(cell, read, 225, 0, None))
    return sketch


def two_tracks(m: Mechanism) -> Sketch:
    """A belt that is gated, and one that is broken and feeds the gates (LSTM)."""
    f, i, new, gate, decay, gated, write, squash, out, read = m.moves
    top, row, high = 104.0, 32.0, 70.0
    cell = Cell(m, Sketch(), {f.belt: 0.0, decay.belt: top})
    sketch, x = cell.sketch, (58.0, 95.0, 134.0, 173.0)
    boxes = []
    for move, at in zip((f, i, new, gate), x, strict=True):
        boxes.append(box_with_curve(cell, move, at, row))
        dot(cell, at, 0)
        sketch.wire([(at, 0), (at, boxes[-1].bottom)], "state")
    joining(cell, ("x", "W"), 20, 0, 34)
    fade = sketch.sign(x[0], top, decay.kind, "decay")
    sketch.wire([(x[0], boxes[0].top), (x[0], fade.bottom)], "decay")
    product = sketch.sign(x[1], high, gated.kind, "text")
    sketch.wire([(x[1], boxes[1].top), (x[1], product.bottom)])
    sketch.wire([(x[2], boxes[2].top), (x[2], high), (product.right, high)])
    add = sketch.sign(x[1], top, write.kind, "value")
    sketch.wire([(x[1], product.top), (x[1], add.bottom)], "value")
    dot(cell, 213, top)
    held = box_with_curve(cell, squash, 213, high)
    sketch.wire([(213, top), (213, held.top)], "state")
    shown = sketch.sign(213, row, out.kind, "text")
    sketch.wire([(213, held.bottom), (213, shown.top)])
    sketch.wire([(boxes[3].right, row), (shown.left, row)])
    sketch.wire([(213, shown.bottom), (213, 2)], "state")
    cell.belt(f.belt, right=x[3] + 6, ends="left")
    cell.belt(f.belt, left=207, ends="right")
    cell.belt(decay.belt)
    dot(cell, 238, 0)
    sketch.bridge(238, top, 2)
    box = sketch.box(238, top + 28, typeset(read.label), "query")
    sketch.wire([(238, 0), (238, box.bottom)], zorder=3)
    leave(cell, box)
    return sketch


def common_scale(m: Mechanism) -> Sketch:
    """Sums known by their exponents: one belt holds the scale of the others (RWKV-4)."""
    seen, den, less, num, more, divide, shift, scale, fade, add, fade_top, add_top = m.moves
    middle, top = 112.0, 212.0
    cell = Cell(m, Sketch(), {seen.belt: 0.0, den.belt: middle, num.belt: top})
    sketch = cell.sketch
    bonus = tap(cell, seen, 40, 0, None)
    down = sketch.sign(34, middle + 24, less.kind, "text")
    up = sketch.sign(80, top + 24, more.kind, "text")
    ratio = sketch.sign(80, top + 48, divide.kind, "text")
    for x, y in ((34, middle), (80, top)):
        dot(cell, x, y)
    sketch.wire([(34, bonus.top), (34, middle - 3)], "query", zorder=3)
    sketch.wire([(34, 56), (80, 56), (80, top - 3)], "query", zorder=3)
    sketch.wire([(34, middle), (34, down.bottom)], zorder=3)
    sketch.wire([(80, top), (80, up.bottom)], zorder=3)
    sketch.wire([(80, up.top), (80, ratio.bottom)])
    sketch.wire([(34, down.top), (34, ratio.y), (ratio.left, ratio.y)], zorder=3)
    y = bonus.y
    sketch.wire([(bonus.right, y), (62, y), (62, down.y), (down.right, down.y)], "value", zorder=3)
    box = sketch.box(118, top - BENCH, typeset(more.label), "value")
    chip = sketch.chip(130, top - CHIPS, given(m, "v"))
    cell.join([(130, chip.top), (130, box.bottom)], given(m, "v"))
    sketch.wire([(62, y), (108, y), (108, box.bottom)], "value", zorder=3)
    sketch.wire([(118, box.top), (118, up.y), (up.right, up.y)], "value", zorder=3)
    on_belt(cell, shift, 122, 0)
    larger = sketch.box(202, 0, typeset(scale.label), "key")
    cell.feed(larger, scale.takes, -CHIPS + 14)
    for y, sign, new, gap in ((middle, fade, add, 0), (top, fade_top, add_top, 1)):
        marks = sketch.sign(168, y, sign.kind, "decay"), sketch.sign(226, y, new.kind, "value")
        low = [
            sketch.box(168, y - BENCH, typeset(sign.label), "decay"),
            sketch.box(226, y - BENCH, typeset(new.label), "value"),
        ]
        for mark, under in zip(marks, low, strict=True):
            sketch.wire(
                [(under.x, under.top), (under.x, mark.bottom)],
                "decay" if mark is marks[0] else "value",
            )
        side, turn = (194, 200), y - 54
        for at, end, ink in ((side[0], 168, "decay"), (side[1], 226 - 8 * gap, "value")):
            points = [(at, larger.top), (at, turn), (end, turn), (end, low[0].bottom)]
            sketch.wire(points, ink, zorder=3)
    chip = sketch.chip(240, top - CHIPS, given(m, "v"))
    cell.join([(240, chip.top), (240, low[1].bottom)], given(m, "v"))
    for x in (62, 80, 108, 194, 200):
        sketch.bridge(x, middle, 2)
    for x in (34, 118):
        sketch.bridge(x, top, 2)
    cell.belt(seen.belt, right=larger.left, ends="left")
    cell.belt(seen.belt, left=larger.right, ends="right")
    cell.belt(den.belt)
    cell.belt(num.belt)
    leave(cell, ratio)
    return sketch


def sketched(m: Mechanism) -> Sketch:
    """The cell of a mechanism, laid out by what its moves are."""
    fed_back = [move for move in m.moves if move.belt and move.kind in ("sigmoid", "tanh")]
    if any(move.kind == "weigh" for move in m.moves):
        return common_scale(m)
    if not fed_back:
        return conveyor(m)
    if len(fed_back) == 1:
        return folded(m)
    return two_tracks(m) if len(m.state) == 2 else with_gates(m)


# ---------------------------------------------------------------------------------- the pictures


def draw_cell(ax: Axes, sketch: Sketch, m: Mechanism, left: Number, top: Number) -> None:
    """A cell and its title, hanging from (left, top)."""
    word(ax, left + EDGE, top - 8, m.title, size=9, ha="left", weight="bold")
    sketch.draw(ax, left, top - TITLE - sketch.high)


def draw_one(m: Mechanism) -> Figure:
    """The figure of one cell."""
    sketch = sketched(m)
    height = TITLE + sketch.high - sketch.low + EDGE
    fig, ax = sheet(WIDTH / 72, height / 72)
    draw_cell(ax, sketch, m, 0, height - 2)
    return fig


def draw_all(mechanisms: Sequence[Mechanism]) -> Figure:
    """The figure of many cells, two in a row."""
    sketches = [sketched(m) for m in mechanisms]
    rows = [range(i, min(i + 2, len(sketches))) for i in range(0, len(sketches), 2)]
    tall = [max(sketches[i].high - sketches[i].low for i in row) + TITLE + 14 for row in rows]
    fig, ax = sheet(2 * WIDTH / 72, sum(tall) / 72)
    top = sum(tall)
    for row, height in zip(rows, tall, strict=True):
        for i in row:
            draw_cell(ax, sketches[i], mechanisms[i], WIDTH * (i % 2), top - 2)
        top -= height
    return fig


CAPTION = (
    "A token's inputs come from below, the output leaves at the top. On the belt: x fades, "
    "+ writes, - erases, a dot reads. Four lanes are a matrix, one is a vector. A gate with dots "
    "has a number for each lane. Dashed and square: the same for all tokens. The squares under a "
    "letter: one number a head, a vector, or a matrix."
)


def in_words(m: Mechanism) -> str:
    """What happens in a cell, as a sentence."""
    return f"One token in {m.title}: " + "; ".join(move.words for move in m.moves) + "."


def cell(mechanism: Mechanism) -> Picture:
    """Draw the recurrent cell of a mechanism: what one token does to its state, in order.

    Args:
        mechanism: of the registry, such as `lv.gla`.

    Returns:
        A Picture.

    Raises:
        ValueError: the mechanism has no moves.
    """
    check(mechanism)
    return Picture(
        partial(draw_one, mechanism), alt=in_words(mechanism), caption=CAPTION, vector=True
    )


def cells(mechanisms: Sequence[Mechanism]) -> Picture:
    """Draw the cells of many mechanisms side by side, in one style.

    Args:
        mechanisms: such as `lv.registry`.

    Returns:
        A Picture.

    Raises:
        ValueError: there is none, or one has no moves.
    """
    mechanisms = tuple(mechanisms)
    if not mechanisms:
        raise ValueError("mechanisms: wanted one or more, got none")
    for m in mechanisms:
        check(m)
    alt = "The recurrent cells of " + ", ".join(m.title for m in mechanisms) + "."
    return Picture(partial(draw_all, mechanisms), alt=alt, caption=CAPTION, vector=True)


def check(mechanism: Mechanism) -> None:
    """Refuse what has no moves."""
    if not mechanism.moves:
        raise ValueError(f"mechanism: lv.{mechanism.name} has no moves to draw")
