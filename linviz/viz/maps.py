"""Attention maps drawn with their signs, how sparse they are, and what a decoder selects.

Each function takes a map [t, s], a stack of maps, a Trace, or name -> any of them; it measures with
linviz.viz.sparsity and draws. What stands above the diagonal is hatched, never drawn as 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

from linviz.mechanism import Trace
from linviz.viz.curves import lines
from linviz.viz.ink import INK, LINES
from linviz.viz.matrices import Array, Number, array, heat, limits, panels, thin, thin_steps
from linviz.viz.moving import MOST_ROWS, Lines, Points, Rows
from linviz.viz.picture import Picture
from linviz.viz.scrubber import Scrubber
from linviz.viz.sparsity import (
    MEASURES,
    best_recall,
    counts,
    effective_context,
    kept,
    kept_share,
    mass_recall,
    mean_over_readers,
    measured,
    negative_share,
    opened,
    page_mask,
    reach,
    reading_times,
    shares,
    top_k_mass,
)

# -------------------------------------------------------------------------- maps, ready to be drawn


class Map(NamedTuple):
    """Some rows of a map: their weights [t, s], their times [t]."""

    A: np.ndarray
    times: np.ndarray

    @property
    def future(self) -> np.ndarray:
        """[t, s], True where there is no token yet."""
        return np.arange(self.A.shape[1]) > self.times[:, None]


def open_map(
    x: Array | Trace, name: str, readers: Array | None, head: int, batch: int, most: int
) -> tuple[Map, int]:
    """Take one map, and of a long one some rows.

    Args:
        x: [t, s], or a Trace.
        name: the argument's name, for the message.
        readers: [t], the time of each row; of a trace, the rows wanted.
        head: of a trace, which head (or channel, where each has a map of its own).
        batch: of a trace, which sequence.
        most: at most that many rows.

    Returns:
        The map, 0 where there is no token yet; and how many rows there were.
    """
    if isinstance(x, Trace):
        T = x.sizes["T"]
        rows = np.arange(T) if readers is None else reading_times(readers, len(readers), T)
        letter = "H" if "H" in x.sizes else "D"
        for axis, size, at in (("head", x.sizes[letter], head), ("batch", x.sizes["B"], batch)):
            if not 0 <= at < size:
                raise ValueError(f"{axis}: wanted a number from 0 to {size - 1}, got {at}")
        times = rows[thin_steps(len(rows), most)]
        one = {"heads" if letter == "H" else "channels": [head]}
        A, total = x.attention_map(rows=times.tolist(), **one)[batch, 0], len(rows)
    else:
        A = opened(x, name)
        if A.ndim != 2:
            raise ValueError(f"{name}: wanted a map [t, s] or a Trace, got shape {list(A.shape)}")
        total = len(A)
        at = thin_steps(total, most)
        times, A = reading_times(readers, *A.shape)[at], A[at]
    A = array(A, name, "t s").astype(float)
    return Map(np.where(np.arange(A.shape[1]) > times[:, None], 0.0, A), times), total


def open_maps(
    x: Any, readers: Array | None, head: int, batch: int, most: int
) -> tuple[dict[str, Map], int, str]:
    """Take one or several maps of the same size, by name.

    Args:
        x: [t, s], [h, t, s], a Trace, or name -> [t, s] or Trace.
        readers: see `open_map`.
        head: see `open_map`.
        batch: see `open_map`.
        most: see `open_map`.

    Returns:
        Name -> map ("" for a map alone), how many rows there were, and what was left out.
    """
    if isinstance(x, Mapping) and not isinstance(x, Trace):
        given = {str(name): one for name, one in x.items()}
    elif not isinstance(x, Trace) and opened(x, "x").ndim == 3:
        given = {f"head {h}": one for h, one in enumerate(opened(x, "x"))}
    else:
        given = {"": x}
    if not given:
        raise ValueError("x: wanted one map or more, got none")
    maps, total = {}, 0
    for name, one in given.items():
        said = f"x[{name!r}]" if name else "x"
        maps[name], total = open_map(one, said, readers, head, batch, most)
    shapes = {name: list(m.A.shape) for name, m in maps.items()}
    if len({tuple(shape) for shape in shapes.values()}) > 1:
        raise ValueError(f"x: wanted maps of one size, got {shapes}")
    rows = len(next(iter(maps.values())).times)
    return maps, total, f"{rows} of {total} readers shown." if rows < total else ""


def clipped_vmax(x: Array, clip: Number = 99.5) -> float:
    """Choose where the colours end, so that a few huge weights do not bleach all others.

    Args:
        x: magnitudes of any shape; NaN and infinities do not count.
        clip: a percentile of those that are not 0.

    Returns:
        The percentile if the largest magnitude is more than twice that, else the largest (1.0 for
        nothing but zeros).
    """
    if not 0 < clip <= 100:
        raise ValueError(f"clip: wanted a percentile above 0 and at most 100, got {clip}")
    x = np.abs(np.asarray(x, float)).ravel()
    x = x[np.isfinite(x) & (x > 0)]
    if not x.size:
        return 1.0
    top, high = float(x.max()), float(np.percentile(x, clip))
    return high if top > 2 * high else top


def blocks(m: Map, most: int) -> tuple[np.ndarray, np.ndarray, int, str]:
    """Thin the columns of a map, see `thin`.

    Returns:
        [t, s], True where a block has no token yet, tokens in a block, and what was done.
    """
    x, note = thin(m.A, (len(m.A), most))
    block = -(-m.A.shape[1] // most)
    return x, block * np.arange(x.shape[1]) > m.times[:, None], block, note


def labels(m: Map, total: int, tokens: Sequence[str] | None) -> dict[str, Any]:
    """The labels that Rows takes: tokens, or times where rows or columns are left out."""
    T = m.A.shape[1]
    if tokens is not None and len(tokens) != T:
        raise ValueError(f"tokens: wanted {T} labels, one a token, got {len(tokens)}")
    names = [str(i) for i in range(T)] if tokens is None else list(tokens)
    whole = tokens is None and len(m.times) == T
    return {
        "rows": None if whole else [names[t] for t in m.times],
        "cols": None if tokens is None and T <= MOST_ROWS else names,
        "row_name": "reader t" if len(m.times) == total else f"reader t of {total}",
        "col_name": "token s",
    }


def percent(x: np.ndarray) -> str:
    """The mean of shares, as words."""
    mean = mean_over_readers(x)
    return "an unknown share" if np.isnan(mean) else f"{100 * mean:.3g} %"


# --------------------------------------------------------------------------------------- pictures

AVERAGED = 512  # rows over which a picture averages


def attention(
    x: Any,
    *,
    readers: Array | None = None,
    head: int = 0,
    batch: int = 0,
    tokens: Sequence[str] | None = None,
    normalize: bool = False,
    clip: Number = 99.5,
    log: bool | float = False,
    most: int = MOST_ROWS,
) -> Scrubber:
    """Draw effective attention with its signs, and what each reader takes from where.

    Weights below 0 are drawn in the other half of the scale, with 0 in its middle; above the
    diagonal there is no weight. One map comes with its row t as a curve.

    Args:
        x: a map [t, s], a stack [h, t, s], a Trace, or name -> map or Trace, all of one size.
        readers: [t], the time of each row; None for square maps.
        head: of a Trace, which head (or channel, where each has a map of its own).
        batch: of a Trace, which sequence.
        tokens: [T] labels.
        normalize: divide each row by its mass, so that maps in different units share a scale.
        clip: the percentile of magnitudes at which the colours end, see `clipped_vmax`.
        log: a logarithmic scale, linear below this number; True chooses it.
        most: at most that many rows; of longer maps some are left out, with a note.

    Returns:
        A Scrubber over the readers.
    """
    maps, total, note = open_maps(x, readers, head, batch, most)
    maps = {name: normalized(m) for name, m in maps.items()} if normalize else maps
    first = next(iter(maps.values()))
    weights = np.concatenate([m.A[~m.future] for m in maps.values()])
    vmax, (kind, _, top) = clipped_vmax(weights, clip), limits(weights)
    options = labels(first, total, tokens) | {"kind": kind, "vmax": vmax, "log": log}
    unit = "share of |A|" if normalize else "weight"
    panels: list[Any] = [
        Rows(m.A, name or "Effective attention", mask=m.future, **options)
        for name, m in maps.items()
    ]
    if len(maps) == 1:
        panels.append(row_points(first, unit))
    panels += summary_lines(maps)
    negative = {name: percent(negative_share(m.A, readers=m.times)) for name, m in maps.items()}
    said = ", ".join(f"{part}{f' of {name}' * bool(name)}" for name, part in negative.items())
    ends = f" The colours end at {vmax:.3g}, percentile {clip:g} of |A| > 0." if top > vmax else ""
    return Scrubber(
        panels,
        alt=f"Effective attention, {len(first.times)} readers by {first.A.shape[1]} tokens; "
        f"{said} of the mass is below 0",
        caption=f"Row t: the {unit} with which reader t takes the value of token s; hatched: no "
        f"token yet. Below 0 lies {said} of the mass, on average over readers.{ends}",
        note=note,
        tokens=None if tokens is None else [tokens[t] for t in first.times],
        steps=first.times.tolist(),
    )


def normalized(m: Map) -> Map:
    """Divide each row by its mass; rows without shares become NaN."""
    p, dead = shares(m.A, m.times + 1)
    return Map(np.where(dead[:, None] & ~m.future, np.nan, p), m.times)


def row_points(m: Map, unit: str) -> Points:
    """Row t of a map as a curve over tokens."""
    x, empty, block, _ = blocks(m, MOST_ROWS)
    at = block * np.arange(x.shape[1])
    name = f"token s ({m.A.shape[1]})"
    y = np.where(empty, np.nan, x)
    return Points(at, y, "What reader t takes", xlabel=name, ylabel=unit, line=True)


def summary_lines(maps: Mapping[str, Map]) -> list[Lines]:
    """Curves over readers: of one map several measures, of several maps two, one curve a map."""
    if len(maps) > 1:
        return [
            Lines(
                {name: measured(key, m.A, m.times) for name, m in maps.items()},
                MEASURES[key].title,
                ylabel=MEASURES[key].unit,
            )
            for key in ("context", "negative")
        ]
    m = next(iter(maps.values()))
    found = {
        key: measured(key, m.A, m.times)
        for key in ("effective tokens", "context", "negative", "sink")
    }
    spans = {"effective tokens": found["effective tokens"], "90 % of the mass": found["context"]}
    parts = {"below 0": found["negative"], "on the first token": found["sink"]}
    return [
        Lines(spans, "How many tokens matter", ylabel="tokens"),
        Lines(parts, "Where the mass lies", ylabel="share of |A|", ends=(0, 1)),
    ]


def sparsity_measures(
    x: Any,
    *,
    measures: Sequence[str] = ("entropy", "gini", "hoyer", "context"),
    readers: Array | None = None,
    head: int = 0,
    batch: int = 0,
    tokens: Sequence[str] | None = None,
    most: int = MOST_ROWS,
) -> Scrubber:
    """Draw how sparse each row is, over time, for one or several maps, beside even weights.

    Args:
        x: a map [t, s], a stack [h, t, s], a Trace, or name -> map or Trace, all of one size.
        measures: names from MEASURES; a panel each.
        readers: [t], the time of each row; None for square maps.
        head: of a Trace, which head or channel.
        batch: of a Trace, which sequence.
        tokens: [T] labels.
        most: at most that many readers, evenly spread.

    Returns:
        A Scrubber over the readers.
    """
    if not measures:
        raise ValueError(f"measures: wanted some of {', '.join(MEASURES)}, got none")
    maps, _, note = open_maps(x, readers, head, batch, most)
    first = next(iter(maps.values()))
    T, times = first.A.shape[1], first.times
    if tokens is not None and len(tokens) != T:
        raise ValueError(f"tokens: wanted {T} labels, one a token, got {len(tokens)}")
    even = {"even weights": Map(np.ones_like(first.A), times)}
    named = {name or "this map": m for name, m in maps.items()} | even
    found = {
        key: {name: measured(key, m.A, m.times) for name, m in named.items()} for key in measures
    }
    means = "; ".join(
        f"{MEASURES[key].title}: "
        + ", ".join(f"{name} {mean_over_readers(y):.3g}" for name, y in curves.items())
        for key, curves in found.items()
    )
    return Scrubber(
        [
            Lines(curves, MEASURES[key].title, ylabel=MEASURES[key].unit)
            for key, curves in found.items()
        ],
        alt=f"Sparsity of attention over {len(times)} readers; means: {means}",
        caption="Each reader's row of |A|, divided by its sum. Even weights: the same weight on "
        "every token up to t.",
        note=note,
        tokens=None if tokens is None else [tokens[t] for t in times],
        steps=times.tolist(),
    )


def top_mass(
    x: Any,
    *,
    k: Array | None = None,
    after: int = 0,
    readers: Array | None = None,
    head: int = 0,
    batch: int = 0,
) -> Picture:
    """Draw which share of |A| the k largest weights of a row hold, on average over readers.

    Args:
        x: a map [t, s], a stack [h, t, s], a Trace, or name -> map or Trace, all of one size.
        k: [k], whole numbers above 0; None spreads them from 1 to T.
        after: leave out readers before this time, who see few tokens.
        readers: [t], the time of each row; None for square maps.
        head: of a Trace, which head or channel.
        batch: of a Trace, which sequence.

    Returns:
        A Picture, with the curve of even weights for comparison.
    """
    maps, _, note = open_maps(x, readers, head, batch, AVERAGED)
    first = next(iter(maps.values()))
    late, T = first.times >= after, first.A.shape[1]
    if not late.any():
        raise ValueError(f"after: no reader from time {after} on, the last is {first.times[-1]}")
    k = np.unique(np.geomspace(1, T, 64).round()) if k is None else k
    k = np.unique(counts(k, T))
    named = {name or "this map": m for name, m in maps.items()}
    series = {
        name: mean_over_readers(top_k_mass(m.A[late], k, readers=m.times[late]), 0)
        for name, m in named.items()
    }
    even = np.minimum(k / (first.times[late, None] + 1), 1).mean(0)
    at = [2**i for i in range(16) if k[0] <= 2**i <= k[-1]]
    at = at[:: 1 + len(at) // 9]

    def draw() -> Figure:
        fig, ax = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
        lines(series, x=k, ax=ax, log="x", xlabel=f"k largest weights of a row ({T} tokens)")
        ax.plot(k, even, ":", color=INK["text"], lw=1.2, label="even weights")
        ax.set(ylabel="share of the mass |A|", ylim=(0, 1.03))
        ax.set_xticks(at, labels=[str(i) for i in at])
        ax.minorticks_off()
        ax.legend(loc="lower right", fontsize="small")
        return fig

    some = [int(i) for i in (1, 8, 64) if i <= T]
    said = "; ".join(
        f"{name}: " + ", ".join(f"{np.interp(i, k, y):.2f} in {i}" for i in some)
        for name, y in series.items()
    )
    return Picture(
        draw,
        alt=f"Share of the attention mass in the k largest weights of a row. {said}",
        caption=f"Average over {int(late.sum())} readers, from time {first.times[late][0]} on.",
        note=note,
        vector=True,
    )


def head_summary(
    x: Any,
    *,
    measures: Sequence[str] = ("context", "negative"),
    readers: Array | None = None,
    batch: int = 0,
) -> Picture:
    """Draw measures of each head of each layer, averaged over readers, as heat maps.

    Args:
        x: a Trace, a stack [h, t, s] or [l, h, t, s], or layer -> [h, t, s] or Trace.
        measures: names from MEASURES; a panel each.
        readers: [t], the time of each row; None for square maps.
        batch: of a Trace, which sequence.

    Returns:
        A Picture; layers with fewer heads are hatched where they have none.
    """
    if not measures:
        raise ValueError(f"measures: wanted some of {', '.join(MEASURES)}, got none")
    if isinstance(x, Mapping) and not isinstance(x, Trace):
        layers = {str(name): one for name, one in x.items()}
    elif not isinstance(x, Trace) and opened(x, "x").ndim == 4:
        layers = {str(i): one for i, one in enumerate(opened(x, "x"))}
    else:
        layers = {"0": x}
    if not layers:
        raise ValueError("x: wanted one layer or more, got none")
    means: dict[str, list[np.ndarray]] = {key: [] for key in measures}
    notes = {}
    for name, one in layers.items():
        stack, times, note = open_stack(one, f"x[{name!r}]", readers, batch)
        notes[note] = None
        for key in measures:
            means[key].append(mean_over_readers(measured(key, stack, times)))
    wide = max(len(row) for row in means[measures[0]])
    grid = {
        MEASURES[key].title: np.array(
            [np.pad(row, (0, wide - len(row)), constant_values=np.nan) for row in rows]
        )
        for key, rows in means.items()
    }
    missing = [np.arange(wide) >= len(row) for row in means[measures[0]]]
    picture = panels(
        grid,
        share=False,
        columns=2,
        mask=np.array(missing),
        rows=[name.replace(" ", "\N{NO-BREAK SPACE}") for name in layers],
        row_name="layer",
        col_name="head h",
        caption="Averages over readers of the measures of each row of |A|.",
    )
    heat_maps = picture.draw
    picture.draw = lambda: write_numbers(heat_maps())
    picture.note = " ".join(note for note in notes if note)
    return picture


def write_numbers(fig: Figure) -> Figure:
    """Write into each cell of small heat maps what it holds, in the ink that stands out."""
    bright = lambda color: float(np.dot(to_rgb(color), (0.3, 0.6, 0.1)))
    for ax in (ax for ax in fig.axes if ax.images):
        x = ax.images[0].get_array()
        few = x.shape[1] <= 5 and len(x) <= 3 * x.shape[1]
        for i, j in np.argwhere(np.isfinite(x)) if few else ():
            cell = bright(ax.images[0].to_rgba(x[i, j])[:3])
            ink = max(INK["text"], INK["paper"], key=lambda ink: abs(bright(ink) - cell))
            ax.text(j, i, f"{x[i, j]:.3g}", ha="center", va="center", size=7.5, color=ink)
    return fig


def open_stack(x: Any, name: str, readers: Array | None, batch: int) -> tuple[Any, np.ndarray, str]:
    """Take all heads of a layer [h, t, s], some of its rows, their times, and what was left out."""
    if isinstance(x, Trace):
        T, B = x.sizes["T"], x.sizes["B"]
        if not 0 <= batch < B:
            raise ValueError(f"batch: wanted a number from 0 to {B - 1}, got {batch}")
        times = np.arange(T) if readers is None else reading_times(readers, len(readers), T)
        total, times = len(times), times[thin_steps(len(times), AVERAGED)]
        stack = x.attention_map(rows=times.tolist())[batch]
    else:
        x = opened(x, name)
        if x.ndim != 3:
            raise ValueError(f"{name}: wanted a stack [h, t, s], got shape {list(x.shape)}")
        total, at = x.shape[1], thin_steps(x.shape[1], AVERAGED)
        stack, times = x[:, at], reading_times(readers, *x.shape[1:])[at]
    few = len(times) < total
    return stack, times, f"Averages over {len(times)} of {total} readers." if few else ""


def context_length(
    x: Any,
    *,
    share: Number = 0.9,
    tolerance: Number = 0.01,
    readers: Array | None = None,
    head: int = 0,
    batch: int = 0,
    clip: Number = 99.5,
    most: int = MOST_ROWS,
) -> Picture:
    """Draw how far back each reader looks: two boundaries over the map, and as curves.

    Args:
        x: a map [t, s], a stack [h, t, s], a Trace, or name -> map or Trace, all of one size.
        share: of the mass, for `effective_context`.
        tolerance: of the largest weight, for `reach`.
        readers: [t], the time of each row; None for square maps.
        head: of a Trace, which head or channel.
        batch: of a Trace, which sequence.
        clip: the percentile of magnitudes at which the colours end, see `clipped_vmax`.
        most: at most that many rows and columns; longer maps are thinned, with a note.

    Returns:
        A Picture with one row a map, each on its own scale.
    """
    maps, total, note = open_maps(x, readers, head, batch, most)
    seen = {name: blocks(m, most) for name, m in maps.items()}
    spans = {
        name: {
            f"{100 * share:g} % of the mass": effective_context(m.A, share=share, readers=m.times),
            f"above {100 * tolerance:g} % of the largest": reach(
                m.A, tolerance=tolerance, readers=m.times
            ),
        }
        for name, m in maps.items()
    }
    ends = {name: clipped_vmax(m.A[~m.future], clip) for name, m in maps.items()}

    def draw() -> Figure:
        size = (7.2, 3.1 * len(maps))
        fig, axes = plt.subplots(len(maps), 2, figsize=size, layout="constrained", squeeze=False)
        for (left, right), (name, m) in zip(axes, maps.items(), strict=True):
            small, empty, block, _ = seen[name]
            heat(small, ax=left, vmax=ends[name], mask=empty)
            left.set(title=name, ylabel=f"reader t ({total})", xlabel=f"token s ({m.A.shape[1]})")
            number_axes(left, m.times, block)
            draw_spans(left, right, m.times, spans[name], block)
        return fig

    said = "; ".join(
        f"{name + ': ' * bool(name)}{what} within {y[-1]:g} tokens"
        for name, found in spans.items()
        for what, y in found.items()
    )
    notes = dict.fromkeys([note, *(done for *_, done in seen.values())])
    return Picture(
        draw,
        alt=f"How far back the last of {total} readers looks. {said}",
        caption="Fewest latest tokens that hold a share of the mass |A|, and the farthest token "
        "above a share of the row's largest weight; the reader itself is token number 1.",
        note=" ".join(x for x in notes if x),
    )


def number_axes(ax: Axes, times: np.ndarray, block: int) -> None:
    """Number the rows of a heat map by their times, and its columns by their first tokens."""
    for axis, numbers in ((ax.yaxis, times), (ax.xaxis, None)):
        cells = len(times) if numbers is not None else ax.images[0].get_array().shape[1]
        at = np.unique(np.linspace(0, cells - 1, 5).round().astype(int))
        axis.set_ticks(at, labels=[str(i * block if numbers is None else numbers[i]) for i in at])


def draw_spans(
    left: Axes, right: Axes, times: np.ndarray, spans: Mapping[str, np.ndarray], block: int
) -> None:
    """Draw how far back each reader looks: as a boundary over the map, and as curves beside it."""
    around = [Stroke(linewidth=4, foreground=INK["paper"]), Normal()]
    rows = np.arange(len(times))
    for (what, tokens), ink in zip(spans.items(), LINES, strict=False):
        first = (times + 1 - tokens) // block - 0.5  # the left edge of the farthest token's cell
        edge = left.vlines(first, rows - 0.5, rows + 0.5, color=ink, lw=2, label=what)
        edge.set_path_effects(around)
        right.plot(times, tokens, color=ink, lw=1.4, label=what)
    right.plot(times, times + 1, ":", color=INK["text"], lw=1.2, label="all tokens")
    right.set(xlabel="reader t", ylabel="tokens back")
    right.legend(fontsize="small")


def selection(
    keep: Any,
    *,
    page_size: int | None = None,
    length: int | None = None,
    readers: Array | None = None,
    attention: Array | Trace | None = None,
    head: int = 0,
    batch: int = 0,
    tokens: Sequence[str] | None = None,
    most: int = MOST_ROWS,
) -> Scrubber:
    """Draw which keys each decoding step keeps, and what share of the attention they hold.

    Args:
        keep: [t, s], True where key s is kept at step t; or, with page_size=, page numbers [t, p]
            or a list for each step, see `page_mask`.
        page_size: keys on a page.
        length: with pages, keys in all; None: as many as steps.
        readers: [t], the time of each step; None if there are as many steps as keys.
        attention: [t, s] or a Trace, the attention without selection, to measure the recall.
        head: of a Trace, which head or channel.
        batch: of a Trace, which sequence.
        tokens: [T] labels.
        most: at most that many steps; of more some are left out, with a note.

    Returns:
        A Scrubber over the decoding steps.
    """
    if page_size is not None:
        keep = page_mask(
            keep,
            page_size=page_size,
            length=len(keep) if length is None else length,
            readers=readers,
        )
    keep, times = kept(keep, readers)
    total, at = len(times), thin_steps(len(times), most)
    m = Map(keep[at].astype(float), times[at])
    options = labels(m, total, tokens) | {"mask": m.future, "col_name": "key s"}
    options["row_name"] = options["row_name"].replace("reader", "step")
    panels: list[Any] = [Rows(m.A, "Kept keys", kind="gate", **options)]
    curves = {"keys kept": kept_share(m.A, readers=m.times)}
    said = f"{percent(curves['keys kept'])} of the keys"
    if attention is not None:
        A = attention_of_steps(attention, m, at, keep.shape, head, batch)
        kind, *_ = limits(A)
        vmax = clipped_vmax(A)
        panels.append(Rows(A, "Attention to all keys", kind=kind, vmax=vmax, **options))
        curves["mass recalled"] = mass_recall(A, m.A, readers=m.times)
        curves["best for as many keys"] = best_recall(A, m.A, readers=m.times)
        said += f", which hold {percent(curves['mass recalled'])} of |A|"
    panels.append(Lines(curves, "What the selection holds", ylabel="share", ends=(0, 1)))
    pages = f" Pages of {page_size} keys." if page_size is not None else ""
    return Scrubber(
        panels,
        alt=f"Kept keys at {len(m.times)} decoding steps: {said}",
        caption=f"1: kept; 0: not kept; hatched: no key yet.{pages} On average over steps: {said}.",
        note=f"{len(m.times)} of {total} steps shown." if len(m.times) < total else "",
        tokens=None if tokens is None else [tokens[t] for t in m.times],
        steps=m.times.tolist(),
    )


def attention_of_steps(
    x: Array | Trace, m: Map, at: np.ndarray, shape: tuple[int, ...], head: int, batch: int
) -> np.ndarray:
    """Take the rows of a map that a selection shows; it must have the shape of the selection."""
    size = (shape[0], x.sizes["T"]) if isinstance(x, Trace) else tuple(opened(x, "attention").shape)
    if size != shape:
        wanted = f"wanted the shape of keep {list(shape)}, got {list(size)}"
        raise ValueError(f"attention: {wanted}")
    rows = x if isinstance(x, Trace) else opened(x, "attention")[at]
    return open_map(rows, "attention", m.times, head, batch, len(at))[0].A
