"""What linear attention saves, drawn to scale: the order of the products, and chunks.

`order_flops`, `order_crossover` and `chunk_work` measure; `product_order` and `chunk_tiling` draw.
All count two operations for a multiplication with its addition.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from linviz.viz.arguments import whole
from linviz.viz.ink import INK
from linviz.viz.matrices import Number
from linviz.viz.picture import Picture
from linviz.viz.shapes import arrow, box, sheet, tint, word

# ----------------------------------------------------------------------------------- measured


def order_flops(L: int, d: int, *, causal: bool = False) -> tuple[int, int]:
    """Count the operations of Q K^T V in both orders of the products.

    Section 3.2 of Katharopoulos et al., arXiv:2006.16236; two a multiplication with its addition.

    Args:
        L: tokens.
        d: channels of Q, K and V.
        causal: a token takes up only itself and what came before. Then (Q K^T) V needs the
            L (L + 1) / 2 weights on and below the diagonal, and K^T V grows token by token.

    Returns:
        (Q K^T) V and Q (K^T V): 4 L L d (causal: 2 L (L + 1) d) and 4 L d d.
    """
    L, d = whole("L", L), whole("d", d)
    weights = L * (L + 1) // 2 if causal else L * L
    return 4 * weights * d, 4 * L * d * d


def order_crossover(d: int, *, causal: bool = False) -> int:
    """The length at which both orders of the products take the same operations.

    Args:
        d: channels of Q, K and V.
        causal: see `order_flops`.

    Returns:
        d tokens; causal: 2 d - 1.
    """
    d = whole("d", d)
    return 2 * d - 1 if causal else d


def chunk_sizes(T: int, chunk: int) -> np.ndarray:
    """Tokens in each chunk: all of `chunk`, but the last, which has what is left."""
    T, chunk = whole("T", T), whole("chunk", chunk)
    return np.diff([*range(0, T, chunk), T])


def chunk_work(T: int, chunk: int, d: int = 16) -> dict[str, int]:
    """Count the operations of each part of the chunked form, from an empty state.

    Args:
        T: tokens.
        chunk: tokens a chunk; 1 is the recurrence, T or more is one matrix.
        d: channels of q, k and v.

    Returns:
        "within": the weights on and below the diagonal inside chunks, and their use: 4 d each;
        "read": q S, 2 d d for each token but the first chunk's, which finds an empty state;
        "write": k^T v added to the state, 2 d d for each token. The gates are not counted.
    """
    sizes, d = chunk_sizes(T, chunk), whole("d", d)
    pairs = int((sizes * (sizes + 1) // 2).sum())
    return {
        "within": 4 * d * pairs,
        "read": 2 * d * d * int(T - sizes[0]),
        "write": 2 * d * d * int(T),
    }


def count_text(n: Number) -> str:
    """A number of things in three digits: 1536 is "1.54 k"."""
    for power, letter in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if n >= 0.9995 * 10**power:
            return f"{n / 10**power:.3g} {letter}"
    return f"{n:.3g}"


# -------------------------------------------------------------------------- order of products


def product_order(L: int = 1024, d: int = 64, *, causal: bool = False) -> Picture:
    """Draw both orders of the products Q K^T V to scale: L x L weights, or a d x d state.

    Args:
        L: tokens.
        d: channels of Q, K and V.
        causal: count the operations of the causal case, see `order_flops`.

    Returns:
        A Picture. The products are those of attention without softmax; with it, only the first
        order is possible.
    """
    flops, meet = order_flops(L, d, causal=causal), order_crossover(d, causal=causal)
    sizes = {"L": L, "d": d}
    scale = min(150 / max(L, d), 365 / (2 * L + 3 * d), 300 / (L + 5 * d))  # points a number
    side = max(L, d) * scale
    q, kt, v = ("Q", "L", "d", "query"), ("Kᵀ", "d", "L", "key"), ("V", "L", "d", "value")
    a, s, o = ("A", "L", "L", "text"), ("S", "d", "d", "state"), ("O", "L", "d", "output")
    rows = (
        ("(Q Kᵀ) V", f"weights first: {L:,} × {L:,} numbers in between", [[q, kt, a, v, o]]),
        ("Q (Kᵀ V)", f"state first: {d:,} × {d:,} numbers in between", [[kt, v, s], [q, s, o]]),
    )

    def draw() -> Figure:
        step = side + 68
        height = 2 * step + 84
        fig, ax = sheet(7.2, height / 72)
        for i, (formula, what, chains) in enumerate(rows):
            y, x = height - 16 - i * step, 18.0
            word(ax, 14.0, y, formula, size=10.0, ha="left", weight="bold")
            word(ax, 84.0, y, what, size=8.5, ha="left")
            for chain in chains:
                x = products(ax, x, y - 26 - side / 2, scale, chain, sizes) + 52
        word(ax, 14.0, 66.0, f"operations{' (causal)' * causal}", size=8.5, ha="left")
        for i, ((formula, _, _), n) in enumerate(zip(rows, flops, strict=True)):
            y, width = 48.0 - 16 * i, 340 * n / max(flops)
            word(ax, 14.0, y, formula, ha="left")
            bar(ax, 84.0, y, width, ("text", "state")[i], f"operations {i}")
            word(ax, 89 + width, y, count_text(n), ha="left")
        equal = f"Equal at L = {meet:,}; beyond it, the state first is cheaper."
        word(ax, 14.0, 11, equal, ha="left")
        return fig

    alt = (
        f"Two orders of the same products, to scale. (Q K^T) V, through {L} x {L} weights, takes "
        f"{count_text(flops[0])} operations; Q (K^T V), through a {d} x {d} state, "
        f"{count_text(flops[1])}. They are equal at {meet} tokens"
    )
    return Picture(
        draw,
        alt=alt,
        caption=f"Drawn to scale: L = {L:,} tokens, d = {d:,} channels. Without softmax and "
        "without a mask both orders give the same output; with the causal mask the state is built "
        "token by token or chunk by chunk. A multiplication with its addition counts as two "
        "operations.",
        vector=True,
    )


def products(
    ax: Axes, x: float, y: float, scale: float, chain: list[tuple], sizes: dict[str, int]
) -> float:
    """Draw matrices (name, rows, columns, ink) in a row, to scale, and return where they end.

    The third and the fifth are results: an arrow leads to them.
    """
    for i, (name, rows, columns, ink) in enumerate(chain):
        wide, tall = sizes[columns] * scale, sizes[rows] * scale
        if i:
            word(ax, x + 14, y, "→" if i in (2, 4) else "·", size=12.0)
            x += 28
        block(ax, x, y - tall / 2, wide, tall, ink, f"{name} {i}")
        word(ax, x + wide / 2, y + tall / 2 + 8, name, size=9.0)
        word(ax, x + wide / 2, y - tall / 2 - 8, f"{rows} × {columns}", size=7.0)
        x += wide
    return x


def block(
    ax: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    ink: str,
    name: str,
    line: float = 0.8,
) -> Rectangle:
    """A rectangle with its lower left corner at (x, y), exact in size: no rounded corners."""
    patch = Rectangle((x, y), width, height, linewidth=line, gid=name)
    patch.set(facecolor=tint(ink, 0.35), edgecolor=INK[ink])
    return ax.add_patch(patch)


def bar(ax: Axes, x: float, y: float, width: float, ink: str, name: str) -> Rectangle:
    """A bar of that width from x on, centred on y."""
    patch = Rectangle((x, y - 5), width, 10, facecolor=INK[ink], linewidth=0, gid=name)
    return ax.add_patch(patch)


# ------------------------------------------------------------------------------------- chunks

MOST_CHUNKS = 128  # that are drawn

PARTS = {  # of the work: the ink, the formula, the words
    "within": ("output", "A v", "inside a chunk, as one matrix"),
    "read": ("query", "q S", "the past, read from the state"),
    "write": ("key", "kᵀ v", "the chunk, written to the state"),
}


def chunk_tiling(T: int = 32, chunk: int = 8, *, d: int = 16) -> Picture:
    """Draw the chunked form as a tiling of the triangle of weights, and count its work.

    Blocks on the diagonal are computed as matrices, all at once. What is below them is never
    computed: the state S, handed on from chunk to chunk, stands for it. chunk = 1 is the
    recurrence, chunk = T one matrix.

    Args:
        T: tokens.
        chunk: tokens a chunk; the last may be shorter.
        d: channels of q, k and v, for the count of the work, see `chunk_work`.

    Returns:
        A Picture.
    """
    chunk = min(whole("chunk", chunk), whole("T", T))
    if -(-T // chunk) > MOST_CHUNKS:
        raise ValueError(f"chunk: wanted {MOST_CHUNKS} chunks or fewer to draw, got {T} / {chunk}")
    work = {n: chunk_work(T, n, d) for n in sorted({1, chunk, T})}

    def draw() -> Figure:
        fig, ax = sheet(7.2, 4.3)
        tiles(ax, (30.0, 32.0), 248.0, chunk_sizes(T, chunk))
        word(ax, 154.0, 12.0, f"token s ({T})")
        word(ax, 14.0, 156.0, f"time t ({T}), in chunks of {chunk}", rotation=90)
        legend(ax, 346.0, 284.0)
        work_bars(ax, 346.0, 160.0, work, T, chunk, d)
        return fig

    total = sum(work[chunk].values())
    alt = (
        f"The {T} x {T} triangle of weights in chunks of {chunk}: {len(chunk_sizes(T, chunk))} "
        f"blocks on the diagonal; below them a state handed on from chunk to chunk. With {d} "
        f"channels: {count_text(total)} operations"
    )
    return Picture(
        draw,
        alt=alt,
        caption="Only the blocks on the diagonal are computed as weights; everything below them "
        "reaches a chunk through the state S. Longer chunks take more weights, but products of "
        "matrices keep the hardware busy, and fewer steps wait for each other: that is why one "
        "chunks. Hatched: not applicable. Gates are not counted.",
        vector=True,
    )


def tiles(ax: Axes, corner: tuple[float, float], side: float, sizes: np.ndarray) -> None:
    """Draw the triangle with its blocks and the chain of states, its lower left at `corner`."""
    left, low = corner
    sizes = [int(n) for n in sizes]
    unit = side / sum(sizes)
    ground = {"facecolor": INK["mask"], "edgecolor": INK["hatch"], "hatch": "////"}
    ax.add_patch(Rectangle(corner, side, side, linewidth=0, zorder=0, **ground))
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    size = float(unit * sizes[0])  # points of a whole block
    state = float(np.clip(0.42 * size, 3, 26))  # side of a state's box
    fine = size < 12  # no room for boxes and arrows: the states are one line
    path = []
    for n, (start, length) in enumerate(zip(starts, sizes, strict=True)):
        x, top, tall = left + start * unit, low + side - start * unit, length * unit
        last = n == len(sizes) - 1
        if start:
            block(ax, left, top - tall, start * unit, tall, "query", f"read {n}", 0.8 - 0.6 * fine)
            if tall >= 12 and start * unit >= 30:
                word(ax, left + start * unit / 2, top - tall / 2, f"$q\\,{state_name(n)}$")
        staircase(ax, x, top, unit, int(length), f"within {n}")
        if tall >= 40:
            word(ax, x + 0.32 * tall, top - 0.76 * tall, "A v")
        after = left + side + 32 if last else x + tall + sizes[n + 1] * unit / 2
        path.append((after, top - 0.5 * tall))
        if fine:
            continue
        hand_on(ax, (x + tall / 2 + unit / 2, top - 0.5 * tall), path[-2:], state, n + 1)
        if not last:
            to = (x + tall - 0.1 * size, top - tall - 0.1 * size)
            start_at = (path[-1][0] - state / 2, path[-1][1] - state / 2)
            arrow(ax, [start_at, to], "query", corner=5.0, zorder=4.0)
    if fine:
        arrow(ax, path, "state", line=1.5, corner=0.0, zorder=4.0)
    (x, y), below = path[-1], 4 if fine else state / 2
    word(ax, x, y - below - 11, "to the next\nchunk", size=7.5)


def hand_on(
    ax: Axes,
    written: tuple[float, float],
    path: Sequence[tuple[float, float]],
    side: float,
    n: int,
) -> None:
    """Draw the state at the end of its path: what is written to it, and what it goes on from."""
    x, y = path[-1]
    box(ax, x, y, side, side, f"${state_name(n)}$" if side >= 20 else "", "state", size=9.0)
    arrow(ax, [written, (x - side / 2, y)], "key", corner=5.0, zorder=4.0)
    if len(path) > 1:
        (old_x, old_y), half = path[0], side / 2
        bend = [(old_x + half, old_y), (x, old_y), (x, y + half)]
        arrow(ax, bend, "state", corner=5.0, zorder=4.0)


def staircase(ax: Axes, x: float, top: float, unit: float, n: int, name: str) -> Polygon:
    """The cells on and below the diagonal of an n x n block whose upper left is (x, top)."""
    steps = [(x, top)]
    for i in range(n):
        right = x + (i + 1) * unit
        steps += [(right, top - i * unit), (right, top - (i + 1) * unit)]
    steps.append((x, top - n * unit))
    fill, edge = tint("output", 0.45), INK["output"]
    patch = Polygon(steps, facecolor=fill, edgecolor=edge, linewidth=0.8, zorder=2, gid=name)
    return ax.add_patch(patch)


def state_name(n: int) -> str:
    """The state after chunk n, in LaTeX."""
    return rf"S_{{[{n}]}}"


def legend(ax: Axes, x: float, y: float) -> None:
    """Say what each part computes, from (x, y) down."""
    for i, (ink, formula, words) in enumerate(PARTS.values()):
        at = y - 26 * i
        block(ax, x, at - 6, 12.0, 12.0, ink, "legend")
        word(ax, x + 20, at + 5, formula, size=8.5, ha="left", weight="bold")
        word(ax, x + 20, at - 6, words, size=7.5, ha="left")
    block(ax, x, y - 84, 12.0, 12.0, "state", "legend")
    word(ax, x + 20, y - 73, "S", size=8.5, ha="left", weight="bold")
    word(ax, x + 20, y - 84, "the state after a chunk, handed on", size=7.5, ha="left")


def work_bars(
    ax: Axes, x: float, y: float, work: dict[int, dict[str, int]], T: int, chunk: int, d: int
) -> None:
    """Draw the work of each length of chunk as a stacked bar, all on one scale."""
    word(ax, x, y, f"operations of these parts, {d} channels", size=8.5, ha="left")
    most = max(sum(parts.values()) for parts in work.values())
    for i, (n, parts) in enumerate(work.items()):
        at, begin = y - 20 - 44 * i, x
        steps, name = -(-T // n), {1: ": recurrence", T: ": one matrix"}.get(n, "")
        waiting = f"{steps} steps that wait for each other" if steps > 1 else "1 step"
        word(ax, x, at, f"chunk {n}{name}", ha="left", weight="bold" if n == chunk else "normal")
        for part, count in parts.items():
            width = 118 * count / most
            bar(ax, begin, at - 13, width, PARTS[part][0], f"{part} {n}")
            begin += width
        word(ax, begin + 4, at - 13, count_text(sum(parts.values())), ha="left")
        word(ax, x, at - 25, waiting, size=7.5, ha="left")
