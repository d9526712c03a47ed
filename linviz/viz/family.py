"""The family tree of the mechanisms: which older one each of them contains, and when.

`generations` and `arranged` measure, from the registry's data alone; `family_tree` draws.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from linviz.mechanism import Mechanism
from linviz.viz.arguments import several
from linviz.viz.layered import APART, MARGIN, WIDTH, Arrangement, bundles
from linviz.viz.picture import Picture
from linviz.viz.shapes import arrow, box, sheet, word

MOST = 6  # edges in a row of cards, fewer if they get narrower than this:
NARROW = 66.0
LINE = 9.5  # points from line to line
SIZE, TITLE = 7.0, 8.5  # points of the small text and of a card's title
TITLE_LINE, KEY_LINE = 11.0, 15.0
INKS = ("text", "decay", "value", "state", "key", "query", "output")

Point = tuple[float, float]


@dataclass
class Card:
    """A mechanism's place: centre and size in points, and the x at which each edge leaves."""

    x: float
    y: float
    width: float
    height: float
    words: float  # height of the upper part, with a column of words for each edge
    ports: list[float]
    column: float  # from one column of words to the next

    @property
    def top(self) -> float:
        """The upper end."""
        return self.y + self.height / 2

    @property
    def bottom(self) -> float:
        """The lower end."""
        return self.y - self.height / 2


# ----------------------------------------------------------------------------------- measured


def generations(mechanisms: Sequence[Mechanism], most: int = MOST) -> list[list[str]]:
    """Sort mechanisms into rows, each below all the older ones that it contains.

    Args:
        mechanisms: with their edges; edges to others do not count.
        most: edges in a row; a mechanism without edges takes the place of one.

    Returns:
        Rows of names, the oldest first.

    Raises:
        ValueError: no mechanisms, or edges in a circle.
    """
    left = {m.name: m for m in sorted(mechanisms, key=lambda m: m.year)}
    if not left:
        raise ValueError("mechanisms: wanted one or more, got none")
    names, row, room = set(left), {}, {}
    while left:
        ready = [m for m in left.values() if not (set(older(m)) & names) - set(row)]
        if not ready:
            names = ", ".join(left)
            raise ValueError(f"mechanisms: wanted no circle of edges, got one among {names}")
        for m in ready:
            parents = [row[name] for name in older(m) if name in names]
            need = max(1, len(parents))
            at = max(parents, default=-1) + 1
            while room.get(at, 0) and room[at] + need > most:
                at += 1
            row[m.name], room[at] = at, room.get(at, 0) + need
            del left[m.name]
    return [[name for name in row if row[name] == at] for at in range(max(row.values()) + 1)]


def older(m: Mechanism) -> list[str]:
    """The older mechanisms that it contains."""
    return [edge.to for edge in m.edges]


@cache
def text_width(text: str, size: float = SIZE, weight: str = "normal") -> float:
    """Points that a text takes in our font."""
    font = FontProperties(family="DejaVu Sans", weight=weight)
    return float(
        TextPath((0, 0), text.replace("$", r"\$"), size=size, prop=font).get_extents().xmax
    )


def wrap(text: str, width: float, size: float = SIZE, weight: str = "normal") -> list[str]:
    """Cut a text into lines of at most that many points, between words but not in "a = b"."""
    bound = re.sub(r" ([=+-]) ", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text)
    lines = [""]
    for piece in bound.split(" "):
        longer = f"{lines[-1]} {piece}".strip()
        if lines[-1] and text_width(longer, size, weight) > width:
            lines.append(piece)
        else:
            lines[-1] = longer
    return lines


def words_of(m: Mechanism, plan: Arrangement) -> tuple[list[str], list[list[str]]]:
    """A card's title, and what is fixed for each edge, cut into lines."""
    when = {edge.to: edge.when for edge in m.edges}
    title = wrap(m.title, plan.width(m.name) - 6, TITLE, "bold")
    return title, [wrap(when[name], plan.unit - 6) for name in plan.edges[m.name]]


@dataclass
class Tree:
    """The family tree on its sheet, in points from its lower left corner.

    Attributes:
        cards: a place for each name.
        words: for each name, the lines of its title, and those of each edge.
        routes: (newer, older) -> points, from the newer card's top to the older one's bottom.
        height: of the sheet.
    """

    cards: dict[str, Card]
    words: dict[str, tuple[list[str], list[list[str]]]]
    routes: dict[tuple[str, str], list[Point]]
    height: float


def arranged(mechanisms: Sequence[Mechanism]) -> Tree:
    """Place the family tree on a sheet as wide as the book's column.

    Args:
        mechanisms: with their edges; edges to others are left out.
    """
    by_name = {m.name: m for m in mechanisms}
    edges = {m.name: [n for n in older(m) if n in by_name] for m in mechanisms}
    for most in (MOST, 5, 4, 3, 2):
        plan = Arrangement(generations(mechanisms, most), edges)
        if plan.unit >= NARROW:
            break
    plan.improve()
    words = {n: words_of(m, plan) for n, m in by_name.items()}
    cards, gaps, y = {}, [], 0.0
    for i, row in enumerate(plan.order):
        gap, ways = bundles(plan, i)
        gaps.append((y, ways))
        names = [n for n in row if isinstance(n, str)]
        lines = max(len(when) for n in names for when in (*words[n][1], []))
        titles = TITLE_LINE * (max(len(words[n][0]) for n in names) + 1) + 6
        for n in names:
            own = LINE * lines + 8 if edges[n] else 0.0
            y_middle = y - gap - (own + titles) / 2
            ports = [plan.port(n, old) for old in plan.edges[n]]
            cards[n] = Card(
                plan.x[n], y_middle, plan.width(n), own + titles, own, ports, plan.unit + APART
            )
        y = min([y - gap, *(cards[n].bottom for n in names)])
    routes = {pair: route(plan, cards, pair, gaps) for pair in plan.paths}
    height = 2 * MARGIN - y
    for card in cards.values():
        card.y += height - MARGIN
    routes = {p: [(x, y + height - MARGIN) for x, y in points] for p, points in routes.items()}
    return Tree(cards, words, routes, height)


def route(
    plan: Arrangement, cards: Mapping[str, Card], pair: tuple[str, str], gaps: Sequence[tuple]
) -> list[Point]:
    """The points of one edge."""
    new, old = pair
    row = next(i for i, nodes in enumerate(plan.order) if new in nodes)
    x = plan.port(new, old)
    points = [(x, cards[new].top)]
    for i, upper in enumerate([*plan.paths[pair], old]):
        y, ways = gaps[row - i]
        to, down = ways[upper]
        if abs(to - x) > 0.5:
            points += [(x, y - down), (to, y - down)]
        x = to
    return [*points, (x, cards[old].bottom)]


# -------------------------------------------------------------------------------------- drawn


def family_tree(mechanisms: Any) -> Picture:
    """Draw which older mechanisms each mechanism contains, and what must be fixed for that.

    An arrow goes from the newer mechanism to the older one; what is fixed stands where it leaves.
    All of it is the registry's data, and each edge is a test of linviz: both give equal outputs.

    Args:
        mechanisms: in any order, such as lv.registry.

    Returns:
        A Picture.

    Raises:
        ValueError: no mechanisms, or edges in a circle.
    """
    mechanisms = several(mechanisms)
    tree = arranged(mechanisms)
    names = dict.fromkeys(sorted((m.recurrence for m in mechanisms), key=bool))  # "" first
    inks = {group: INKS[(i + ("" not in names)) % len(INKS)] for i, group in enumerate(names)}
    own = {m.name: inks[m.recurrence] for m in mechanisms}
    key = key_lines(list(inks))

    def draw() -> Figure:
        below = KEY_LINE * len(key) + 4
        height = tree.height + below
        fig, ax = sheet(7.2, height / 72)
        ax.set_ylim(-below, tree.height)
        for m in mechanisms:
            draw_card(ax, tree.cards[m.name], *tree.words[m.name], m.year, own[m.name])
        for (new, _), points in tree.routes.items():
            arrow(ax, points, own[new], corner=5.0)
        for i, line in enumerate(key):
            for x, group, name in line:
                y = -KEY_LINE * (i + 0.5)
                if group is not None:
                    box(ax, x + 5, y, 10.0, 10.0, "", inks[group], share=0.22, corner=2.0)
                word(ax, x + 14 * (group is not None), y, name, size=SIZE + 0.5, ha="left")
        return fig

    shown = set(tree.cards)
    left_out = sorted({n for m in mechanisms for n in older(m)} - shown)
    said = "; ".join(f"{new} contains {old}" for new, old in tree.routes)
    return Picture(
        draw,
        alt=f"Family tree of {len(shown)} mechanisms with {len(tree.routes)} edges: {said}",
        caption="An arrow leads from a mechanism to one that it contains: with what stands at its "
        "foot fixed, both compute the same numbers.",
        note=f"Not shown: {', '.join(left_out)}." if left_out else "",
        vector=True,
    )


def draw_card(
    ax: Axes, card: Card, title: list[str], when: list[list[str]], year: int, ink: str
) -> None:
    """Draw a mechanism: its title and year, and above them a column of words for each edge."""
    if when:
        box(ax, card.x, card.y, card.width, card.height, "", ink, share=0.0, line=0.7)
    tall = card.height - card.words
    middle = card.bottom + tall / 2
    box(ax, card.x, middle, card.width, tall, "", ink, share=0.22)
    text = "\n".join(title)
    word(ax, card.x, middle + TITLE_LINE / 2, text, size=TITLE, weight="bold", linespacing=1.1)
    word(ax, card.x, middle - TITLE_LINE * len(title) / 2, str(year), size=7.5)
    for i, lines in enumerate(when):
        x = card.x + (i - (len(when) - 1) / 2) * card.column
        text = lettered("\n".join(lines))
        word(ax, x, card.top - card.words / 2, text, size=SIZE, linespacing=1.15)


def lettered(text: str) -> str:
    """Words with their letters as they stand in equations: gamma_h, e^k, dt."""
    text = re.sub(r"\b(gamma_h|gamma|beta)\b", r"$\\\1$", text)
    text = re.sub(r"\bdt\b", r"$\\Delta$", text)
    return re.sub(r"\be\^(\w)", r"$e^\1$", text)


def key_lines(groups: Sequence[str]) -> list[list[tuple[float, str | None, str]]]:
    """Place the names of the recurrences in lines: x, the recurrence, and its name."""
    start = "recurrence:"
    x = MARGIN + text_width(start, SIZE + 0.5) + 10
    lines = [[(MARGIN, None, start)]]
    for group in groups:
        name = group.replace("_", " ") or "its own"
        step = 23 + text_width(name, SIZE + 0.5)
        if x + step - 9 > WIDTH - MARGIN:
            x = MARGIN
            lines.append([])
        lines[-1].append((x, group, name))
        x += step
    return lines
