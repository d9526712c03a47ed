"""Activations: what runs through the channels, and which of them are extreme.

Each function takes x [t, d], layers name -> [t, d], or a Trace; it measures with
linviz.viz.magnitudes and draws. Where numbers are not finite, the picture says how many.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from linviz.mechanism import Trace
from linviz.viz.arguments import by_name, count_note, joined
from linviz.viz.ink import INK
from linviz.viz.magnitudes import (
    Layers,
    as_layers,
    channel_stats,
    clip_limit,
    finite,
    kurtosis,
    massive_positions,
    outlier_channels,
    rotate,
    same,
    token_norms,
    top_magnitudes,
    value_quantiles,
)
from linviz.viz.matrices import (
    AXES,
    Array,
    Number,
    array,
    frames,
    heat,
    limits,
    read,
    thin,
    ticks,
)
from linviz.viz.moving import Lines, Rows, count_by
from linviz.viz.picture import Picture
from linviz.viz.scrubber import Scrubber
from linviz.viz.traced import takes_models

MOST_COLUMNS = 512  # columns of a map: at book width each has a pixel; more are shown in blocks
MOST_LAYERS = 6  # maps in one picture; of more layers some are shown


# ------------------------------------------------------------------------------------ what came in

PARTS = {"q": "query", "k": "key", "v": "value", "o": "output", "g": "decay", "w": "decay"}


def take(x: Any, part: str | None, head: int, batch: int, name: str = "x") -> tuple[Layers, str]:
    """Layers by name, or that part of a trace (its output); and the name of their channel axis."""
    if not isinstance(x, Trace):
        named = dict(by_name(name, x))
        for key, y in named.items():
            if isinstance(y, Trace):
                (named[key],) = take(y, part, head, batch, name)[0].values()
        return as_layers(named, name), "channel d"
    part = part or x.mechanism.output.name
    picked = read(x, name, "t d", part=part, head=head, batch=batch)
    axis = x.letters(part).split()[-1]
    return {part: picked.astype(float)}, AXES.get(axis, f"channel {axis}")


def infinite(layers: Layers) -> str:
    """A sentence about numbers that are not finite, "" if all are."""
    bad = sum(int((~np.isfinite(x)).sum()) for x in layers.values())
    what = "number that is not finite is" if bad == 1 else "numbers that are not finite are"
    return f"{bad} {what} left out." * bool(bad)


def listed(items: Sequence[Any], most: int = 8) -> str:
    """The first items, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(str(x) for x in items[:most]) + more


def log_scale(ax: Axes, x: np.ndarray, axis: str = "y") -> None:
    """A logarithmic axis with plain numbers, if there is something to show on one."""
    seen = finite(x)
    seen = seen[seen > 0]
    if not seen.size:
        return
    getattr(ax, f"set_{axis}scale")("log", nonpositive="mask")
    one = getattr(ax, f"{axis}axis")
    one.set_major_locator(LogLocator(subs=(1,) if seen.max() > 30 * seen.min() else (1, 2, 5)))
    one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    one.set_minor_formatter(NullFormatter())


def choose_scale(layers: Layers, scale: str, percentile: Number) -> tuple[dict[str, Any], str]:
    """Options of a colour scale for all layers, and a sentence that says what it shows."""
    if scale not in SCALES:
        raise ValueError(f"scale: wanted one of {', '.join(SCALES)}, got {scale!r}")
    seen = np.abs(np.concatenate([finite(x) for x in layers.values()]))[:, None]
    if not seen.size:
        return {"vmax": 1.0}, ""
    top, cut = float(seen.max()) or 1.0, clip_limit(seen, percentile)
    if scale == "auto":
        scale = "clip" if top > 3 * cut else "linear"
    if scale == "clip" and cut < top:
        beyond = (seen > cut).mean()
        return {"vmax": cut}, (
            f"Colours end at {cut:.3g}, percentile {percentile:g} of the magnitudes; {beyond:.2%} "
            f"lie beyond, up to {top:.4g}."
        )
    if scale == "symlog":
        some = seen[seen > 0]
        linear = min(float(np.median(some)) if some.size else 1.0, top / 10)
        return {"vmax": top, "log": linear}, (
            f"Colours are linear below {linear:.2g} and logarithmic from there to {top:.4g}."
        )
    return {"vmax": top}, f"Colours are linear up to the largest magnitude, {top:.3g}."


def norm_lines(layers: Layers) -> Lines:
    """The norm of each token's vector, a line a layer."""
    norms = {name: token_norms(x) for name, x in layers.items()}
    seen = finite(np.concatenate(list(norms.values())))
    low, high = seen.min(initial=np.inf, where=seen > 0), seen.max(initial=0)
    return Lines(norms, "norm of each token", ylabel="norm", log=bool(high > 30 * low))


# ------------------------------------------------------------------------------- token by channel


SCALES = ("auto", "linear", "clip", "symlog")


@takes_models(every=True, part="x")
def activation_map(
    x: Array,
    *,
    part: str | None = None,
    head: int = 0,
    batch: int = 0,
    scale: str = "auto",
    percentile: Number = 99.5,
    tokens: Sequence[str] | None = None,
) -> Scrubber:
    """Draw activations token by channel, and the norm of each token.

    Args:
        x: [t, d]; name -> [t, d] or Trace for several layers with the same t, on one scale; or a
            Trace.
        part: of a trace, the entry to take; None takes the output.
        head: of a trace, which head.
        batch: of a trace, which sequence.
        scale: "linear"; "clip", which cuts the colours at a percentile of the magnitudes (the bar
            gets arrows); "symlog", logarithmic on both sides of 0; or "auto", which clips if the
            largest magnitude is more than 3 times that percentile.
        percentile: of the magnitudes, where the colours end.
        tokens: one label a step.

    Returns:
        A Scrubber: a `Rows` panel for each layer, and `Lines` of the norms.
    """
    taken, axis = take(x, part, head, batch)
    same("t", taken)
    options, said = choose_scale(taken, scale, percentile)
    shown = thin_layers(taken)
    kind = limits(np.concatenate([y.ravel() for y in shown.values()]))[0]
    maps = [
        Rows(y, name or "activations", kind=kind, col_name=axis, **options)
        for name, y in shown.items()
    ]
    T, d = next(iter(taken.values())).shape
    what = f"Activations of {len(taken)} layers" if len(taken) > 1 else "Activations"
    alt = f"{what}, time t ({T}) by {axis} ({d}), and the norm of each token. {said}"
    note = joined(count_note(len(shown), len(taken), "layers"), infinite(taken))
    return Scrubber([*maps, norm_lines(shown)], alt=alt, caption=said, note=note, tokens=tokens)


def thin_layers(layers: Layers) -> Layers:
    """At most MOST_LAYERS of them, first and last among them."""
    names = list(layers)
    return {names[i]: layers[names[i]] for i in frames(len(names), most=MOST_LAYERS)}


# -------------------------------------------------------------------------- q, k, v; two on a scale


@takes_models()
def qkv_stripes(
    q: Array,
    k: Array = None,
    v: Array = None,
    *,
    head: int = 0,
    batch: int = 0,
    rotary: str | None = "half",
    base: Number = 10000.0,
    tokens: Sequence[str] | None = None,
) -> Scrubber:
    """Draw queries, keys and values over time, and what rotary positions make of q and k.

    Args:
        q: [t, k]; or a Trace with q, k and v, whose k and v are then left out here.
        k: [t, k].
        v: [t, v].
        head: of a trace, which head.
        batch: of a trace, which sequence.
        rotary: how `rotate` pairs channels: "half" or "interleaved"; None leaves rotation out.
        base: see `rotate`.
        tokens: one label a step.

    Returns:
        A Scrubber of linked `Rows`: q beside q rotated, v, and k beside k rotated. q and k share
        one scale.
    """
    given = {"q": q, "k": k, "v": v}
    if isinstance(q, Trace):
        if k is not None or v is not None:
            raise ValueError("k, v: wanted None beside a trace, got arrays")
        q, k, v = (read(q, x, "t k", part=x, head=head, batch=batch) for x in given)
    elif k is None or v is None:
        raise ValueError("k, v: wanted [t, k] and [t, v] beside an array q, got None")
    q, k, v = (array(x, n, "t k").astype(float) for n, x in zip(given, (q, k, v), strict=True))
    if q.shape != k.shape or len(q) != len(v):
        wanted = "q [t, k], k [t, k], v [t, v] with one t and one k"
        raise ValueError(f"q, k, v: wanted {wanted}, got {q.shape}, {k.shape}, {v.shape}")
    stripes = {"q, queries": q, "k, keys": k}
    if rotary is not None:
        for name, x in (("q", q), ("k", k)):
            stripes[f"{name} rotated ({rotary})"] = rotate(x, base=base, layout=rotary)
    top = limits(np.concatenate(list(stripes.values())), "signed")[2]
    shared = {"kind": "signed", "vmax": top, "col_name": AXES["k"]}
    rows = [Rows(x, name, **shared) for name, x in stripes.items()]
    rows.insert(2, Rows(v, "v, values", kind="signed", col_name=AXES["v"]))
    if rotary is not None:  # each beside its rotation
        rows = [rows[i] for i in (0, 3, 2, 1, 4)]
    turned = (
        f" Rotated ({rotary}): channels {'i and i + K/2' if rotary == 'half' else '2i and 2i + 1'} "
        f"are a pair, which token t turns by the angle t {base:g}^(-2i/K), K = {q.shape[1]} "
        "(arXiv:2104.09864): the first pairs change fast, the last hardly."
    ) * (rotary is not None)
    caption = "Queries and keys share one scale, values have their own." + turned
    alt = f"Stripes of q, k and v over time t ({len(q)}). {caption}"
    note = infinite({"q": q, "k": k, "v": v})
    return Scrubber(rows, alt=alt, caption=caption, note=note, tokens=tokens)


@takes_models("a", "b", part="x")
def compare(
    a: Array,
    b: Array,
    *,
    names: Sequence[str] = ("a", "b"),
    part: str | None = None,
    head: int = 0,
    batch: int = 0,
    scale: str = "auto",
    percentile: Number = 99.5,
    tokens: Sequence[str] | None = None,
) -> Scrubber:
    """Draw two models or mechanisms on one scale, and their difference on its own.

    Args:
        a: [t, d], or a Trace.
        b: [t, d] of the same shape, or a Trace.
        names: what the two are called.
        part: of a trace, the entry to take; None takes the output.
        head: of a trace, which head.
        batch: of a trace, which sequence.
        scale: see `activation_map`.
        percentile: of the magnitudes, where the colours end.
        tokens: one label a step.

    Returns:
        A Scrubber of linked `Rows` (a and b on one scale, a - b on its own), and `Lines` of their
        norms.
    """
    if len(names) != 2 or names[0] == names[1]:
        raise ValueError(f"names: wanted two different names, got {list(names)}")
    a, b = (z if isinstance(z, Trace) else array(z, n, "t d") for n, z in (("a", a), ("b", b)))
    first, axis = take(a, part, head, batch, "a")
    second, _ = take(b, part, head, batch, "b")
    (x,), (y,) = first.values(), second.values()
    if x.shape != y.shape:
        shapes = f"{list(x.shape)} and {list(y.shape)}"
        raise ValueError(f"a, b: wanted one shape [t, d] for both, got {shapes}")
    with np.errstate(invalid="ignore"):
        apart = x - y
    layers, minus = {names[0]: x, names[1]: y}, f"{names[0]} − {names[1]}"
    options, said = choose_scale(layers, scale, percentile)
    own, _ = choose_scale({minus: apart}, scale, percentile)
    whole = np.linalg.norm(finite(y))
    relative = np.linalg.norm(finite(apart)) / whole if whole else np.nan
    caption = (
        f"Largest difference {np.abs(finite(apart)).max(initial=0):.3g}, norm of the difference "
        f"over the norm of {names[1]} {relative:.3g}. Of the two: {said[:1].lower()}{said[1:]}"
    )
    shown = {"kind": "signed", "col_name": axis}
    maps = [Rows(z, name, **shown, **options) for name, z in layers.items()]
    maps.append(Rows(apart, f"{minus} (own scale)", **shown, **own))
    layers[minus] = apart
    alt = f"{names[0]} and {names[1]}, time t ({len(x)}) by channel, and the difference. {caption}"
    note = infinite({names[0]: x, names[1]: y})
    return Scrubber([*maps, norm_lines(layers)], alt=alt, caption=caption, note=note, tokens=tokens)


# ---------------------------------------------------------------------- magnitudes of the channels


@takes_models(every=True, part="x")
def channel_magnitude(
    x: Array,
    *,
    part: str | None = None,
    head: int = 0,
    batch: int = 0,
    order: str = "size",
    magnitude: Number = 6.0,
    layers: Number = 0.25,
    positions: Number = 0.06,
) -> Picture:
    """Draw how large each channel is, and mark the outlier channels.

    One layer gives the median, the 99th percentile and the maximum over time, as curves; several
    give the maximum of each layer and channel, as a heat map.

    Args:
        x: [t, d]; name -> [t, d] or Trace for several layers; or a Trace.
        part: of a trace, the entry to take; None takes the output.
        head: of a trace, which head.
        batch: of a trace, which sequence.
        order: of the channels of one layer: "size" (by falling maximum) or "channel".
        magnitude: see `outlier_channels`.
        layers: see `outlier_channels`.
        positions: see `outlier_channels`.

    Returns:
        A Picture.
    """
    if order not in ("size", "channel"):
        raise ValueError(f"order: wanted 'size' or 'channel', got {order!r}")
    taken, axis = take(x, part, head, batch)
    same("d", taken)
    found = outlier_channels(taken, magnitude=magnitude, layers=layers, positions=positions)
    stats = {name: channel_stats(y) for name, y in taken.items()}
    rule = f"a magnitude of {magnitude:g} or more at {positions:.3g} of the positions"
    if len(taken) > 1:
        rule += f" and in {layers:.3g} of the layers"
    caption = f"Outlier channels: {listed(found.tolist()) or 'none'}."
    if len(found) == 1:
        caption = f"One outlier channel: channel {found[0]}."
    caption += f" An outlier has {rule} (arXiv:2208.07339)."
    if len(taken) == 1:
        (one,) = stats.values()
        draw = partial(_channel_curves, one, found, order, axis, magnitude, len(*taken.values()))
        caption = f"Magnitudes of {len(one['max'])} channels over time. {caption}"
        return Picture(draw, alt=caption, caption=caption, note=infinite(taken))
    top = np.stack([one["max"] for one in stats.values()])
    shown, note = thin(top, (len(top), MOST_COLUMNS))
    block = -(-top.shape[1] // MOST_COLUMNS)
    draw = partial(_layer_map, shown, list(taken), found // block, axis, top.shape[1])
    caption = f"Largest magnitude over time, a row a layer, triangles over outliers. {caption}"
    return Picture(draw, alt=caption, caption=caption, note=joined(note, infinite(taken)))


def _channel_curves(
    stats: dict, found: np.ndarray, order: str, axis: str, magnitude: Number, T: int
) -> Figure:
    """Median, 99th percentile and maximum, a point a channel."""
    d = len(stats["max"])
    rank = np.argsort(-stats["max"], kind="stable") if order == "size" else np.arange(d)
    fig, ax = plt.subplots(figsize=(7.2, 3), layout="constrained")
    first = int(order == "size")  # ranks start at 1
    kinds = {"max": ("maximum", "state"), "p99": ("99th percentile", "key")}
    for key, (name, ink) in (kinds | {"median": ("median", "text")}).items():
        dots = {"marker": "o", "ms": 3} if d <= 64 else {}
        ax.plot(
            np.arange(first, d + first),
            stats[key][rank],
            color=INK[ink],
            lw=1.2,
            label=name,
            **dots,
        )
    log_scale(ax, stats["max"])
    ax.axhline(magnitude, color=INK["text"], lw=0.8, ls=":", label=f"magnitude {magnitude:g}")
    if found.size:
        at = np.flatnonzero(np.isin(rank, found))
        ax.plot(
            at + first,
            stats["max"][rank][at],
            ls="",
            marker="v",
            ms=6,
            color=INK["output"],
            label=f"outlier channel ({len(found)})",
        )
    if first and d > 64:  # the few large ones are what we look for
        log_scale(ax, np.array([1, d]), "x")
    by = f"{axis.replace('channel', 'channels')} ({d}), by falling maximum"
    ax.set(xlabel=by if first else f"{axis} ({d})", ylabel=f"magnitude over time t ({T})")
    fig.legend(loc="outside right upper", fontsize=8)
    return fig


def _layer_map(x: np.ndarray, names: list[str], at: np.ndarray, axis: str, d: int) -> Figure:
    """Layer by channel, with triangles over the outliers."""
    height = float(np.clip(0.25 * len(names) + 1.3, 2.2, 7))
    fig, ax = plt.subplots(figsize=(7.2, height), layout="constrained")
    seen = x[np.isfinite(x) & (x > 0)]
    log = min(float(np.median(seen)), float(seen.max()) / 10) if seen.size else False
    heat(x, ax=ax, kind="count", log=log, rows=names, row_name="layer", col_name=axis)
    ax.set(aspect="auto", xlabel=f"{axis} ({d})")
    count_by(ax.xaxis, range(0, d, -(-d // x.shape[1])))
    ax.images[0].colorbar.set_label("largest magnitude", fontsize=8)
    if at.size:
        ax.plot(
            np.unique(at),
            np.full(len(np.unique(at)), 1.02),
            ls="",
            marker="v",
            ms=5,
            color=INK["output"],
            transform=ax.get_xaxis_transform(),
            clip_on=False,
        )
    return fig


# ------------------------------------------------------------------------------ massive activations


@takes_models(every=True, part="x")
def massive_activations(
    x: Array,
    *,
    part: str | None = None,
    head: int = 0,
    batch: int = 0,
    magnitude: Number = 100.0,
    ratio: Number = 1000.0,
) -> Picture:
    """Draw the largest magnitudes against the median, and mark massive activations.

    One layer gives all magnitudes, sorted, both axes logarithmic; several give the three largest
    and the median of each layer.

    Args:
        x: [t, d]; name -> [t, d] or Trace for several layers; or a Trace.
        part: of a trace, the entry to take; None takes the output.
        head: of a trace, which head.
        batch: of a trace, which sequence.
        magnitude: see `massive_positions`.
        ratio: see `massive_positions`.

    Returns:
        A Picture.
    """
    taken, _ = take(x, part, head, batch)
    found = {
        name: massive_positions(y, magnitude=magnitude, ratio=ratio) for name, y in taken.items()
    }
    places = [
        f"{name}{' ' * bool(name)}({t}, {d}): {value:.4g}"
        for name, (at, values) in found.items()
        for (t, d), value in zip(at, values, strict=True)
    ]
    caption = (
        f"Massive needs both: above {magnitude:g}, and at least {ratio:g} times the median "
        f"(arXiv:2402.17762). Massive activations at (t, d): {listed(places) or 'none'}."
    )
    if len(taken) == 1:
        (y,) = taken.values()
        curve = _sorted_magnitudes(y)
        median = top_magnitudes(y)[1]
        count = len(next(iter(found.values()))[1])
        draw = partial(_sorted_curve, *curve, median, count, magnitude, ratio, y.shape)
    else:
        tops = {name: top_magnitudes(y) for name, y in taken.items()}
        draw = partial(_top_lines, tops, magnitude, ratio)
    return Picture(draw, alt=caption, caption=caption, note=infinite(taken))


def _sorted_magnitudes(x: np.ndarray, most: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Ranks, evenly over their logarithm, and the magnitudes there, falling."""
    size = np.sort(np.abs(finite(x)))[::-1]
    if not size.size:
        return np.empty(0, int), size
    rank = np.unique(np.geomspace(1, size.size, most).round().astype(int))
    return rank, size[rank - 1]


def _sorted_curve(
    rank: np.ndarray,
    size: np.ndarray,
    median: Number,
    count: int,
    magnitude: Number,
    ratio: Number,
    shape: tuple[int, int],
) -> Figure:
    """Magnitudes by rank, with both thresholds."""
    fig, ax = plt.subplots(figsize=(7.2, 3), layout="constrained")
    ax.plot(rank, size, color=INK["text"], lw=1.4, label="magnitudes, sorted")
    log_scale(ax, rank, "x")
    log_scale(ax, size)
    if median > 0:
        ax.set_ylim(bottom=median / 30)
    for name, y, ink, dash in (
        (f"{magnitude:g}", magnitude, "key", "--"),
        (f"{ratio:g} x median", ratio * median, "value", "-."),
        (f"median {median:.3g}", median, "query", ":"),
    ):
        if y > 0:
            ax.axhline(y, color=INK[ink], lw=1.3, ls=dash, label=name)
    if count:
        label = f"massive ({count})"
        seen = rank <= count
        ax.plot(rank[seen], size[seen], ls="", marker="o", ms=5, color=INK["state"], label=label)
    ax.set(
        xlabel=f"rank among t x d ({shape[0]} x {shape[1]})", ylabel="magnitude of an activation"
    )
    fig.legend(loc="outside right upper", fontsize=8)
    return fig


def _top_lines(tops: dict, magnitude: Number, ratio: Number) -> Figure:
    """The three largest and the median of each layer."""
    fig, ax = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
    at = np.arange(len(tops))
    median = np.array([m for _, m in tops.values()])
    bar = np.maximum(magnitude, ratio * median)
    for i, ink in enumerate(("state", "key", "value")):
        y = np.array([top[i] if len(top) > i else np.nan for top, _ in tops.values()])
        name = ("largest", "second", "third")[i]
        ax.plot(at, y, color=INK[ink], lw=1.4, marker="o", ms=3, mfc=INK["paper"], label=name)
        big = (y > magnitude) & (y >= ratio * median)
        if big.any():
            ax.plot(at[big], y[big], ls="", marker="o", ms=6, color=INK[ink])
    ax.plot(at, median, color=INK["query"], lw=1.4, ls=":", label="median")
    ax.plot(at, bar, color=INK["text"], lw=0.9, ls="--", label="massive above")
    log_scale(ax, np.concatenate([bar, median]))
    layer_ticks(ax, list(tops))
    ax.set_ylabel("magnitude of an activation")
    fig.legend(loc="outside right upper", fontsize=8)
    return fig


def symlog(ax: Axes, linear: Number, most: Number) -> None:
    """A vertical axis that is logarithmic on both sides of 0, with few plain numbers."""
    ax.set_yscale("symlog", linthresh=linear, linscale=0.7)
    first, last = np.ceil(np.log10(linear)), np.floor(np.log10(most))
    step = max(1, int(np.ceil((last - first + 1) / 4)))
    powers = 10.0 ** np.arange(last, first - 0.5, -step)
    at = np.sort([*-powers, 0.0, *powers])
    ax.set_yticks(at, labels=[f"{value:g}" for value in at])
    ax.minorticks_off()


def layer_ticks(ax: Axes, names: list[str], what: str = "layer") -> None:
    """Name the layers under the horizontal axis; long names lean."""
    at, labels = ticks(names, most=24)
    long = sum(len(x) for x in labels) > 70
    lean = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if long else {}
    ax.set_xticks(at, labels=labels, fontsize=8, **lean)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.set_xlabel(f"{what} ({len(names)})")


# ------------------------------------------------------------------------------------ distributions


@takes_models(every=True, part="x")
def distributions(
    layers: Any, *, parts: Sequence[str] | None = None, head: int = 0, batch: int = 0
) -> Picture:
    """Draw how the numbers of each layer are distributed, and how heavy their tails are.

    Bands hold the middle half and the middle 98 % of the numbers, a thin line all of them, on an
    axis that is logarithmic on both sides of 0; below stands the `kurtosis`.

    Args:
        layers: name -> [t, d] or Trace, each with its own d; one [t, d]; or a Trace.
        parts: of a trace, the entries to take; None takes its inputs that depend on time, and its
            output.
        head: of a trace, which head.
        batch: of a trace, which sequence.

    Returns:
        A Picture.
    """
    if isinstance(layers, Trace):
        taken = _parts(layers, parts, head, batch)
    else:
        taken, _ = take(layers, None, head, batch, "layers")
    bands = {name: value_quantiles(x) for name, x in taken.items()}
    tails = {name: kurtosis(x) for name, x in taken.items()}
    seen = np.abs(np.concatenate([finite(x) for x in taken.values()]))
    seen = seen[seen > 0]
    linear = float(np.median(seen)) if seen.size else 0.0
    if seen.max(initial=0) < 30 * linear:  # a plain axis can show it
        linear = 0.0
    scale = f"linear below {linear:.2g} and logarithmic above" if linear else "linear"
    caption = (
        "Inner band: the middle half of the numbers; outer band: 98 %; line: all. The axis is "
        f"{scale}. Kurtosis is 3 for a normal distribution." + heaviest(tails)
    )
    named = f"Distribution of the numbers of {listed([name or 'x' for name in taken])}. {caption}"
    what = "part" if isinstance(layers, Trace) else "layer"
    draw = partial(_bands, bands, tails, linear, what)
    return Picture(draw, alt=named, caption=caption, note=infinite(taken))


def heaviest(tails: dict[str, float]) -> str:
    """A sentence about the layer whose kurtosis is at least twice that of any other; or nothing."""
    known = sorted((k, name) for name, k in tails.items() if np.isfinite(k))
    if len(known) < 2 or known[-1][0] < 2 * known[-2][0]:
        return ""
    return f" Heaviest tails: {known[-1][1]} with {known[-1][0]:.3g}."


def _parts(tr: Trace, parts: Sequence[str] | None, head: int, batch: int) -> Layers:
    """Parts of a trace, each as [t, d] with whatever its channels are."""
    if parts is None:
        specs = (*tr.mechanism.inputs, tr.mechanism.output)
        parts = [x.name for x in specs if x.timed and not tr[x.name].is_complex()]
    taken = {}
    for part in parts:
        if part not in tr:
            raise ValueError(f"parts: wanted some of {', '.join(tr)}, got {part!r}")
        axes = [a for a in tr.letters(part).split() if a not in ("b", "h")]
        if "t" not in axes:
            raise ValueError(f"parts: wanted entries that depend on time, got {part!r}")
        y = read(tr, "layers", " ".join(axes), part=part, head=head, batch=batch).astype(float)
        taken[part] = y.reshape(len(y), -1)
    return taken


def _bands(bands: dict, tails: dict, linear: float, what: str) -> Figure:
    """Nested bands, a column a layer; under them the kurtosis."""
    fig, (top, low) = plt.subplots(
        2, 1, figsize=(7.2, 4.4), layout="constrained", sharex=True, height_ratios=(3, 1)
    )
    for i, (name, q) in enumerate(bands.items()):
        ink = INK[PARTS.get(name, "text")]
        top.plot([i, i], q[[0, -1]], color=ink, lw=0.9)
        top.bar(i, q[5] - q[1], 0.7, q[1], color=ink, alpha=0.35, lw=0)
        top.bar(i, q[4] - q[2], 0.7, q[2], color=ink, alpha=0.8, lw=0)
        top.plot([i - 0.35, i + 0.35], [q[3], q[3]], color=INK["paper"], lw=1.5)
    if linear:
        symlog(top, linear, max(np.abs(finite(q)).max(initial=0) for q in bands.values()))
    top.axhline(0, color=INK["hatch"], lw=0.7, zorder=0)
    top.set_ylabel("value")
    tail_values = np.array(list(tails.values()))
    known = np.isfinite(tail_values)
    low.plot(np.arange(len(tails)), tail_values, ls="", marker="o", ms=4, color=INK["text"])
    if tail_values.max(initial=1, where=known) > 10 * tail_values.min(initial=9, where=known):
        log_scale(low, tail_values)
    low.axhline(3, color=INK["hatch"], lw=0.9, ls="--", zorder=0)
    low.set_ylabel("kurtosis")
    layer_ticks(low, list(bands), what)
    return fig
