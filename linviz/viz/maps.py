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
from linviz.viz.arguments import (
    attention_rows,
    by_name,
    count_note,
    joined,
    labels_at,
    within,
)
from linviz.viz.curves import lines
from linviz.viz.ink import INK, LINES
from linviz.viz.magnitudes import clip_limit, finite, memory_limit
from linviz.viz.matrices import Array, Number, array, heat, limits, panels, thin, thin_steps
from linviz.viz.moving import MOST_ROWS, Lines, Points, Rows, count_by
from linviz.viz.picture import Picture
from linviz.viz.scrubber import Scrubber
from linviz.viz.sparsity import (
    MEASURES,
    best_recall,
    check_measures,
    counts,
    effective_context,
    effective_tokens,
    kept,
    kept_share,
    mass_recall,
    mean_over_readers,
    negative_share,
    opened,
    page_mask,
    reach,
    reading_times,
    shares,
    sink_share,
    top_k_mass,
)
from linviz.viz.traced import takes_models

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
        rows = times_of(x, readers)
        times = rows[thin_steps(len(rows), most)]
        A, total = attention_rows(x, head, batch, times), len(rows)
    else:
        A = opened(x, name)
        if A.ndim != 2:
            raise ValueError(f"{name}: wanted a map [t, s] or a Trace, got shape {list(A.shape)}")
        total = len(A)
        at = thin_steps(total, most)
        times, A = reading_times(readers, *A.shape)[at], A[at]
    A = array(A, name, "t s").astype(float)
    return Map(np.where(np.arange(A.shape[1]) > times[:, None], 0.0, A), times), total


def times_of(x: Trace, readers: Array | None) -> np.ndarray:
    """The times at which the rows wanted of a trace read."""
    T = x.sizes["T"]
    return reading_times(readers, T if readers is None else len(readers), T)


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
    if not isinstance(x, Mapping) and opened(x, "x").ndim == 3:
        x = {f"head {h}": one for h, one in enumerate(opened(x, "x"))}
    maps, total = {}, 0
    for name, one in by_name("x", x).items():
        said = f"x[{name!r}]" if name else "x"
        maps[name], total = open_map(one, said, readers, head, batch, most)
    shapes = {name: list(m.A.shape) for name, m in maps.items()}
    if len({tuple(shape) for shape in shapes.values()}) > 1:
        raise ValueError(f"x: wanted maps of one size, got {shapes}")
    rows = len(next(iter(maps.values())).times)
    return maps, total, count_note(rows, total, "readers")


def clipped_vmax(x: Array, percentile: Number = 99.5) -> float:
    """Choose where the colours end, so that a few huge weights do not bleach all others.

    Args:
        x: magnitudes of any shape; NaN and infinities do not count.
        percentile: of those that are not 0.

    Returns:
        The percentile if the largest magnitude is more than twice that, else the largest (1.0 for
        nothing but zeros).
    """
    x = finite(np.abs(np.asarray(x, float)))
    x = x[x > 0]
    if not x.size:
        return 1.0
    top, high = float(x.max()), clip_limit(x[:, None], percentile)
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
    names = labels_at("tokens", tokens, T) or [str(i) for i in range(T)]
    whole = tokens is None and len(m.times) == T
    return {
        "rows": None if whole else [names[t] for t in m.times],
        "cols": None if tokens is None and T <= MOST_ROWS else names,
        "row_name": "time t" if len(m.times) == total else f"time t of {total}",
        "col_name": "token s",
    }


def percent(x: np.ndarray) -> str:
    """The mean of shares, as words."""
    mean = mean_over_readers(x)
    return "an unknown share" if np.isnan(mean) else f"{100 * mean:.3g} %"


# --------------------------------------------------------------------------------------- pictures

MOST_MAPS = 8  # below one another
AVERAGED = 512  # rows over which a picture averages


@takes_models(brief=True, several=True)
def attention(
    x: Any,
    *,
    head: int = 0,
    batch: int = 0,
    readers: Array | None = None,
    normalize: bool = False,
    percentile: Number = 99.5,
    log: bool | Number = False,
    most: int = MOST_ROWS,
    tokens: Sequence[str] | None = None,
) -> Scrubber:
    """Draw effective attention with its signs, and what each reader takes from where.

    Weights below 0 are drawn in the other half of the scale, with 0 in its middle; above the
    diagonal there is no weight. One map comes with its row t as a curve.

    Args:
        x: a map [t, s], a stack [h, t, s], a Trace, or name -> map or Trace, all of one size.
        head: of a trace, which head (or channel, where each has an attention of its own).
        batch: of a trace, which sequence.
        readers: [t], the time of each row; None for square maps.
        normalize: divide each row by its mass, so that maps in different units share a scale.
        percentile: of the magnitudes, where the colours end, see `clipped_vmax`.
        log: a logarithmic scale, linear below this number; True chooses it.
        most: at most that many rows; of longer maps some are left out, with a note.
        tokens: one label a token.

    Returns:
        A Scrubber over the readers.
    """
    maps, total, note = open_maps(x, readers, head, batch, most)
    maps = {name: normalized(m) for name, m in maps.items()} if normalize else maps
    first = next(iter(maps.values()))
    weights = np.concatenate([m.A[~m.future] for m in maps.values()])
    vmax, (kind, _, top) = clipped_vmax(weights, percentile), limits(weights)
    cuts = [memory_limit(m.A, m.times) for m in maps.values()]
    skipped = all(cut is not None for cut in cuts)
    vmax = min(vmax, max(cuts)) if skipped else vmax
    options = labels(first, total, tokens) | {"kind": kind, "vmax": vmax, "log": log}
    unit = "share of |A|" if normalize else "weight"
    shown: list[Any] = [
        Rows(m.A, name or "effective attention", mask=m.future, **options)
        for name, m in maps.items()
    ]
    if len(maps) > 1:
        shown += measure_lines(maps, ("context", "negative"))
    else:
        shown += [row_points(first, unit), *own_lines(first)]
    negative = {name: percent(negative_share(m.A, readers=m.times)) for name, m in maps.items()}
    said = ", ".join(f"{part}{f' of {name}' * bool(name)}" for name, part in negative.items())
    rule = f"percentile {percentile:g} of |A| > 0"
    if skipped:
        rule = f"so that the memory is seen beside the diagonal, which goes up to {top:.3g}"
    ends = f" The colours end at {vmax:.3g}, {rule}."
    return Scrubber(
        shown,
        alt=f"Effective attention, {len(first.times)} readers by {first.A.shape[1]} tokens; "
        f"{said} of the mass is below 0",
        caption=f"Row t: the {unit} with which reader t takes the value of token s; hatched: no "
        f"token yet. Below 0 lies {said} of the mass, on average over readers."
        + ends
        * (top > vmax),
        note=note,
        tokens=labels_at("tokens", tokens, first.A.shape[1], first.times),
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
    return Points(at, y, "what time t takes", xlabel=name, ylabel=unit, line=True)


def own_lines(m: Map) -> list[Lines]:
    """Several measures of one map over its readers."""
    at = {"readers": m.times}
    spans = {
        "effective tokens": effective_tokens(m.A, **at),
        "90 % lies within the last … tokens": effective_context(m.A, **at),
    }
    parts = {"below 0": negative_share(m.A, **at), "on the first token": sink_share(m.A, **at)}
    return [
        Lines(spans, "how many tokens matter", ylabel="tokens"),
        Lines(parts, "where the mass lies", ylabel="share of |A|", ends=(0, 1)),
    ]


def measure_lines(maps: Mapping[str, Map], measures: Sequence[str]) -> list[Lines]:
    """A panel a measure, a curve a map."""
    return [
        Lines(
            {name: measure.of(m.A, readers=m.times) for name, m in maps.items()},
            measure.title,
            ylabel=measure.unit,
        )
        for measure in map(MEASURES.get, measures)
    ]


@takes_models(brief=True, every=True)
def sparsity_measures(
    x: Any,
    *,
    head: int = 0,
    batch: int = 0,
    readers: Array | None = None,
    measures: Sequence[str] = ("entropy", "gini", "hoyer", "context"),
    most: int = MOST_ROWS,
    tokens: Sequence[str] | None = None,
) -> Scrubber:
    """Draw how sparse each row is, over time, for one or several maps, beside even weights.

    Args:
        x: a map [t, s], a stack [h, t, s], a Trace, or name -> map or Trace, all of one size.
        head: of a trace, which head (or channel, where each has an attention of its own).
        batch: of a trace, which sequence.
        readers: [t], the time of each row; None for square maps.
        measures: names from MEASURES; a panel each.
        most: at most that many readers, evenly spread.
        tokens: one label a token.

    Returns:
        A Scrubber over the readers.
    """
    check_measures(measures)
    maps, _, note = open_maps(x, readers, head, batch, most)
    first = next(iter(maps.values()))
    T, times = first.A.shape[1], first.times
    even = {"even weights": Map(np.ones_like(first.A), times)}
    named = {name or "this map": m for name, m in maps.items()} | even
    shown = measure_lines(named, measures)
    means = "; ".join(
        f"{panel.title}: "
        + ", ".join(f"{name} {mean_over_readers(y):.3g}" for name, y in panel.series.items())
        for panel in shown
    )
    return Scrubber(
        shown,
        alt=f"Sparsity of attention over {len(times)} readers; means: {means}",
        caption="Each reader's row of |A|, divided by its sum. Even weights: the same weight on "
        "every token up to t.",
        note=note,
        tokens=labels_at("tokens", tokens, T, times),
        steps=times.tolist(),
    )


@takes_models(brief=True, every=True)
def top_mass(
    x: Any,
    *,
    head: int = 0,
    batch: int = 0,
    readers: Array | None = None,
    k: Array | None = None,
    after: int = 0,
) -> Picture:
    """Draw which share of |A| the k largest weights of a row hold, on average over readers.

    Args:
        x: a map [t, s], a stack [h, t, s], a Trace, or name -> map or Trace, all of one size.
        head: of a trace, which head (or channel, where each has an attention of its own).
        batch: of a trace, which sequence.
        readers: [t], the time of each row; None for square maps.
        k: [k], whole numbers above 0; None spreads them from 1 to T.
        after: leave out readers before this time, who see few tokens.

    Returns:
        A Picture, with the curve of even weights for comparison.
    """
    maps, _, note = open_maps(x, readers, head, batch, AVERAGED)
    first = next(iter(maps.values()))
    late, T = first.times >= after, first.A.shape[1]
    if not late.any():
        raise ValueError(f"after: wanted {first.times[-1]} at most, got {after}")
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
        fig, ax = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
        lines(series, x=k, ax=ax, log="x", xlabel=f"k largest weights of a row ({T} tokens)")
        ax.plot(k, even, ":", color=INK["text"], lw=1.2, label="even weights")
        ax.set(ylabel="share of the mass |A|", ylim=(0, 1.03))
        ax.set_xticks(at, labels=[str(i) for i in at])
        ax.minorticks_off()
        high = lambda line: -float(np.nanmean(line.get_ydata()))  # the legend in the curves' order
        fig.legend(handles=sorted(ax.lines, key=high), loc="outside right center", fontsize="small")
        return fig

    some = [i for i in (np.searchsorted(k, near) for near in (1, 8, 64)) if i < len(k)]
    said = "; ".join(
        f"{name}: " + ", ".join(f"{y[i]:.2f} in {k[i]}" for i in dict.fromkeys(some))
        for name, y in series.items()
    )
    return Picture(
        draw,
        alt=f"Share of the attention mass in the k largest weights of a row. {said}",
        caption=f"Average over {int(late.sum())} readers, from time {first.times[late][0]} on. "
        "A curve that is high at the left needs few tokens; the legend names them from the top.",
        note=note,
        vector=True,
    )


@takes_models(brief=True, every=True)
def head_summary(
    x: Any,
    *,
    batch: int = 0,
    readers: Array | None = None,
    measures: Sequence[str] = ("context", "negative"),
    row_name: str | None = None,
) -> Picture:
    """Draw measures of each head of each layer, averaged over readers, as heat maps.

    Args:
        x: a Trace, a stack [h, t, s] or [l, h, t, s], or layer -> [h, t, s] or Trace.
        batch: of a trace, which sequence.
        readers: [t], the time of each row; None for square maps.
        measures: names from MEASURES; a panel each.
        row_name: what a row is; None says "layer" of stacks, "mechanism" of traces, else "map".

    Returns:
        A Picture; layers with fewer heads are hatched where they have none.
    """
    check_measures(measures)
    if not isinstance(x, Mapping) and opened(x, "x").ndim == 4:
        x = {str(i): one for i, one in enumerate(opened(x, "x"))}
        row_name = row_name or "layer"
    layers = by_name("x", x, x.mechanism.name if isinstance(x, Trace) else "0")
    traced = all(isinstance(one, Trace) for one in layers.values())
    row_name = row_name or ("mechanism" if traced else "map")
    stacks = [open_stack(one, f"x[{name!r}]", readers, batch) for name, one in layers.items()]
    sizes = [len(stack) for stack, _, _ in stacks]
    grid = {}
    for measure in map(MEASURES.get, measures):
        means = np.full((len(layers), max(sizes)), np.nan)
        for row, (stack, times, _) in zip(means, stacks, strict=True):
            row[: len(stack)] = mean_over_readers(measure.of(stack, readers=times))
        grid[measure.title] = means
    picture = panels(
        grid,
        share=False,
        columns=2,
        mask=np.arange(max(sizes)) >= np.array(sizes)[:, None],
        rows=[name.replace(" ", "\N{NO-BREAK SPACE}") for name in layers],
        row_name=row_name,
        col_name="head h",
        caption="Averages over readers of the measures of each row of |A|.",
    )
    heat_maps = picture.draw
    units = [MEASURES[measure].unit for measure in measures]
    picture.draw = lambda: name_bars(write_numbers(heat_maps()), units)
    picture.note = joined(*(note for *_, note in stacks))
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


def name_bars(fig: Figure, units: Sequence[str]) -> Figure:
    """Write beside each heat map's bar what it counts, and number its columns by whole numbers."""
    drawn = [ax for ax in fig.axes if ax.images]
    for ax, unit in zip(drawn, units, strict=True):
        ax.images[0].colorbar.set_label(unit, fontsize=8, labelpad=-14)
        count_by(ax.xaxis, range(ax.images[0].get_array().shape[1]))
    return fig


def open_stack(x: Any, name: str, readers: Array | None, batch: int) -> tuple[Any, np.ndarray, str]:
    """Take all heads of a layer [h, t, s], some of its rows, their times, and what was left out."""
    if isinstance(x, Trace):
        batch, times = within("batch", batch, x.sizes["B"]), times_of(x, readers)
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


@takes_models(brief=True, several=True)
def context_length(
    x: Any,
    *,
    head: int = 0,
    batch: int = 0,
    readers: Array | None = None,
    share: Number = 0.9,
    tolerance: Number = 0.01,
    percentile: Number = 99.5,
    most: int = MOST_ROWS,
) -> Scrubber:
    """Draw how far back each reader looks: two boundaries over the map, and as curves.

    Args:
        x: a map [t, s], a stack [h, t, s], a Trace, or name -> map or Trace, all of one size.
        head: of a trace, which head (or channel, where each has an attention of its own).
        batch: of a trace, which sequence.
        readers: [t], the time of each row; None for square maps.
        share: of the mass, for `effective_context`.
        tolerance: of the largest weight, for `reach`.
        percentile: of the magnitudes, where the colours end, see `clipped_vmax`.
        most: at most that many rows and columns; longer maps are thinned, with a note.

    Returns:
        A Scrubber over the readers, each map on its own scale.
    """
    maps, total, note = open_maps(x, readers, head, batch, most)
    note = joined(note, count_note(min(MOST_MAPS, len(maps)), len(maps), "maps"))
    maps = dict(list(maps.items())[:MOST_MAPS])
    seen = {name: blocks(m, most) for name, m in maps.items()}
    spans = {
        name: {
            f"{100 * share:g} % lies within the last …": effective_context(
                m.A, share=share, readers=m.times
            ),
            f"above {100 * tolerance:g} % of the largest: the last …": reach(
                m.A, tolerance=tolerance, readers=m.times
            ),
        }
        for name, m in maps.items()
    }
    ends = {name: clipped_vmax(m.A[~m.future], percentile) for name, m in maps.items()}

    def draw() -> Figure:
        size = (7.2, 3.1 * len(maps))
        fig, axes = plt.subplots(len(maps), 2, figsize=size, layout="constrained", squeeze=False)
        for (left, right), (name, m) in zip(axes, maps.items(), strict=True):
            small, empty, block, _ = seen[name]
            heat(small, ax=left, vmax=ends[name], mask=empty)
            left.set(title=name, ylabel=f"time t ({total})", xlabel=f"token s ({m.A.shape[1]})")
            count_by(left.yaxis, m.times.tolist())
            count_by(left.xaxis, range(0, m.A.shape[1], block))
            draw_spans(left, right, m.times, spans[name], block)
        return fig

    said = "; ".join(
        f"{name + ': ' * bool(name)}{what.replace('…', f'{y[-1]:g} tokens')}"
        for name, found in spans.items()
        for what, y in found.items()
    )
    shown: list[Any] = []
    for name, m in maps.items():
        rows = Rows(
            m.A,
            name or "effective attention",
            mask=m.future,
            vmax=ends[name],
            **labels(m, total, None),
        )
        rows.edges = {what: m.times + 1 - back for what, back in spans[name].items()}
        every = {"all tokens": m.times + 1.0}
        shown += [rows, Lines(spans[name] | every, "how far back", ylabel="tokens back")]
    made = Scrubber(
        shown,
        alt=f"How far back the last of {total} readers looks. {said}",
        caption=f"How many of the latest tokens hold {100 * share:g} % of a row's |A|, and how far "
        f"back a weight passes {100 * tolerance:g} % of the row's largest; the reader itself is "
        "token 1. The lines over the map have the inks of the curves.",
        note=joined(note, *(done for *_, done in seen.values())),
        steps=next(iter(maps.values())).times.tolist(),
    )
    made.draw = draw  # the still picture: one map a line
    return made


def draw_spans(
    left: Axes, right: Axes, times: np.ndarray, spans: Mapping[str, np.ndarray], block: int
) -> None:
    """Draw how far back each reader looks: as a boundary over the map, and as curves beside it."""
    around = [Stroke(linewidth=5, foreground=INK["paper"]), Normal()]
    rows = np.arange(len(times))
    for (what, tokens), ink in zip(spans.items(), (LINES[0], INK["state"]), strict=True):
        first = (times + 1 - tokens) // block - 0.5  # the left edge of the farthest token's cell
        ends = np.stack([rows - 0.5, rows + 0.5], 1).ravel()
        (edge,) = left.plot(np.repeat(first, 2), ends, color=ink, lw=2, label=what)
        edge.set(path_effects=around, clip_on=False)
        right.plot(times, tokens, color=ink, lw=1.4, label=what)
    right.plot(times, times + 1, ":", color=INK["text"], lw=1.2, label="all tokens")
    right.set(xlabel=f"time t ({times[-1] + 1})", ylabel="tokens back")
    right.legend(fontsize="small")


@takes_models("attention", brief=True)
def selection(
    keep: Any,
    *,
    page_size: int | None = None,
    length: int | None = None,
    readers: Array | None = None,
    attention: Array | Trace | None = None,
    head: int = 0,
    batch: int = 0,
    most: int = MOST_ROWS,
    tokens: Sequence[str] | None = None,
) -> Scrubber:
    """Draw which keys each decoding step keeps, and what share of the attention they hold.

    Args:
        keep: [t, s], True where key s is kept at step t; or, with page_size=, page numbers [t, p]
            or a list for each step, see `page_mask`.
        page_size: keys on a page.
        length: with pages, keys in all; None: as many as steps.
        readers: [t], the time of each step; None if there are as many steps as keys.
        attention: [t, s] or a Trace, the attention without selection, to measure the recall.
        head: of a trace, which head (or channel, where each has an attention of its own).
        batch: of a trace, which sequence.
        most: at most that many steps; of more some are left out, with a note.
        tokens: one label a token.

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
    options = labels(m, total, tokens) | {"mask": m.future}
    shown: list[Any] = [Rows(m.A, "kept keys", kind="gate", **options)]
    equal = ""
    curves = {"keys kept": kept_share(m.A, readers=m.times)}
    said = f"{percent(curves['keys kept'])} of the keys"
    if attention is not None:
        A = attention_of_steps(attention, m, at, keep.shape, head, batch)
        scale = {"kind": limits(A)[0], "vmax": clipped_vmax(A)}
        shown.append(Rows(A, "attention to all keys", **scale, **options))
        curves["mass recalled"] = mass_recall(A, m.A, readers=m.times)
        curves["best for as many keys"] = best_recall(A, m.A, readers=m.times)
        said += f", which hold {percent(curves['mass recalled'])} of |A|"
        best = np.isclose(curves["mass recalled"], curves["best for as many keys"]).sum()
        equal = f" No other keys would hold more at {best} of {len(at)} steps." * bool(best)
    shown.append(Lines(curves, "what the selection holds", ylabel="share", ends=(0, 1)))
    pages = f" Pages of {page_size} keys." if page_size is not None else ""
    return Scrubber(
        shown,
        alt=f"Kept keys at {len(m.times)} decoding steps: {said}",
        caption=f"1: kept; 0: not kept; hatched: no key yet.{pages} On average over steps: {said}."
        + equal,
        note=count_note(len(m.times), total, "steps"),
        tokens=labels_at("tokens", tokens, m.A.shape[1], m.times),
        steps=m.times.tolist(),
    )


def attention_of_steps(
    x: Array | Trace, m: Map, at: np.ndarray, shape: tuple[int, ...], head: int, batch: int
) -> np.ndarray:
    """Take the rows of a map that a selection shows; it must have the shape of the selection."""
    x = x if isinstance(x, Trace) else opened(x, "attention")
    size = (shape[0], x.sizes["T"]) if isinstance(x, Trace) else tuple(x.shape)
    if size != shape:
        raise ValueError(f"attention: wanted the shape of keep {list(shape)}, got {list(size)}")
    rows = x if isinstance(x, Trace) else x[at]
    return open_map(rows, "attention", m.times, head, batch, len(at))[0].A
