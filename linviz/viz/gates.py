"""Gates: which shares of them are open, closed, or extreme.

A gate a in [0, 1] says how much stays. Most of what matters happens close to 0 and close to 1, so
gates are seen on a scale with two ends: `two_sided`.
"""

from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from linviz.mechanism import Trace
from linviz.viz.arguments import numbers, within
from linviz.viz.ink import INK
from linviz.viz.magnitudes import finite
from linviz.viz.matrices import AXES, Array, Number, array, heat
from linviz.viz.picture import Picture
from linviz.viz.traced import takes_models

MOST_ROWS = 64  # rows of gate histograms; more are pooled


def check_gates(a: Array, letters: str, log: bool) -> np.ndarray:
    """Check that all of `a` are gates in [0, 1], or logarithms of gates."""
    a = array(a, "a", letters).astype(float)
    high, wanted = (0.0, "log gates of at most 0") if log else (1.0, "gates in [0, 1]")
    wrong = ~((a <= high) & ((a >= 0) | log))
    if wrong.any():
        hint = "" if log or not (a <= 0).all() else "; log=True takes logarithms of gates"
        raise ValueError(f"a: wanted {wanted}, got {a[wrong][0]:.4g}{hint}")
    return a


def two_sided(a: Array, *, log: bool = False) -> np.ndarray:
    """Map gates to a scale that shows both ends: one unit a factor of ten nearer to 0 or to 1.

    Args:
        a: [n], gates in [0, 1].
        log: `a` holds natural logarithms of gates, which tell gates near 1 apart that are 1 in
            floating point.

    Returns:
        [n]: log10(2 a) up to a = 0.5, and -log10(2 (1 - a)) from there: 0 in the middle, the
        negative for 1 - a, infinite for exactly 0 or 1.
    """
    a = check_gates(a, "n", log)
    with np.errstate(divide="ignore"):
        low = a / np.log(10) if log else np.log10(a)
        high = np.log10(-np.expm1(a)) if log else np.log10(1 - a)
    half = np.log10(2)
    return np.where(a <= (np.log(0.5) if log else 0.5), low + half, -high - half)


def gate_shares(
    a: Array, *, log: bool = False, depth: Number = 8, bins: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """Count gates on the two-sided scale, exact 0 and exact 1 apart.

    Args:
        a: [t, n], gates in [0, 1] of n heads or channels.
        log: `a` holds natural logarithms of gates.
        depth: the scale goes from 10^-depth to 1 - 10^-depth; the outermost bins also hold what
            lies beyond.
        bins: on each side.

    Returns:
        The edges [2 bins + 1] on the scale of `two_sided`, and shares [n, 2 bins + 2] of the t
        gates: exactly 0, then each bin from small gates to large ones, then exactly 1.
    """
    if depth < 1 or bins < 1:
        raise ValueError(f"depth, bins: wanted 1 or more, got {depth}, {bins}")
    a = check_gates(a, "t n", log)
    T, n = a.shape
    u = two_sided(a.ravel(), log=log)
    end = depth - np.log10(2)
    edges = np.linspace(-end, end, 2 * bins + 1)
    which = np.searchsorted(edges, np.clip(u, -end, end), side="right").clip(1, 2 * bins)
    which[u == -np.inf], which[u == np.inf] = 0, 2 * bins + 1
    wide = 2 * bins + 2
    counts = np.bincount(which + np.tile(np.arange(n) * wide, T), minlength=n * wide)
    return edges, counts.reshape(n, wide) / T


def gate_extremes(a: Array, *, extreme: Number = 0.01, log: bool = False) -> np.ndarray:
    """Measure which share of the gates is extreme.

    Args:
        a: [t, n], gates in [0, 1] of n heads or channels.
        extreme: a gate nearer than this to 0 or 1 is extreme.
        log: `a` holds natural logarithms of gates.

    Returns:
        [n, 4]: the shares of the t gates that are exactly 0, below `extreme` (with those at 0),
        above 1 - `extreme` (with those at 1), and exactly 1.
    """
    if not 0 < extreme < 0.5:
        raise ValueError(f"extreme: wanted a number between 0 and 0.5, got {extreme}")
    a = check_gates(a, "t n", log)
    low, high = (np.exp(a), -np.expm1(a)) if log else (a, 1 - a)
    zero = np.isneginf(a) if log else a == 0
    tests = (zero, low < extreme, high < extreme, high == 0)
    return np.stack([test.mean(0) for test in tests], axis=1)


# -------------------------------------------------------------------------------------------- gates


@takes_models()
def gate_histogram(
    a: Array,
    *,
    part: str | None = None,
    head: int | None = None,
    batch: int = 0,
    log: bool = False,
    extreme: Number = 0.01,
    depth: Number | None = None,
    bins: int = 16,
) -> Picture:
    """Draw how gates spread over [0, 1], with both ends stretched so that extreme gates are seen.

    Towards 0 and towards 1 each step is a factor of ten; gates that are exactly 0 or 1 stand in
    columns of their own. Above, all gates; below, a row for each head or channel.

    Args:
        a: [t], [t, n] with a row for each of n heads or channels, or [t, n, m] whose m gates share
            a row; or a Trace.
        part: of a trace, the gate to take; None takes "a".
        head: of a trace, which head, with a row for each of its channels; None gives a row for
            each head.
        batch: of a trace, which sequence.
        log: `a` holds natural logarithms of gates.
        extreme: gates nearer than this to 0 or 1 are counted as extreme.
        depth: the axis goes from 10^-depth to 1 - 10^-depth; None takes what the gates need, from
            3 to 8.
        bins: columns on each side.

    Returns:
        A Picture.
    """
    name, axis = part or "a", "head or channel"
    if isinstance(a, Trace):
        a, axis = _gates_of(a, part, head, batch, log)
    y = numbers(a, "a", "t", "t n", "t n m")
    y = y.reshape(len(y), -1, y.shape[2] if y.ndim == 3 else 1)
    n = y.shape[1]
    y = check_gates(y.swapaxes(1, 2).reshape(-1, n), "t n", log)
    if depth is None:
        reach = np.abs(finite(two_sided(y.ravel(), log=log))).max(initial=0) + np.log10(2)
        depth = int(np.clip(np.ceil(reach), 3, 8))
    shares = gate_shares(y, log=log, depth=depth, bins=bins)[1]
    ends = gate_extremes(y, extreme=extreme, log=log).mean(0)
    rows, note = _pooled(shares, MOST_ROWS, axis)
    what = f"gate e^{name}" if log else f"gate {name}"
    caption = (
        f"{len(y) * n} gates: {ends[0]:.2%} exactly 0, {ends[1]:.2%} below {extreme:g}, "
        f"{ends[2]:.2%} above {1 - extreme:g}, {ends[3]:.2%} exactly 1. "
        "Each step outwards is a factor of ten nearer to 0 or to 1; the outermost columns are "
        f"exactly 0 and exactly 1, beside them is what lies beyond 1e-{depth:g}."
    )
    draw = partial(_gate_axes, shares.mean(0), rows, depth, bins, axis, n, what)
    return Picture(draw, alt=f"Histogram of {what}. {caption}", caption=caption, note=note)


def _gates_of(
    tr: Trace, part: str | None, head: int | None, batch: int, log: bool
) -> tuple[np.ndarray, str]:
    """The gates of a trace as [t, n, m], and what the n are."""
    name = part or "a"
    known = [key for key in tr if "t" in tr.letters(key).split() and _is_gate(tr[key], log)]
    if name not in known:
        wanted = "log gates of at most 0" if log else "gates in [0, 1]"
        some = f"one of {', '.join(known)}" if known else f"of which {tr.mechanism.name} has none"
        raise ValueError(f"part: wanted {wanted} that depend on time, {some}, got {name!r}")
    axes = tr.letters(name).split()
    batch = within("batch", batch, tr.sizes["B"])
    own = slice(None) if head is None else within("head", head, tr.sizes.get("H", 1))
    keep = {"b": batch, "h": own}
    y = tr[name][tuple(keep.get(x, slice(None)) for x in axes)].detach().cpu().double().numpy()
    left = [x for x in axes if x != "b" and (x != "h" or head is None)]
    y = np.moveaxis(y, left.index("t"), 0)
    left.remove("t")
    y = y.reshape(len(y), y.shape[1] if left else 1, -1)
    return y, AXES.get(left[0], f"channel {left[0]}") if left else "gate"


def _is_gate(x: Any, log: bool) -> bool:
    """Whether all numbers are gates in [0, 1], or with `log` logarithms of some."""
    if x.is_complex() or not x.numel():
        return False
    return bool((x <= 0).all()) if log else bool(((x >= 0) & (x <= 1)).all())


def _pooled(x: np.ndarray, most: int, axis: str) -> tuple[np.ndarray, str]:
    """At most that many rows, each the mean of a block; and a sentence that says so."""
    block = -(-len(x) // most)
    if block == 1:
        return x, ""
    rows = [x[i : i + block].mean(0) for i in range(0, len(x), block)]
    return np.stack(rows), f"Each row pools {block} of {len(x)} along {axis}."


def _gate_ticks(depth: Number, bins: int) -> tuple[list[float], list[str]]:
    """Where familiar gates are, counted in columns, and their names."""
    end = depth - np.log10(2)
    powers = [p for p in (1, 2, 3, 4, 6, 8, 10, 12) if p < depth and (p != 3 or depth < 6)]
    low = {f"{10.0**-p:g}" if p < 4 else f"1e-{p}": two_sided([10.0**-p])[0] for p in powers}
    high = {
        f"{1 - 10.0**-p:g}" if p < 4 else f"1-1e-{p}": -two_sided([10.0**-p])[0] for p in powers
    }
    places = low | {"0.5": 0.0} | high
    at = [0.5 + bins + u / end * bins for u in places.values()]
    return [0.0, 2.0 * bins + 1, *at], ["= 0", "= 1", *places]


def _gate_axes(
    pooled: np.ndarray,
    rows: np.ndarray,
    depth: Number,
    bins: int,
    axis: str,
    n: int,
    name: str,
) -> Figure:
    """All gates as bars, and a row a head or channel under them."""
    several = n > 1
    tall = float(np.clip(0.13 * len(rows), 1.1, 2.6)) if several else 0
    fig, axes = plt.subplots(
        1 + several,
        1,
        figsize=(7.2, 2.6 + tall),
        layout="constrained",
        sharex=True,
        height_ratios=(1.6, tall) if several else None,
        squeeze=False,
    )
    top, low = axes[0, 0], axes[-1, 0]
    inks = [INK["state"], *[INK["decay"]] * (2 * bins), INK["state"]]
    top.bar(np.arange(len(pooled)), 100 * pooled, 1.0, color=inks, lw=0)
    top.set_yscale("symlog", linthresh=0.1, linscale=0.5)
    top.set_yticks([0, 0.1, 1, 10, 100], labels=["0", "0.1", "1", "10", "100"])
    top.minorticks_off()
    top.set(ylim=(0, 130), ylabel="share (%)")
    if several:
        heat(100 * rows, ax=low, kind="count", log=0.1, row_name=axis, col_name=name)
        low.set(aspect="auto", ylabel=f"{axis} ({n})")
        low.images[0].colorbar.set_label("share (%)", fontsize=8)
        low.yaxis.set_major_locator(MaxNLocator(integer=True))
        if len(rows) < n:  # a row is a block
            low.set_yticks([])
    for ax in axes[:, 0]:
        for x in (0.5, 2 * bins + 0.5):
            ax.axvline(x, color=INK["text"], lw=0.7)
    at, labels = _gate_ticks(depth, bins)
    low.set_xticks(at, labels=labels)
    low.set(xlim=(-0.5, 2 * bins + 1.5), xlabel=name)
    return fig
