"""Cards in rows, joined by edges that go around them: the layout of the family tree.

Everything here is in points, and measured: nothing is drawn.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise, permutations

import numpy as np

from linviz.viz.matrices import Array

WIDTH, MARGIN = 518.0, 6.0  # points of the sheet, and left free at its sides
UNIT, APART = 77.0, 8.0  # most width of a card for each of its edges; between cards
LANE = 4.0  # width of an edge that passes a row
TRACK = 8.0  # between parallel arrows


def apart(wanted: Array, widths: Array) -> np.ndarray:
    """Centres as near to the wanted ones as can be, in this order, without overlap.

    Least squares: neighbours that would overlap are pooled.
    """
    half = np.asarray(widths) / 2
    offsets = np.cumsum(half + np.roll(half, 1) + APART) - half[0] - half[-1] - APART
    pools = []
    for goal in np.asarray(wanted) - offsets:
        pools.append([goal, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    free = np.concatenate([[goal] * n for goal, n in pools])
    low = MARGIN + half[0]
    high = max(low, WIDTH - MARGIN - half[-1] - offsets[-1])
    return np.clip(free, low, high) + offsets


class Arrangement:
    """Cards in rows and lanes for the edges that pass a row, moved until edges are short."""

    def __init__(self, rows: list[list[str]], edges: Mapping[str, Sequence[str]]):
        """Rows of names; name -> the older mechanisms, all of them in the rows."""
        self.edges = {name: list(olds) for name, olds in edges.items()}
        at = {name: i for i, row in enumerate(rows) for name in row}
        self.order: list[list] = [list(row) for row in rows]
        self.links = []  # (upper, lower, the edge's older end) of neighbouring rows
        self.paths = {}  # (newer, older) -> the lanes from the newer up
        for new, olds in edges.items():
            for old in olds:
                lanes = [(new, old, i) for i in range(at[new] - 1, at[old], -1)]
                for lane in lanes:
                    self.order[lane[2]].append(lane)
                self.paths[new, old] = lanes
                stops = pairwise([new, *lanes, old])
                self.links += [(upper, lower, old) for lower, upper in stops]
        nodes = [node for row in self.order for node in row]
        self.ups = {n: [(up, old) for up, low, old in self.links if low == n] for n in nodes}
        self.downs = {n: [(low, old) for up, low, old in self.links if up == n] for n in nodes}
        self.nudged = {}
        self.unit = min(UNIT, *(self.room(row) for row in self.order))
        self.x = {}
        for row in self.order:
            self.spread(row, np.linspace(0, WIDTH, 2 * len(row) + 1)[1::2])

    def room(self, row: list) -> float:
        """The width that there is in a row for each edge of its cards."""
        lanes = sum(isinstance(node, tuple) for node in row)
        units = sum(max(1, len(self.edges[n])) for n in row if isinstance(n, str))
        free = WIDTH - 2 * MARGIN - lanes * LANE - (lanes + units - 1) * APART
        return free / max(1, units)

    def width(self, node: object) -> float:
        """Of a card or of a lane."""
        if isinstance(node, tuple):
            return LANE
        n = max(1, len(self.edges[node]))
        return self.unit * n + APART * (n - 1)

    def port(self, node: object, old: str) -> float:
        """The x at which the edge to `old` leaves."""
        if isinstance(node, tuple):
            return self.x[node]
        olds = self.edges[node]
        column = (olds.index(old) - (len(olds) - 1) / 2) * (self.unit + APART)
        return self.x[node] + column + self.nudged.get((node, old), 0.0)

    def spread(self, row: list, wanted: Array) -> None:
        """Place a row as near as can be to where it wants to be."""
        if row:
            at = apart(wanted, [self.width(n) for n in row])
            self.x |= dict(zip(row, at.tolist(), strict=True))

    def goal(self, node: object, up: bool, down: bool) -> float:
        """Where a node's edges would be straight: the mean over those up and down."""
        goals = []
        if up:
            here = self.x[node]
            goals += [self.x[u] - self.port(node, old) + here for u, old in self.ups[node]]
        if down:
            goals += [self.port(low, old) for low, old in self.downs[node]]
        return sum(goals) / len(goals) if goals else self.x[node]

    def settle(self, rounds: int = 4) -> float:
        """Move the rows until the edges are short, and say how bad it is."""
        for up in (True, False) * rounds:
            for new, olds in self.edges.items():
                olds.sort(key=lambda old: self.x[[*self.paths[new, old], old][0]])
            for row in self.order if up else self.order[::-1]:
                self.spread(row, [self.goal(n, up, not up) for n in row])
        for row in self.order:
            self.spread(row, [self.goal(n, True, True) for n in row])
        ends = [(self.x[up], self.port(low, old), up, low) for up, low, old in self.links]
        row = {node: i for i, nodes in enumerate(self.order) for node in nodes}
        crossings = sum(
            (a[0] - b[0]) * (a[1] - b[1]) < 0
            for i, a in enumerate(ends)
            for b in ends[:i]
            if row[a[2]] == row[b[2]]
        )
        return 150.0 * crossings + sum(abs(a - b) for a, b, _, _ in ends)

    def improve(self) -> None:
        """Sort each row by where it wants to be, then swap neighbours as long as that helps."""
        best = (self.settle(), [list(row) for row in self.order])
        for up in (True, False, True, False):
            for row in self.order if up else self.order[::-1]:
                row.sort(key=lambda n: self.goal(n, up, not up))
                self.spread(row, [self.goal(n, up, not up) for n in row])
            best = min(best, (self.settle(), [list(row) for row in self.order]), key=lambda b: b[0])
        better = True
        while better:
            better = False
            for i, row in enumerate(best[1]):
                for j in range(len(row) - 1):
                    self.order = [list(r) for r in best[1]]
                    self.order[i][j : j + 2] = self.order[i][j : j + 2][::-1]
                    cost = self.settle(2)
                    if cost < best[0] - 1e-6:
                        best, better = (cost, self.order), True
        self.order = [list(row) for row in best[1]]
        self.settle()
        self.straighten()

    def straighten(self) -> None:
        """Take small kinks out of the edges that pass rows."""
        lanes = [link for link in self.links if isinstance(link[0], tuple)]
        for upper, lower, _ in lanes:
            if isinstance(lower, tuple) and abs(self.x[upper] - self.x[lower]) < 12:
                if self.fits(lower, self.x[upper]):
                    self.x[lower] = self.x[upper]
                elif self.fits(upper, self.x[lower]):
                    self.x[upper] = self.x[lower]
        for upper, lower, old in lanes:
            if isinstance(lower, str) and abs(self.x[upper] - self.port(lower, old)) < 12:
                self.nudged[lower, old] = self.x[upper] - self.port(lower, old)

    def fits(self, lane: tuple, x: float) -> bool:
        """Whether a lane at x would keep clear of the cards of its row."""
        row = next(row for row in self.order if lane in row)
        return all(abs(self.x[n] - x) >= self.width(n) / 2 + 6 for n in row if n != lane)


def tracks(groups: Sequence[tuple[float, Sequence[float]]]) -> list[int]:
    """Choose the height of each bundle of edges in the gap between two rows.

    Args:
        groups: for each, the x of the older end and those of the newer ends.

    Returns:
        A level for each, 0 the highest, so that few lines cross and none run into each other.
    """

    def faults(order: Sequence[int]) -> int:
        count = 0
        for i, above in enumerate(order):
            for below in order[i + 1 :]:
                (top, ends), (other, others) = groups[above], groups[below]
                low, high = min(other, *others), max(other, *others)
                count += sum(low <= x <= high for x in ends)
                count += min(top, *ends) <= other <= max(top, *ends)
                count += 10 * any(abs(x - other) < 3 for x in ends)
        return count

    few = range(len(groups))
    best = min(permutations(few), key=faults) if len(groups) <= 6 else few
    return [list(best).index(i) for i in few]


def anchor(middle: float, reach: float, own: Sequence[float], others: Sequence[float]) -> float:
    """Where edges arrive at a card: above one of their own ends, or near the middle.

    No edge of another card may leave below it.
    """
    near = sorted((x for x in own if abs(x - middle) < 14), key=lambda x: abs(x - middle))
    steps = (middle + sign * i for i in range(0, int(reach), 7) for sign in (1, -1))
    free = (x for x in (*near, *steps) if all(abs(x - other) >= 4 for other in others))
    return next(free, middle)


def bundles(plan: Arrangement, row: int) -> tuple[float, dict]:
    """The edges in the gap above a row, in bundles with one older end.

    Returns:
        The height of the gap, and for each older end its x and its distance from the gap's top.
    """
    ends: dict = {}
    for upper, lower, old in plan.links:
        if lower in plan.order[row]:
            ends.setdefault(upper, []).append(plan.port(lower, old))
    at = {}
    for upper, own in ends.items():
        others = [x for other, xs in ends.items() if other != upper for x in xs]
        card = isinstance(upper, str)
        reach = plan.width(upper) / 2 - 8
        at[upper] = anchor(plan.x[upper], reach, own, others) if card else plan.x[upper]
    bent = [u for u, own in ends.items() if max(abs(x - at[u]) for x in own) > 0.5]
    levels = dict(zip(bent, tracks([(at[u], ends[u]) for u in bent]), strict=True))
    gap = (24 + TRACK * max(0, len(bent) - 1)) if ends else 10.0 * (row > 0)
    return gap, {u: (x, 14 + TRACK * levels.get(u, 0)) for u, x in at.items()}
