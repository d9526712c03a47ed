"""Mechanisms back in the triangle: the lower-triangular matrices that stand for a whole sequence.

`relative_rows`, `decay_mask` and `block_ranks` measure; `triangle`, `triangles` and
`semiseparable` draw.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from linviz.mechanism import Mechanism, Trace
from linviz.viz.arguments import attention_rows, labels_at, several, whole, within
from linviz.viz.ink import INK
from linviz.viz.matrices import (
    Array,
    Number,
    array,
    color_bar,
    heat,
    limits,
    read,
    thin,
    thin_steps,
    ticks,
)
from linviz.viz.picture import Picture
from linviz.viz.shapes import SMALLEST
from linviz.viz.traced import takes_models

MOST = 256  # rows and columns shown


# ----------------------------------------------------------------------------------- measured


def relative_rows(A: Array) -> np.ndarray:
    """Divide each row by its largest magnitude.

    Rows of different mechanisms then mean the same: how strongly o_t takes up each value, against
    the one it takes up most. Most mechanisms normalise o_t right after, so that a row's own scale
    does not reach the next layer.

    Args:
        A: [t, s], weights.

    Returns:
        [t, s] between -1 and 1; a row of zeros stays.
    """
    A = array(A, "A", "t s")
    largest = np.abs(A).max(1, keepdims=True)
    return A / np.where(largest == 0, 1, largest)


def decay_mask(a: Array) -> np.ndarray:
    """The 1-semiseparable matrix of the gates: what is left at time t of what came with token s.

    L[t, s] = a_{s+1} a_{s+2} ... a_t for s <= t (1 on the diagonal), 0 for s > t; section 3 of Dao
    and Gu, arXiv:2405.21060.

    Args:
        a: [t], the gate of each time.

    Returns:
        [t, s], square.
    """
    a = array(a, "a", "t")
    L = np.eye(len(a))
    for t in range(1, len(a)):
        L[t, :t] = a[t] * L[t - 1, :t]
    return L


def block_ranks(matrix: Array, chunk: int) -> np.ndarray:
    """Measure the rank of each block of chunk x chunk, by singular values.

    Args:
        matrix: [t, s], square.
        chunk: rows and columns of a block; the last may be smaller.

    Returns:
        [n, m] whole numbers, one a block: how many singular values are more than rounding leaves,
        given the block's largest and the number type that came in.

    Raises:
        ValueError: not square, or a chunk that is not between 1 and its size.
    """
    kinds = {"float32": "float32", "float16": "float16", "bfloat16": "float16"}
    came = str(getattr(matrix, "dtype", "")).removeprefix("torch.")
    rounding = np.finfo(kinds.get(came, "float64")).eps
    x = square(matrix, "matrix")
    chunk = whole("chunk", chunk, len(x))
    starts = range(0, len(x), chunk)
    ranks = np.zeros((len(starts), len(starts)), int)
    for n, i in enumerate(starts):
        for m, j in enumerate(starts):
            s = np.linalg.svd(x[i : i + chunk, j : j + chunk], compute_uv=False)
            ranks[n, m] = (s > chunk * max(rounding * s[0], np.finfo(float).tiny)).sum()
    return ranks


def square(x: Array, name: str) -> np.ndarray:
    """A square matrix of finite numbers as numpy."""
    x = array(x, name, "t s")
    if x.shape[0] != x.shape[1]:
        raise ValueError(f"{name}: wanted a square matrix [t, t], got shape {list(x.shape)}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: wanted finite numbers, got NaN or infinity")
    return x


def causal(x: Array, name: str) -> np.ndarray:
    """A square matrix with zeros above its diagonal."""
    x = square(x, name)
    if np.triu(x, 1).any():
        t, s = np.argwhere(np.triu(x, 1))[0]
        raise ValueError(
            f"{name}: wanted a lower-triangular matrix, got {x[t, s]:g} at t={t}<s={s}"
        )
    return x


def shown(A: np.ndarray, most: int = MOST) -> tuple[np.ndarray, np.ndarray, str]:
    """A triangle thinned to what can be seen, its cells above the diagonal, and a note."""
    T = len(A)
    rows, columns = thin_steps(T, most), np.arange(0, T, -(-T // most))
    x, note = thin(A, (most, most))
    return x, columns[None] > rows[:, None], note


# -------------------------------------------------------------------------------------- drawn


@takes_models(brief=True)
def triangle(
    A: Array,
    *,
    head: int = 0,
    batch: int = 0,
    tokens: Sequence[str] | None = None,
    title: str = "",
    **options: Any,
) -> Picture:
    """Draw one mechanism as its lower-triangular matrix of weights: o_t = sum_s A[t, s] v_s.

    Args:
        A: [t, s]; or a Trace, whose effective attention is taken.
        head: of a trace, which head (or channel, where each has an attention of its own).
        batch: of a trace, which sequence.
        tokens: one label a token.
        title: stands over it; "" says the mechanism of a trace.
        **options: for `heat`: kind, vmax, log.

    Returns:
        A Picture: numbers above the diagonal do not exist and are hatched.

    Raises:
        ValueError: not a square, lower-triangular matrix, or not one label a token.
    """
    if isinstance(A, Trace):
        title = title or A.mechanism.title
        A = attention_rows(A, head, batch)
    A = causal(A, "A")
    x, mask, note = shown(A)
    labels = labels_at("tokens", tokens, len(A), thin_steps(len(A), MOST))
    options = {"kind": limits(x[~mask], options.get("kind"))[0]} | options

    def draw() -> Figure:
        fig, ax = plt.subplots(figsize=(7.2, 6.2), layout="constrained")
        heat(x, ax=ax, mask=mask, **options)
        ax.set(title=title, ylabel=f"time t ({len(A)})", xlabel=f"token s ({len(A)})")
        if labels is not None:
            ax.set_yticks(*ticks(labels, most=40))
            ax.set_xticks(*ticks(labels, most=40), rotation=90)
            ax.tick_params(length=0, labelsize=9 if len(labels) <= 24 else SMALLEST)
        return fig

    alt = f"Lower-triangular matrix of weights{': ' * bool(title)}{title}, {len(A)} x {len(A)}, "
    alt += f"from {A.min():.3g} to {A.max():.3g}"
    return Picture(
        draw,
        alt=alt,
        caption="Row t: the weight of each value in the output at time t. Hatched: not applicable.",
        note=note,
    )


def triangles(
    mechanisms: Any,
    *,
    T: int = 24,
    seed: int = 0,
    head: int = 0,
    columns: int = 6,
) -> Picture:
    """Draw many mechanisms as lower-triangular matrices, in one figure, on one scale.

    The scale is relative: each row is divided by its largest magnitude, see `relative_rows`, and
    the largest magnitude itself is written under each matrix. A raw scale would show the
    mechanisms that do not normalise, and hide the others.

    Args:
        mechanisms: name -> [t, s], all of one size, or None where there is no such matrix; or
            mechanisms, whose effective attention on their own example is taken.
        T: tokens of that example.
        seed: of that example.
        head: of that example, which head (or channel).
        columns: matrices in a row, at most 7.

    Returns:
        A Picture; hatched is what does not exist: above the diagonal, and where a mechanism is not
        linear in its values, all.

    Raises:
        ValueError: nothing to draw, sizes that differ, or a matrix that is not lower-triangular.
    """
    columns = whole("columns", columns, 7)
    if isinstance(mechanisms, Mapping):
        found = {name: (A, "no matrix") for name, A in mechanisms.items()}
    else:
        found = {m.title: example_map(m, whole("T", T), seed, head) for m in several(mechanisms)}
    maps = {n: A if A is None else causal(A, f"mechanisms[{n!r}]") for n, (A, _) in found.items()}
    sizes = {name: len(A) for name, A in maps.items() if A is not None}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"mechanisms: wanted one matrix or more, all of one size, got {sizes}")
    size = next(iter(sizes.values()))
    drawn = {n: shown(relative_rows(A), 64) for n, A in maps.items() if A is not None}
    *_, note = next(iter(drawn.values()))
    columns = min(columns, len(maps))
    lines = -(-len(maps) // columns)
    broad = 6.2 / columns  # inches of a matrix with its margin
    letters = int(72 * broad / 4.6)  # of a title at 8 points
    titles = {name: textwrap.fill(name, letters) for name in maps}
    tall = broad + 0.28 + 0.16 * max(title.count("\n") + 1 for title in titles.values())

    def draw() -> Figure:
        fig, axes = plt.subplots(
            lines,
            columns,
            figsize=(7.2, lines * tall + 0.4),
            layout="constrained",
            squeeze=False,
        )
        fig.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
        for ax, (name, A) in zip(axes.flat, maps.items(), strict=False):
            ax.set_title(titles[name], fontsize=8)
            ax.set_gid(name)
            if A is None:
                no_matrix(ax, found[name][1])
                continue
            x, mask, _ = drawn[name]
            heat(x, ax=ax, mask=mask, kind="signed", vmax=1.0, bar=False)
            ax.set(xticks=[], yticks=[], ylabel="")
            ax.set_xlabel(f"max |A| = {np.abs(A).max():.3g}", fontsize=SMALLEST + 0.5)
        for ax in axes.flat[len(maps) :]:
            ax.remove()
        color_bar([ax for ax in axes.flat[: len(maps)] if ax.images])
        fig.axes[-1].set_ylabel("weight / largest of its row")
        fig.supylabel(f"time t ({size})", fontsize=9)
        fig.supxlabel(f"token s ({size})", fontsize=9)
        return fig

    of = f"Head (or channel) {head} of each, on example inputs drawn with seed {seed}. "
    of = "" if isinstance(mechanisms, Mapping) else of
    without = [name for name, A in maps.items() if A is None]
    alt = f"{len(sizes)} mechanisms as lower-triangular matrices of weights ({size} x {size}), on "
    alt += "one scale from -1 to 1: " + ", ".join(sizes)
    alt += f"; without a matrix: {', '.join(without)}" if without else ""
    return Picture(
        draw,
        alt=alt,
        caption=f"{of}Each row is divided by its largest magnitude: 1 is the value that the output "
        "at time t takes up most, below 0 it is subtracted. Hatched: not applicable.",
        note=note,
    )


def example_map(m: Mechanism, T: int, seed: int, head: int) -> tuple[Any, str]:
    """The effective attention of one head on an example, or None and why there is none."""
    if not m.linear:
        return None, f"no matrix:\nnot linear in {m.value}"
    A = m.attention_map(*m.example(T, seed))[0]
    return A[within("head", head, len(A))], ""


def no_matrix(ax: Axes, why: str) -> None:
    """Hatch a whole square and say why it is empty."""
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[], yticks=[])
    ax.patch.set(facecolor=INK["mask"], edgecolor=INK["hatch"], hatch="////")
    ax.spines[:].set_visible(False)
    card = {"facecolor": INK["paper"], "edgecolor": "none", "pad": 2.5}
    ax.text(0.5, 0.5, why, ha="center", va="center", fontsize=SMALLEST + 0.5, bbox=card)


@takes_models()
def semiseparable(
    a: Array,
    *,
    head: int = 0,
    batch: int = 0,
    q: Array = None,
    k: Array = None,
    chunk: int | None = None,
) -> Picture:
    """Draw the 1-semiseparable matrix of the gates with the rank of each of its blocks.

    L[t, s] = a_{s+1} ... a_t, see `decay_mask`. Each block below the diagonal is a column times a
    row, and so of rank 1: all of the past comes to a chunk through one state.

    Args:
        a: [t], the gate of each time; or a Trace with such a gate.
        head: of a trace, which head.
        batch: of a trace, which sequence.
        q: [t, k], with `k`: draws the matrix of the whole mechanism too, L times q k^T entry by
            entry, whose blocks have at most as many ranks as there are key channels.
        k: [t, k].
        chunk: rows and columns of a block; None cuts into four.

    Returns:
        A Picture.

    Raises:
        ValueError: shapes that do not go together, or a chunk that is not between 1 and T.
    """
    a = read(a, "a", "t", part="a", head=head, batch=batch)
    T = len(a)
    if not np.isfinite(a).all():
        raise ValueError("a: wanted finite numbers, got NaN or infinity")
    chunk = whole("chunk", -(-T // 4) if chunk is None else chunk, T)
    L = decay_mask(a)
    matrices = {"L: the gates alone": L}
    if (q is None) != (k is None):
        raise ValueError("q, k: wanted both or neither, got one")
    if q is not None:
        q, k = read(q, "q", "t k"), read(k, "k", "t k")
        for name, x in (("q", q), ("k", k)):
            if x.shape != (T, k.shape[1]):
                raise ValueError(
                    f"{name}: wanted [t, k] = [{T}, {k.shape[1]}], got {list(x.shape)}"
                )
        matrices[f"L ⊙ q kᵀ: with {k.shape[1]} key channels"] = L * (q @ k.T)
    ranks = {name: block_ranks(x, chunk) for name, x in matrices.items()}
    drawn = {name: shown(x) for name, x in matrices.items()}
    step = -(-T // MOST)

    def draw() -> Figure:
        size = (5.4, 4.4) if len(drawn) == 1 else (7.2, 3.7)
        fig, axes = plt.subplots(1, len(drawn), figsize=size, layout="constrained", squeeze=False)
        for ax, (name, (x, mask, _)) in zip(axes.flat, drawn.items(), strict=True):
            heat(x, ax=ax, mask=mask, log=bool((x < 0).any()), bar=False)
            ax.set(title=name, ylabel=f"time t ({T})", xlabel=f"token s ({T})")
            outline_blocks(ax, ranks[name], chunk / step, T / step)
            ax.label_outer()
            color_bar([ax])
            if (x < 0).any():
                fig.axes[-1].set_ylabel("symmetric logarithm", fontsize=SMALLEST + 0.5)
            for tight in (ax, fig.axes[-1]):
                tight.tick_params(labelsize=SMALLEST + 0.5)
        return fig

    low = {name: np.tril(r, -1).max() for name, r in ranks.items()}
    alt = "; ".join(
        f"{n}, {T} x {T}: blocks below the diagonal of rank {r}" for n, r in low.items()
    )
    return Picture(
        draw,
        alt="Semiseparable matrices. " + alt,
        caption=f"Numbers: the rank of each block of {chunk} x {chunk}, measured by its singular "
        "values. Below the diagonal it is at most the number of key channels, 1 for the gates "
        "alone; on the diagonal the blocks are full. Hatched: not applicable.",
        note=next(iter(drawn.values()))[2],
    )


def outline_blocks(ax: Axes, ranks: np.ndarray, chunk: Number, T: Number) -> None:
    """Outline the blocks on and below the diagonal, and write their ranks where there is room."""
    room = 190 / len(ranks)  # points that a block takes, about
    card = {"facecolor": INK["paper"], "edgecolor": "none", "pad": 1.2, "alpha": 0.9}
    for n in range(len(ranks)):
        for m in range(n + 1):
            x, y = m * chunk - 0.5, n * chunk - 0.5
            wide, tall = min(chunk, T - 0.5 - x), min(chunk, T - 0.5 - y)
            ink = INK["text"] if n == m else INK["state"]
            box = Rectangle((x, y), wide, tall, fill=False, edgecolor=ink, zorder=4 - (n == m))
            box.set(linewidth=1.0 if n == m else 1.6, gid=f"block {n} {m}")
            ax.add_patch(box)
            if room >= 14 and min(wide, tall) >= chunk / 2:
                words = f"rank {ranks[n, m]}" if room >= 38 else f"{ranks[n, m]}"
                where = {"ha": "center", "va": "center", "zorder": 5, "fontsize": SMALLEST + 0.5}
                ax.text(x + wide / 2, y + tall / 2, words, bbox=card, color=INK["text"], **where)
