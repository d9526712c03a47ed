"""Anatomy: the recurrent cell of a mechanism, drawn from its moves.

The state rides on a belt from left to right, S_{t-1} to S_t. What a token brings comes from below,
the output leaves at the top, and the signs on the belt stand in the order in which things happen:
x fades, + writes, - erases, a dot is a tap that reads. What else the looks say: linviz.viz.belts.

The layout (`conveyor`). Each move that needs a place of its own gets a column (`columns`), as wide
as its inputs. A move that changes the belt is a sign on it, its label a box under the belt, its
inputs under the box (`on_belt`). A move that takes from the belt is a dot on it, its label a box
above (`tap`). A move off the belts is stacked over what it works on (`stacked`); what goes past the
state crosses the belt on a bridge (`past`). A second belt runs over all that stands on the first
(`next_height`). A cell is as wide as half of the book's column, and as high as it gets.

RNN, LSTM and GRU, whose state feeds its own gates, and RWKV-4, a quotient of two belts, are placed
by hand.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from linviz.mechanism import Mechanism
from linviz.moves import ON_BELT, Exp, Made, Move
from linviz.viz.arguments import several
from linviz.viz.belts import (
    CHIP,
    DASHED,
    SIGN,
    SIZE,
    Box,
    Given,
    Sketch,
    chip_width,
    draw_belt,
    measured,
    thickness,
)
from linviz.viz.legend import ITEMS, strip
from linviz.viz.matrices import Number
from linviz.viz.picture import Picture
from linviz.viz.shapes import Point, sheet, word

WIDTH = 259.0  # points: half the width of the book's column
EDGE = 8.0  # from a cell's edge to its belts
TITLE = 20.0  # over a cell
BENCH, CHIPS = 30.0, 60.0  # from a belt down to its boxes and its inputs
LETTERS = {"dt": r"\Delta", "beta": r"\beta"}
BETWEEN = {"s": "$s_t$", "k_bar": r"$\bar k_t$", "seen": r"$\bar S_t$"}  # what moves hand on
TAKE = {"q": "query", "r": "query", "C": "query", "k": "key", "B": "key", "a": "key", "b": "key"}
KIND_INKS = {
    "decay": "decay",
    "erase": "key",
    "write": "value",
    "append": "value",
    "push": "key",
}
CAPTION = (
    "One token's work, from left to right. Its inputs come from below, the output leaves at the "
    "top. A solid edge: computed from this token. A dashed one: the same for all tokens."
)


# ---------------------------------------------------------------------------------- the pictures


def cell(mechanism: Any) -> Picture:
    """Draw the recurrent cell of a mechanism: what one token does to its state, in order.

    Args:
        mechanism: of the registry, such as `lv.gla`.

    Returns:
        A Picture; its caption says what is special about the mechanism, in the room's words.

    Raises:
        ValueError: the mechanism has no moves.
    """
    check(mechanism)
    caption = lesson(mechanism)
    return Picture(
        partial(draw_all, [mechanism]), alt=in_words(mechanism), caption=caption, vector=True
    )


def cells(mechanisms: Any) -> Picture:
    """Draw the cells of many mechanisms side by side, in one style.

    Args:
        mechanisms: such as `lv.registry`.

    Returns:
        A Picture.

    Raises:
        ValueError: there is none, or one has no moves.
    """
    mechanisms = several(mechanisms)
    if not mechanisms:
        raise ValueError("mechanisms: wanted one or more, got none")
    for m in mechanisms:
        check(m)
    alt = "The recurrent cells of " + ", ".join(m.title for m in mechanisms) + "."
    return Picture(partial(draw_all, mechanisms), alt=alt, caption=CAPTION, vector=True)


def check(mechanism: Any) -> None:
    """Refuse what has no moves."""
    (mechanism,) = several([mechanism])
    if not mechanism.moves:
        raise ValueError(f"mechanism: lv.{mechanism.name} has no moves to draw")


def in_words(m: Mechanism) -> str:
    """What happens in a cell, as a sentence."""
    return f"One token in {m.title}: " + "; ".join(move.words for move in m.moves) + "."


def lesson(m: Mechanism) -> str:
    """What is special about it: the first sentence of its room, and what that says of its cell."""
    first = m.doc.split("\n\n")[0]
    more = re.search(r"^In its cell: .*?(?=\n\n|\Z)", m.doc, re.S | re.M)
    return " ".join(f"{first} {more[0] if more else ''}".split())


def draw_all(mechanisms: Sequence[Mechanism]) -> Figure:
    """The figure of many cells, two in a row, with one legend."""
    sketches = [sketched(m) for m in mechanisms]
    rows = [range(i, min(i + 2, len(sketches))) for i in range(0, len(sketches), 2)]
    tall = [max(sketches[i].high - sketches[i].low for i in row) + TITLE + 14 for row in rows]
    width = WIDTH * min(len(sketches), 2)
    below, draw_legend = strip(set().union(*map(signs_of, mechanisms)), width)
    top = sum(tall) + below
    fig, ax = sheet(width / 72, top / 72)
    for row, height in zip(rows, tall, strict=True):
        for i in row:
            draw_cell(ax, sketches[i], mechanisms[i], WIDTH * (i % 2), top - 2)
        top -= height
    draw_legend(fig, EDGE)
    return fig


def signs_of(m: Mechanism) -> set:
    """What a cell needs in its legend: names of linviz.viz.legend.ITEMS."""
    things = inputs_of(m, [x.name for x in (*m.inputs, m.output)])
    names = {belt_kind(m, move.belt) for move in m.moves if move.belt}
    names |= {thing.cells for thing in things} | {f"ink {thing.ink}" for thing in things}
    names |= {"timed" if thing.timed else "fixed" for thing in things}
    read = {name: move.belt for move in m.moves if move.kind == "read" for name in move.gives}
    for move in m.moves:
        if move.kind == "decay":
            dots, fixed, _ = gate_shape(m, move)
            names |= {gate_sign(m, move), "fixed" if fixed else "timed", "ink decay"}
            names |= set() if move.sources else {(1, 4, 8)[dots]}
        elif move.kind == "score":
            names.add("read")
        elif move.belt and any(read.get(name) == move.belt for name in move.sources):
            names.add("erase" if move.kind == "erase" else "recall")
        elif move.kind != "multiply" or not boxed(m, move):
            names.add(move.kind)
    return names & set(ITEMS)


def gate_sign(m: Mechanism, move: Move) -> str:
    """How a decay looks in the legend."""
    dots, _, rotating = gate_shape(m, move)
    if belt_kind(m, move.belt) == "vector" or not dots:
        return "decay"
    return "turn" if rotating else ("lanes", "grid")[dots - 1]


def draw_cell(ax: Axes, sketch: Sketch, m: Mechanism, left: Number, top: Number) -> None:
    """A cell and its title, hanging from (left, top)."""
    word(ax, left + EDGE, top - 8, m.title, size=9, ha="left", weight="bold")
    sketch.draw(ax, left, top - TITLE - sketch.high)


def sketched(m: Mechanism) -> Sketch:
    """The cell of a mechanism, laid out by what its moves are."""
    fed_back = [move for move in m.moves if move.belt and move.kind in ("sigmoid", "tanh")]
    if {"skip", "divide"} <= {move.kind for move in m.moves}:
        return averaged(m)
    if not fed_back:
        return conveyor(m)
    if len(fed_back) == 1:
        return folded(m)
    return two_tracks(m) if len(m.state) == 2 else with_gates(m)


# ----------------------------------------------------------------------- what the data say


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
    if any(name in move.sources for move in m.moves if move.kind == "decay"):
        return "decay"
    return TAKE.get(name, "text")


def inputs_of(m: Mechanism, names: Sequence[str]) -> list[Given]:
    """Those of the names that are inputs."""
    return [x for x in (given(m, name) for name in names) if x]


def gate_shape(m: Mechanism, move: Move) -> tuple[int, bool, bool]:
    """Of a decay: the dots across and along the belt, whether it is fixed, whether it rotates."""
    axes = "".join(x.axes.replace(" ", "") for x in move.takes if isinstance(x, Made))
    dots = len(axes.translate(str.maketrans("", "", "bthg")))
    specs = [x for x in m.inputs if x.name in move.sources]
    made = all(isinstance(x, Made | Exp) for x in move.takes)
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


def typeset(latex: str) -> str:
    """LaTeX in matplotlib's dialect, with fractions set large enough to be read."""
    return latex and f"${latex}$".replace(r"\frac", r"\dfrac").replace(r"\le ", r"\leq ")


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
        things = inputs_of(self.m, names)
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
        options = {} if thing.timed else {"head": False, "dash": DASHED}
        self.sketch.wire(points, thing.ink, zorder=3, **options)


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
            continue
        source = next((cell.outs[n] for n in move.sources if n in cell.outs), None)
        owner = move.belt or cell.owners.get(move.sources[0], "")
        if move.belt:
            out = tap(cell, move, source.x if x is None else x, y, source)
        else:
            out = stacked(cell, move, x)
        cell.outs[move.gives[0]], cell.owners[move.gives[0]] = out, owner
        top = max(top, out.top)
    leave(cell, cell.outs[m.output.name])
    for name in cell.heights:
        cell.belt(name)
    return sketch


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


def slots(m: Mechanism, move: Move, registers: set[str]) -> Number:
    """The width of the inputs of a move, side by side."""
    widths = [chip_width(x) for x in inputs_of(m, move.sources)]
    widths += [8] * sum(name in registers for name in move.sources)
    return sum(widths) + 3 * max(len(widths) - 1, 0)


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
    inks = [x.ink for x in inputs_of(m, move.sources)]
    above = [n for n in move.sources if cell.owners.get(n) == move.belt]
    same = move.kind in ("append", "push") or inks == ["decay"]
    ink = "key" if above else inks[0] if same and inks else KIND_INKS[move.kind]
    dots, fixed, rotating = gate_shape(m, move) if move.kind == "decay" else (0, False, False)
    if belt_kind(m, move.belt) == "vector":
        dots = 0
    sign = sketch.sign(x, y, move.kind, ink, dots=dots, fixed=fixed, rotating=rotating)
    if move.kind == "append":
        cell.outs[f"append {move.belt}"] = sign
    if not move.label:
        cell.feed(sign, move.sources, y - BENCH - 4)
        return
    low, dash = sign.bottom - 4 * bool(dots), DASHED if fixed else "solid"
    if not move.sources:  # an option, drawn as an input that is the same for all tokens
        thing = Given(typeset(move.label), ink, (1, 4, 8)[dots], False)
        cell.join([(x, sketch.chip(x, y - BENCH, thing).top), (x, low)], thing)
        return
    wide, corner = slots(m, move, set(cell.outs)), 0 if fixed else 4
    box = sketch.box(x, y - BENCH, typeset(move.label), ink, wide=wide, dash=dash, corner=corner)
    sketch.wire([(x, box.top), (x, low)], ink, **({"head": False, "dash": dash} if fixed else {}))
    for name in above:  # what was found on this belt goes into the box below it
        source = cell.outs[name]
        side = max(source.right + 6, box.left + 6)
        sketch.bridge(side, y, thickness(belt_kind(m, move.belt)))
        sketch.wire([(source.right, source.y), (side, source.y), (side, box.top)], "key", zorder=3)
    cell.feed(box, [n for n in move.sources if n not in above], y - CHIPS)


def tap(cell: Cell, move: Move, x: Number, y: Number, source: Box | None) -> Box:
    """A move that takes from the belt: a dot on it, the label above."""
    m, sketch = cell.m, cell.sketch
    half = thickness(belt_kind(m, move.belt))
    sketch.tap(x, y)
    if source:
        sketch.wire([(x, source.top), (x, y - 3)], "text")
    else:
        cell.feed(Box(x, y, 6, 6), move.sources, y - CHIPS)
    keyed = {thing.ink for thing in inputs_of(m, move.sources)} == {"key"}
    ink = "key" if keyed else "query"
    box = sketch.stand(x, y + half + 18, typeset(move.label), ink)
    sketch.wire([(x, y + 2), (x, box.bottom)], "text")
    return box


def stacked(cell: Cell, move: Move, x: Number | None) -> Box:
    """A move off the belts, over what it works on."""
    m, sketch = cell.m, cell.sketch
    names = [n for n in move.sources if n in cell.outs]
    below = cell.outs[move.gives[0] if move.kind == "skip" else names[0]]
    if move.kind != "skip" and boxed(m, move):
        handed = [x for x in map(BETWEEN.get, names) if x and x.strip("$") in move.label]
        ink = "query" if move.over else "text"
        out = sketch.stand(below.x, below.top + 10 + 10 * len(handed), typeset(move.label), ink)
        for letter in handed:
            sketch.add(word, below.x + 4, out.bottom - 11, letter, size=SIZE, ha="left")
    else:
        out = sketch.sign(below.x, below.top + 10 + SIGN, move.kind, "text")
    sketch.wire([(below.x, below.top), (below.x, out.bottom)])
    if move.kind == "skip":
        past(cell, move, x, out)
        return out
    for name in names[1:]:
        source = cell.outs[name]
        cross(cell, source, out)
        sketch.wire([(source.x, source.top), (source.x, out.y), (out.right, out.y)])
    for thing in inputs_of(m, [n for n in move.sources if n not in cell.outs]):
        away = 14 + chip_width(thing) / 2
        if out.left - 2 * away > EDGE:
            chip = sketch.chip(out.left - away, out.y, thing)
            cell.join([(chip.right, out.y), (out.left, out.y)], thing)
        else:
            chip = sketch.chip(out.right + away, out.y, thing)
            cell.join([(chip.left, out.y), (out.right, out.y)], thing)
    return out


def boxed(m: Mechanism, move: Move) -> bool:
    """Whether the label stands in a box of its own, not at an input."""
    label = typeset(move.label)
    return bool(move.label) and all(x.text != label for x in inputs_of(m, move.sources))


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


def leave(cell: Cell, source: Box) -> None:
    """The output."""
    thing = given(cell.m, cell.m.output.name)
    chip = cell.sketch.chip(source.x, source.top + 14 + CHIP / 2, thing)
    cell.sketch.wire([(source.x, source.top), (source.x, chip.bottom)], "output")


# ------------------------------------------------------------------- placed by hand


def label_box(cell: Cell, move: Move, x: Number, y: Number, ink: str = "text") -> Box:
    """A box with a move's label."""
    return cell.sketch.box(x, y, typeset(move.label), ink)


def beside(cell: Cell, name: str, x: Number, y: Number, *ends: Point) -> Box:
    """An input at (x, y), with a line from there to the last of some points."""
    thing = given(cell.m, name)
    chip = cell.sketch.chip(x, y, thing)
    if ends:
        cell.join([(x, chip.top), *ends], thing)
    return chip


def folded(m: Mechanism) -> Sketch:
    """A belt that is broken: the whole state goes through the box (RNN)."""
    squash, read = m.moves
    cell = Cell(m, Sketch(), {squash.belt: 0.0})
    box = label_box(cell, squash, 105, 0)
    cell.feed(box, squash.takes, -CHIPS + 14)
    cell.belt(squash.belt, right=box.left, ends="left")
    cell.belt(squash.belt, left=box.right, ends="right")
    leave(cell, tap(cell, read, 205, 0, None))
    return cell.sketch


def with_gates(m: Mechanism) -> Sketch:
    """One belt whose old state goes into its own gates (GRU)."""
    z, r, n, decay, rest, multiply, write, read = m.moves
    cell = Cell(m, Sketch(), {z.belt: 0.0})
    sketch, bus = cell.sketch, -134.0
    keep, reset, new = (
        label_box(cell, move, x, y) for move, x, y in ((z, 60, -52), (r, 120, -88), (n, 202, -52))
    )
    sketch.tap(16, 0)
    W = beside(cell, "W", 32, bus)
    sketch.wire([(16, 0), (16, bus), (W.left, bus)], "state", head=False)
    mixed = sketch.sign(178, -88, "multiply", "text")
    for x, low in ((48, keep.bottom), (106, reset.bottom), (178, mixed.bottom)):
        sketch.wire([(W.right, bus), (x, bus), (x, low)], "state")
    sketch.wire([(reset.right, -88), (mixed.left, -88)])
    sketch.wire([(178, mixed.top), (178, new.bottom)])
    for x, y, box in ((74, -82, keep), (134, -118, reset), (222, -82, new)):
        beside(cell, "x", x, y, (x, box.bottom))
    fade = sketch.sign(60, 0, decay.kind, "decay")
    sketch.wire([(60, keep.top), (60, fade.bottom)], "decay")
    product = sketch.sign(202, -24, multiply.kind, "text")
    less = label_box(cell, rest, 131, -24)
    sketch.wire([(60, -24), (less.left, -24)])
    sketch.wire([(less.right, -24), (product.left, -24)])
    sketch.wire([(202, new.top), (202, product.bottom)])
    add = sketch.sign(202, 0, write.kind, "value")
    sketch.wire([(202, product.top), (202, add.bottom)], "value")
    cell.belt(z.belt)
    leave(cell, tap(cell, read, 228, 0, None))
    return sketch


def two_tracks(m: Mechanism) -> Sketch:
    """A belt that is gated, and a state that feeds the gates and is made anew (LSTM)."""
    f, i, new, gate, decay, gated, write, squash, out, read = m.moves
    top, high, row, bus, low = 92.0, 56.0, 18.0, -22.0, -50.0
    cell = Cell(m, Sketch(), {f.belt: 0.0, decay.belt: top})
    sketch, x, end, look = cell.sketch, (58.0, 94.0, 131.0, 169.0), 204.0, 230.0
    W = beside(cell, "W", 52, low)
    sketch.tap(30, 0)
    sketch.wire([(30, 0), (30, low), (W.left, low)], "state", head=False)
    total = sketch.sign(84, low, "skip", "text")
    sketch.wire([(W.right, low), (total.left, low)], "state")
    chip = sketch.chip(114, low, given(m, "x"))
    cell.join([(chip.left, low), (total.right, low)], given(m, "x"))
    boxes = [label_box(cell, move, at, row) for move, at in zip((f, i, new, gate), x, strict=True)]
    for box in boxes:
        sketch.wire([(84, total.top), (84, bus), (box.x, bus), (box.x, box.bottom)])
    fade = sketch.sign(x[0], top, decay.kind, "decay")
    sketch.wire([(x[0], boxes[0].top), (x[0], fade.bottom)], "decay")
    product = sketch.sign(x[1], high, gated.kind, "text")
    sketch.wire([(x[1], boxes[1].top), (x[1], product.bottom)])
    sketch.wire([(x[2], boxes[2].top), (x[2], high), (product.right, high)])
    add = sketch.sign(x[1], top, write.kind, "value")
    sketch.wire([(x[1], product.top), (x[1], add.bottom)], "value")
    sketch.tap(end, top)
    held = label_box(cell, squash, end, high)
    sketch.wire([(end, top), (end, held.top)], "state")
    shown = sketch.sign(end, row, out.kind, "text")
    sketch.wire([(end, held.bottom), (end, shown.top)])
    sketch.wire([(boxes[3].right, row), (shown.left, row)])
    sketch.wire([(end, shown.bottom), (end, 2)], "state")
    cell.belt(f.belt, right=30, ends="left")
    cell.belt(f.belt, left=end - 6, ends="right")
    cell.belt(decay.belt)
    sketch.tap(look, 0)
    sketch.bridge(look, top, 2)
    box = label_box(cell, read, look, top + 28, "query")
    sketch.wire([(look, 0), (look, box.bottom)], zorder=3)
    leave(cell, box)
    return sketch


def averaged(m: Mechanism) -> Sketch:
    """Two belts, a sum of values and a sum of weights, and their quotient (RWKV-4)."""
    names = list(dict.fromkeys(move.belt for move in m.moves if move.belt))
    cell = Cell(m, Sketch(), dict(zip(names, (0.0, 144.0), strict=True)))
    sketch, sums = cell.sketch, []
    for name, y, x, side in zip(names, cell.heights.values(), (30, 72), (76, 122), strict=True):
        own = [move for move in m.moves if move.belt == name]
        read, fade, write = own
        bonus = next(move for move in m.moves if move.kind == "skip" and move.gives == read.gives)
        seen = tap(cell, read, x, y, None)
        add = sketch.sign(x, seen.top + 10 + SIGN, "skip", "text")
        sketch.wire([(x, seen.top), (x, add.bottom)])
        box = label_box(cell, bonus, side, y - BENCH, "value")
        cell.feed(box, bonus.sources, y - CHIPS)
        sketch.bridge(side, y, 2)
        sketch.wire([(side, box.top), (side, add.y), (add.right, add.y)], "value", zorder=3)
        on_belt(cell, fade, 172, y)
        on_belt(cell, write, 220, y)
        sums.append(add)
    weights, values = sums
    ratio = sketch.sign(values.x, values.top + 12 + SIGN, "divide", "text")
    sketch.wire([(values.x, values.top), (values.x, ratio.bottom)])
    sketch.bridge(weights.x, cell.heights[names[1]], 2)
    turn = [(weights.x, weights.top), (weights.x, ratio.y), (ratio.left, ratio.y)]
    sketch.wire(turn, zorder=3)
    for name in names:
        cell.belt(name)
    leave(cell, ratio)
    return sketch
